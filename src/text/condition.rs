//! How a model that was trained with prefixes is asked when it has no chat template.
//!
//! The published format of such models (HRM-Text): a token that begins a question, tokens for the condition under which it is
//! answered, the question, and a token that ends it; a further token ends the answer. The question with its tokens is the prefix, read
//! in both directions. Published are single questions; there is no system prompt, and nothing says how a second question follows an
//! answer. Here a system prompt stands before the first question as part of it, and a further question begins behind the token that
//! ends the answer before it, as a prefix of its own.

use super::{Error, Tokenizer};

/// Begins a question.
const BEGIN: &str = "<|im_start|>";
/// Ends it.
const END: &str = "<|im_end|>";
/// Ends an answer.
pub(super) const END_OF_ANSWER: &str = "<|box_end|>";
/// Conditions and their tokens. They are combined: `synth,cot` is one condition of two tokens.
const CONDITIONS: [(&str, &str); 4] = [
    ("direct", "<|object_ref_start|>"),
    ("cot", "<|object_ref_end|>"),
    ("noisy", "<|quad_start|>"),
    ("synth", "<|quad_end|>"),
];
/// What the publishers recommend for reasoning and open-ended answers; for short answers after examples it is `direct`.
pub const DEFAULT_CONDITION: &str = "synth,cot";

/// The token of one name in a condition.
fn token(name: &str) -> Result<&'static str, Error> {
    let found = CONDITIONS.iter().find(|(known, _)| *known == name).map(|&(_, token)| token);
    found.ok_or_else(|| Error::Unsupported {
        what: "the condition",
        found: name.chars().take(40).collect(),
        known: CONDITIONS.map(|(known, _)| known).join(", "),
    })
}

/// Whether a vocabulary has the tokens of this format.
pub(super) fn suits(tokenizer: &Tokenizer) -> bool {
    let special = |t: &str| tokenizer.id_of(t).is_some_and(|id| tokenizer.is_special(id));
    [BEGIN, END, END_OF_ANSWER].into_iter().chain(CONDITIONS.map(|(_, token)| token)).all(special)
}

/// The format as a template, under a condition such as `direct` or `synth,cot`.
pub(super) fn source(condition: &str) -> Result<String, Error> {
    let condition = condition.split(',').map(|name| token(name.trim())).collect::<Result<String, _>>()?;
    Ok(format!(
        "{{% set ns = namespace(before='') %}}{{% for message in messages %}}\
         {{% if message.role == 'assistant' %}}{{{{ message.content }}}}{END_OF_ANSWER}\
         {{% elif message.role == 'system' %}}{{% set ns.before = message.content ~ '\n\n' %}}\
         {{% else %}}{BEGIN}{condition}{{{{ ns.before ~ (message.content | trim) }}}}{END}{{% set ns.before = '' %}}\
         {{% endif %}}{{% endfor %}}"
    ))
}
