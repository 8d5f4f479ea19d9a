//! Decoding several texts at a time: a sequence for each, and the next text for one whose text has ended.

use super::engine::{Engine, Error, PromptStats, Step};
use super::lanes::{Due, Lanes};
use super::sampler::{Sampler, SamplerConfig};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::model::{self, Session};
use std::collections::VecDeque;

/// What has become of a text.
#[derive(Debug)]
pub enum Event<'a> {
    /// Its prompt has been run. Whatever was told of this text before is void: it begins anew.
    Prompt(PromptStats),
    /// A token was drawn.
    Token {
        /// The token.
        step: Step,
        /// What it was drawn from, `[V]`.
        logits: &'a [f32],
    },
    /// It has ended.
    End {
        /// Why the session left its device, if it has since it was last told; see [`Session::take_notice`].
        notice: Option<String>,
    },
}

/// A text that could not be continued.
#[derive(Debug)]
pub struct Failed<E> {
    /// Which, from 0.
    pub text: usize,
    /// Why.
    pub error: E,
}

/// A session that continues many texts, as many at a time as it has sequences.
///
/// Every text becomes what an [`Engine`] of its own would make of it, to the last bit, whatever runs beside it. Sessions whose sequences
/// [cannot go on together](Lanes::suit) continue one text after the other.
pub struct Parallel {
    way: Way,
}

enum Way {
    One(Box<Engine>),
    Several(Box<Several>),
}

impl Parallel {
    /// Puts a session, an exit rule and a sampler together; see [`Engine::new`]. [`Lanes::session`] makes sessions for it.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn new(
        session: Session,
        rule: ExitRule,
        steps: Option<usize>,
        sampler: SamplerConfig,
        vocabulary: usize,
    ) -> Result<Self, Error> {
        let several = session.kv_shape().sequences > 1 && Lanes::suit(&session);
        let engine = Engine::new(session, rule, steps, sampler, vocabulary)?;
        let way = match several {
            true => Way::Several(Box::new(Several::new(engine))),
            false => Way::One(Box::new(engine)),
        };
        Ok(Self { way })
    }

    /// The engine, where texts are continued one after the other, to choose how it decodes.
    pub fn engine_mut(&mut self) -> Option<&mut Engine> {
        match &mut self.way {
            Way::One(engine) => Some(engine),
            Way::Several(_) => None,
        }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        match &self.way {
            Way::One(engine) => engine.session(),
            Way::Several(several) => &several.session,
        }
    }

    /// How many texts it continues at a time, at most.
    pub fn at_a_time(&self) -> usize {
        match &self.way {
            Way::One(_) => 1,
            Way::Several(several) => several.texts.len(),
        }
    }

    /// Continues texts of which these are the prompts, each from draw 0 of the sampler on, until the context is full or `each` has enough of
    /// it. `each` is told what becomes of every text, from 0; false ends it.
    ///
    /// # Errors
    /// As [`Engine::prompt`] and [`Engine::next_token`], and what `each` returns: those of the first text, in their order, that has any. Texts
    /// before it have ended, and some behind it may have.
    pub fn run<E: From<Error>>(
        &mut self,
        prompts: &[impl AsRef<[u32]>],
        mut each: impl FnMut(usize, Event<'_>) -> Result<bool, E>,
    ) -> Result<(), Failed<E>> {
        match &mut self.way {
            Way::One(engine) => prompts.iter().enumerate().try_for_each(|(text, prompt)| {
                one(engine, prompt.as_ref(), |event| each(text, event)).map_err(|error| Failed { text, error })
            }),
            Way::Several(several) => several.run(prompts, &mut each),
        }
    }
}

/// A text alone.
fn one<E: From<Error>>(
    engine: &mut Engine,
    prompt: &[u32],
    mut each: impl FnMut(Event<'_>) -> Result<bool, E>,
) -> Result<(), E> {
    engine.reset();
    let mut more = each(Event::Prompt(engine.prompt(prompt)?))?;
    while more && let Some(step) = engine.next_token()? {
        more = each(Event::Token { step, logits: engine.logits() })?;
    }
    each(Event::End { notice: engine.take_notice() })?;
    Ok(())
}

/// Texts side by side.
struct Several {
    session: Session,
    policy: RulePolicy,
    /// As it is at the start of every text.
    sampler: Sampler,
    lanes: Lanes,
    /// Per sequence.
    texts: Vec<Option<Text>>,
    /// Logits at hand.
    logits: Vec<f32>,
}

/// A text at work.
struct Text {
    which: usize,
    sampler: Sampler,
    /// What has come through of it since its last drawn token, or of its prompt.
    stats: PromptStats,
    /// Has its prompt been told?
    told: bool,
}

impl Several {
    fn new(engine: Engine) -> Self {
        let (session, policy, sampler) = engine.into_parts();
        let n = session.kv_shape().sequences;
        let texts = std::iter::repeat_with(|| None).take(n).collect();
        Self { session, policy, sampler, lanes: Lanes::new(n), texts, logits: Vec::new() }
    }

    fn run<E: From<Error>>(
        &mut self,
        prompts: &[impl AsRef<[u32]>],
        each: &mut impl FnMut(usize, Event<'_>) -> Result<bool, E>,
    ) -> Result<(), Failed<E>> {
        self.forget_all();
        let mut waiting: VecDeque<usize> = (0..prompts.len()).collect();
        let mut failed: Option<Failed<E>> = None;
        let mut most = self.texts.len();
        loop {
            for s in 0..most {
                let due = waiting.front().is_some_and(|&text| failed.as_ref().is_none_or(|f| text < f.text));
                if due
                    && self.texts[s].is_none()
                    && let Some(text) = waiting.pop_front()
                    && let Err(error) = self.start(s, text, prompts[text].as_ref())
                {
                    self.fail(&mut failed, text, error.into());
                }
            }
            match self.lanes.pass(&mut self.session, &mut self.policy) {
                Ok(true) => {
                    for s in 0..self.texts.len() {
                        let Some(which) = self.texts[s].as_ref().map(|text| text.which) else { continue };
                        match self.go_on(s, &mut |event| each(which, event)) {
                            Ok(true) => {}
                            Ok(false) => self.forget(s),
                            Err(error) => self.fail(&mut failed, which, error),
                        }
                    }
                }
                // A text before one that failed may be due yet.
                Ok(false) if waiting.front().is_some_and(|&text| failed.as_ref().is_none_or(|f| text < f.text)) => {}
                Ok(false) => return failed.map_or(Ok(()), Err),
                Err(error) => {
                    let mut running: Vec<_> = self.texts.iter().flatten().map(|text| text.which).collect();
                    running.sort_unstable();
                    self.forget_all();
                    let Some(&first) = running.first() else { return failed.map_or(Ok(()), Err) };
                    if running.len() == 1 || matches!(error, model::Error::Cancelled) {
                        return Err(Failed { text: first, error: E::from(error.into()) });
                    }
                    // Whose it is shows when they are alone.
                    running.into_iter().rev().for_each(|text| waiting.push_front(text));
                    most = 1;
                }
            }
        }
    }

    fn start(&mut self, sequence: usize, which: usize, prompt: &[u32]) -> Result<(), Error> {
        self.session.admits(prompt, 0)?;
        let mut sampler = self.sampler.clone();
        prompt.iter().for_each(|&token| sampler.accept(token));
        let by_readout = self.policy.rule().signal() == Signal::Readout;
        let stats = PromptStats { alone: by_readout, ..PromptStats::default() };
        self.texts[sequence] = Some(Text { which, sampler, stats, told: false });
        // The first token of the answer is drawn from the last one of the prompt, so that a rule on the read-out decides its depth too.
        let last = prompt.len() - 1;
        let due = |(i, &token)| Due { token, alone: by_readout && i == last, logits: i == last };
        self.lanes.push(sequence, prompt.iter().enumerate().map(due));
        Ok(())
    }

    /// Takes what has come through of a text, and draws its next token if that can be done. False: it has ended.
    fn go_on<E: From<Error>>(
        &mut self,
        sequence: usize,
        each: &mut impl FnMut(Event<'_>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let Self { session, lanes, logits, .. } = self;
        let Some(text) = &mut self.texts[sequence] else { return Ok(true) };
        let mut steps = 0;
        logits.clear();
        lanes.land(session, sequence, |row, of_row| {
            steps = row.steps;
            text.stats.run += 1;
            text.stats.steps += row.steps as u64;
            logits.extend_from_slice(of_row);
        });
        if logits.is_empty() {
            return Ok(true);
        }
        let more = text.told || each(Event::Prompt(text.stats))?;
        text.told = true;
        if more {
            let token = text.sampler.sample(logits).map_err(Error::from)?;
            text.sampler.accept(token);
            let more = each(Event::Token { step: Step { token, steps }, logits })?;
            if more && session.len(sequence) < session.kv_shape().context {
                let alone = self.policy.rule().signal() == Signal::Readout;
                lanes.push(sequence, [Due { token, alone, logits: true }]);
                return Ok(true);
            }
        }
        each(Event::End { notice: None })?;
        Ok(false)
    }

    /// Keeps the first failure, and gives up all texts behind it.
    fn fail<E>(&mut self, failed: &mut Option<Failed<E>>, text: usize, error: E) {
        if failed.as_ref().is_none_or(|earlier| text < earlier.text) {
            *failed = Some(Failed { text, error });
        }
        for s in 0..self.texts.len() {
            if self.texts[s].as_ref().is_some_and(|other| other.which >= text) {
                self.forget(s);
            }
        }
    }

    fn forget(&mut self, sequence: usize) {
        self.texts[sequence] = None;
        self.lanes.clear_sequence(&mut self.session, sequence);
    }

    fn forget_all(&mut self) {
        (0..self.texts.len()).for_each(|s| self.forget(s));
    }
}

impl std::fmt::Debug for Parallel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parallel").field("at_a_time", &self.at_a_time()).finish_non_exhaustive()
    }
}
