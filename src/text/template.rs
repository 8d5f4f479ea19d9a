//! Chat templates: the Jinja program that comes with a model and writes a conversation as a prompt.
//!
//! **A template is a program from a stranger.** It runs in `minijinja` without a loader (it reads no file and no other
//! template), with a limit on the instructions it executes, on nesting, and on what it writes. It can call
//! `raise_exception`, `strftime_now` and the usual filters, none of which reaches outside; the time is the one
//! thing it learns about the machine. One thing is not bounded: strings that it builds and never writes. A
//! template made to exhaust memory can do so, and like the weights it should come from someone trusted.
//! [`Template::fingerprint`] lets a user compare it with the one published.
//!
//! **What a message says stays text.** Before rendering, every spelling of an added token in a message is broken
//! up by a marker, a noncharacter of Unicode that occurs nowhere else; the rendered text is then searched
//! for added tokens, and the markers are taken out of what is left. So the template's `<|end_turn|>` is found and
//! the user's is not, and a prompt without such spellings is tokenised exactly as if it had been rendered and
//! tokenised as one text, which is what the reference does.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::PrettyFormatter;

use super::added::{Match, Which};
use super::{Error, Message, Role, Tokenizer, clock};

/// The largest source of a template. Real ones have up to some tens of kilobytes.
const MAX_SOURCE: usize = 1 << 20;
/// Instructions a template may execute; a long conversation takes some ten per message.
const FUEL: u64 = 5_000_000;
/// Macros and recursive loops within each other.
const MAX_DEPTH: usize = 64;

/// ChatML, for models that know it but have no template.
const CHAT_ML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// One text of all that was said, for models without a template.
const CONTINUATION: &str = "{% for message in messages %}{{ message.content }}\
    {{ '\n\n' if message.role == 'system' }}{% endfor %}";

/// The variable by which templates turn thinking on and off.
const THINKING: &str = "enable_thinking";
/// What a model writes before it thinks.
const THINK: &str = "<think>\n";
/// What it writes when it has thought.
const THOUGHT: &str = "</think>";

/// Where a template comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateKind {
    /// The model has it.
    Model,
    /// ChatML, which the user asked for.
    ChatMl,
    /// The model has none, and was hardly trained to chat: it goes on with the text. That its vocabulary has the tokens of ChatML
    /// says nothing; base models have them too, and are worse with them (Ouro-1.4B loses 18 of 79 points on GSM8K).
    Continuation,
    /// The model has none, but was trained with prefixes and has the tokens of HRM-Text, whose published format this is: single
    /// questions under a condition.
    Prefix,
}

impl fmt::Display for TemplateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "the model's own",
            Self::ChatMl => "built-in ChatML",
            Self::Continuation => "none, so the model continues your text",
            Self::Prefix => "the published format of prefix models without a template",
        })
    }
}

/// What a template is given.
#[derive(Debug, Clone, Copy)]
pub struct TemplateInputs<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [Message],
    /// Whether to end with the words that start the model's answer.
    pub add_generation_prompt: bool,
    /// Variables of this template's own, such as `enable_thinking`. Those that every template has take precedence.
    pub extra: &'a serde_json::Map<String, Json>,
}

/// A chat template, ready to render.
pub struct Template {
    source: String,
    kind: TemplateKind,
    environment: Environment<'static>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("kind", &self.kind)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Template {
    /// Reads a model's template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line of a syntax error, [`Error::TooLarge`] for an absurdly large source.
    pub fn new(source: &str) -> Result<Self, Error> {
        Self::with_kind(source, TemplateKind::Model)
    }

    /// The template for a model that has none: its text goes on.
    ///
    /// # Errors
    /// None in practice: the source is built in.
    pub fn continuation() -> Result<Self, Error> {
        Self::with_kind(CONTINUATION, TemplateKind::Continuation)
    }

    /// ChatML, for a model that was trained with it and comes without its template.
    ///
    /// # Errors
    /// None in practice: the source is built in.
    pub fn chat_ml() -> Result<Self, Error> {
        Self::with_kind(CHAT_ML, TemplateKind::ChatMl)
    }

    pub(super) fn with_kind(source: &str, kind: TemplateKind) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            return Err(Error::TooLarge { what: "the chat template", limit: MAX_SOURCE });
        }
        let this = Self { source: without_generation_tags(source), kind, environment: environment() };
        this.environment.template_from_str(&this.source).map_err(|e| explain(&e))?;
        Ok(this)
    }

    /// Where the template comes from.
    pub fn kind(&self) -> TemplateKind {
        self.kind
    }

    /// 16 hexadecimal digits that differ for different templates (FNV-1a of the source): enough to notice that
    /// a file's template is not the published one, not a proof against forgery.
    pub fn fingerprint(&self) -> String {
        let mut hash = crate::hash::Fnv::new();
        hash.add(self.source.as_bytes());
        hash.to_string()
    }

    /// Whether the template has a switch for thinking before the answer, `enable_thinking`.
    pub fn has_thinking_switch(&self) -> bool {
        self.source.contains(THINKING)
    }

    /// The tokens of a conversation, after BOS where the model wants one that the template does not write; with `ask`, up to where
    /// the model's answer begins. `thinking` turns thinking on or off; `None` leaves it to the template. Where the template has
    /// no switch for it, it is turned on by starting the answer with `<think>`, which is what the templates that have one do.
    ///
    /// # Errors
    /// As [`render`](Self::render) and [`Tokenizer::encode_plain`].
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        ask: bool,
        thinking: Option<bool>,
    ) -> Result<Vec<u32>, Error> {
        let extra = thinking.map(|on| (THINKING.to_owned(), Json::Bool(on))).into_iter().collect();
        let inputs = TemplateInputs { messages, add_generation_prompt: ask, extra: &extra };
        let mut rendered = self.render(tokenizer, &inputs)?;
        if self.kind == TemplateKind::Continuation {
            return tokenizer.encode_prompt(&rendered.text());
        }
        if ask && thinking == Some(true) && !self.has_thinking_switch() {
            rendered.marked.push_str(THINK);
        }
        Ok(tokenizer.with_bos_if_wanted(tokenizer.encode_rendered(&rendered)?))
    }

    /// What of an answer becomes part of the conversation. Thoughts are left out, unless the template has a place for them.
    pub fn kept<'a>(&self, answer: &'a str) -> &'a str {
        match answer.split_once(THOUGHT) {
            Some((_, spoken)) if self.kind != TemplateKind::Continuation && !self.source.contains(THOUGHT) => {
                spoken.trim_start()
            }
            _ => answer,
        }
    }

    /// Writes the conversation as a prompt. `tokenizer` is the one that will encode it: its special tokens are the
    /// template's variables `bos_token` and so on, and its added tokens are what messages must not spell.
    ///
    /// A message by the assistant keeps added tokens that are plain words, such as a model's `<think>`, which templates
    /// look for; special tokens are broken up there too.
    ///
    /// # Errors
    /// [`Error::Refused`] if the template refuses the conversation (roles that do not alternate, for instance),
    /// [`Error::Template`] if it fails or does not end, [`Error::TooLarge`] if it writes without end.
    pub fn render(&self, tokenizer: &Tokenizer, inputs: &TemplateInputs<'_>) -> Result<Rendered, Error> {
        let marker = self.free_marker(tokenizer, inputs)?;
        let messages: Vec<Json> = inputs
            .messages
            .iter()
            .map(|message| {
                let which = match message.role {
                    Role::Assistant => Which::Special,
                    _ => Which::Control,
                };
                let content = tokenizer.added.break_up(&message.content, marker, which);
                serde_json::json!({"role": message.role.name(), "content": content})
            })
            .collect();
        let mut context = inputs.extra.clone();
        for value in context.values_mut() {
            map_strings(value, &mut |s| *s = tokenizer.added.break_up(s, marker, Which::Control));
        }
        for (name, text) in tokenizer.special_texts() {
            context.insert(name.to_owned(), text.into());
        }
        context.insert("messages".to_owned(), messages.into());
        context.insert("add_generation_prompt".to_owned(), inputs.add_generation_prompt.into());
        context.insert("tools".to_owned(), Json::Null);
        context.insert("documents".to_owned(), Json::Null);

        let template = self.environment.template_from_str(&self.source);
        let template = template.map_err(|e| explain(&e))?;
        let mut out = Bounded::default();
        let done = template.render_captured_to(context, &mut out);
        if out.full {
            return Err(Error::TooLarge { what: "what the chat template writes", limit: Tokenizer::MAX_TEXT });
        }
        done.map_err(|e| explain(&e))?;
        Ok(Rendered { marked: String::from_utf8_lossy(&out.bytes).into_owned(), marker })
    }

    /// A character that occurs in nothing the prompt is made of. Noncharacters first, which no text should contain;
    /// then those of private use, in case a text contains all of them.
    fn free_marker(&self, tokenizer: &Tokenizer, inputs: &TemplateInputs<'_>) -> Result<char, Error> {
        let noncharacters = ('\u{FDD0}'..='\u{FDEF}').chain((0..=0x10_u32).flat_map(|plane| {
            let last = [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF];
            last.into_iter().filter_map(char::from_u32)
        }));
        let private = '\u{E000}'..='\u{F8FF}';
        let mut free: BTreeSet<char> = noncharacters.chain(private).collect();
        let mut note = |text: &str| {
            for c in text.chars().filter(|c| *c >= '\u{E000}') {
                free.remove(&c);
            }
        };
        note(&self.source);
        tokenizer.added.iter().for_each(|t| note(&t.content));
        inputs.messages.iter().for_each(|m| note(&m.content));
        for value in inputs.extra.values() {
            map_strings(&mut value.clone(), &mut |s| note(s));
        }
        // Noncharacters start at U+FDD0, above those of private use in the first plane.
        let marker = free.range('\u{FDD0}'..).next().or_else(|| free.first());
        marker.copied().ok_or(Error::NoMarker)
    }
}

/// A rendered prompt in which the template's special tokens can be told from those that a message spells. Encode it
/// with [`Tokenizer::encode_rendered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    marked: String,
    marker: char,
}

impl Rendered {
    /// The prompt as a person reads it.
    pub fn text(&self) -> String {
        self.marked.replace(self.marker, "")
    }

    /// The text without markers, and the places of what `find` finds in the text with them.
    pub(super) fn unmark(&self, find: impl FnOnce(&str) -> Vec<Match>) -> (String, Vec<Match>) {
        let mut text = String::with_capacity(self.marked.len());
        let mut matches = Vec::new();
        let mut free = 0;
        for Match { range, id } in find(&self.marked) {
            let mut after = self.marked[range.end..].chars();
            let broken = self.marked[range.clone()].chars().nth(1).is_none()
                && after.next() == Some(self.marker)
                && after.next() == Some(self.marker);
            if broken {
                continue;
            }
            let plain = self.marked[free..range.start].chars();
            text.extend(plain.filter(|c| *c != self.marker));
            let start = text.len();
            text.push_str(&self.marked[range.clone()]);
            matches.push(Match { range: start..text.len(), id });
            free = range.end;
        }
        text.extend(self.marked[free..].chars().filter(|c| *c != self.marker));
        (text, matches)
    }
}

/// Calls `f` on every string within `value`. serde_json bounds the nesting of what it parses; values made by
/// the program are flat.
fn map_strings(value: &mut Json, f: &mut impl FnMut(&mut String)) {
    match value {
        Json::String(s) => f(s),
        Json::Array(items) => items.iter_mut().for_each(|v| map_strings(v, f)),
        Json::Object(fields) => fields.values_mut().for_each(|v| map_strings(v, f)),
        _ => {}
    }
}

/// Everything a template may use, set up as `transformers` sets up Jinja2.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(MAX_DEPTH);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // Python's spelling of what minijinja spells its own way.
    env.set_formatter(|out, state, value| match value.kind() {
        minijinja::value::ValueKind::None => Ok(out.write_str("None")?),
        minijinja::value::ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        let refusal = Refusal(message);
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(refusal))
    });
    env.add_function("strftime_now", |format: &str| clock::strftime(format, clock::now()));
    env.add_filter("tojson", to_json);
    env
}

/// The message of `raise_exception`, kept apart from errors of the template's own making.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// Python's `json.dumps(value, ensure_ascii=False)`, with its `indent`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and ignored: the first is always so, keys keep their order, and the separators are Python's own.
    for ignored in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    let done = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)),
        Some(width) => {
            let width = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(width.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    done.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// A space after every comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Takes what the template writes, up to a limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > Tokenizer::MAX_TEXT {
            self.full = true;
            return Err(io::Error::other("too much output"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Our error for one of minijinja's, with the innermost line and the whole chain of reasons.
fn explain(error: &minijinja::Error) -> Error {
    let mut line = error.line().unwrap_or(0);
    let mut detail = error.kind().to_string();
    detail.extend(error.detail().map(|d| format!(": {d}")));
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            let message = message.clone();
            return Error::Refused { line, message };
        }
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
            line = inner.line().unwrap_or(line);
        }
        detail = format!("{detail}: {inner}");
        source = inner.source();
    }
    Error::Template { line, detail }
}

/// Turns `{% generation %}` and `{% endgeneration %}`, which mark the assistant's words for training, into
/// a condition that always holds, so that lines and white space control stay as they are.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        out.push_str(before);
        rest = tag;
        let Some(close) = tag.find("%}") else { break };
        let inside = &tag[..close];
        let name = inside.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inside.replacen(name, replacement, 1));
        rest = &tag[close..];
    }
    out + rest
}

#[cfg(test)]
mod tests;
