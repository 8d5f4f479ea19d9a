//! An edge runtime for recurrent-depth (looped) language models.

pub mod exit;
