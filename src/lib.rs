//! An edge runtime for recurrent-depth (looped) language models.
