//! The keys and values of a file, and checked ways to ask for them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Serialize, Serializer};

use super::{Array, Error, Value};

/// Keys and values in the order of the file.
///
/// The typed getters return `Ok(None)` for a key that is not there and an error that names the key, what was
/// expected and what was found for one of the wrong type or range; their `require_` forms want the key to be
/// there.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Key to its place in `entries`.
    places: HashMap<String, usize>,
}

/// The most blocks for which [`Metadata::usize_per_block`] repeats a scalar. The count comes from the same
/// file, so it cannot be trusted with an allocation; real models have hundreds.
const MAX_BLOCKS: usize = 1 << 16;

/// Writes `require_x` for each getter `x`.
macro_rules! require {
    ($($name:ident = $getter:ident -> $ty:ty;)*) => {$(
        #[doc = concat!("Like [`", stringify!($getter), "`](Self::", stringify!($getter), "), for a key that must be there.")]
        ///
        /// # Errors
        /// Its errors, and [`Error::MissingKey`].
        pub fn $name(&self, key: &str) -> Result<$ty, Error> {
            self.$getter(key)?.ok_or_else(|| Error::MissingKey { key: key.into() })
        }
    )*};
}

impl Metadata {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let &place = self.places.get(key)?;
        self.entries.get(place).map(|(_, value)| value)
    }

    /// Whether `key` is there.
    pub fn contains(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets `key`: in place if it is there already (the old value is returned), else at the end.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let value = value.into();
        match self.places.entry(key.into()) {
            Entry::Occupied(place) => {
                let (_, old) = self.entries.get_mut(*place.get())?;
                Some(std::mem::replace(old, value))
            }
            Entry::Vacant(vacant) => {
                self.entries.push((vacant.key().clone(), value));
                vacant.insert(self.entries.len() - 1);
                None
            }
        }
    }

    /// Takes `key` out; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let place = self.places.remove(key)?;
        let (_, value) = self.entries.remove(place);
        for later in self.places.values_mut().filter(|later| **later > place) {
            *later -= 1;
        }
        Some(value)
    }

    /// An integer of any width that fits in `usize`.
    ///
    /// # Errors
    /// Not an integer, negative, or too large.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, Error> {
        self.integer(key, "a size")
    }

    /// An integer of any width that fits in `u32`, such as a token id.
    ///
    /// # Errors
    /// Not an integer, negative, or too large.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.integer(key, "an integer from 0 to 4294967295")
    }

    /// A float, 32 or 64 bits wide, that is finite in 32.
    ///
    /// # Errors
    /// Not a float, or NaN or infinite.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = match *value {
            Value::F32(v) => v,
            Value::F64(v) => v as f32,
            _ => return Err(wrong_type(key, "a float", value)),
        };
        if !number.is_finite() {
            return Err(Error::KeyRange {
                key: key.into(),
                expected: "a finite 32-bit float",
                found: match value {
                    Value::F64(v) => v.to_string(),
                    _ => number.to_string(),
                },
            });
        }
        Ok(Some(number))
    }

    /// A truth value.
    ///
    /// # Errors
    /// Not a bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "bool", other)),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// Not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "string", other)),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// Not an array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(items))) => Ok(Some(items)),
            Some(other) => Err(wrong_type(key, "array of strings", other)),
        }
    }

    /// An array of 32-bit floats. The entries may be anything, NaN included.
    ///
    /// # Errors
    /// Not an array of f32.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(items))) => Ok(Some(items)),
            Some(other) => Err(wrong_type(key, "array of f32", other)),
        }
    }

    /// An array of integers of any width whose entries fit in `i64`.
    ///
    /// # Errors
    /// Not an array of integers, or an entry is too large.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        self.integers(key, "an array of integers", "a 64-bit signed integer")
    }

    /// A size for each of `n` blocks: an integer of any width, meant for all of them, or an array with one
    /// entry per block.
    ///
    /// # Errors
    /// Neither of these, an array of another length, an entry that is no size, or `n` beyond 65536.
    pub fn usize_per_block(&self, key: &str, n: usize) -> Result<Option<Vec<usize>>, Error> {
        if n > MAX_BLOCKS {
            return Err(Error::TooManyBlocks { key: key.into(), most: MAX_BLOCKS, found: n });
        }
        let Some(Value::Array(array)) = self.get(key) else {
            return Ok(self.usize(key)?.map(|size| vec![size; n]));
        };
        if array.len() != n {
            return Err(Error::KeyLength { key: key.into(), expected: n, found: array.len() });
        }
        self.integers(key, "an integer or an array of integers", "a size")
    }

    require! {
        require_usize = usize -> usize;
        require_u32 = u32 -> u32;
        require_f32 = f32 -> f32;
        require_bool = bool -> bool;
        require_str = str -> &str;
        require_strings = strings -> &[String];
    }

    /// Like [`usize_per_block`](Self::usize_per_block), for a key that must be there.
    ///
    /// # Errors
    /// Its errors, and [`Error::MissingKey`].
    pub fn require_usize_per_block(&self, key: &str, n: usize) -> Result<Vec<usize>, Error> {
        self.usize_per_block(key, n)?.ok_or_else(|| Error::MissingKey { key: key.into() })
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let Some(number) = value.integer() else {
            return Err(wrong_type(key, "an integer", value));
        };
        narrow(key, expected, number).map(Some)
    }

    fn integers<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
        expected_item: &'static str,
    ) -> Result<Option<Vec<T>>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let items = match value {
            Value::Array(array) => array.integers(),
            _ => None,
        };
        let Some(items) = items else {
            return Err(wrong_type(key, expected, value));
        };
        items.map(|number| narrow(key, expected_item, number)).collect::<Result<_, _>>().map(Some)
    }
}

fn narrow<T: TryFrom<i128>>(key: &str, expected: &'static str, number: i128) -> Result<T, Error> {
    T::try_from(number).map_err(|_| Error::KeyRange { key: key.into(), expected, found: number.to_string() })
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> Error {
    Error::KeyType { key: key.into(), expected, found: found.type_name() }
}

/// The same keys and values in the same order.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

/// Serialises as a map, in order.
impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Keys in order; a later value of the same key replaces the earlier.
impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut metadata = Self::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_by_insert_and_remove() {
        let mut m: Metadata = [("a", 1u32), ("b", 2), ("c", 3), ("d", 4)].into_iter().collect();
        assert_eq!(m.insert("b", 20u32), Some(Value::U32(2)));
        assert_eq!(m.remove("a"), Some(Value::U32(1)));
        assert_eq!(m.remove("a"), None);
        m.insert("a", "last");
        let keys: Vec<_> = m.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["b", "c", "d", "a"]);
        for (key, value) in m.iter() {
            assert_eq!(m.get(key), Some(value));
        }
        assert!(m.contains("d") && !m.contains("e") && m.len() == 4);
    }

    #[test]
    fn integers_of_any_width_are_sizes_where_they_fit() {
        let mut m = Metadata::new();
        let values: [Value; 8] =
            [7u8.into(), 7i8.into(), 7u16.into(), 7i16.into(), 7u32.into(), 7i32.into(), 7u64.into(), 7i64.into()];
        for value in values {
            m.insert("k", value);
            assert_eq!(m.require_usize("k").unwrap(), 7);
            assert_eq!(m.require_u32("k").unwrap(), 7);
        }
        for value in [Value::I8(-1), Value::I64(i64::MIN)] {
            m.insert("k", value);
            assert!(matches!(m.usize("k"), Err(Error::KeyRange { .. })));
        }
        m.insert("k", u64::MAX);
        assert!(matches!(m.u32("k"), Err(Error::KeyRange { found, .. }) if found == u64::MAX.to_string()));
        for value in [Value::F32(1.0), Value::Bool(true), "1".into()] {
            m.insert("k", value);
            assert!(matches!(m.usize("k"), Err(Error::KeyType { .. })));
        }
    }

    #[test]
    fn a_missing_key_is_none_or_an_error_with_its_name() {
        let m = Metadata::new();
        assert_eq!(m.usize("k").unwrap(), None);
        assert_eq!(m.usize_per_block("k", 3).unwrap(), None);
        assert_eq!(m.i64s("k").unwrap(), None);
        assert_eq!(m.f32s("k").unwrap(), None);
        let error = m.require_strings("tokens").unwrap_err();
        assert!(matches!(&error, Error::MissingKey { key } if key == "tokens"));
        assert!(m.require_usize_per_block("k", 3).is_err());
    }

    #[test]
    fn floats_must_be_finite() {
        let mut m = Metadata::new();
        m.insert("k", 0.5f64);
        assert_eq!(m.f32("k").unwrap(), Some(0.5));
        for value in [f32::NAN.into(), f32::INFINITY.into(), Value::F64(1e300)] {
            m.insert("k", value);
            assert!(matches!(m.f32("k"), Err(Error::KeyRange { .. })));
        }
        m.insert("k", 1u32);
        assert!(matches!(m.f32("k"), Err(Error::KeyType { found: "u32", .. })));
    }

    #[test]
    fn per_block_takes_a_scalar_or_an_array_of_the_right_length() {
        let mut m = Metadata::new();
        m.insert("k", 4u32);
        assert_eq!(m.require_usize_per_block("k", 3).unwrap(), [4, 4, 4]);
        assert!(m.usize_per_block("k", usize::MAX).is_err());
        m.insert("k", vec![1i32, 2, 3]);
        assert_eq!(m.require_usize_per_block("k", 3).unwrap(), [1, 2, 3]);
        assert!(matches!(m.usize_per_block("k", 4), Err(Error::KeyLength { expected: 4, found: 3, .. })));
        m.insert("k", vec![1i32, -2, 3]);
        assert!(matches!(m.usize_per_block("k", 3), Err(Error::KeyRange { .. })));
        m.insert("k", vec![1f32, 2.0, 3.0]);
        assert!(matches!(m.usize_per_block("k", 3), Err(Error::KeyType { .. })));
    }

    #[test]
    fn arrays_and_text_come_back_as_they_are() {
        let mut m = Metadata::new();
        m.insert("tokens", vec!["a".to_owned(), "b".to_owned()]);
        m.insert("scores", vec![0.5f32]);
        m.insert("types", vec![1u8, 255]);
        m.insert("name", "rdt");
        m.insert("flag", true);
        assert_eq!(m.require_strings("tokens").unwrap(), ["a", "b"]);
        assert_eq!(m.f32s("scores").unwrap(), Some(&[0.5f32][..]));
        assert_eq!(m.i64s("types").unwrap(), Some(vec![1, 255]));
        assert_eq!(m.require_str("name").unwrap(), "rdt");
        assert!(m.require_bool("flag").unwrap());
        for key in ["tokens", "scores", "name"] {
            assert!(m.bool(key).is_err() && m.usize(key).is_err());
        }
        let error = m.strings("scores").unwrap_err().to_string();
        assert!(error.contains("array of strings") && error.contains("array of f32"), "{error}");
    }

    #[test]
    fn json_is_a_plain_map_in_order() {
        let mut m = Metadata::new();
        m.insert("z", 1u8);
        m.insert("a", vec![true, false]);
        m.insert("n", Array::Array(vec![Array::F32(vec![0.5]), Array::String(vec!["x".into()])]));
        let json = serde_json::to_string(&m).unwrap();
        assert_eq!(json, r#"{"z":1,"a":[true,false],"n":[[0.5],["x"]]}"#);
    }
}
