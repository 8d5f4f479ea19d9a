//! Asks a model questions and counts right answers, per exit rule: what depth buys, in one table.

use anyhow::{Context, bail};
use clap::Parser;
use rdt::cli::{self, DepthFlags, ModelFlags, SessionFlags};
use rdt::exit::{ExitRule, RulePolicy};
use rdt::generate::{Engine, SamplerConfig};
use rdt::kernels::KvType;
use rdt::model::Model;
use rdt::text::{self, Message, Role, StreamDecoder, Template, Tokenizer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Exact-match accuracy of a model's answers, per exit rule
#[derive(Parser)]
#[command(
    version,
    after_help = "\
QUESTIONS is a file of JSON lines with the fields question, answer and kind. Where a line records what the published
implementation answered at N steps (model_answer_at_N_steps), answers under the rule fixed:N are compared with it too, and
every difference is shown with the gap between the two best logits at the first differing token.

Questions are asked greedily, one by one, each as a single user turn through the chat template.

Examples:
  rdt-eval -m models/huginn-hops models/huginn-hops/eval.jsonl --init zeros --rule fixed:6
  rdt-eval -m model.gguf questions.jsonl --rule fixed:12 --rule acceleration,max=12 --json"
)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    /// Questions, as JSON lines
    questions: PathBuf,
    /// Exit rule to ask under; may be given several times (default: that of --exit-rule, or fixed)
    #[arg(long, value_name = "RULE")]
    rule: Vec<ExitRule>,
    #[command(flatten)]
    depth: DepthFlags,
    #[command(flatten)]
    session: SessionFlags,
    /// Longest answer, in tokens
    #[arg(short = 'n', long, value_name = "N", value_parser = cli::positive, default_value_t = 64)]
    predict: usize,
    /// Machine-readable results on stdout
    #[arg(long)]
    json: bool,
}

/// A line of the questions file.
#[derive(Deserialize)]
struct Question {
    question: String,
    answer: String,
    #[serde(default)]
    kind: String,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

impl Question {
    /// What the published implementation answered at a depth, if the line tells.
    fn recorded(&self, steps: usize) -> Option<&str> {
        self.other.get(&format!("model_answer_at_{steps}_steps"))?.as_str()
    }
}

/// Results under one rule.
#[derive(Serialize)]
struct Outcome {
    rule: String,
    max_steps: usize,
    /// Kind → (right, asked).
    kinds: BTreeMap<String, (usize, usize)>,
    right: usize,
    asked: usize,
    /// Mean loop steps of all tokens that were run, and of the generated ones.
    mean_steps: f64,
    mean_steps_answer: f64,
    tokens: u64,
    seconds: f64,
    /// Answers equal to the recorded ones, of how many.
    recorded: Option<(usize, usize)>,
    differences: Vec<Difference>,
}

/// An answer that is not the recorded one.
#[derive(Serialize)]
struct Difference {
    question: String,
    recorded: String,
    answer: String,
    /// Difference of the two largest logits where the answers part.
    gap: f32,
}

fn main() -> ExitCode {
    cli::run("rdt-eval", run)
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let model = flags.model.open()?;
    let questions = read_questions(flags)?;
    let rules = match flags.rule.is_empty() {
        true => vec![flags.depth.rule(&model, Some(&flags.model.model), ExitRule::default())?],
        false => flags.rule.clone(),
    };
    let mut outcomes = Vec::new();
    for rule in rules {
        outcomes.push(ask_all(flags, &model, &questions, rule)?);
    }
    let mut out = std::io::stdout().lock();
    if flags.json {
        serde_json::to_writer_pretty(&mut out, &outcomes)?;
        writeln!(out)?;
    } else {
        print_table(&mut out, &outcomes)?;
    }
    Ok(())
}

fn read_questions(flags: &Flags) -> anyhow::Result<Vec<Question>> {
    let path = flags.questions.display();
    let file = std::fs::File::open(&flags.questions).with_context(|| format!("cannot read {path}"))?;
    let mut questions = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("{path}:{}", i + 1))?;
        if !line.trim().is_empty() {
            questions.push(serde_json::from_str(&line).with_context(|| format!("{path}:{}", i + 1))?);
        }
    }
    if questions.is_empty() {
        bail!("{path} holds no questions");
    }
    Ok(questions)
}

fn ask_all(flags: &Flags, model: &Arc<Model>, questions: &[Question], rule: ExitRule) -> anyhow::Result<Outcome> {
    let tokenizer = cli::tokenizer("rdt-eval", model)?;
    let template = Template::of_model(model.metadata(), &tokenizer, model.config().prefix_lm)?;
    let mut stops = text::stop_tokens(model.metadata(), &tokenizer)?;
    stops.extend(template.stop_token(&tokenizer));
    let steps = RulePolicy::depth_limit(&rule, flags.depth.steps, model.config());
    if let Some(note) = cli::too_deep("--", &rule, flags.depth.steps, model.config()) {
        eprintln!("rdt-eval: {note}");
    }
    let initial = flags.depth.initial(model.config().state_width)?;
    let session = flags.session.session(model, steps, initial, KvType::F32)?;
    let sampler = SamplerConfig::greedy();
    let mut engine = Engine::new(session, rule, flags.depth.steps, sampler, tokenizer.vocabulary())?;
    let bar = progress(questions.len(), &rule);

    let mut outcome = Outcome {
        rule: rule.to_string(),
        max_steps: steps,
        kinds: BTreeMap::new(),
        right: 0,
        asked: questions.len(),
        mean_steps: 0.0,
        mean_steps_answer: 0.0,
        tokens: 0,
        seconds: 0.0,
        recorded: None,
        differences: Vec::new(),
    };
    let (mut all_steps, mut answer_steps, mut answer_tokens) = (0, 0, 0);
    let (mut same, mut compared) = (0, 0);
    let start = Instant::now();
    for q in questions {
        let messages = [Message::new(Role::User, q.question.as_str())];
        let prompt = template.prompt(&tokenizer, &messages, true, None)?;
        engine.reset();
        let stats = engine.prompt(&prompt)?;
        all_steps += stats.steps;
        outcome.tokens += stats.run as u64;

        let recorded = q.recorded(steps).filter(|_| rule == ExitRule::default() || rule.name() == "fixed");
        let mut answer = Answer::new(recorded);
        while answer.tokens < flags.predict {
            let gap = top_gap(engine.logits(), tokenizer.vocabulary());
            let Some(step) = engine.next_token()? else { break };
            if answer.tokens > 0 {
                // The first token comes from the prompt's last pass, which is counted there.
                all_steps += step.steps as u64;
                answer_steps += step.steps as u64;
                answer_tokens += 1;
                outcome.tokens += 1;
            }
            if answer.push(&tokenizer, step.token, stops.contains(&step.token), gap)? {
                break;
            }
        }
        let text = answer.text.trim();
        let right = text == q.answer.trim();
        let kind = outcome.kinds.entry(q.kind.clone()).or_default();
        kind.0 += usize::from(right);
        kind.1 += 1;
        outcome.right += usize::from(right);
        if let Some(recorded) = recorded {
            compared += 1;
            if text == recorded.trim() {
                same += 1;
            } else {
                outcome.differences.push(Difference {
                    question: q.question.clone(),
                    recorded: recorded.to_owned(),
                    answer: text.to_owned(),
                    gap: answer.gap.unwrap_or(f32::NAN),
                });
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.mean_steps = all_steps as f64 / outcome.tokens.max(1) as f64;
    outcome.mean_steps_answer = answer_steps as f64 / f64::from(answer_tokens.max(1));
    outcome.recorded = (compared > 0).then_some((same, compared));
    Ok(outcome)
}

/// An answer as it grows.
struct Answer<'a> {
    decoder: StreamDecoder,
    recorded: Option<&'a str>,
    text: String,
    tokens: usize,
    /// Gap of the two best logits at the first token that left the recorded answer.
    gap: Option<f32>,
}

impl<'a> Answer<'a> {
    fn new(recorded: Option<&'a str>) -> Self {
        Self { decoder: StreamDecoder::new(), recorded, text: String::new(), tokens: 0, gap: None }
    }

    /// Adds a token. True: the answer is complete.
    fn push(&mut self, tokenizer: &Tokenizer, token: u32, done: bool, gap: f32) -> anyhow::Result<bool> {
        self.tokens += 1;
        if !done {
            self.text.push_str(&self.decoder.push(tokenizer, token)?);
        }
        if let Some(recorded) = self.recorded
            && self.gap.is_none()
        {
            let parted =
                if done { self.text.trim() != recorded.trim() } else { !recorded.starts_with(self.text.trim()) };
            self.gap = parted.then_some(gap);
        }
        Ok(done)
    }
}

/// Difference of the two largest logits.
fn top_gap(logits: &[f32], vocabulary: usize) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &x in &logits[..vocabulary.min(logits.len())] {
        if x > first {
            (first, second) = (x, first);
        } else if x > second {
            second = x;
        }
    }
    first - second
}

fn progress(n: usize, rule: &ExitRule) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} questions, {eta} left");
    indicatif::ProgressBar::new(n as u64)
        .with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
        .with_message(rule.to_string())
}

fn print_table(out: &mut impl Write, outcomes: &[Outcome]) -> std::io::Result<()> {
    let kinds: Vec<&String> = outcomes.iter().flat_map(|o| o.kinds.keys()).collect();
    let mut kinds: Vec<&String> = kinds.into_iter().collect();
    kinds.sort();
    kinds.dedup();
    let width = outcomes.iter().map(|o| o.rule.len()).max().unwrap_or(4).max(4);
    write!(out, "{:<width$}  {:>5}  {:>10}  {:>9}", "rule", "most", "mean steps", "right")?;
    for kind in &kinds {
        write!(out, "  {kind:>9}")?;
    }
    writeln!(out, "  {:>9}  {:>8}", "accuracy", "tokens/s")?;
    for o in outcomes {
        let right = format!("{}/{}", o.right, o.asked);
        write!(out, "{:<width$}  {:>5}  {:>10.2}  {right:>9}", o.rule, o.max_steps, o.mean_steps)?;
        for kind in &kinds {
            let (right, asked) = o.kinds.get(*kind).copied().unwrap_or_default();
            write!(out, "  {:>9}", format!("{right}/{asked}"))?;
        }
        let accuracy = 100.0 * o.right as f64 / o.asked as f64;
        writeln!(out, "  {accuracy:>8.2}%  {:>8.0}", o.tokens as f64 / o.seconds)?;
    }
    for o in outcomes {
        if let Some((same, compared)) = o.recorded {
            writeln!(out, "\n{}: {same} of {compared} answers are those recorded in the file", o.rule)?;
            for d in &o.differences {
                writeln!(
                    out,
                    "  {:?}: {:?}, recorded {:?}; best two logits {:.4} apart",
                    d.question, d.answer, d.recorded, d.gap
                )?;
            }
        }
    }
    Ok(())
}
