//! Text on both sides of the engine, which itself speaks token ids only.
//!
//! [`Tokenizer`] turns text into ids, [`Template`] turns a conversation into a prompt, [`StreamDecoder`] turns ids
//! back into text as they come, and [`StopStrings`] and [`escape_controls`] stand between that text and the user.
//!
//! One rule holds throughout: **what a user typed never becomes a special token.** Plain text is encoded with the
//! matching of added tokens switched off, and in a rendered template only the special tokens that the template
//! itself wrote are special tokens ([`Template::render`] tells how).

mod added;
mod alphabet;
mod clock;
mod condition;
mod conversation;
mod ggml;
mod metadata;
mod sentencepiece;
mod spm;
mod stream;
mod template;
mod tokenizer;

#[cfg(feature = "cli")]
pub(crate) use clock::now_utc;
pub use condition::DEFAULT_CONDITION;
pub use conversation::{Conversation, Message, Role};
pub use ggml::{
    GgmlKeys, TOKEN_BYTE, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_UNUSED, TOKEN_USER_DEFINED, VocabParts,
};
pub use metadata::{MetadataError, stop_tokens, template_source, write as write_metadata};
pub use stream::{StopStrings, Stopped, StreamDecoder, escape_controls};
pub use template::{Rendered, Template, TemplateInputs, TemplateKind};
pub use tokenizer::{SpecialIds, Tokenizer};

/// What can go wrong with tokenizers, templates and text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tokenizer.json (or one part of it) is not what it should be.
    #[error("tokenizer.json: {part}: {detail}")]
    TokenizerJson {
        /// The part of the file, such as `model`.
        part: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A tokenizer.model is not what it should be.
    #[error("tokenizer.model: {0}")]
    SentencePiece(&'static str),
    /// Something is well formed, but of a kind that this program does not know.
    #[error("{what} {found:?} is not supported (known: {known})")]
    Unsupported {
        /// What it is, such as `tokenizer.ggml.pre`.
        what: &'static str,
        /// The kind found.
        found: String,
        /// The kinds that are known.
        known: String,
    },
    /// Two tokens share an id, or two ids share a text.
    #[error("the vocabulary is ambiguous: {first:?} (id {first_id}) and {second:?} (id {second_id})")]
    Ambiguous {
        /// One token's text.
        first: String,
        /// Its id.
        first_id: u32,
        /// The other's text.
        second: String,
        /// Its id.
        second_id: u32,
    },
    /// A number belonging to a vocabulary is out of its range.
    #[error("{what} is {found}, expected {expected}")]
    Range {
        /// What the number counts.
        what: &'static str,
        /// The range in words.
        expected: String,
        /// The number.
        found: u64,
    },
    /// A merge rule is not two tokens of the vocabulary.
    #[error("tokenizer.ggml.merges[{index}] is {found:?}, expected two tokens with a space between")]
    Merge {
        /// The rule's place in the list.
        index: usize,
        /// The rule.
        found: String,
    },
    /// A configuration names a token that the vocabulary lacks.
    #[error("{name} is {text:?}, which is not in the vocabulary")]
    MissingToken {
        /// The name, such as `bos_token`.
        name: String,
        /// The token's text.
        text: String,
    },
    /// A token id that the tokenizer does not have, such as a row that only pads the table.
    #[error("token id {id} is not in the vocabulary of {vocabulary} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// One above the highest id.
        vocabulary: usize,
    },
    /// The tokenizer's library could not encode a text.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// A character of the text has no encoding, or none but a special token.
    #[error("{0:?} has no encoding as plain text: the vocabulary has no token for it but special ones")]
    OnlySpecial(String),
    /// A text is too long to encode at once.
    #[error("the text has {found} bytes, at most {limit} can be encoded at once")]
    TextTooLong {
        /// The text's length.
        found: usize,
        /// The longest that is accepted.
        limit: usize,
    },
    /// A chat template is malformed, or failed while it ran.
    #[error("chat template, line {line}: {detail}")]
    Template {
        /// The line of the template, from 1; 0 if unknown.
        line: usize,
        /// What went wrong.
        detail: String,
    },
    /// A chat template refused the conversation by `raise_exception`.
    #[error("the chat template refused the conversation (line {line}): {message}")]
    Refused {
        /// The line of the template, from 1; 0 if unknown.
        line: usize,
        /// The template's own message.
        message: String,
    },
    /// A chat template, or what it wrote, is larger than any real one.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// The template or its output.
        what: &'static str,
        /// The largest that is accepted.
        limit: usize,
    },
    /// A role that is none of the known ones.
    #[error("role {0:?} is not known (use system, developer, user, assistant or tool)")]
    Role(String),
    /// The conversation uses up every character that could have marked the user's text.
    #[error("the conversation contains every Unicode noncharacter and private-use character; remove some")]
    NoMarker,
    /// A stop string is empty and would stop before the first letter.
    #[error("stop string {0} is empty")]
    EmptyStop(usize),
    /// Not even the newest message fits.
    #[error(
        "the last message needs {needed} tokens with the system prompt, and the context has room for {room}; \
         shorten it or use a longer context"
    )]
    DoesNotFit {
        /// Tokens of the shortest prompt possible.
        needed: usize,
        /// Tokens there is room for.
        room: usize,
    },
}
