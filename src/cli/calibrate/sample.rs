//! A small text for those who have none at hand.

/// What it is called where a file's name would stand.
pub(super) const NAME: &str = "the built-in sample";

/// Stories, explanations, dialogue and numbers in plain English, written for this purpose. Long enough to see what a loop does, and too
/// short to tell small losses apart.
pub(super) const TEXT: &str = include_str!("sample.txt");
