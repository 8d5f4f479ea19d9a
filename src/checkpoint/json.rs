//! Reading small text files with a bound on their size, and JSON that refuses a key given twice.

use super::{Error, error::shorten};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::{collections::HashSet, fmt, fs::File, io::Read, marker::PhantomData, path::Path};

/// Reads the whole file as text, if there is one, and if it has at most `limit` bytes.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, Error> {
    let Some(bytes) = read_bytes(path, limit)? else { return Ok(None) };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|e| Error::Utf8 { path: path.to_owned(), offset: e.utf8_error().valid_up_to() })
}

/// Reads the whole file, if there is one, and if it has at most `limit` bytes.
pub(super) fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    match super::require_regular_file(path) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        other => other?,
    }
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    let too_large = |found| Error::TooLarge { path: path.to_owned(), found, limit };
    if found > limit {
        return Err(too_large(found));
    }
    let mut bytes = Vec::new();
    // The size was only a hint: what counts is what the file yields.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(Some(bytes))
}

/// Parses `text`, which came from `path`.
pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|e| error(path, &e))
}

/// serde_json's error as ours: it may quote a file at any length and with any control characters.
pub(super) fn error(path: &Path, e: &serde_json::Error) -> Error {
    let (line, column) = (e.line(), e.column());
    let text = e.to_string();
    let message = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    Error::Json { path: path.to_owned(), message: printable(message), line, column }
}

/// `text` from a file, cut to a length that fits a message, with what a terminal would act on escaped.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in shorten(text).chars() {
        // Quotes and backslashes stay as they are: their escapes have two characters.
        if c.is_control() || c.escape_debug().len() > 2 {
            shown.extend(c.escape_debug());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Any JSON value in which no object has the same key twice. serde_json on its own keeps the last one silently.
pub(super) struct Strict(pub(super) Value);

/// The pairs of one object, in order, with no key twice.
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                let mut keys = Keys::default();
                while let Some(key) = map.next_key::<String>()? {
                    keys.insert(&key)?;
                    pairs.push((key, map.next_value()?));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

/// The keys an object has had so far.
#[derive(Default)]
pub(super) struct Keys(HashSet<String>);

impl Keys {
    /// Notes `key`; an error if it was there already.
    pub(super) fn insert<E: de::Error>(&mut self, key: &str) -> Result<(), E> {
        if self.0.insert(key.to_owned()) {
            Ok(())
        } else {
            Err(E::custom(format_args!("the key {:?} is there twice", shorten(key))))
        }
    }
}

struct StrictVisitor;

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the key {:?} is there twice", shorten(&key))));
            }
            let value = map.next_value_seed(Self)?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}
