//! Checked reading of a published config.json, and writing of the keys that follow from it.

use super::bounds::MOST_HEADS;
use super::convert::Error;
use super::keys::Sizes;
use crate::checkpoint::{Checkpoint, Config};
use crate::gguf::{Metadata, Value};
use serde_json::Value as Json;
use std::fmt::Display;

/// A published configuration.
pub(super) struct Settings<'a>(pub &'a Config);

impl Settings<'_> {
    /// The error of a setting that is not supported.
    pub(super) fn unsupported(&self, key: &str, found: &dyn Display, supported: impl Into<String>) -> Error {
        Error::Setting { key: key.to_owned(), found: found.to_string(), supported: supported.into() }
    }

    /// A name that must be the one that is implemented.
    pub(super) fn only(&self, key: &str, supported: &str, otherwise: &str) -> Result<(), Error> {
        let found = self.0.str(key)?.unwrap_or(otherwise);
        if found == supported {
            return Ok(());
        }
        let found = format!("'{}'", found.chars().take(80).collect::<String>());
        Err(self.unsupported(key, &found, format!("'{supported}'")))
    }

    /// A yes or no that must be what is implemented; a missing one counts as that.
    pub(super) fn only_bool(&self, key: &str, supported: bool) -> Result<(), Error> {
        match self.0.bool(key)? {
            Some(found) if found != supported => Err(self.unsupported(key, &found, supported.to_string())),
            _ => Ok(()),
        }
    }

    /// A setting for something that is not supported: it must be missing, false, zero or empty.
    pub(super) fn unset(&self, key: &str) -> Result<(), Error> {
        let Some(value) = self.0.get(key) else { return Ok(()) };
        let off = match value {
            Json::Bool(on) => !on,
            Json::Number(n) => n.as_f64() == Some(0.0),
            Json::Array(list) => list.is_empty(),
            Json::String(text) => text.is_empty(),
            _ => false,
        };
        if off { Ok(()) } else { Err(self.unsupported(key, &short(value), "not set")) }
    }

    /// Every layer must attend to all positions before it.
    pub(super) fn full_attention(&self) -> Result<(), Error> {
        const KEY: &str = "layer_types";
        let other = match self.0.get(KEY) {
            None => None,
            Some(Json::Array(list)) => list.iter().find(|kind| kind.as_str() != Some("full_attention")),
            Some(other) => Some(other),
        };
        other.map_or(Ok(()), |found| Err(self.unsupported(KEY, &short(found), "'full_attention' for every layer")))
    }

    /// A number within bounds.
    pub(super) fn within(&self, key: &str, n: usize, least: usize, most: usize) -> Result<usize, Error> {
        if (least..=most).contains(&n) { Ok(n) } else { Err(self.unsupported(key, &n, format!("{least} to {most}"))) }
    }

    /// A required size in 1..=`most`.
    pub(super) fn size(&self, key: &str, most: usize) -> Result<usize, Error> {
        self.within(key, self.0.require_usize(key)?, 1, most)
    }

    /// As [`size`](Self::size), where the file may be silent.
    pub(super) fn size_or(&self, key: &str, most: usize, otherwise: usize) -> Result<usize, Error> {
        self.within(key, self.0.usize(key)?.unwrap_or(otherwise), 1, most)
    }

    /// A number of heads that divides `width` into heads of even size.
    pub(super) fn heads(&self, key: &str, heads: usize, width: usize) -> Result<usize, Error> {
        if (1..=MOST_HEADS).contains(&heads) && width.is_multiple_of(2 * heads) {
            return Ok(heads);
        }
        Err(self.unsupported(key, &heads, format!("a divisor of half of the width, {width}")))
    }

    /// A number of key and value heads that divides the query heads; as many where the file is silent.
    pub(super) fn kv_heads(&self, key: &str, heads: usize) -> Result<usize, Error> {
        let kv_heads = self.0.usize(key)?.unwrap_or(heads);
        if kv_heads > 0 && heads.is_multiple_of(kv_heads) {
            return Ok(kv_heads);
        }
        Err(self.unsupported(key, &kv_heads, format!("a divisor of the number of heads, {heads}")))
    }

    /// The base of a rotation that is not scaled, under the names that transformers has had for it.
    pub(super) fn plain_rope(&self) -> Result<f32, Error> {
        for key in ["rope_scaling", "rope_parameters"] {
            for kind in ["rope_type", "type"] {
                self.only(&format!("{key}.{kind}"), "default", "default")?;
            }
            if let Some(factor) = self.0.f32(&format!("{key}.factor"))?.filter(|&x| x != 1.0) {
                return Err(self.unsupported(&format!("{key}.factor"), &factor, "1"));
            }
        }
        self.number(if self.0.get("rope_theta").is_some() { "rope_theta" } else { "rope_parameters.rope_theta" })
    }

    /// A required number above zero.
    pub(super) fn number(&self, key: &str) -> Result<f32, Error> {
        let x = self.0.require_f32(key)?;
        if x > 0.0 { Ok(x) } else { Err(self.unsupported(key, &x, "a number above 0")) }
    }
}

/// A value in a few words.
fn short(value: &Json) -> String {
    match value {
        Json::Array(_) => "a list".to_owned(),
        Json::Object(_) => "an object".to_owned(),
        simple => simple.to_string().chars().take(80).collect(),
    }
}

/// The keys of a GGUF to be written, under an architecture's name.
pub(super) struct KeyWriter {
    architecture: &'static str,
    pub metadata: Metadata,
}

impl KeyWriter {
    /// Starts with the `general.*` keys; the name is the folder's.
    pub(super) fn new(architecture: &'static str, checkpoint: &Checkpoint) -> Self {
        let mut metadata = Metadata::new();
        let folder = checkpoint.folder().canonicalize().unwrap_or_else(|_| checkpoint.folder().to_owned());
        let name = folder.file_name().map_or_else(|| architecture.into(), |n| n.to_string_lossy());
        metadata.insert("general.architecture", architecture);
        metadata.insert("general.name", name.as_ref());
        metadata.insert("general.quantization_version", 2u32);
        Self { architecture, metadata }
    }

    /// Sets `{architecture}.{name}`.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.metadata.insert(format!("{}.{name}", self.architecture), value);
    }

    /// Sets a count or size. All of them are bounded far below 2^32.
    pub(super) fn size(&mut self, name: &str, n: usize) {
        self.set(name, n as u32);
    }

    /// The keys that [`Keys::sizes`](super::keys::Keys::sizes) reads.
    pub(super) fn sizes(&mut self, sizes: &Sizes) {
        self.size("block_count", sizes.heads.len());
        self.size("context_length", sizes.context);
        self.size("vocab_size", sizes.vocab);
        self.size("embedding_length", sizes.width);
        self.per_block("feed_forward_length", &sizes.hidden);
        self.per_block("attention.head_count", &sizes.heads);
        self.per_block("attention.head_count_kv", &sizes.kv_heads);
        self.size("attention.key_length", sizes.head_dim);
        self.size("attention.value_length", sizes.head_dim);
    }

    /// The keys that [`Keys::stacks`](super::keys::Keys::stacks) reads: blocks of prelude, core and coda.
    pub(super) fn stacks(&mut self, [prelude, core, coda]: [usize; 3]) {
        self.size("loop.prelude_count", prelude);
        self.size("loop.core_count", core);
        self.size("loop.coda_count", coda);
    }

    /// Sets a list of counts, one per block; a single number where they are all equal.
    pub(super) fn per_block(&mut self, name: &str, list: &[usize]) {
        match list.first() {
            Some(&first) if list.iter().any(|&n| n != first) => {
                let list: Vec<u32> = list.iter().map(|&n| n as u32).collect();
                self.set(name, Value::from(list));
            }
            Some(&first) => self.size(name, first),
            None => {}
        }
    }
}
