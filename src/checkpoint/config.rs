//! Typed access to the JSON files of a checkpoint.

use super::{Error, error::shorten, json};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One of a checkpoint's JSON files.
///
/// A key is written with a dot between levels: `init_values.std`. A key that holds `null` counts as missing, because
/// that is how published files say that nothing was chosen. The plain getters return `None` for a missing key,
/// the `require_` ones an error; both refuse a value of another type.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    value: Value,
}

/// Generates the two getters of one type.
macro_rules! getters {
    ($($(#[$doc:meta])* $get:ident $require:ident -> $ty:ty, $expected:literal, $convert:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Error::KeyType`] when something else stands there.
        pub fn $get(&self, key: &str) -> Result<Option<$ty>, Error> {
            let Some(value) = self.get(key) else { return Ok(None) };
            let convert: fn(&Value) -> Option<$ty> = $convert;
            convert(value).map(Some).ok_or_else(|| self.wrong_type(key, value, $expected))
        }

        #[doc = concat!("[`", stringify!($get), "`](Self::", stringify!($get), ") of a key that has to be there.")]
        ///
        /// # Errors
        /// [`Error::MissingKey`], [`Error::KeyType`].
        pub fn $require(&self, key: &str) -> Result<$ty, Error> {
            self.$get(key)?.ok_or_else(|| Error::MissingKey {
                path: self.path.clone(),
                key: key.to_owned(),
                expected: $expected,
            })
        }
    )*};
}

impl Config {
    /// Reads the file, if there is one, and if it has at most `limit` bytes.
    pub(super) fn read(path: PathBuf, limit: u64) -> Result<Option<Self>, Error> {
        let Some(text) = json::read_text(&path, limit)? else {
            return Ok(None);
        };
        let json::Strict(value) = json::parse(&path, &text)?;
        let config = Self { path, value };
        if !config.value.is_object() {
            return Err(config.wrong_type("the top level", &config.value, "an object"));
        }
        Ok(Some(config))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it; an object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// What stands under `key`; `None` if nothing or `null` does.
    pub fn get(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.value, |value, part| value.get(part)).filter(|value| !value.is_null())
    }

    getters! {
        /// A whole number that is not negative.
        usize require_usize -> usize, "a whole number that is not negative",
            |value| usize::try_from(value.as_u64()?).ok();
        /// A number, whole or not.
        f64 require_f64 -> f64, "a number", Value::as_f64;
        /// A number, rounded to f32 and finite as such.
        f32 require_f32 -> f32, "a number in the range of f32",
            |value| Some(value.as_f64()? as f32).filter(|x| x.is_finite());
        /// `true` or `false`.
        bool require_bool -> bool, "true or false", Value::as_bool;
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::KeyType`] when something else stands there.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.wrong_type(key, value, "a string"))
    }

    /// [`str`](Self::str) of a key that has to be there.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::KeyType`].
    pub fn require_str(&self, key: &str) -> Result<&str, Error> {
        let missing = || Error::MissingKey { path: self.path.clone(), key: key.to_owned(), expected: "a string" };
        self.str(key)?.ok_or_else(missing)
    }

    /// An error that says that `key` holds `value`, and that `expected` should stand there instead. For checks that
    /// the getters do not make, such as a range.
    pub fn wrong_type(&self, key: &str, value: &Value, expected: &'static str) -> Error {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Array(_) => "an array".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            // As JSON, so that a string shows its quotes and control characters are escaped.
            simple => shorten(&simple.to_string()),
        };
        Error::KeyType { path: self.path.clone(), key: key.to_owned(), expected, found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Config::read(path, 1000).map(Option::unwrap)
    }

    #[test]
    fn keys_are_read_by_type() {
        let c = config(r#"{"n": 3, "x": 0.5, "on": true, "s": "t", "none": null, "in": {"std": 1e-3}}"#).unwrap();
        assert_eq!(c.usize("n").unwrap(), Some(3));
        assert_eq!(c.require_usize("n").unwrap(), 3);
        assert_eq!(c.f64("n").unwrap(), Some(3.0));
        assert_eq!(c.f32("in.std").unwrap(), Some(1e-3));
        assert_eq!(c.bool("on").unwrap(), Some(true));
        assert_eq!(c.require_str("s").unwrap(), "t");
        for absent in ["none", "nothing", "in.nothing", "n.deeper", ""] {
            assert_eq!(c.usize(absent).unwrap(), None, "{absent}");
        }
    }

    #[test]
    fn errors_name_file_key_and_types() {
        let c = config(r#"{"n": -3, "x": 0.5, "big": 1e300, "s": "\u001b[31m", "list": [1]}"#).unwrap();
        let message = |error: Error| error.to_string();
        let text = message(c.require_usize("missing.key").unwrap_err());
        assert!(text.contains("config.json: missing.key is missing; expected a whole number"), "{text}");
        let text = message(c.usize("n").unwrap_err());
        assert!(text.contains("n is -3; expected a whole number that is not negative"), "{text}");
        assert!(matches!(c.usize("x"), Err(Error::KeyType { .. })));
        assert!(matches!(c.f32("big"), Err(Error::KeyType { .. })));
        assert!(matches!(c.bool("list"), Err(Error::KeyType { .. })));
        assert!(matches!(c.str("x"), Err(Error::KeyType { .. })));
        let text = message(c.f64("s").unwrap_err());
        assert!(text.contains(r#"s is "\u001b[31m"; expected a number"#), "{text}");
    }

    #[test]
    fn malformed_files_are_refused() {
        for (text, line, message) in [
            ("", 1, "EOF"),
            ("{\n\"a\": }", 2, "expected value"),
            (r#"{"a": 1, "a": 1}"#, 1, "\"a\" is there twice"),
            ("{\"b\": [{\n\"a\\u001b\": 1, \"a\\u001b\": 2}]}", 2, r#""a\u{1b}" is there twice"#),
            (r#"{"a": NaN}"#, 1, "expected value"),
            (r#"{"a": 1} x"#, 1, "trailing"),
            (r#"{"a": 1e999}"#, 1, "out of range"),
            (&"[".repeat(900), 1, "recursion limit"),
        ] {
            match config(text) {
                Err(Error::Json { line: found, message: m, .. }) => {
                    assert_eq!(found, line, "{text}");
                    assert!(m.contains(message), "{text}: {m}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(matches!(config("[]"), Err(Error::KeyType { .. })));
        let limit = config(&" ".repeat(1001));
        assert!(matches!(limit, Err(Error::TooLarge { found: 1001, limit: 1000, .. })), "{limit:?}");
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, b"{\"a\": \"\xff\"}").unwrap();
        assert!(matches!(Config::read(path, 1000), Err(Error::Utf8 { offset: 7, .. })));
    }
}
