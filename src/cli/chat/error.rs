//! What can go wrong in a conversation.

use super::saved;
use super::settings::MOST_STEPS;
use crate::generate::{engine, sampler};
use crate::{gguf, model, text};
use std::io;

/// An error of a conversation. All of them leave the conversation as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The model or its session.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The sampler's settings.
    #[error(transparent)]
    Sampler(#[from] sampler::Error),
    /// The template, the tokenizer, or a message that is too long.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// The tokenizer in the model file.
    #[error(transparent)]
    Tokenizer(#[from] text::MetadataError),
    /// The keys of the model file.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// Whoever was to be shown the answer failed.
    #[error("cannot write the answer: {0}")]
    Show(#[source] io::Error),
    /// A saved conversation that is none, or not of this model.
    #[error(transparent)]
    Saved(#[from] saved::Error),
    /// There is no answer that could be made again.
    #[error("there is no question to answer again yet")]
    NothingAsked,
    /// A loop deeper than is sensible.
    #[error("{0} loop steps are more than the {MOST_STEPS} that are allowed")]
    TooDeep(usize),
}

impl Error {
    /// Was it the user who stopped?
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Model(model::Error::Cancelled) | Self::Engine(engine::Error::Model(model::Error::Cancelled))
        )
    }
}
