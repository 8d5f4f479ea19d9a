//! What can go wrong with a model or a session.

use crate::gguf::{self, TensorType};
use crate::{files, kernels};

/// An error of the model room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is wrong with a model file, with its path.
    #[error("{}: {source}", .path.display())]
    InFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// Reading or mapping the file.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The container is malformed, or a key is missing or has the wrong type.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// No kernels for this machine, or none for a weight format.
    #[error(transparent)]
    Kernels(#[from] kernels::Error),
    /// The file holds only some of the model's tensors.
    #[error(
        "this is one of {count} files that are one model; 'rdt-quantize FILE OUT.gguf --type published' makes one of them"
    )]
    Split {
        /// How many files there are.
        count: usize,
    },
    /// `general.architecture` names a family that this version does not run.
    #[error("architecture '{found}' is not supported; this version runs: {known}")]
    Architecture {
        /// The name in the file.
        found: String,
        /// The names that are known.
        known: String,
    },
    /// A metadata value that the family does not allow.
    #[error("{key} is {found}; expected {expected}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor that the family needs is not in the file.
    #[error("tensor '{0}' is missing; the file is not a complete model of its architecture")]
    MissingTensor(String),
    /// A tensor that the family does not know is in the file.
    #[error("tensor '{0}' is not part of this architecture; refusing to run a model without all of its weights")]
    UnknownTensor(String),
    /// A tensor has another shape than the metadata promises.
    #[error("tensor '{name}' has shape {found:?}; the metadata asks for {expected:?} (row length first)")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions in the file, row length first.
        found: Vec<usize>,
        /// The dimensions that the metadata implies.
        expected: Vec<usize>,
    },
    /// What is to stand in for a matrix of the file has another size.
    #[error("{found} bytes cannot stand in for '{name}'; as {ty} it takes {expected}")]
    Replacement {
        /// The tensor.
        name: String,
        /// The type that they are said to be.
        ty: TensorType,
        /// Bytes given.
        found: usize,
        /// Bytes of a matrix of this shape; 0 if its rows do not divide into blocks.
        expected: usize,
    },
    /// A norm or bias has a storage format that is not read.
    #[error("tensor '{name}' has type {found}; norms and biases must be f32, f16 or bf16")]
    VectorType {
        /// The tensor.
        name: String,
        /// Its type.
        found: gguf::TensorType,
    },
    /// No kernel multiplies a matrix's storage format.
    #[error("tensor '{name}': {source}")]
    MatrixType {
        /// The tensor.
        name: String,
        /// What is wrong.
        source: kernels::Error,
    },
    /// A session option outside what the model or machine allows.
    #[error("{0}")]
    Option(String),
    /// The KV cache does not fit its memory budget, even at its smallest.
    #[error(
        "a KV cache for {context} positions needs at least {needed} bytes, more than the budget of {budget}; ask for a shorter \
         context (-c), fewer loop steps with slots (--kv-steps), a smaller --kv-type, or raise --kv-memory"
    )]
    KvMemory {
        /// Positions asked for.
        context: usize,
        /// Bytes it would take.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The system does not give the memory that the KV cache needs, although its budget allows it.
    #[error(
        "cannot get {bytes} bytes of memory for the KV cache; ask for a shorter context (-c) or a lower --kv-memory"
    )]
    Memory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// More tokens than the context has room for.
    #[error("the context is full: {used} of {context} positions are used and {asked} more were asked for")]
    ContextFull {
        /// Positions in the KV cache of the sequence.
        used: usize,
        /// Its size.
        context: usize,
        /// Tokens in the call.
        asked: usize,
    },
    /// More tokens that see each other in both directions than go through the model together.
    #[error(
        "a prompt of {asked} tokens, which see each other in both directions, must go through the model at once, and there is \
         room for {most} (-b, up to 4096 and the context)"
    )]
    PrefixTooLong {
        /// Tokens in the call.
        asked: usize,
        /// Rows per chunk.
        most: usize,
    },
    /// A token id outside the embedding table.
    #[error("token {token} is outside the vocabulary of {vocab} entries")]
    Token {
        /// The id.
        token: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// A call without tokens.
    #[error("there is no token to run: the prompt is empty")]
    Empty,
    /// The latent state is not finite.
    #[error(
        "the latent state of position {position} is not finite after loop step {step}; the weights are damaged, or the \
         model cannot be looped this deep"
    )]
    NotFinite {
        /// Position in its sequence.
        position: usize,
        /// Steps done, from 1.
        step: usize,
    },
    /// Interleaved weights could not be made or kept.
    #[error("{source} (--repack off does without interleaved weights)")]
    Cache {
        /// Why.
        source: Box<crate::files::Error>,
    },
    /// A logit is NaN or infinite although the latent was not.
    #[error("the logits of position {position} are not finite; the weights of the coda or head are damaged")]
    LogitsNotFinite {
        /// Position in its sequence.
        position: usize,
    },
    /// The pass was cancelled; the session is as before the call.
    #[error("cancelled")]
    Cancelled,
    /// What was asked for can only be seen, or decided, on the CPU.
    #[error("a GPU decides by itself how deep to go and shows no latent states; this needs the CPU (--device cpu)")]
    NeedsCpu,
    /// Rows are kept in flight through one loop, and this model has several.
    #[error("this model has {0} looped segments; several tokens can be in flight only where there is one")]
    SeveralLoops(usize),
    /// There is no place for more rows in flight.
    #[error("{asked} rows are to be in flight, and there is room for {room}")]
    FlightFull {
        /// Rows that would be.
        asked: usize,
        /// Rows that there is room for: [`super::Session::chunk_rows`].
        room: usize,
    },
    /// A worker thread could not be started.
    #[error("cannot start {count} worker threads: {source}")]
    Threads {
        /// Threads asked for.
        count: usize,
        /// What the system said.
        source: std::io::Error,
    },
}
