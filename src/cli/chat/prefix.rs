//! Models that were trained with prefixes: which parts of a prompt they read in both directions, and under which condition they
//! are asked.

use super::error::Error;
use super::state::{Chat, Voice};
use crate::text::{self, Message, Role, Template, TemplateKind};
use std::ops::Range;

/// The parts of `prompt`, the tokens of `messages`, that lie between two answers: each is read in both directions, the answers are
/// not. `encode` gives the tokens of the first messages, up to where the next answer begins if its second argument is set.
///
/// Where a template writes an answer in such a way that its tokens cannot be told from those around it, the whole prompt is one
/// part.
pub(super) fn both_ways(
    messages: &[Message],
    prompt: &[u32],
    encode: impl Fn(&[Message], bool) -> Result<Vec<u32>, Error>,
) -> Result<Vec<Range<usize>>, Error> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
        let (before, with) = (encode(&messages[..i], true)?, encode(&messages[..=i], false)?);
        let end = before.len();
        if !prompt.starts_with(&before) || !prompt.starts_with(&with) || start >= end || end > with.len() {
            ranges.clear();
            start = 0;
            break;
        }
        ranges.push(start..end);
        start = with.len();
    }
    ranges.extend((start < prompt.len()).then_some(start..prompt.len()));
    Ok(ranges)
}

impl Voice {
    /// The format that a model without a template is asked in, under another condition.
    pub(super) fn under(&self, condition: &str) -> Result<Template, Error> {
        let template = match self.template.kind() {
            TemplateKind::Prefix => Template::prefix(&self.tokenizer, condition)?,
            _ => None,
        };
        Ok(template.ok_or_else(|| text::Error::Unsupported {
            what: "the condition",
            found: condition.chars().take(40).collect(),
            known: "none for this model".to_owned(),
        })?)
    }
}

impl Chat {
    /// The condition under which answers are asked for, if the model's format has one.
    pub fn condition(&self) -> Option<&str> {
        self.voice.condition.as_deref()
    }

    /// Changes the condition from the next message on.
    ///
    /// # Errors
    /// A condition that is not known, or a model whose format has none.
    pub fn set_condition(&mut self, condition: &str) -> Result<(), Error> {
        self.voice.template = self.voice.under(condition)?;
        self.voice.condition = Some(condition.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
