//! `rdt-eval`: questions with known answers, asked at every depth and under exit rules.
//!
//! `questions` are read and asked (`ask`); `score` counts them by kind and by the reasoning steps that they need; `table`, `record`
//! and `chart` show the counts as text, JSON and SVG.

mod ask;
mod chart;
mod questions;
mod record;
mod score;
mod table;

use super::built_in::{self, Source};
use super::profile::recommended_line;
use super::{DecodeFlags, DepthFlags, DeviceFlags, LoadFlags, ParallelFlags, SessionFlags, one_line, positive};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::files::AtomicFile;
use crate::model::{Config, Model};
use crate::plot;
use anyhow::{Context, bail};
use ask::Asker;
use clap::{CommandFactory, Parser, error::ErrorKind};
use questions::Question;
use record::Record;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Questions that lie in a checkpoint's folder.
const IN_FOLDER: &str = "eval.jsonl";

/// Exact-match accuracy of a model's answers, by kind and by needed reasoning steps, against loop steps and exit rules
#[derive(Parser, Debug)]
#[command(
    name = "rdt-eval",
    version,
    after_help = "\
QUESTIONS is a file of JSON lines with these fields: question; answer, or answers: [..] where
several are right (an answer is right when it equals one of them, but for space around it);
kind; steps_needed, the reasoning steps to the answer. The last two may be missing, and other
fields are passed over. Where a line records what the published implementation answered at N
steps (model_answer_at_N_steps), answers at the fixed depth N are compared with it, and every
difference is shown with the gap between the two best logits at the first differing token.

Questions are asked greedily, each as a single user turn through the chat template. Several are
answered at a time (--parallel): the next takes the place of one whose answer has ended. Answers
and loop steps are those of asking one by one.

Without --depths, --rule and --exit-rule they are asked at the depths 1, 2, 4, 8, .. up to the
model's usual one, and then under the exit rule that rdt-chat would use: what the model's
calibration profile recommends, if it has one, else acceleration.

Mean loop steps are those of all tokens that are run, prompts included. An answer's first token
is drawn from the prompt's last position, whose loop steps therefore count among the answer's.
Rules on the read-out (kl, entropy and so on) act on that position only: before it, a prompt
takes all steps.

Exit codes: 0 asked, whatever was right; 1 failed; 2 wrong usage.

Examples:
  rdt-eval                                              # the model that is built in, its own questions
  rdt-eval -m models/huginn-nano --plot accuracy.svg    # the eval.jsonl in a checkpoint's folder
  rdt-eval -m model.gguf questions.jsonl --depths 1,2,3,4,8 --rule acceleration,max=16 --json
  rdt-eval -m model.gguf models/openings.jsonl          # scores ten ordinary openings of a chat
  rdt-eval -m model.gguf models/openings.jsonl --exit-rule auto --show    # and shows what it says
  rdt-eval -m model.gguf questions.jsonl --device gpu
  rdt-eval -m models/huginn-nano --init zeros --depths 8    # the answers that PyTorch gave?"
)]
struct Flags {
    /// Model file (GGUF), the folder of a published checkpoint, or 'built-in' [default: built-in]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    load: LoadFlags,
    /// Questions, as JSON lines [default: eval.jsonl in the model's folder; with 'built-in', its own]
    questions: Option<PathBuf>,
    /// Ask only questions of these kinds
    #[arg(long, value_name = "KIND,..", value_delimiter = ',')]
    kind: Vec<String>,
    /// Ask N questions only, as evenly over kinds and needed steps as can be
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Fixed depths to ask at: short for several --rule fixed:N
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = positive)]
    depths: Vec<usize>,
    /// Exit rule to ask under, besides those of --depths and --exit-rule; may be given several times
    #[arg(long, value_name = "RULE")]
    rule: Vec<ExitRule>,
    /// Longest answer, in tokens
    #[arg(short = 'n', long, value_name = "N", value_parser = positive, default_value_t = 64)]
    predict: usize,
    /// Show every question with its answer, whether it was right, and the mean loop steps of the answer's tokens
    #[arg(short = 'v', long)]
    show: bool,
    /// Machine-readable results on stdout: a list with an object per rule
    #[arg(long)]
    json: bool,
    /// Draw accuracy against loop steps, a line for each number of needed reasoning steps, as an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    depth: DepthFlags,
    #[command(flatten)]
    session: SessionFlags,
    #[command(flatten)]
    parallel: ParallelFlags,
    #[command(flatten)]
    decode: DecodeFlags,
    #[command(flatten)]
    device: DeviceFlags,
}

/// The whole program.
pub fn main() -> ExitCode {
    super::run("rdt-eval", work)
}

/// Words for the user, beside the data.
fn note(text: &str) {
    eprintln!("rdt-eval: {}", one_line(text));
}

fn work(flags: &Flags) -> anyhow::Result<()> {
    let source = Source::choose(flags.model.as_deref());
    // What can be refused is refused before the model is read.
    let questions = questions(flags, &source)?;
    // Tried, and made when there is something to write: an interrupted program would leave it behind.
    flags.plot.as_deref().map(AtomicFile::create).transpose()?;
    let model = source.open(flags.load, &flags.device.device.open()?, flags.session.threads)?;
    let rules = rules(flags, &model, source.path())?;
    let asker = Asker::new(flags, Arc::clone(&model), &questions)?;
    let mut out = io::stdout().lock();
    let mut outcomes = Vec::new();
    for rule in rules {
        let outcome = asker.ask_all(rule, outcomes.is_empty())?;
        if flags.show && !flags.json {
            table::answers(&mut out, &outcome)?;
        }
        outcomes.push(outcome);
    }
    if flags.json {
        let records: Vec<_> = outcomes.iter().map(Record::from).collect();
        serde_json::to_writer_pretty(&mut out, &records).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        table::write(&mut out, &outcomes)?;
    }
    out.flush()?;
    if let Some(path) = &flags.plot {
        let mut file = AtomicFile::create(path)?;
        file.write_all(plot::standalone(&chart::chart(&name(&source), &outcomes)).as_bytes())?;
        file.commit()?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// The model's name, for a chart.
fn name(source: &Source) -> String {
    let Some(path) = source.path() else { return "built-in model".into() };
    // A folder may be called `.`.
    let path = if path.is_dir() { path.canonicalize().unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() };
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The questions to ask.
fn questions(flags: &Flags, source: &Source) -> anyhow::Result<Vec<Question>> {
    let in_folder = source.path().map(|model| model.join(IN_FOLDER)).filter(|path| path.is_file());
    let read = match flags.questions.as_ref().or(in_folder.as_ref()) {
        Some(path) => read(path)?,
        None if source.path().is_none() => questions::read("the built-in questions", built_in::QUESTIONS.as_bytes())?,
        None => {
            let message =
                "QUESTIONS is missing: only a checkpoint's folder with an eval.jsonl brings questions of its own";
            return Err(Flags::command().error(ErrorKind::MissingRequiredArgument, message).into());
        }
    };
    let read = questions::of_kinds(read, &flags.kind)?;
    Ok(match flags.limit {
        Some(most) => questions::first(read, most),
        None => read,
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<Question>> {
    let name = path.display().to_string();
    if path.is_dir() {
        bail!("{name} is a folder; name a file with questions");
    }
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    questions::read(&name, BufReader::new(file))
}

/// The rules to ask under, each once.
fn rules(flags: &Flags, model: &Model, path: Option<&Path>) -> anyhow::Result<Vec<ExitRule>> {
    let (config, exits) = (model.config(), &flags.depth.exits);
    let mut rules: Vec<_> = flags.depths.iter().map(|&n| ExitRule::fixed(n)).collect();
    rules.extend(&flags.rule);
    let named = !rules.is_empty();
    if exits.exit_rule.is_some() || (named && exits.profile.is_given()) {
        rules.push(exits.rule(model, path, ExitRule::full_depth())?);
    } else if !named {
        let usual = RulePolicy::depth_limit(&ExitRule::full_depth(), flags.depth.steps, config);
        rules.extend(depths(usual).map(ExitRule::fixed));
        let (rule, profile) = exits.recommended(model, path, ExitRule::for_model(config))?;
        if let Some(line) = profile.and_then(|profile| recommended_line(&profile, rule)) {
            note(&line);
        }
        rules.push(as_in_chat(rule, flags.depth.steps, config));
    }
    let mut distinct: Vec<ExitRule> = Vec::new();
    for rule in rules {
        if !distinct.iter().any(|other| same(&rule, other, flags.depth.steps, config)) {
            distinct.push(rule);
        }
    }
    Ok(distinct)
}

/// Powers of two below a depth, and the depth.
fn depths(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1_usize), |n| n.checked_mul(2)).take_while(move |&n| n < most).chain([most])
}

/// A rule with as much room as chat gives it: where nobody says how deep, twice the model's usual depth.
fn as_in_chat(rule: ExitRule, steps: Option<usize>, config: &Config) -> ExitRule {
    if rule.signal() == Signal::None || rule.max_steps().is_some() || steps.is_some() {
        return rule;
    }
    rule.with_max(config.mean_steps().saturating_mul(2).min(config.max_steps().unwrap_or(usize::MAX)))
}

/// Are two rules one on this model? Beyond what it supports, several depths are.
fn same(a: &ExitRule, b: &ExitRule, steps: Option<usize>, config: &Config) -> bool {
    let limits = |rule| (RulePolicy::depth_limit(rule, steps, config), RulePolicy::total_limit(rule, steps, config));
    let fixed = |rule: &ExitRule| rule.signal() == Signal::None;
    a == b || (fixed(a) && fixed(b) && limits(a) == limits(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sound() {
        Flags::command().debug_assert();
        assert!(Flags::try_parse_from(["rdt-eval", "--depths", "1,0"]).is_err());
        let flags = Flags::try_parse_from(["rdt-eval", "--depths", "1,2", "--kind", "a,b", "-v"]).unwrap();
        assert_eq!((flags.depths, flags.kind.len(), flags.show), (vec![1, 2], 2, true));
        let args = ["rdt-eval", "-np", "3"].map(Into::into);
        let flags = Flags::try_parse_from(super::super::parallel::arguments::<Flags>(args.into_iter())).unwrap();
        assert_eq!(flags.parallel.parallel, 3);
    }

    #[test]
    fn depths_end_with_the_usual_one() {
        assert_eq!(depths(8).collect::<Vec<_>>(), [1, 2, 4, 8]);
        assert_eq!(depths(12).collect::<Vec<_>>(), [1, 2, 4, 8, 12]);
        assert_eq!(depths(1).collect::<Vec<_>>(), [1]);
    }
}
