//! Model families: one file each, which knows the family's published layout and its GGUF keys.
//!
//! A family turns a published checkpoint into our GGUF ([`conversion`]: every tensor with a [`Role`], so that a recipe can
//! choose its format), and a GGUF into what the model room runs ([`open`]).

mod anatomy;
mod convert;
mod huginn;

pub use anatomy::{Anatomy, Part, Share};
pub use convert::{Conversion, Error, Input, Planned, Progress, Report, Slice, Summary};

use crate::checkpoint::Checkpoint;
use crate::files::{self, Bytes};
use crate::gguf::{Header, Metadata};
use crate::kernels::Kernels;
use crate::model::{self, Model, Tensors};
use crate::quant::Role;
use std::path::Path;

/// Names of the families that can be run, as in `general.architecture`.
pub const FAMILIES: [&str; 1] = [huginn::NAME];

/// How the bytes of a model file come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Load {
    /// Mapped: pages come from the file as they are touched, and are shared between processes.
    #[default]
    Map,
    /// Read into memory of its own.
    Read,
}

/// The bytes of a GGUF file.
///
/// A mapped file must not be changed while the bytes live: a changed weight gives wrong numbers, and a shortened file ends
/// the process when a lost page is touched. Replacing it by a rename, as this library's own writers do, is safe.
///
/// # Errors
/// The file cannot be read or mapped.
pub fn read(path: &Path, load: Load) -> Result<Bytes, files::Error> {
    match load {
        // SAFETY: the documented contract of this function. Headers are parsed before they are used; weights are plain
        // numbers to the kernels, which check every length against the mapping's size, so a changed byte can only change
        // a result.
        Load::Map => unsafe { Bytes::map(path) },
        Load::Read => Bytes::read(path),
    }
}

/// Opens a model file. With [`Load::Map`] this touches the header only, and the file must not be changed while the model
/// lives, as [`read`] says.
///
/// # Errors
/// The file cannot be read, is malformed, is shorter than its header promises, belongs to a family that this version does
/// not run, or does not hold exactly the tensors of that family.
pub fn open(path: &Path, load: Load) -> Result<Model, model::Error> {
    let bytes = read(path, load)?;
    from_bytes(bytes).map_err(|source| model::Error::InFile { path: path.to_owned(), source: Box::new(source) })
}

/// As [`open`], from the bytes of a model file.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(bytes: Bytes) -> Result<Model, model::Error> {
    let header = Header::parse(&bytes)?;
    let kernels = Kernels::detect()?;
    let architecture = header.metadata.require_str("general.architecture")?;
    let mut tensors = Tensors::new(&bytes, &header, kernels);
    let parts = match architecture {
        huginn::NAME => huginn::load(&header.metadata, &mut tensors)?,
        other => {
            return Err(model::Error::Architecture { found: other.to_owned(), known: FAMILIES.join(", ") });
        }
    };
    tensors.finish()?;
    Model::new(bytes, header, kernels, parts)
}

/// What becomes of a published checkpoint: keys and tensors of the GGUF, without the tokenizer's.
///
/// # Errors
/// A family or a variant of one that is not supported, by name; a tensor too many or too few.
pub fn conversion(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    match config.str("model_type")? {
        Some("huginn_raven") => huginn::convert(checkpoint),
        found => Err(Error::Family {
            found: found.map_or_else(|| "no model_type".to_owned(), |m| format!("model_type '{m}'")),
            known: "huginn_raven".to_owned(),
        }),
    }
}

/// The role of a tensor of ours, by its name in the file; what is not known is [`Role::Other`].
pub fn role(name: &str) -> Role {
    let stem = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
    if name.ends_with(".bias") {
        return Role::Bias;
    }
    if stem.ends_with("_norm") {
        return Role::Norm;
    }
    match stem {
        "token_embd" => Role::TokenEmbedding,
        "output" => Role::Output,
        "loop.adapter_state" => Role::AdapterState,
        "loop.adapter_input" => Role::AdapterInput,
        _ => match stem.rsplit('.').next() {
            Some("attn_q") => Role::AttnQ,
            Some("attn_k") => Role::AttnK,
            Some("attn_v") => Role::AttnV,
            Some("attn_output") => Role::AttnOutput,
            Some("ffn_gate") => Role::FfnGate,
            Some("ffn_up") => Role::FfnUp,
            Some("ffn_down") => Role::FfnDown,
            _ => Role::Other,
        },
    }
}

/// Checks of metadata values that every family makes.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// A count or size in 1..=`most`.
    fn size(&self, name: &str, most: usize) -> Result<usize, model::Error> {
        let key = self.key(name);
        let found = self.metadata.require_usize(&key)?;
        if found == 0 || found > most {
            return Err(model::Error::Key { key, found: found.to_string(), expected: format!("1 to {most}") });
        }
        Ok(found)
    }

    /// A count in 0..=`most`.
    fn count(&self, name: &str, most: usize) -> Result<usize, model::Error> {
        let key = self.key(name);
        let found = self.metadata.require_usize(&key)?;
        if found > most {
            return Err(model::Error::Key { key, found: found.to_string(), expected: format!("0 to {most}") });
        }
        Ok(found)
    }

    /// A finite number above zero.
    fn positive(&self, name: &str) -> Result<f32, model::Error> {
        let key = self.key(name);
        let found = self.metadata.require_f32(&key)?;
        if !(found.is_finite() && found > 0.0) {
            return Err(model::Error::Key { key, found: found.to_string(), expected: "a number above 0".into() });
        }
        Ok(found)
    }

    /// A required yes or no.
    fn flag(&self, name: &str) -> Result<bool, model::Error> {
        Ok(self.metadata.require_bool(&self.key(name))?)
    }

    /// A name that must be the one that is implemented.
    fn only(&self, name: &str, value: &str) -> Result<(), model::Error> {
        let key = self.key(name);
        let found = self.metadata.require_str(&key)?;
        if found != value {
            let found = format!("'{}'", found.chars().take(80).collect::<String>());
            return Err(model::Error::Key { key, found, expected: format!("'{value}'") });
        }
        Ok(())
    }
}
