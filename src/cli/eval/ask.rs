//! Asking a model all questions under one rule.

use super::super::{OnDevice, device_name, device_words, ran_on, stay_on_fast_cores, too_deep};
use super::Flags;
use super::questions::Question;
use super::score::{Difference, Given, Outcome, Tally};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::generate::{Engine, SamplerConfig};
use crate::kernels::KvType;
use crate::model::{Model, Session};
use crate::text::{self, Message, Role, StreamDecoder, Template, Tokenizer};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, HashSet};
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Instant;

/// A model with what all rules share.
pub(super) struct Asker<'a> {
    flags: &'a Flags,
    model: Arc<Model>,
    tokenizer: Tokenizer,
    /// Every question as tokens, so that it is encoded once.
    prompts: Vec<Vec<u32>>,
    questions: &'a [Question],
    stops: HashSet<u32>,
    on_device: OnDevice,
}

impl<'a> Asker<'a> {
    /// # Errors
    /// The model has no tokenizer or chat template that can be read.
    pub(super) fn new(flags: &'a Flags, model: Arc<Model>, questions: &'a [Question]) -> anyhow::Result<Self> {
        let tokenizer = super::super::tokenizer("rdt-eval", &model)?;
        let template = Template::of_model(model.metadata(), &tokenizer, model.config().prefix_lm)?;
        let mut stops: HashSet<u32> = text::stop_tokens(model.metadata(), &tokenizer)?.into_iter().collect();
        stops.extend(template.stop_token(&tokenizer));
        let prompt = |q: &Question| {
            let messages = [Message::new(Role::User, q.question.as_str())];
            template.prompt(&tokenizer, &messages, true, None).with_context(|| place(q))
        };
        let prompts = questions.iter().map(prompt).collect::<anyhow::Result<_>>()?;
        Ok(Self { flags, model, tokenizer, prompts, questions, stops, on_device: OnDevice::default() })
    }

    /// All questions, greedily, each in a conversation of its own. The `first` time it is told what runs them.
    ///
    /// # Errors
    /// The model cannot follow the rule, or a question does not fit.
    pub(super) fn ask_all(&self, rule: ExitRule, first: bool) -> anyhow::Result<Outcome> {
        let (flags, config) = (self.flags, self.model.config());
        let most = flags.depth.steps;
        let steps = RulePolicy::depth_limit(&rule, most, config);
        if let Some(words) = too_deep("--", &rule, most, config) {
            super::note(&words);
        }
        let initial = flags.depth.initial(config.state_width)?;
        let mut options = flags.session.options(steps, initial, KvType::F32);
        options.on_device = self.on_device.still();
        stay_on_fast_cores();
        let session = Session::new(Arc::clone(&self.model), &options)?;
        let mut engine = Engine::new(session, rule, most, SamplerConfig::greedy(), self.tokenizer.vocabulary())?;
        self.on_device.heed(engine.take_notice()).iter().for_each(|notice| super::note(notice));
        if first {
            super::note(&device_words(engine.session()));
        }
        let began_on = device_name(engine.session()).to_owned();
        let bar = progress(self.questions.len(), &rule);

        let mut outcome = Outcome {
            rule,
            max_steps: steps,
            device: String::new(),
            cells: BTreeMap::new(),
            seconds: 0.0,
            recorded: None,
            differences: Vec::new(),
            answers: Vec::new(),
        };
        let (mut same, mut compared) = (0, 0);
        let start = Instant::now();
        for (q, prompt) in self.questions.iter().zip(&self.prompts) {
            // What is recorded was answered at a fixed depth.
            let recorded = q.recorded(steps).filter(|_| rule.signal() == Signal::None);
            let (answer, mut tally) = self.ask(&mut engine, prompt, recorded).with_context(|| place(q))?;
            if let Some(notice) = self.on_device.heed(engine.take_notice()) {
                bar.suspend(|| super::note(&notice));
            }
            let text = answer.text.trim();
            let right = q.is_right(text);
            (tally.right, tally.asked) = (usize::from(right), 1);
            outcome.cells.entry(q.cell()).or_default().add(&tally);
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
            if flags.show {
                outcome.answers.push(Given {
                    question: q.question.clone(),
                    kind: q.kind.clone(),
                    steps_needed: q.steps_needed,
                    answer: text.to_owned(),
                    right,
                    right_answers: q.right_answers().map(str::to_owned).collect(),
                    mean_steps_answer: tally.mean_steps_answer(),
                });
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        outcome.device = ran_on(&began_on, device_name(engine.session()));
        outcome.seconds = start.elapsed().as_secs_f64();
        outcome.recorded = (compared > 0).then_some((same, compared));
        Ok(outcome)
    }

    /// One question: its answer, and what it took.
    fn ask<'r>(
        &self,
        engine: &mut Engine,
        prompt: &[u32],
        recorded: Option<&'r str>,
    ) -> anyhow::Result<(Answer<'r>, Tally)> {
        engine.reset();
        let stats = engine.prompt(prompt)?;
        let mut tally = Tally { tokens: stats.run as u64, steps: stats.steps, ..Tally::default() };
        let mut answer = Answer::new(recorded);
        while answer.tokens < self.flags.predict {
            let gap = top_gap(engine.logits(), self.tokenizer.vocabulary());
            let Some(step) = engine.next_token()? else { break };
            tally.answer_tokens += 1;
            tally.answer_steps += step.steps as u64;
            if answer.tokens == 0 {
                tally.first_steps = step.steps as u64;
            } else {
                // The first token comes from the prompt's last pass, which is among the prompt's.
                tally.tokens += 1;
                tally.steps += step.steps as u64;
            }
            if answer.push(&self.tokenizer, step.token, self.stops.contains(&step.token), gap)? {
                break;
            }
        }
        Ok((answer, tally))
    }
}

/// Where a question stands, for errors.
fn place(question: &Question) -> String {
    format!("the question on line {}", question.line)
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

fn progress(n: usize, rule: &ExitRule) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} questions, {eta} left");
    ProgressBar::new(n as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(rule.to_string())
}

#[cfg(test)]
mod tests {
    use super::top_gap;

    #[test]
    fn padding_is_no_rival() {
        assert_eq!(top_gap(&[1.0, 4.0, 2.5, 9.0], 3), 1.5);
        assert_eq!(top_gap(&[4.0, 4.0], 9), 0.0);
    }
}
