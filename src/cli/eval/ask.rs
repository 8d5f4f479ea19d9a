//! Asking a model all questions under one rule.

use super::super::{
    OnDevice, decode_json, decode_note, device_name, device_words, ran_on, stay_on_fast_cores, too_deep,
};
use super::Flags;
use super::questions::Question;
use super::score::{Difference, Given, Outcome, Tally};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::generate::{Event, Failed, Parallel, PromptStats, SamplerConfig, Step, Strategy};
use crate::kernels::KvType;
use crate::model::Model;
use crate::text::{self, Message, Role, StreamDecoder, Template, Tokenizer};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
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
    /// What was said of decoding.
    told: RefCell<HashSet<String>>,
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
        Ok(Self {
            flags,
            model,
            tokenizer,
            prompts,
            questions,
            stops,
            on_device: OnDevice::default(),
            told: RefCell::default(),
        })
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
        let strategy = flags.decode.decode;
        // Several tokens of one text are in flight, or one of several.
        let questions = if strategy == Strategy::Plain { self.questions.len() } else { 1 };
        options.kv_slots = options.kv_slots.or(strategy.wants_slots(&self.model, &options));
        let mut session = flags.parallel.session(&self.model, options, questions)?;
        self.on_device.heed(session.take_notice()).iter().for_each(|notice| super::note(notice));
        if first {
            let several = match session.kv_shape().sequences {
                1 => String::new(),
                n => format!(", {n} questions at a time"),
            };
            super::note(&(device_words(&session) + &several));
        }
        let mut texts = Parallel::new(session, rule, most, SamplerConfig::greedy(), self.tokenizer.vocabulary())?;
        if let (true, Some(engine)) = (strategy != Strategy::Plain, texts.engine_mut()) {
            engine.set_strategy(strategy);
            engine.set_stops(self.stops.iter().copied().collect());
            if let Some(words) = decode_note(engine)
                && self.told.borrow_mut().insert(words.clone())
            {
                super::note(&format!("{rule}: {words}"));
            }
        }
        let began_on = device_name(texts.session()).to_owned();
        let bar = progress(self.questions.len(), &rule);

        let mut outcome = Outcome {
            rule,
            max_steps: steps,
            device: String::new(),
            parallel: texts.at_a_time(),
            cells: BTreeMap::new(),
            seconds: 0.0,
            decode: None,
            recorded: None,
            differences: Vec::new(),
            answers: Vec::new(),
        };
        let start = Instant::now();
        // What is recorded was answered at a fixed depth.
        let recorded = |q: &'a Question| q.recorded(steps).filter(|_| rule.signal() == Signal::None);
        let mut answers: Vec<_> = self.questions.iter().map(|q| Answer::new(recorded(q))).collect();
        let done = texts.run(&self.prompts, |i, event| -> anyhow::Result<bool> {
            match event {
                Event::Prompt(stats) => answers[i].begin(&stats),
                Event::Token { step, logits } => {
                    // A wavefront keeps none.
                    let logits = if matches!(strategy, Strategy::Wavefront(_)) { &[] } else { logits };
                    let ended = answers[i].push(&self.tokenizer, step, &self.stops, logits)?;
                    return Ok(!ended && answers[i].tally.answer_tokens < flags.predict as u64);
                }
                Event::End { notice } => {
                    if let Some(notice) = self.on_device.heed(notice) {
                        bar.suspend(|| super::note(&notice));
                    }
                    bar.inc(1);
                }
            }
            Ok(true)
        });
        done.map_err(|Failed { text, error }| error.context(place(&self.questions[text])))?;
        bar.finish_and_clear();
        outcome.seconds = start.elapsed().as_secs_f64();
        if let (true, Some(engine)) = (strategy != Strategy::Plain, texts.engine_mut()) {
            let stats = engine.take_decode_stats();
            outcome.decode = Some((decode_json(engine, &stats), stats));
        }

        let (mut same, mut compared) = (0, 0);
        for (q, answer) in self.questions.iter().zip(answers) {
            let mut tally = answer.tally;
            let text = answer.text.trim();
            let right = q.is_right(text);
            (tally.right, tally.asked) = (usize::from(right), 1);
            outcome.cells.entry(q.cell()).or_default().add(&tally);
            if let Some(recorded) = answer.recorded {
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
        }
        outcome.device = ran_on(&began_on, device_name(texts.session()));
        outcome.recorded = (compared > 0).then_some((same, compared));
        Ok(outcome)
    }
}

/// Where a question stands, for errors.
fn place(question: &Question) -> String {
    format!("the question on line {}", question.line)
}

/// An answer as it grows, and what it took.
struct Answer<'a> {
    decoder: StreamDecoder,
    recorded: Option<&'a str>,
    text: String,
    tally: Tally,
    /// Gap of the two best logits at the first token that left the recorded answer.
    gap: Option<f32>,
}

impl<'a> Answer<'a> {
    fn new(recorded: Option<&'a str>) -> Self {
        Self { decoder: StreamDecoder::new(), recorded, text: String::new(), tally: Tally::default(), gap: None }
    }

    /// The prompt has been run; whatever there was is void.
    fn begin(&mut self, stats: &PromptStats) {
        let tally = Tally { tokens: stats.run as u64, steps: stats.steps, ..Tally::default() };
        *self = Self { tally, ..Self::new(self.recorded) };
    }

    /// Adds a token that was drawn from `logits`. True: the answer is complete.
    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        step: Step,
        stops: &HashSet<u32>,
        logits: &[f32],
    ) -> anyhow::Result<bool> {
        let (done, steps, tally) = (stops.contains(&step.token), step.steps as u64, &mut self.tally);
        if tally.answer_tokens == 0 {
            tally.first_steps = steps;
        } else {
            // The first token comes from the prompt's last pass, which is among the prompt's.
            tally.tokens += 1;
            tally.steps += steps;
        }
        tally.answer_tokens += 1;
        tally.answer_steps += steps;
        if !done {
            self.text.push_str(&self.decoder.push(tokenizer, step.token)?);
        }
        if let Some(recorded) = self.recorded
            && self.gap.is_none()
        {
            let parted =
                if done { self.text.trim() != recorded.trim() } else { !recorded.starts_with(self.text.trim()) };
            self.gap = parted.then(|| top_gap(logits, tokenizer.vocabulary()));
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
