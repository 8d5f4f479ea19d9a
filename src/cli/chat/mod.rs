//! `rdt-chat`: talking to a model in a terminal, or asking it one thing from a script.
//!
//! [`state`] is the conversation and knows no terminal; [`repl`] puts it before a user; the rest is what the two need.

pub mod answer;
pub mod command;
pub mod error;
pub mod input;
pub mod interrupt;
pub mod prefix;
pub mod repl;
pub mod replay;
pub mod report;
pub mod saved;
pub mod screen;
pub mod settings;
pub mod state;

use super::{
    DecodeFlags, DepthFlags, DeviceFlags, ExitChoice, GovernorFlags, LoadFlags, SamplerFlags, SessionFlags, Usual,
    positive,
};
use crate::calibrate::Profile;
use crate::cli::built_in::{GREETING, Source};
use crate::cli::profile::recommended_line;
use crate::exit::ExitRule;
use crate::kernels::KvType;
use crate::text::Template;
use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};
use input::Lines;
use interrupt::{Cancel, Interrupts};
use repl::Repl;
use saved::Saved;
use screen::Screen;
use settings::Settings;
use state::{Chat, Event};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Chat with a recurrent-depth model in the terminal
#[derive(Parser, Debug)]
#[command(
    name = "rdt-chat",
    version,
    after_help = "\
At a terminal rdt-chat talks, turn by turn; /help there lists the commands. With -p, -f, or a
pipe on stdin it answers once: the answer goes to stdout, everything else to stderr.
Exit codes: 0 answered, 1 failed, 2 wrong usage.

Depth: the exit rule is what the model's calibration profile recommends, if it has one (rdt-calibrate;
--max-loss, --quality), else 'acceleration' with up to twice the model's mean number of loop
steps, or 'fixed' for a model that was trained at one depth only (Ouro, Nanbeige, HRM-Text).
--show-steps tints each token by the steps it took, from blue (1) over green and yellow to red (the
most possible). Where there are no colours (no terminal, or NO_COLOR is set) the number stands
behind each token instead, as in 'Red⟨3⟩.⟨5⟩'; a bracket ⟨ in the text itself is then doubled.
--json has ids, texts and steps of all tokens.

Prefix models (HRM-Text) read each prompt in both directions, and answer under a --condition. They
were published for single questions: here a system prompt becomes part of the first question, and a
further question is a prefix of its own, which sees the questions and answers before it.

Examples:
  rdt-chat
  rdt-chat -p 'What is 4 + 5?' --show-steps
  echo 'What is 4 + 5?' | rdt-chat
  rdt-chat -m model.gguf --temp 0.8 --seed 7 --steps 32 --exit-rule acceleration:0.05,hits=2
  rdt-chat -m model.gguf --decode pipeline
  rdt-chat -m model.gguf --target-tps 8 --max-temp 70
  rdt-chat -m model.gguf --device gpu
  rdt-chat --save talk.json -p 'Hello!'; rdt-chat --load talk.json -p 'And now?'"
)]
pub struct Flags {
    /// Model file (GGUF), or the folder of a published checkpoint [default: 'built-in', the small model that is inside the
    /// program]
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub load_flags: LoadFlags,
    /// Answer TEXT and end; - takes all of stdin
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "interactive"])]
    pub prompt: Option<String>,
    /// Answer the text in FILE and end
    #[arg(short, long, value_name = "FILE", conflicts_with = "interactive")]
    pub file: Option<PathBuf>,
    /// Talk turn by turn although stdin is no terminal; each line is a message or a command
    #[arg(short, long)]
    pub interactive: bool,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// What kind of answer a prefix model without a chat template is asked for: direct, cot, noisy, synth, or several with
    /// commas between [default: synth,cot]
    #[arg(long, value_name = "NAMES")]
    pub condition: Option<String>,
    /// Go on with a saved conversation, with its settings of depth, sampling and initial state
    #[arg(long, value_name = "FILE", conflicts_with = "system")]
    pub load: Option<PathBuf>,
    /// Save the conversation at the end
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Write one JSON object instead of the text: answer, tokens with their loop steps, timings, settings (not when talking)
    #[arg(long, conflicts_with_all = ["interactive", "show_steps"])]
    pub json: bool,
    /// Show how many loop steps each token took
    #[arg(long)]
    pub show_steps: bool,
    /// Tokens per answer at most; -1 leaves that to the model and the context
    #[arg(short = 'n', long, value_name = "N", value_parser = predict, allow_hyphen_values = true, default_value = "-1")]
    pub predict: usize,
    /// Never choose a token that ends an answer
    #[arg(long)]
    pub ignore_eos: bool,
    /// Thinking before the answer: on, off, or as the chat template has it
    #[arg(long, value_name = "on|off|auto", value_enum, default_value_t, hide_possible_values = true)]
    pub reasoning: Reasoning,
    /// Built-in chat template instead of the model's own: chatml
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true, conflicts_with = "chat_template_file")]
    pub chat_template: Option<BuiltIn>,
    /// Jinja chat template from a file instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub depth: DepthFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub decode: DecodeFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sampler: SamplerFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub governor: GovernorFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub session: SessionFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceFlags,
}

/// Thinking before the answer.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reasoning {
    /// Turned on.
    On,
    /// Turned off.
    Off,
    /// As the template has it if nothing is said.
    #[default]
    Auto,
}

impl Reasoning {
    /// The template's switch.
    pub fn switch(self) -> Option<bool> {
        match self {
            Self::On => Some(true),
            Self::Off => Some(false),
            Self::Auto => None,
        }
    }
}

/// Chat templates that come with the program.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuiltIn {
    /// `<|im_start|>role`, the message, `<|im_end|>`.
    Chatml,
}

fn predict(s: &str) -> Result<usize, String> {
    if s == "-1" { Ok(usize::MAX) } else { positive(s).map_err(|e| format!("{e}, or -1")) }
}

/// The whole program.
pub fn main() -> ExitCode {
    super::run("rdt-chat", run)
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let question = question(flags)?;
    if question.is_none() && flags.json {
        let message = "--json answers one question: it needs -p, -f or a pipe on stdin";
        return Err(Flags::command().error(ErrorKind::MissingRequiredArgument, message).into());
    }
    let saved = flags.load.as_deref().map(Saved::read).transpose()?;
    // A wrong one is told before the model is read.
    flags.governor.budget(flags.depth.exits.profile.max_loss())?;
    let source = Source::choose(flags.model.as_deref());
    let origin = source.to_string();
    let cancel = Cancel::default();
    let (mut chat, profile) = start(flags, &source, cancel.clone())?;
    let notes = match &saved {
        Some(saved) => Some(chat.load(saved)?),
        None => None,
    };
    let mut screen = Screen::new(flags.show_steps);
    if let Some(notice) = chat.take_notice() {
        screen.note(&format!("rdt-chat: {notice}"));
    }
    if let Some(note) = super::decode_note(chat.engine()) {
        screen.note(&format!("rdt-chat: {note}"));
    }
    screen.note(&report::headline(&chat, &origin));
    match (chat.governor(), profile) {
        (Some(governor), _) => screen.note(&governor.headline()),
        (None, Some(profile)) if flags.depth.exits.exit_rule.is_none_or(|c| c == ExitChoice::Auto) => {
            recommended_line(&profile, chat.settings().rule).iter().for_each(|line| screen.note(line));
        }
        _ => {}
    }
    if let Some(note) = chat.too_deep("--") {
        screen.note(&format!("rdt-chat: {note}"));
    }
    report::prefix_line(&chat).iter().for_each(|line| screen.note(line));
    if let Some(notes) = &notes {
        repl::loaded(&chat, &screen, notes);
    }
    match question {
        Some(question) => once(flags, &mut chat, &mut screen, &question)?,
        None => {
            let (lines, note) = Lines::open()?;
            note.iter().for_each(|n| screen.note(n));
            if flags.model.is_none() {
                screen.note(GREETING);
            }
            if lines.is_terminal() {
                screen.note("/help lists the commands");
            }
            let interrupts = Interrupts::install(cancel).context("cannot handle Ctrl-C")?;
            let mut repl = Repl { chat: &mut chat, screen: &mut screen, interrupts: &interrupts, origin: &origin };
            repl.legend();
            repl.run(lines)?;
        }
    }
    if let Some(path) = &flags.save {
        Saved::of(&chat)?.write(path)?;
    }
    Ok(())
}

/// The one thing to answer; `None` to talk.
fn question(flags: &Flags) -> anyhow::Result<Option<String>> {
    let piped = !io::stdin().is_terminal();
    let text = match (flags.prompt.as_deref(), &flags.file) {
        (Some("-"), _) => input::read_all(io::stdin().lock(), "stdin")?,
        (Some(text), _) => text.to_owned(),
        (None, Some(path)) => {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
            input::read_all(file, &name)?
        }
        (None, None) if piped && !flags.interactive => input::read_all(io::stdin().lock(), "stdin")?,
        (None, None) => return Ok(None),
    };
    if text.trim().is_empty() {
        bail!("there is nothing to answer: the prompt is empty");
    }
    Ok(Some(text))
}

/// The conversation, and the model's calibration profile if it has one.
fn start(flags: &Flags, source: &Source, cancel: Cancel) -> anyhow::Result<(Chat, Option<Profile>)> {
    let model = source.open(flags.load_flags, &flags.device.device.open()?, flags.session.threads)?;
    let usual = ExitRule::for_model(model.config());
    let (rule, profile) = flags.depth.exits.recommended(&model, source.path(), usual)?;
    let settings = Settings {
        rule,
        steps: flags.depth.steps,
        strategy: flags.decode.decode,
        sampler: flags.sampler.config(flags.depth.exits.init.seed)?,
        predict: (flags.predict != usize::MAX).then_some(flags.predict),
        ignore_end: flags.ignore_eos,
        reasoning: flags.reasoning.switch(),
    };
    let initial = flags.depth.initial(model.config().state_width)?;
    let limit = settings.depth_limit(model.config());
    let asked = matches!(flags.depth.exits.exit_rule, Some(ExitChoice::Rule(_)));
    let usual = Usual { rule: settings.rule, limit, asked, most_steps: flags.depth.steps };
    let floor = flags.depth.exits.profile.floor(profile.as_ref());
    let prepared = flags.governor.prepare(&model, profile.as_ref(), usual, floor)?;
    let depth = prepared.as_ref().map_or(limit, |p| p.depth_limit(&model).max(limit));
    let options = flags.session.options(depth, initial, KvType::F16);
    let mut chat = Chat::new(model, options, settings, flags.system.clone(), cancel)?;
    if let Some(prepared) = prepared {
        let session = chat.engine().session();
        let governor = prepared.begin(session.threads(), session.device().is_some())?;
        super::warn("rdt-chat", governor.warnings());
        chat.govern(governor);
    }
    if let Some(template) = template(flags)? {
        chat.set_template(template);
    }
    if let Some(condition) = &flags.condition {
        chat.set_condition(condition)?;
    }
    super::warn("rdt-chat", chat.tokenizer().warnings());
    Ok((chat, profile))
}

/// The template that the flags ask for.
fn template(flags: &Flags) -> anyhow::Result<Option<Template>> {
    if flags.chat_template.is_some() {
        return Ok(Some(Template::chat_ml()?));
    }
    let Some(path) = &flags.chat_template_file else { return Ok(None) };
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    Ok(Some(Template::new(&input::read_all(file, &name)?).with_context(|| name)?))
}

/// Answers one question.
fn once(flags: &Flags, chat: &mut Chat, screen: &mut Screen, question: &str) -> anyhow::Result<()> {
    let answer = if flags.json {
        let mut quiet = |event: Event<'_>| {
            if let Event::Dropped(n) = event {
                screen.note(&report::dropped_line(n));
            }
            Ok(())
        };
        let answer = chat.ask(question, &mut quiet);
        report::device_note(chat).iter().for_each(|line| screen.note(line));
        let answer = answer?;
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &report::json(chat, &answer)).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        out.flush()?;
        answer
    } else {
        let answer = repl::answer(chat, screen, Some(question));
        report::device_note(chat).iter().for_each(|line| screen.note(line));
        answer?
    };
    report::governor_notes(chat).iter().for_each(|line| screen.note(line));
    report::end_line(&answer, chat).iter().for_each(|line| screen.note(line));
    screen.note(&report::answer_line(&answer));
    Ok(())
}
