//! The side of ggml: graphs of matrix products on its CPU backend, on one thread.

use crate::ffi;
use crate::task::{COLUMNS, MOST, Racer, Result, Task};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

/// Places for weights that the CPU backend has: plain memory, and those that rearrange them for its fastest kernels.
#[derive(Clone, Copy)]
pub(crate) struct Place(NonNull<ffi::BufferType>);

impl Place {
    /// All of them.
    pub(crate) fn all() -> Result<Vec<Self>> {
        // SAFETY: no arguments; the type lives as long as the program.
        let plain = unsafe { ffi::ggml_backend_cpu_buffer_type() };
        let mut all = vec![Self(NonNull::new(plain).ok_or("ggml has no memory")?)];
        let (registry, device) = cpu()?;
        // SAFETY: the registry lives as long as the program, and the name is a C string.
        let found = unsafe {
            ffi::ggml_backend_reg_get_proc_address(registry.as_ptr(), c"ggml_backend_dev_get_extra_bufts".as_ptr())
        };
        if found.is_null() {
            return Err("ggml has no ggml_backend_dev_get_extra_bufts".into());
        }
        // SAFETY: it is the function of this name, and its type is that of ggml-backend.h.
        let extra: ffi::GetExtraBufts = unsafe { std::mem::transmute(found) };
        // SAFETY: the device is ggml's own; the list ends with a null and lives as long as the program.
        unsafe {
            let mut next = extra(device.as_ptr());
            while let Some(place) = next.as_ref().and_then(|&p| NonNull::new(p)) {
                all.push(Self(place));
                next = next.add(1);
            }
        }
        Ok(all)
    }

    /// ggml's name for it.
    pub(crate) fn name(self) -> String {
        // SAFETY: the type is ggml's own, and names live as long as the program.
        text(unsafe { ffi::ggml_backend_buft_name(self.0.as_ptr()) })
    }
}

/// The version of ggml, and what of the processor it was built for.
pub(crate) fn describe() -> Result<String> {
    // SAFETY: no arguments; a constant.
    let mut described = text(unsafe { ffi::ggml_version() });
    let (registry, _) = cpu()?;
    // SAFETY: the registry lives as long as the program, and the name is a C string.
    let found =
        unsafe { ffi::ggml_backend_reg_get_proc_address(registry.as_ptr(), c"ggml_backend_get_features".as_ptr()) };
    if !found.is_null() {
        // SAFETY: it is the function of this name, and its type is that of ggml-backend.h.
        let features: ffi::GetFeatures = unsafe { std::mem::transmute(found) };
        // SAFETY: the list ends with a feature without a name and lives as long as the program.
        unsafe {
            let mut next = features(registry.as_ptr());
            while let Some(feature) = next.as_ref().filter(|f| !f.name.is_null()) {
                described += " ";
                described += &text(feature.name);
                next = next.add(1);
            }
        }
    }
    Ok(described)
}

/// Lets ggml say only what is wrong.
pub(crate) fn quieten() {
    unsafe extern "C" fn log(level: c_int, message: *const c_char, _: *mut c_void) {
        if ffi::TROUBLE.contains(&level) {
            eprint!("ggml: {}", text(message));
        }
    }
    // SAFETY: the function is of the type that ggml calls, and needs no data.
    unsafe { ffi::ggml_log_set(log, ptr::null_mut()) };
}

fn cpu() -> Result<(NonNull<ffi::Registry>, NonNull<ffi::Device>)> {
    // SAFETY: no arguments; registry and device live as long as the program.
    let registry = NonNull::new(unsafe { ffi::ggml_backend_cpu_reg() }).ok_or("ggml has no CPU backend")?;
    // SAFETY: the CPU registry has one device.
    let device = unsafe { ffi::ggml_backend_reg_dev_get(registry.as_ptr(), 0) };
    Ok((registry, NonNull::new(device).ok_or("ggml has no CPU device")?))
}

/// A C string of ggml's.
fn text(s: *const c_char) -> String {
    // SAFETY: names, versions and features of ggml are C strings that are never null.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}

/// Memory of ggml.
struct Buffer(NonNull<ffi::Buffer>);

impl Buffer {
    fn new(place: Place, bytes: usize) -> Result<Self> {
        // SAFETY: the type is ggml's own.
        let buffer = NonNull::new(unsafe { ffi::ggml_backend_buft_alloc_buffer(place.0.as_ptr(), bytes) });
        let buffer = Self(buffer.ok_or_else(|| format!("ggml could not allocate {bytes} bytes"))?);
        advise_huge(buffer.at(0), bytes);
        Ok(buffer)
    }

    /// Where in memory a byte of it is.
    fn at(&self, offset: usize) -> *mut c_void {
        // SAFETY: the buffer is alive.
        unsafe { ffi::ggml_backend_buffer_get_base(self.0.as_ptr()) }.wrapping_byte_add(offset)
    }

    /// Puts a tensor at an offset.
    ///
    /// # Safety
    /// The tensor is alive, has no place yet, and ends within the buffer, which outlives it.
    unsafe fn place(&self, tensor: *mut ffi::Tensor, offset: usize) -> Result<()> {
        // SAFETY: as promised.
        match unsafe { ffi::ggml_backend_tensor_alloc(self.0.as_ptr(), tensor, self.at(offset)) } {
            ffi::SUCCESS => Ok(()),
            status => Err(format!("ggml could not place a tensor (status {status})").into()),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated in `new` and is freed once.
        unsafe { ffi::ggml_backend_buffer_free(self.0.as_ptr()) };
    }
}

/// Asks for large pages, which rdt's weights are given too: a race of kernels, not of pages.
fn advise_huge(at: *mut c_void, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = at.addr().next_multiple_of(HUGE);
        let end = (at.addr() + bytes) / HUGE * HUGE;
        if start < end {
            // SAFETY: the range is inside memory that was just allocated, and the advice does not change what is in it.
            unsafe { libc::madvise(at.with_addr(start), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, bytes);
}

/// The memory that tensors and graphs are described in.
struct Context(NonNull<ffi::Context>);

impl Context {
    fn new(bytes: usize) -> Result<Self> {
        let params = ffi::InitParams { mem_size: bytes, mem_buffer: ptr::null_mut(), no_alloc: true };
        // SAFETY: with a null buffer ggml allocates its own.
        Ok(Self(NonNull::new(unsafe { ffi::ggml_init(params) }).ok_or("ggml could not make a context")?))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was made in `new` and is freed once.
        unsafe { ffi::ggml_free(self.0.as_ptr()) };
    }
}

struct Backend(NonNull<ffi::Backend>);

impl Backend {
    /// The CPU, with one thread: the one that calls.
    fn new() -> Result<Self> {
        // SAFETY: no arguments.
        let backend = Self(NonNull::new(unsafe { ffi::ggml_backend_cpu_init() }).ok_or("ggml has no CPU backend")?);
        // SAFETY: it is the CPU backend.
        unsafe { ffi::ggml_backend_cpu_set_n_threads(backend.0.as_ptr(), 1) };
        Ok(backend)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: it was made in `new` and is freed once.
        unsafe { ffi::ggml_backend_free(self.0.as_ptr()) };
    }
}

/// A graph per matrix, of [`Task::per_step`] products with the same number of activation rows, and the output of all of them.
struct Graphs {
    n: usize,
    graphs: Vec<*mut ffi::Graph>,
    out: *mut ffi::Tensor,
}

pub(crate) struct Theirs<'a> {
    task: &'a Task<'a>,
    name: String,
    of: Vec<Graphs>,
    next: usize,
    backend: Backend,
    // What the graphs are made of; freed after the backend, the context last.
    _buffers: Vec<Buffer>,
    _context: Context,
}

// SAFETY: ggml's contexts, graphs, buffers and backends belong to no thread; only one at a time must use them.
unsafe impl Send for Theirs<'_> {}

impl<'a> Theirs<'a> {
    /// `None` if weights of this type cannot be in this place.
    pub(crate) fn new(task: &'a Task<'a>, place: Place) -> Result<Option<Self>> {
        let (_, device) = cpu()?;
        let [rows, k] = [i64::try_from(task.rows)?, i64::try_from(task.k)?];
        let ty = c_int::try_from(task.ty.id())?;
        let nodes = task.per_step;
        // And the weights, and the activations.
        let size = nodes + 2;
        // SAFETY: these only compute sizes.
        let (tensor, graph) = unsafe { (ffi::ggml_tensor_overhead(), ffi::ggml_graph_overhead_custom(size, false)) };
        let tensors = task.copies + COLUMNS.len() * (1 + task.copies * nodes);
        let context = Context::new(tensors * tensor + COLUMNS.len() * task.copies * graph + (1 << 10))?;
        let ctx = context.0.as_ptr();

        // SAFETY: the context has room for all tensors; every type of `Task` has the number that ggml knows it by.
        let weights: Vec<_> = (0..task.copies).map(|_| unsafe { ffi::ggml_new_tensor_2d(ctx, ty, k, rows) }).collect();
        // SAFETY: the tensor is alive.
        if unsafe { ffi::ggml_nbytes(weights[0]) } != task.stored.len() {
            return Err(format!("a matrix of type {} has another size in ggml", task.ty).into());
        }
        // SAFETY: the tensor is alive, the type is ggml's own.
        let each = unsafe {
            ffi::ggml_backend_buft_get_alloc_size(place.0.as_ptr(), weights[0])
                .next_multiple_of(ffi::ggml_backend_buft_get_alignment(place.0.as_ptr()).max(64))
        };
        let matrices = Buffer::new(place, task.copies * each)?;
        // SAFETY: the buffer is alive.
        unsafe { ffi::ggml_backend_buffer_set_usage(matrices.0.as_ptr(), ffi::WEIGHTS) };
        for (i, &w) in weights.iter().enumerate() {
            // SAFETY: there are `each` bytes per matrix, as many as ggml asked for.
            unsafe { matrices.place(w, i * each)? };
        }

        let plain = Place::all()?[0];
        let (x_buffer, out_buffer) = (
            Buffer::new(plain, MOST * task.k * size_of::<f32>())?,
            Buffer::new(plain, MOST * task.rows * size_of::<f32>())?,
        );
        let f32_type = c_int::try_from(rdt::gguf::TensorType::F32.id())?;
        let mut of = Vec::new();
        for n in COLUMNS {
            // SAFETY: the context has room; rows of `x` are the first of the buffer, whatever their number.
            let x = unsafe {
                let x = ffi::ggml_new_tensor_2d(ctx, f32_type, k, i64::try_from(n)?);
                x_buffer.place(x, 0)?;
                ffi::ggml_backend_tensor_set(x, task.x.as_ptr().cast(), 0, n * task.k * size_of::<f32>());
                x
            };
            let mut these = Graphs { n, graphs: Vec::new(), out: ptr::null_mut() };
            for &matrix in &weights {
                // SAFETY: the context has room for graphs of so many nodes. All products of a graph have the same output,
                // of which nothing is read before the last is there.
                unsafe {
                    let graph = ffi::ggml_new_graph_custom(ctx, size, false);
                    for _ in 0..nodes {
                        these.out = ffi::ggml_mul_mat(ctx, matrix, x);
                        out_buffer.place(these.out, 0)?;
                        ffi::ggml_build_forward_expand(graph, these.out);
                    }
                    these.graphs.push(graph);
                }
            }
            // SAFETY: the product's arguments are placed, which is what the answer depends on.
            if !unsafe { ffi::ggml_backend_dev_supports_op(device.as_ptr(), these.out) } {
                return Ok(None);
            }
            of.push(these);
        }
        for &w in &weights {
            // SAFETY: as many bytes as the tensor has, checked above; a place that rearranges them supports the type.
            unsafe { ffi::ggml_backend_tensor_set(w, task.stored.as_ptr().cast(), 0, task.stored.len()) };
        }
        let buffers = vec![matrices, x_buffer, out_buffer];
        let backend = Backend::new()?;
        Ok(Some(Self { task, name: place.name(), of, next: 0, backend, _buffers: buffers, _context: context }))
    }

    fn of(&self, n: usize) -> Result<&Graphs> {
        self.of.iter().find(|g| g.n == n).ok_or_else(|| format!("no graph for {n} rows").into())
    }
}

impl Racer for Theirs<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, n: usize) -> Result<()> {
        let graphs = &self.of(n)?.graphs;
        let (graph, count) = (graphs[self.next % graphs.len()], graphs.len());
        self.next = (self.next + 1) % count;
        // SAFETY: graph, tensors and buffers are alive, and all tensors are placed.
        match unsafe { ffi::ggml_backend_graph_compute(self.backend.0.as_ptr(), graph) } {
            ffi::SUCCESS => Ok(()),
            status => Err(format!("ggml could not compute a product (status {status})").into()),
        }
    }

    fn product(&self, n: usize) -> Result<Vec<f32>> {
        let mut out = vec![0.0f32; n * self.task.rows];
        // SAFETY: the output has so many values.
        unsafe {
            ffi::ggml_backend_tensor_get(self.of(n)?.out, out.as_mut_ptr().cast(), 0, size_of_val(out.as_slice()))
        };
        Ok(out)
    }
}
