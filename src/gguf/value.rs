//! Metadata values and their types.

use serde::Serialize;

/// Makes [`Value`] and [`Array`] and their conversions from one table of the types that GGUF defines.
macro_rules! values {
    ($($variant:ident($ty:ty) = $id:literal, $name:literal, $names:literal;)*) => {
        /// One metadata value.
        ///
        /// Serialises as the bare value. `PartialEq` follows the floats: a NaN differs from itself.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Value {
            $(#[doc = concat!("Type ", $id, ".")] $variant($ty),)*
            /// Type 9: values of one type, in order.
            Array(Array),
        }

        /// An array of values of one type.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Array {
            $(#[doc = concat!("Of type ", $id, ".")] $variant(Vec<$ty>),)*
            /// Of type 9: arrays, each of a type of its own. ggml does not read these.
            Array(Vec<Array>),
        }

        impl Value {
            /// The type's name: `"u32"`, `"string"`, `"array of f32"`.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                    Self::Array(array) => array.type_name(),
                }
            }

            /// The type's id in a file.
            pub(super) fn type_id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Array(_) => ARRAY_ID,
                }
            }
        }

        impl Array {
            /// Number of entries.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(items) => items.len(),)*
                    Self::Array(items) => items.len(),
                }
            }

            /// The type's name: `"array of f32"`.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $names,)*
                    Self::Array(_) => "array of arrays",
                }
            }

            /// The entries' type id in a file.
            pub(super) fn item_type_id(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $id,)*
                    Self::Array(_) => ARRAY_ID,
                }
            }
        }

        $(
            impl From<$ty> for Value {
                fn from(value: $ty) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$ty>> for Value {
                fn from(items: Vec<$ty>) -> Self {
                    Self::Array(Array::$variant(items))
                }
            }
        )*
    };
}

/// Type id of arrays.
pub(super) const ARRAY_ID: u32 = 9;

values! {
    U8(u8) = 0, "u8", "array of u8";
    I8(i8) = 1, "i8", "array of i8";
    U16(u16) = 2, "u16", "array of u16";
    I16(i16) = 3, "i16", "array of i16";
    U32(u32) = 4, "u32", "array of u32";
    I32(i32) = 5, "i32", "array of i32";
    F32(f32) = 6, "f32", "array of f32";
    Bool(bool) = 7, "bool", "array of bool";
    String(String) = 8, "string", "array of strings";
    U64(u64) = 10, "u64", "array of u64";
    I64(i64) = 11, "i64", "array of i64";
    F64(f64) = 12, "f64", "array of f64";
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

impl Value {
    /// The value as an integer, if it is one of any width. All of them fit in `i128`.
    pub(super) fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries as integers, if they are of an integer type of any width.
    pub(super) fn integers(&self) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
        fn widen<T: Copy + Into<i128>>(items: &[T]) -> Box<dyn Iterator<Item = i128> + '_> {
            Box::new(items.iter().map(|&v| v.into()))
        }
        Some(match self {
            Self::U8(items) => widen(items),
            Self::I8(items) => widen(items),
            Self::U16(items) => widen(items),
            Self::I16(items) => widen(items),
            Self::U32(items) => widen(items),
            Self::I32(items) => widen(items),
            Self::U64(items) => widen(items),
            Self::I64(items) => widen(items),
            _ => return None,
        })
    }
}
