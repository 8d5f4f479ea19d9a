//! An edge runtime for recurrent-depth (looped) language models.

pub mod generate;
pub mod random;
pub mod text;
