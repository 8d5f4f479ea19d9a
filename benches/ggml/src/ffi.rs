//! The part of ggml's C interface (`ggml.h`, `ggml-backend.h`, `ggml-cpu.h`) that a product needs.

use std::ffi::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($name:ident)*) => {
        $(
            #[repr(C)]
            pub(crate) struct $name {
                _opaque: [u8; 0],
            }
        )*
    };
}

opaque!(Context Tensor Graph Backend Buffer BufferType Registry Device);

#[repr(C)]
pub(crate) struct InitParams {
    pub(crate) mem_size: usize,
    pub(crate) mem_buffer: *mut c_void,
    pub(crate) no_alloc: bool,
}

/// What a registry's `ggml_backend_get_features` gives, up to one without a name.
#[repr(C)]
pub(crate) struct Feature {
    pub(crate) name: *const c_char,
    pub(crate) value: *const c_char,
}

pub(crate) type GetFeatures = unsafe extern "C" fn(*mut Registry) -> *const Feature;
/// `ggml_backend_dev_get_extra_bufts`: up to a null.
pub(crate) type GetExtraBufts = unsafe extern "C" fn(*mut Device) -> *const *mut BufferType;

/// Level, text, and what came with the function.
pub(crate) type Log = unsafe extern "C" fn(c_int, *const c_char, *mut c_void);

/// `GGML_STATUS_SUCCESS`.
pub(crate) const SUCCESS: c_int = 0;
/// `GGML_LOG_LEVEL_WARN` and `GGML_LOG_LEVEL_ERROR`.
pub(crate) const TROUBLE: std::ops::RangeInclusive<c_int> = 3..=4;
/// `GGML_BACKEND_BUFFER_USAGE_WEIGHTS`.
pub(crate) const WEIGHTS: c_int = 1;

// SAFETY: these are the declarations in the headers of the version that build.rs builds. Enumerations are ints there.
unsafe extern "C" {
    pub(crate) fn ggml_version() -> *const c_char;
    pub(crate) fn ggml_log_set(log: Log, data: *mut c_void);
    pub(crate) fn ggml_init(params: InitParams) -> *mut Context;
    pub(crate) fn ggml_free(ctx: *mut Context);
    pub(crate) fn ggml_tensor_overhead() -> usize;
    pub(crate) fn ggml_graph_overhead_custom(size: usize, grads: bool) -> usize;
    pub(crate) fn ggml_new_tensor_2d(ctx: *mut Context, ty: c_int, ne0: i64, ne1: i64) -> *mut Tensor;
    pub(crate) fn ggml_nbytes(tensor: *const Tensor) -> usize;
    pub(crate) fn ggml_mul_mat(ctx: *mut Context, a: *mut Tensor, b: *mut Tensor) -> *mut Tensor;
    pub(crate) fn ggml_new_graph_custom(ctx: *mut Context, size: usize, grads: bool) -> *mut Graph;
    pub(crate) fn ggml_build_forward_expand(graph: *mut Graph, tensor: *mut Tensor);

    pub(crate) fn ggml_backend_cpu_reg() -> *mut Registry;
    pub(crate) fn ggml_backend_cpu_init() -> *mut Backend;
    pub(crate) fn ggml_backend_cpu_set_n_threads(backend: *mut Backend, n: c_int);
    pub(crate) fn ggml_backend_cpu_buffer_type() -> *mut BufferType;
    pub(crate) fn ggml_backend_free(backend: *mut Backend);
    pub(crate) fn ggml_backend_graph_compute(backend: *mut Backend, graph: *mut Graph) -> c_int;
    pub(crate) fn ggml_backend_reg_dev_get(reg: *mut Registry, index: usize) -> *mut Device;
    pub(crate) fn ggml_backend_reg_get_proc_address(reg: *mut Registry, name: *const c_char) -> *mut c_void;
    pub(crate) fn ggml_backend_dev_supports_op(dev: *mut Device, op: *const Tensor) -> bool;

    pub(crate) fn ggml_backend_buft_name(ty: *mut BufferType) -> *const c_char;
    pub(crate) fn ggml_backend_buft_get_alignment(ty: *mut BufferType) -> usize;
    pub(crate) fn ggml_backend_buft_get_alloc_size(ty: *mut BufferType, tensor: *const Tensor) -> usize;
    pub(crate) fn ggml_backend_buft_alloc_buffer(ty: *mut BufferType, size: usize) -> *mut Buffer;
    pub(crate) fn ggml_backend_buffer_free(buffer: *mut Buffer);
    pub(crate) fn ggml_backend_buffer_get_base(buffer: *mut Buffer) -> *mut c_void;
    pub(crate) fn ggml_backend_buffer_set_usage(buffer: *mut Buffer, usage: c_int);
    pub(crate) fn ggml_backend_tensor_alloc(buffer: *mut Buffer, tensor: *mut Tensor, at: *mut c_void) -> c_int;
    pub(crate) fn ggml_backend_tensor_set(tensor: *mut Tensor, data: *const c_void, offset: usize, size: usize);
    pub(crate) fn ggml_backend_tensor_get(tensor: *const Tensor, data: *mut c_void, offset: usize, size: usize);
}
