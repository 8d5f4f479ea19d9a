//! Model families: one file each, which knows the family's published layout and its GGUF keys.
//!
//! A family turns a published checkpoint into our GGUF ([`conversion`]: every tensor with a [`Role`], so that a recipe can
//! choose its format), and a GGUF into what the model room runs ([`open`]).

mod anatomy;
mod bounds;
mod convert;
mod hrm_text;
mod huginn;
mod keys;
mod llama;
mod looped_gpt2;
mod nanbeige;
mod ouro;
mod pairs;
mod parcae;
mod planner;
mod raven;
mod retrofit;
mod rope;
mod settings;
mod split;
mod stream;
mod unfit;
mod words;

pub use anatomy::{Anatomy, Part, Share, StepShare};
pub use convert::{Conversion, Error, Input, NonFinite, Planned, Progress, Report, Slice, Summary, Target};
pub use split::{Split, SplitError, split_count, split_stem};
pub use unfit::{Places, Unfit};
pub use words::plan_in_words;

use crate::checkpoint::Checkpoint;
use crate::files::{self, Bytes};
use crate::gguf::{Header, Metadata};
use crate::kernels::Kernels;
use crate::model::{self, Model, Parts, Replaced, Tensors};
use crate::quant::Role;
use std::path::Path;

/// A model family: what it is called, and how its files are read.
pub struct Family {
    /// `general.architecture` of its GGUF files.
    pub name: &'static str,
    /// Published checkpoints that it takes, in words.
    pub checkpoints: &'static str,
    /// Who reads its GGUF files besides this library, and what is not supported; in words.
    pub notes: &'static str,
    /// Is this checkpoint of the family?
    recognise: fn(&Checkpoint) -> Result<bool, Error>,
    convert: fn(&Checkpoint) -> Result<Conversion, Error>,
    load: fn(&Metadata, &mut Tensors<'_>) -> Result<Parts, model::Error>,
}

/// The families, in the order in which a checkpoint is offered to them. A new family is a file and a line here.
static ALL: [&Family; 7] = [
    &huginn::FAMILY,
    &retrofit::FAMILY,
    &ouro::FAMILY,
    &hrm_text::FAMILY,
    &nanbeige::FAMILY,
    &parcae::FAMILY,
    &looped_gpt2::FAMILY,
];

/// The families that can be converted and run.
pub fn families() -> &'static [&'static Family] {
    &ALL
}

/// Their names, for messages.
fn names() -> String {
    ALL.map(|f| f.name).join(", ")
}

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
    with_replaced(bytes, &Replaced::new())
}

/// As [`from_bytes`], with some matrices in another format than the file has them in: what a conversion would do to a model,
/// without a second file. The model's header goes on to describe the file.
///
/// # Errors
/// As [`open`]; bytes that are not a matrix of that type and of the shape in the file. Names that are no matrix of the model
/// are passed over.
pub fn with_replaced(bytes: Bytes, replaced: &Replaced) -> Result<Model, model::Error> {
    let header = Header::parse(&bytes)?;
    let count = split_count(&header)?;
    if count > 1 {
        return Err(model::Error::Split { count });
    }
    let kernels = Kernels::detect()?;
    let architecture = header.metadata.require_str("general.architecture")?;
    let mut tensors = Tensors::new(&bytes, &header, kernels, replaced);
    let family = ALL.iter().find(|f| f.name == architecture);
    let family = family.ok_or_else(|| model::Error::Architecture { found: architecture.to_owned(), known: names() })?;
    let parts = (family.load)(&header.metadata, &mut tensors)?;
    tensors.finish()?;
    Model::new(header, kernels, parts)
}

/// What becomes of a published checkpoint: keys and tensors of the GGUF, without the tokenizer's.
///
/// # Errors
/// A family or a variant of one that is not supported, by name; a tensor too many or too few.
pub fn conversion(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    for family in ALL {
        if (family.recognise)(checkpoint)? {
            return (family.convert)(checkpoint);
        }
    }
    let found = match checkpoint.config().str("model_type")? {
        Some(name) => format!("model_type '{}'", name.chars().take(80).collect::<String>()),
        None => "no model_type".to_owned(),
    };
    Err(Error::Family { found, known: names() })
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
        "position_embd" => Role::PositionEmbedding,
        "output" => Role::Output,
        "loop.adapter_state" => Role::AdapterState,
        "loop.adapter_input" => Role::AdapterInput,
        "loop.readout" => Role::Readout,
        "loop.a_log" | "loop.dt_bias" => Role::State,
        "hrm.z_l_init" => Role::State,
        _ => match stem.rsplit('.').next() {
            Some("attn_q") => Role::AttnQ,
            Some("attn_k") => Role::AttnK,
            Some("attn_v") => Role::AttnV,
            Some("attn_gate") => Role::AttnGate,
            Some("attn_output") => Role::AttnOutput,
            Some("value_embd") => Role::ValueEmbedding,
            Some("value_gate") => Role::Gate,
            Some("ffn_gate") => Role::FfnGate,
            Some("ffn_up") => Role::FfnUp,
            Some("ffn_down") => Role::FfnDown,
            _ => Role::Other,
        },
    }
}
