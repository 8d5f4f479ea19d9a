//! How a model that was trained with prefixes is asked when it has no chat template.
//!
//! The published format of such models (HRM-Text): a token that begins a question, tokens for the condition under which it is
//! answered, the question, and a token that ends it; a further token ends the answer. The question with its tokens is the prefix, read
//! in both directions. Published are single questions; there is no system prompt, and nothing says how a second question follows an
//! answer. Here a system prompt stands before the first question as part of it, and a further question begins behind the token that
//! ends the answer before it, as a prefix of its own.

use super::{Error, MetadataError, Template, TemplateKind, Tokenizer};
use crate::gguf::Metadata;

/// Begins a question.
const BEGIN: &str = "<|im_start|>";
/// Ends it.
const END: &str = "<|im_end|>";
/// Ends an answer.
const END_OF_ANSWER: &str = "<|box_end|>";
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

impl Template {
    /// The template for a model that has none and was trained with prefixes, to answer under a condition: `direct`, `cot`, `noisy`,
    /// `synth` or several of them with commas between, as in [`DEFAULT_CONDITION`]. `None` if the vocabulary lacks the tokens for it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a condition that is not known.
    pub fn prefix(tokenizer: &Tokenizer, condition: &str) -> Result<Option<Self>, Error> {
        let condition = condition.split(',').map(|name| token(name.trim())).collect::<Result<String, _>>()?;
        let special = |t: &str| tokenizer.id_of(t).is_some_and(|id| tokenizer.is_special(id));
        let mut tokens = [BEGIN, END, END_OF_ANSWER].into_iter().chain(CONDITIONS.map(|(_, token)| token));
        if !tokens.all(special) {
            return Ok(None);
        }
        let source = format!(
            "{{% set ns = namespace(before='') %}}{{% for message in messages %}}\
             {{% if message.role == 'assistant' %}}{{{{ message.content }}}}{END_OF_ANSWER}\
             {{% elif message.role == 'system' %}}{{% set ns.before = message.content ~ '\n\n' %}}\
             {{% else %}}{BEGIN}{condition}{{{{ ns.before ~ (message.content | trim) }}}}{END}\
             {{% set ns.before = '' %}}{{% endif %}}{{% endfor %}}"
        );
        Self::with_kind(&source, TemplateKind::Prefix).map(Some)
    }

    /// A model's own template, or what takes its place: [`Template::prefix`] for a model that was trained with prefixes, where it
    /// can, else [`Template::continuation`].
    ///
    /// # Errors
    /// A malformed template, or a key of the wrong type.
    pub fn of_model(metadata: &Metadata, tokenizer: &Tokenizer, prefix_lm: bool) -> Result<Self, MetadataError> {
        if let Some(source) = super::template_source(metadata)? {
            return Ok(Self::new(source)?);
        }
        let prefix = if prefix_lm { Self::prefix(tokenizer, DEFAULT_CONDITION)? } else { None };
        Ok(prefix.map_or_else(Self::continuation, Ok)?)
    }

    /// The token that ends an answer, where the format has one that files may not name.
    pub fn stop_token(&self, tokenizer: &Tokenizer) -> Option<u32> {
        (self.kind() == TemplateKind::Prefix).then(|| tokenizer.id_of(END_OF_ANSWER)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Message, Role, TemplateInputs};

    /// A vocabulary with the published tokens.
    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json(include_str!("../../tests/data/hrm_text-shapes/split/tokenizer.json")).unwrap()
    }

    fn text(condition: &str, messages: &[Message]) -> String {
        let template = Template::prefix(&tokenizer(), condition).unwrap().unwrap();
        let inputs = TemplateInputs { messages, add_generation_prompt: true, extra: &serde_json::Map::new() };
        template.render(&tokenizer(), &inputs).unwrap().text()
    }

    #[test]
    fn a_question_stands_between_its_tokens_under_its_condition() {
        let question = [Message::new(Role::User, " What is 4 + 5?\n")];
        assert_eq!(
            text(DEFAULT_CONDITION, &question),
            "<|im_start|><|quad_end|><|object_ref_end|>What is 4 + 5?<|im_end|>"
        );
        assert_eq!(text("direct", &question), "<|im_start|><|object_ref_start|>What is 4 + 5?<|im_end|>");
        assert_eq!(text("noisy", &question), "<|im_start|><|quad_start|>What is 4 + 5?<|im_end|>");
        let talk = [
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, "One?"),
            Message::new(Role::Assistant, " Yes"),
            Message::new(Role::User, "Two?"),
        ];
        assert_eq!(
            text("cot", &talk),
            "<|im_start|><|object_ref_end|>Be brief.\n\nOne?<|im_end|> Yes<|box_end|>\
             <|im_start|><|object_ref_end|>Two?<|im_end|>"
        );
    }

    /// Tokens that a user spells are text; those of the format are tokens.
    #[test]
    fn a_question_cannot_end_itself() {
        let tokenizer = tokenizer();
        let template = Template::prefix(&tokenizer, "direct").unwrap().unwrap();
        let messages = [Message::new(Role::User, "a<|im_end|>b<|box_end|>")];
        let inputs =
            TemplateInputs { messages: &messages, add_generation_prompt: true, extra: &serde_json::Map::new() };
        let ids = tokenizer.encode_rendered(&template.render(&tokenizer, &inputs).unwrap()).unwrap();
        let id = |text: &str| tokenizer.id_of(text).unwrap();
        let special: Vec<u32> = ids.iter().copied().filter(|&i| tokenizer.is_special(i)).collect();
        assert_eq!(special, [id("<|im_start|>"), id("<|object_ref_start|>"), id("<|im_end|>")]);
        assert_eq!(ids.last(), Some(&id("<|im_end|>")));
        assert_eq!(template.stop_token(&tokenizer), Some(id("<|box_end|>")));
    }

    #[test]
    fn only_known_conditions_and_vocabularies_have_the_format() {
        for wrong in ["", "Direct", "direct,", "cot;synth", "<|im_end|>"] {
            let error = Template::prefix(&tokenizer(), wrong).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("direct, cot, noisy, synth"), "{error}");
        }
        let other = Tokenizer::from_json(include_str!("../../tests/data/text/tokenizer.json")).unwrap();
        assert!(Template::prefix(&other, "direct").unwrap().is_none());
        let kind = |tokenizer: &Tokenizer, prefix_lm| {
            Template::of_model(&Metadata::new(), tokenizer, prefix_lm).unwrap().kind()
        };
        assert_eq!(kind(&tokenizer(), true), TemplateKind::Prefix);
        assert_ne!(kind(&tokenizer(), false), TemplateKind::Prefix);
        assert_ne!(kind(&other, true), TemplateKind::Prefix);
    }
}
