//! What can stand on the stack of a pickle, and the names that mean something there.

use safetensors::Dtype;

/// A Python value, as far as it matters.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Str(&'a str),
    /// A range of the pickle's items.
    Tuple {
        start: u32,
        len: u32,
    },
    /// By number.
    Dict(u32),
    /// By number.
    Storage(u32),
    /// By number.
    Tensor(u32),
    Callable(Callable),
    /// What it holds is dropped.
    List,
    /// A float, bytes, or an integer beyond 64 bits.
    Other,
}

impl Value<'_> {
    /// What it is, for a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a bool",
            Value::Int(_) => "an int",
            Value::Str(_) => "a string",
            Value::Tuple { .. } => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a single tensor",
            Value::Callable(_) => "a class or function",
            Value::List => "a list",
            Value::Other => "a float or bytes",
        }
    }
}

/// The names that mean something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    RebuildParameterWithState,
    /// A storage class; the type of its values.
    Storage(Dtype),
}

impl Callable {
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch._utils", "_rebuild_parameter_with_state") => Self::RebuildParameterWithState,
            ("torch", storage) => Self::Storage(match storage {
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "DoubleStorage" => Dtype::F64,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::BOOL,
                "ComplexFloatStorage" => Dtype::C64,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// Some of a tensor's values lie in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub(super) dtype: Dtype,
    pub(super) key: &'a str,
    /// As the pickle says; not checked.
    pub(super) values: i64,
}

/// A tensor as the pickle describes it; nothing is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Described<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: i64,
    pub(super) shape: Value<'a>,
    pub(super) strides: Value<'a>,
}
