//! Conversations on disk: a JSON file that a person can read and that is not trusted.
//!
//! It holds the words, the settings, and the tokens that the engine held with the way they were run ([`Run`]), so that going
//! on from it is going on from the same numbers (on a device, but for the last bits; not along a wavefront, whose tokens are run again one by
//! one). Keys and values themselves are not in it; they are
//! computed again.

use super::replay::Run;
use super::settings::{MOST_STEPS, Settings};
use super::state::Chat;
use crate::cli::device::CPU;
use crate::exit::{self, ExitRule};
use crate::files::{self, AtomicFile};
use crate::generate::{SamplerConfig, Way, sampler};
use crate::kernels::KvType;
use crate::model::{InitialState, Model};
use crate::text::{self, Conversation, Message, Role};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What the file says it is. The number changes when old programs could not read new files, or the other way round.
pub const FORMAT: &str = "rdt-chat 1";

/// Largest file that is read: far more than any context holds.
pub const MOST_BYTES: u64 = 16 << 20;

/// Why a file is not a saved conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading it failed.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Writing it failed.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Writing it failed half-way.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What is wrong with a file's contents, with its path.
    #[error("{}: {source}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// It is too large.
    #[error("more than {MOST_BYTES} bytes: this is no saved conversation")]
    TooLarge,
    /// It is not the JSON that is expected.
    #[error("not a saved conversation, or a damaged one: {0}")]
    Json(#[from] serde_json::Error),
    /// It has another format or version.
    #[error("its format is {0:?}; this program reads {FORMAT:?}")]
    Format(String),
    /// A message by nobody known.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// Messages are not in turns.
    #[error("message {index} is by '{found}', expected '{expected}': user and assistant take turns")]
    Turn {
        /// The message, from 1.
        index: usize,
        /// Whose it is.
        found: Role,
        /// Whose turn it is.
        expected: Role,
    },
    /// The last message has no answer.
    #[error("the last message has no answer")]
    Unanswered,
    /// An exit rule that is none.
    #[error(transparent)]
    Rule(#[from] exit::Error),
    /// Sampler settings out of range.
    #[error(transparent)]
    Sampler(#[from] sampler::Error),
    /// A number of loop steps that is not sensible.
    #[error("{0} loop steps; expected 1 to {MOST_STEPS}")]
    Steps(usize),
    /// A token that the model does not have.
    #[error("token {id} is not in the vocabulary of {vocabulary} tokens")]
    Token {
        /// The id.
        id: u32,
        /// Tokens there are.
        vocabulary: usize,
    },
}

/// The model that a conversation was with, as far as it is worth comparing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelId {
    name: String,
    architecture: String,
    /// Bytes of all tensors: tells quantisations apart.
    bytes: u64,
    vocabulary: usize,
}

impl ModelId {
    /// Of a model.
    pub fn of(model: &Model) -> Self {
        let config = model.config();
        Self {
            name: config.name.clone(),
            architecture: config.architecture.clone(),
            bytes: model.tensor_bytes(),
            vocabulary: config.vocab,
        }
    }
}

/// Where the latent state starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Init {
    Zeros,
    Noise,
    /// A file that is not part of this one.
    Given,
}

/// The settings in force, as they are written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenSettings {
    exit_rule: String,
    steps: Option<usize>,
    init: Init,
    /// Of the initial state, if it is noise.
    init_seed: u64,
    temp: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    repeat_penalty: f64,
    /// `None` looks back at all tokens.
    repeat_last_n: Option<usize>,
    seed: u64,
    kv_type: String,
    /// Left out where the template decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning: Option<bool>,
    /// Under which a prefix model was asked, where its format has conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    condition: Option<String>,
}

impl WrittenSettings {
    /// Of a conversation.
    pub fn of(chat: &Chat) -> Self {
        let Settings { rule, steps, sampler, reasoning, .. } = chat.settings();
        let (init, init_seed) = match chat.initial() {
            InitialState::Zeros => (Init::Zeros, 0),
            InitialState::Noise { seed } => (Init::Noise, *seed),
            InitialState::Given(_) => (Init::Given, 0),
        };
        Self {
            exit_rule: rule.to_string(),
            steps: *steps,
            init,
            init_seed,
            temp: decimal(sampler.temperature),
            top_k: sampler.top_k,
            top_p: decimal(sampler.top_p),
            min_p: decimal(sampler.min_p),
            repeat_penalty: decimal(sampler.repeat_penalty),
            repeat_last_n: (sampler.repeat_last_n != usize::MAX).then_some(sampler.repeat_last_n),
            seed: sampler.seed,
            kv_type: chat.engine().session().kv_shape().ty.to_string(),
            reasoning: *reasoning,
            condition: chat.condition().map(str::to_owned),
        }
    }

    fn sampler(&self) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temp as f32,
            top_k: self.top_k,
            top_p: self.top_p as f32,
            min_p: self.min_p as f32,
            repeat_penalty: self.repeat_penalty as f32,
            repeat_last_n: self.repeat_last_n.unwrap_or(usize::MAX),
            seed: self.seed,
        }
    }
}

/// The number that a person would write: 0.95 and not 0.949999988079071. It becomes the same f32 again.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn is_false(b: &bool) -> bool {
    !b
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMessage {
    role: String,
    content: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRun {
    drawn: bool,
    /// Only in files of models that read prompts in both directions.
    #[serde(default, skip_serializing_if = "is_false")]
    both_ways: bool,
    exit_rule: String,
    steps: usize,
    ids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: String,
    model: ModelId,
    settings: WrittenSettings,
    system: Option<String>,
    messages: Vec<WrittenMessage>,
    held: Vec<WrittenRun>,
    /// Tokens drawn so far: where the random numbers go on.
    draws: u64,
    /// What the tokens were run on, where that was not only the CPU: nothing else comes to the same bits again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Were some of the tokens decoded in a way that running them again does not repeat?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    approximate: bool,
}

/// A saved conversation whose every part has been checked, but for what depends on the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    written: Written,
    rule: ExitRule,
    conversation: Conversation,
    runs: Vec<Run>,
}

impl Saved {
    /// Of a conversation between two answers.
    ///
    /// # Errors
    /// None in practice: what a conversation holds is what [`parse`](Self::parse) accepts.
    pub fn of(chat: &Chat) -> Result<Self, Error> {
        let conversation = chat.conversation();
        let message = |m: &Message| WrittenMessage { role: m.role.to_string(), content: m.content.clone() };
        let mut ids = chat.engine().held().iter().copied();
        let run = |r: &Run| WrittenRun {
            drawn: r.way == Way::Drawn,
            both_ways: r.way == Way::BothWays,
            exit_rule: r.rule.to_string(),
            steps: r.steps,
            ids: ids.by_ref().take(r.len).collect(),
        };
        Self::check(Written {
            format: FORMAT.to_owned(),
            model: ModelId::of(chat.model()),
            settings: WrittenSettings::of(chat),
            system: conversation.system.clone(),
            messages: conversation.turns.iter().map(message).collect(),
            held: chat.runs().iter().map(run).collect(),
            draws: chat.engine().sampler().position(),
            device: Some(chat.ran_on()).filter(|device| device != CPU),
            approximate: chat.is_approximate(),
        })
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// It cannot be read, or is not a saved conversation in every part.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read_error = |source| Error::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|f| f.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(read_error)?;
        Self::parse(&bytes).map_err(|source| Error::InFile { path: path.to_owned(), source: Box::new(source) })
    }

    /// Checks the contents of a file.
    ///
    /// # Errors
    /// They are not a saved conversation in every part.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        if bytes.len() as u64 > MOST_BYTES {
            return Err(Error::TooLarge);
        }
        let head: Head = serde_json::from_slice(bytes)?;
        if head.format != FORMAT {
            return Err(Error::Format(head.format.chars().take(40).collect()));
        }
        Self::check(serde_json::from_slice(bytes)?)
    }

    fn check(written: Written) -> Result<Self, Error> {
        let steps = |n: usize| if (1..=MOST_STEPS).contains(&n) { Ok(n) } else { Err(Error::Steps(n)) };
        let rule: ExitRule = written.settings.exit_rule.parse()?;
        written.settings.steps.map(steps).transpose()?;
        written.settings.sampler().validate()?;
        let mut conversation = Conversation::new(written.system.clone());
        for (i, message) in written.messages.iter().enumerate() {
            let found: Role = message.role.parse()?;
            let expected = if i % 2 == 0 { Role::User } else { Role::Assistant };
            if found != expected {
                return Err(Error::Turn { index: i + 1, found, expected });
            }
            conversation.push(found, message.content.as_str());
        }
        if !conversation.turns.len().is_multiple_of(2) {
            return Err(Error::Unanswered);
        }
        let run = |r: &WrittenRun| {
            let (rule, steps) = (r.exit_rule.parse()?, steps(r.steps)?);
            let way = match (r.drawn, r.both_ways) {
                (true, _) => Way::Drawn,
                (false, true) => Way::BothWays,
                (false, false) => Way::Prompt,
            };
            Ok(Run { len: r.ids.len(), way, rule, steps })
        };
        let mut runs = written.held.iter().map(run).collect::<Result<Vec<_>, Error>>()?;
        runs.retain(|r| r.len > 0);
        Ok(Self { written, rule, conversation, runs })
    }

    /// Writes the file. It appears under its name when it is whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut file = AtomicFile::create(path)?;
        let mut write = || {
            serde_json::to_writer_pretty(&mut file, &self.written)?;
            file.write_all(b"\n")
        };
        write().map_err(|source| Error::Write { path: path.to_owned(), source })?;
        Ok(file.commit()?)
    }

    /// Whether it was saved with this model.
    pub fn is_of(&self, model: &Model) -> bool {
        self.written.model == ModelId::of(model)
    }

    /// What was said.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// The settings; what a file does not say is as `now`.
    pub fn settings(&self, now: &Settings) -> Settings {
        Settings {
            rule: self.rule,
            steps: self.written.settings.steps,
            sampler: self.written.settings.sampler(),
            reasoning: self.written.settings.reasoning.or(now.reasoning),
            ..now.clone()
        }
    }

    /// The initial state; `None` if it came from another file.
    pub fn initial(&self) -> Option<InitialState> {
        match self.written.settings.init {
            Init::Zeros => Some(InitialState::Zeros),
            Init::Noise => Some(InitialState::Noise { seed: self.written.settings.init_seed }),
            Init::Given => None,
        }
    }

    /// The condition under which the model was asked, if any.
    pub fn condition(&self) -> Option<&str> {
        self.written.settings.condition.as_deref()
    }

    /// Whether the KV cache was of this type.
    pub fn has_kv_type(&self, ty: KvType) -> bool {
        self.written.settings.kv_type == ty.to_string()
    }

    /// The tokens that the engine held, and how they were run.
    ///
    /// # Errors
    /// A token that a vocabulary of this size does not have.
    pub fn held(&self, vocabulary: usize) -> Result<(Vec<u32>, &[Run]), Error> {
        let ids: Vec<u32> = self.written.held.iter().flat_map(|r| &r.ids).copied().collect();
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(Error::Token { id, vocabulary }),
            None => Ok((ids, &self.runs)),
        }
    }

    /// What the tokens were run on, as [`Chat::ran_on`] has it.
    pub fn device(&self) -> &str {
        self.written.device.as_deref().unwrap_or(CPU)
    }

    /// Were some of its tokens decoded in a way that running them again does not repeat?
    pub fn is_approximate(&self) -> bool {
        self.written.approximate
    }

    /// Tokens drawn so far.
    pub fn draws(&self) -> u64 {
        self.written.draws
    }
}
