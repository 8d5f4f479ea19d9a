//! The conversation: what was said, what the engine holds of it, and what comes next. Knows no terminal.

use super::answer::{Answer, End, Token, Totals};
use super::error::Error;
use super::interrupt::Cancel;
use super::prefix;
use super::replay::{self, Recorder, Run};
use super::saved::Saved;
use super::settings::{MOST_STEPS, Settings};
use crate::cli::{Governor, device_name, ran_on};
use crate::exit::{ExitRule, RulePolicy};
use crate::generate::engine::Engine;
use crate::generate::{DecodeStats, Strategy};
use crate::model::{self, InitialState, Model, Session, SessionOptions};
use crate::text::{self, Conversation, Message, Role, StreamDecoder, Template, TemplateKind, Tokenizer};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Room that is kept for an answer when old turns must go: this many tokens, or a quarter of the context if that is less.
const ANSWER_ROOM: usize = 256;

/// What happens while an answer is made, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many exchanges at the start of the conversation were left out to make room.
    Dropped(usize),
    /// A token; its text may be empty, or complete characters of tokens before.
    Token(&'a Token),
    /// The end of the text, which had been held back because it could have become something else.
    Rest(&'a str),
}

/// Is shown the answer as it comes. An error ends it.
pub type Sink<'a> = &'a mut dyn FnMut(Event<'_>) -> io::Result<()>;

/// What never changes while the program runs.
pub(super) struct Voice {
    model: Arc<Model>,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Template,
    /// Under which answers are asked for, if the template has such a thing.
    pub(super) condition: Option<String>,
    stop_tokens: Vec<u32>,
    cancel: Cancel,
}

impl Voice {
    /// The tokens of a conversation; with `ask`, up to where the model's answer begins.
    fn encode(&self, messages: &[Message], ask: bool, thinking: Option<bool>) -> Result<Vec<u32>, Error> {
        Ok(self.template.prompt(&self.tokenizer, messages, ask, thinking)?)
    }

    /// Tokens that can be chosen and written.
    fn vocabulary(&self) -> usize {
        self.tokenizer.vocabulary().min(self.model.config().vocab)
    }

    /// An engine that may go as deep as the settings say, and at least `depth` steps.
    fn engine(&self, options: &SessionOptions, settings: &Settings, depth: usize) -> Result<Recorder, Error> {
        let limit = settings.depth_limit(self.model.config());
        if limit > MOST_STEPS {
            return Err(Error::TooDeep(limit));
        }
        let kv_slots = options.kv_slots.or(settings.strategy.wants_slots(&self.model, options));
        let options = SessionOptions { steps: Some(limit.max(depth)), kv_slots, ..options.clone() };
        crate::cli::stay_on_fast_cores();
        let session = Session::new(Arc::clone(&self.model), &options)?;
        let engine = Engine::new(session, settings.rule, Some(limit), settings.sampler.clone(), self.vocabulary())?;
        let mut recorder = Recorder::new(engine);
        self.decode(&mut recorder, settings);
        self.suppress(&mut recorder, settings);
        Ok(recorder)
    }

    fn decode(&self, recorder: &mut Recorder, settings: &Settings) {
        recorder.settings_mut().set_strategy(settings.strategy);
        recorder.settings_mut().set_stops(self.stop_tokens.clone());
    }

    fn suppress(&self, recorder: &mut Recorder, settings: &Settings) {
        if settings.ignore_end {
            recorder.settings_mut().sampler_mut().suppress(self.stop_tokens.iter().copied());
        }
    }
}

/// A conversation with a model.
pub struct Chat {
    pub(super) voice: Voice,
    /// For the next session; its `steps` are set anew each time.
    options: SessionOptions,
    settings: Settings,
    recorder: Recorder,
    /// Where the session began, which it may have left.
    began_on: String,
    conversation: Conversation,
    totals: Totals,
    governor: Option<Governor>,
}

/// Longest time that passes unseen while a pause could be cut short.
const SLICE: Duration = Duration::from_millis(20);

impl Chat {
    /// Starts a conversation. `options` sets up the session, whose `steps` are what the settings ask for, or more if it says so;
    /// `cancel` will stop what runs.
    ///
    /// # Errors
    /// A model without a tokenizer or with a malformed template; settings or options that cannot be honoured.
    pub fn new(
        model: Arc<Model>,
        options: SessionOptions,
        settings: Settings,
        system: Option<String>,
        cancel: Cancel,
    ) -> Result<Self, Error> {
        let tokenizer = Tokenizer::from_gguf(model.metadata())?;
        let template = Template::of_model(model.metadata(), &tokenizer, model.config().prefix_lm)?;
        let condition = (template.kind() == TemplateKind::Prefix).then(|| text::DEFAULT_CONDITION.to_owned());
        let mut stop_tokens = text::stop_tokens(model.metadata(), &tokenizer)?;
        stop_tokens.extend(template.stop_token(&tokenizer));
        let voice = Voice { model, tokenizer, template, condition, stop_tokens, cancel };
        let recorder = voice.engine(&options, &settings, options.steps.unwrap_or(1))?;
        voice.cancel.watch(recorder.engine().cancel_flag());
        let began_on = device_name(recorder.engine().session()).to_owned();
        let (conversation, totals) = (Conversation::new(system), Totals::default());
        Ok(Self { voice, options, settings, recorder, began_on, conversation, totals, governor: None })
    }

    /// Lets a governor choose exit rule, threads and pace from now on.
    pub fn govern(&mut self, governor: Governor) {
        self.governor = Some(governor);
    }

    /// The governor, if there is one.
    pub fn governor(&self) -> Option<&Governor> {
        self.governor.as_ref()
    }

    pub(super) fn governor_mut(&mut self) -> Option<&mut Governor> {
        self.governor.as_mut()
    }

    /// Puts into force what the governor wants, after a look at the sensors: much may have changed while the user had the word.
    fn look(&mut self) -> Result<(), Error> {
        self.governor.iter_mut().for_each(Governor::look);
        self.obey()
    }

    /// Puts into force what the governor wants.
    fn obey(&mut self) -> Result<(), Error> {
        let Some(governor) = &mut self.governor else { return Ok(()) };
        governor.runs_on_device(self.recorder.engine().session().device().is_some());
        let (rule, threads) = (governor.rule(), governor.threads());
        if rule != *self.engine().rule() {
            let limit = match rule == self.settings.rule {
                true => self.depth_limit(),
                false => RulePolicy::depth_limit(&rule, self.settings.steps, self.model().config()),
            };
            self.recorder.settings_mut().set_rule(rule, Some(limit))?;
        }
        if let Some(threads) = threads {
            self.recorder.settings_mut().set_threads(threads);
        }
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.voice.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.voice.tokenizer
    }

    /// The chat template in use.
    pub fn template(&self) -> &Template {
        &self.voice.template
    }

    /// Uses another template, from the next message on.
    pub fn set_template(&mut self, template: Template) {
        self.voice.template = template;
        self.voice.condition = None;
    }

    /// The engine, with the session and what it holds.
    pub fn engine(&self) -> &Engine {
        self.recorder.engine()
    }

    #[cfg(test)]
    pub(super) fn recorder_mut(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// What the tokens that the engine holds were run on: `cpu`, a GPU's name, or both, one after the other.
    pub fn ran_on(&self) -> String {
        ran_on(&self.began_on, device_name(self.engine().session()))
    }

    /// Why the session left its device for the CPU, if it has since this was last asked. Sessions that take its place begin there.
    pub fn take_notice(&mut self) -> Option<String> {
        let notice = self.recorder.settings_mut().take_notice();
        self.options.on_device &= notice.is_none();
        notice
    }

    /// How the tokens that the engine holds were run.
    pub fn runs(&self) -> &[Run] {
        self.recorder.runs()
    }

    /// Were some of the tokens that the engine holds decoded in a way that running them again does not repeat?
    pub fn is_approximate(&self) -> bool {
        self.recorder.is_approximate()
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The initial latent state.
    pub fn initial(&self) -> &InitialState {
        &self.options.initial
    }

    /// Loop steps at most, as the settings and the model say.
    pub fn depth_limit(&self) -> usize {
        self.settings.depth_limit(self.model().config())
    }

    /// What to tell a user whose settings ask for more steps than the model was trained for, see [`crate::cli::too_deep`].
    pub fn too_deep(&self, sign: &str) -> Option<String> {
        crate::cli::too_deep(sign, &self.settings.rule, self.settings.steps, self.model().config())
    }

    /// What was said. Between two calls, user and assistant take turns, and the assistant has the last word.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// What the answers took.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Says something to the model, and shows its answer to `sink` as it comes. Both become part of the conversation, also
    /// if the answer was cut short, unless it was cancelled before its first token.
    ///
    /// If there is not enough room for the prompt and a quarter of the context (at most 256 tokens), the oldest exchanges are left out.
    ///
    /// # Errors
    /// A message that does not fit, a template that refuses, a forward pass that fails, a sink that fails. The
    /// conversation is then as it was.
    pub fn ask(&mut self, message: &str, sink: Sink<'_>) -> Result<Answer, Error> {
        let before = self.conversation.clone();
        self.conversation.push(Role::User, message);
        let result = self.answer(sink);
        match &result {
            Ok(answer) if answer.end != End::Cancelled || !answer.tokens.is_empty() => {
                self.conversation.push(Role::Assistant, self.voice.template.kept(&answer.text));
                self.totals.add(answer);
            }
            _ => self.conversation = before,
        }
        result
    }

    /// Takes the last answer back and makes another one. With temperature 0 and unchanged settings it is the same.
    ///
    /// # Errors
    /// [`Error::NothingAsked`] at the start, otherwise as [`ask`](Self::ask); the old answer then stays.
    pub fn answer_again(&mut self, sink: Sink<'_>) -> Result<Answer, Error> {
        let before = self.conversation.clone();
        let question = self.conversation.turns.iter().rposition(|m| m.role == Role::User);
        let question = question.ok_or(Error::NothingAsked)?;
        let message = self.conversation.turns.drain(question..).next().map_or(String::new(), |m| m.content);
        let result = self.ask(&message, sink);
        let kept = result.as_ref().is_ok_and(|a| a.end != End::Cancelled || !a.tokens.is_empty());
        if !kept {
            self.conversation = before;
        }
        result
    }

    /// Answers the conversation, which ends with the user's message.
    fn answer(&mut self, sink: Sink<'_>) -> Result<Answer, Error> {
        self.voice.cancel.clear();
        let mut answer = Answer {
            text: String::new(),
            tokens: Vec::new(),
            end: End::Stop,
            dropped: 0,
            decode: Default::default(),
            prompt: Default::default(),
            prompt_time: Duration::ZERO,
            time: Duration::ZERO,
        };
        let start = Instant::now();
        let (prompt, both_ways) = match self.fit() {
            Ok((dropped, prompt)) => {
                answer.dropped = dropped;
                let thinking = self.settings.reasoning;
                let encode = |messages: &[Message], ask| self.voice.encode(messages, ask, thinking);
                let both_ways = match self.model().config().prefix_lm {
                    true => prefix::both_ways(&self.conversation.messages(), &prompt, encode)?,
                    false => Vec::new(),
                };
                (prompt, both_ways)
            }
            Err(e) if e.is_cancelled() => {
                answer.end = End::Cancelled;
                return Ok(answer);
            }
            Err(e) => return Err(e),
        };
        if answer.dropped > 0 {
            sink(Event::Dropped(answer.dropped)).map_err(Error::Show)?;
        }
        self.look()?;
        match self.recorder.prompt(&prompt, &both_ways).map_err(Error::from) {
            Ok(stats) => answer.prompt = stats,
            Err(e) if e.is_cancelled() => answer.end = End::Cancelled,
            Err(e) => return Err(e),
        }
        answer.prompt_time = start.elapsed();
        if answer.end != End::Cancelled {
            let start = Instant::now();
            let done = self.generate(&mut answer, sink);
            answer.time = start.elapsed();
            answer.decode = self.recorder.settings_mut().take_decode_stats();
            done?;
        }
        Ok(answer)
    }

    /// Draws tokens until something ends the answer.
    fn generate(&mut self, answer: &mut Answer, sink: Sink<'_>) -> Result<(), Error> {
        let most = self.settings.predict.unwrap_or(usize::MAX);
        let mut decoder = StreamDecoder::new();
        answer.end = loop {
            if answer.tokens.len() >= most {
                break End::Length;
            }
            // Behind a token if another one follows; the first one took no pass.
            if !answer.tokens.is_empty() {
                self.pause()?;
            }
            if self.voice.cancel.is_set() {
                break End::Cancelled;
            }
            let began = Instant::now();
            let step = match self.recorder.next_token().map_err(Error::from) {
                Ok(Some(step)) => step,
                Ok(None) => break End::Context,
                Err(e) if e.is_cancelled() => break End::Cancelled,
                Err(e) => return Err(e),
            };
            let took = began.elapsed();
            if self.voice.stop_tokens.contains(&step.token) {
                break End::Stop;
            }
            let text = decoder.push(&self.voice.tokenizer, step.token)?;
            answer.text.push_str(&text);
            let token = Token { id: step.token, steps: step.steps, text };
            sink(Event::Token(&token)).map_err(Error::Show)?;
            answer.tokens.push(token);
            self.tell(answer.tokens.len() == 1, took, step.steps)?;
        };
        let rest = decoder.flush();
        if let (false, Some(last)) = (rest.is_empty(), answer.tokens.last_mut()) {
            sink(Event::Rest(&rest)).map_err(Error::Show)?;
            last.text.push_str(&rest);
            answer.text.push_str(&rest);
        }
        Ok(())
    }

    /// Tells the governor of a token, and does what it wants. The first token of an answer was drawn from what the prompt left, and
    /// took no pass.
    fn tell(&mut self, first: bool, took: Duration, steps: usize) -> Result<(), Error> {
        let Some(governor) = &mut self.governor else { return Ok(()) };
        match first {
            true => governor.start(),
            false => governor.token(took, steps),
        }
        self.obey()
    }

    /// Pauses as the governor asks; what the sensors say meanwhile counts. A cancellation ends it.
    fn pause(&mut self) -> Result<(), Error> {
        let Some(governor) = &mut self.governor else { return Ok(()) };
        let mut paused = false;
        loop {
            let left = governor.wait();
            if left.is_zero() || self.voice.cancel.is_set() {
                break;
            }
            std::thread::sleep(left.min(SLICE));
            paused = true;
        }
        if paused { self.obey() } else { Ok(()) }
    }

    /// Leaves out what does not fit; gives the number of exchanges left out, and the prompt.
    fn fit(&mut self) -> Result<(usize, Vec<u32>), Error> {
        let context = self.engine().session().kv_shape().context;
        let reserve = ANSWER_ROOM.min(context / 4).min(self.settings.predict.unwrap_or(usize::MAX));
        let mut prompt = Vec::new();
        let (voice, thinking) = (&self.voice, self.settings.reasoning);
        let mut count = |messages: &[Message]| {
            if voice.cancel.is_set() {
                return Err(Error::Model(model::Error::Cancelled));
            }
            prompt = voice.encode(messages, true, thinking)?;
            Ok(prompt.len())
        };
        let room = context - reserve;
        let dropped = match self.conversation.drop_oldest_until(room, &mut count) {
            // A long message may have some of the answer's room, as long as one token is left.
            Err(Error::Text(text::Error::DoesNotFit { needed, .. })) => {
                let room = needed.min(context.saturating_sub(1));
                self.conversation.drop_oldest_until(room, &mut count)?
            }
            other => other?,
        };
        Ok((dropped, prompt))
    }

    /// Forgets everything but the system prompt and the settings.
    pub fn reset(&mut self) {
        self.conversation.turns.clear();
        self.recorder.reset();
        self.began_on = device_name(self.engine().session()).to_owned();
        self.totals = Totals::default();
    }

    /// Changes the system prompt from the next message on.
    pub fn set_system(&mut self, system: Option<String>) {
        self.conversation.system = system;
    }

    /// Changes the sampler's settings; the random numbers go on.
    ///
    /// # Errors
    /// A temperature out of range.
    pub fn set_temperature(&mut self, temperature: f32) -> Result<(), Error> {
        let sampler = crate::generate::SamplerConfig { temperature, ..self.settings.sampler.clone() };
        self.recorder.settings_mut().set_sampler(sampler.clone(), self.voice.vocabulary())?;
        self.settings.sampler = sampler;
        self.voice.suppress(&mut self.recorder, &self.settings);
        Ok(())
    }

    /// Changes the decoding strategy. Gives the number of tokens that were run again, if the session had to be set up anew since the
    /// strategy wants another number of KV slots.
    ///
    /// # Errors
    /// As [`set_steps`](Self::set_steps).
    pub fn set_strategy(&mut self, strategy: Strategy) -> Result<Option<usize>, Error> {
        self.voice.cancel.clear();
        let slots = |strategy: Strategy| strategy.wants_slots(self.model(), &self.options);
        let mut again = None;
        if self.options.kv_slots.is_none() && slots(strategy) != slots(self.settings.strategy) {
            let (held, runs) = (self.engine().held().to_vec(), self.runs().to_vec());
            let draws = self.engine().sampler().position();
            let settings = Settings { strategy, ..self.settings.clone() };
            self.replace(self.options.clone(), settings, &held, &runs, draws)?;
            again = Some(held.len());
        } else {
            self.settings.strategy = strategy;
            self.voice.decode(&mut self.recorder, &self.settings);
        }
        // Counts of another strategy are not this one's.
        self.totals.decode = DecodeStats::default();
        Ok(again)
    }

    /// Turns thinking before the answer on or off, from the next message on; `None` leaves it to the template.
    pub fn set_reasoning(&mut self, reasoning: Option<bool>) {
        self.settings.reasoning = reasoning;
    }

    /// Changes the depth; `None` goes back to the default. The exit rule's own maximum stays in force. Gives the number of
    /// tokens that were run again, if the session had to be set up anew.
    ///
    /// # Errors
    /// A depth that the memory does not allow, or above [`MOST_STEPS`]; cancelled. Everything is then as before.
    pub fn set_steps(&mut self, steps: Option<usize>) -> Result<Option<usize>, Error> {
        self.set_depth(Settings { steps, ..self.settings.clone() })
    }

    /// Changes the exit rule. A rule with a maximum of its own replaces an earlier [`set_steps`](Self::set_steps). Gives the
    /// number of tokens that were run again, if the session had to be set up anew.
    ///
    /// # Errors
    /// As [`set_steps`](Self::set_steps), or a rule that the model cannot follow.
    pub fn set_rule(&mut self, rule: ExitRule) -> Result<Option<usize>, Error> {
        let steps = if rule.max_steps().is_some() { None } else { self.settings.steps };
        self.set_depth(Settings { rule, steps, ..self.settings.clone() })
    }

    fn set_depth(&mut self, settings: Settings) -> Result<Option<usize>, Error> {
        self.voice.cancel.clear();
        let limit = settings.depth_limit(self.model().config());
        if limit > MOST_STEPS {
            return Err(Error::TooDeep(limit));
        }
        let mut again = None;
        if limit <= self.engine().session().steps() {
            self.recorder.settings_mut().set_rule(settings.rule, Some(limit))?;
        } else {
            let (held, runs) = (self.engine().held().to_vec(), self.runs().to_vec());
            let draws = self.engine().sampler().position();
            let options = self.options.clone();
            self.replace(options, settings.clone(), &held, &runs, draws)?;
            again = Some(held.len());
        }
        self.settings = settings;
        self.pin("you set");
        Ok(again)
    }

    /// Makes the governor keep to the settings' depth: what the user sets by hand, or loads, is not taken back.
    fn pin(&mut self, whose: &str) {
        let (rule, limit) = (self.settings.rule, self.depth_limit());
        let most = RulePolicy::total_limit(&rule, Some(limit), self.model().config());
        if let Some(governor) = &mut self.governor {
            governor.pin(rule, most, whose);
        }
    }

    /// Puts another session in the place of this one and runs `held` in it. It is as deep as these settings and `held` need; a
    /// governor's ladder counts no more, since its depth is [pinned](Self::pin) to the settings. On an error nothing has changed.
    fn replace(
        &mut self,
        options: SessionOptions,
        settings: Settings,
        held: &[u32],
        runs: &[Run],
        draws: u64,
    ) -> Result<(), Error> {
        let deepest = runs.iter().map(|r| r.steps).max().unwrap_or(1);
        let mut recorder = self.voice.engine(&options, &settings, deepest)?;
        let began_on = device_name(recorder.engine().session()).to_owned();
        self.voice.cancel.watch(recorder.engine().cancel_flag());
        if let Err(e) = recorder.replay(held, runs) {
            self.voice.cancel.watch(self.engine().cancel_flag());
            return Err(e.into());
        }
        recorder.settings_mut().sampler_mut().set_position(draws);
        self.recorder = recorder;
        self.began_on = began_on;
        self.options = options;
        self.settings = settings;
        Ok(())
    }

    /// Goes on with a saved conversation: its words, settings and tokens. The tokens are run again in the way they were run
    /// before, so with the same model and KV cache the answers go on as they would have, if all of it is on the CPU. Gives notes for
    /// the user.
    ///
    /// # Errors
    /// Settings that this machine cannot honour, or cancelled; everything is then as it was.
    pub fn load(&mut self, saved: &Saved) -> Result<Vec<String>, Error> {
        self.voice.cancel.clear();
        let mut notes = Vec::new();
        let mut options = self.options.clone();
        match (saved.initial(), &options.initial) {
            (Some(initial), _) => options.initial = initial,
            (None, InitialState::Given(_)) => {}
            (None, _) => notes.push("it was saved with initial states from a file (--init FILE)".to_owned()),
        }
        let settings = saved.settings(&self.settings);
        let shape = *self.engine().session().kv_shape();
        let (mut held, mut runs): (_, &[Run]) = (Vec::new(), &[]);
        if saved.is_of(self.model()) {
            (held, runs) = saved.held(self.voice.vocabulary())?;
            if held.len() > shape.context {
                notes.push(format!("it holds {} tokens, more than the context of {} here", held.len(), shape.context));
                (held, runs) = (Vec::new(), &[]);
            } else if !saved.has_kv_type(shape.ty) {
                notes.push("it was saved with another --kv-type".to_owned());
            }
        } else {
            notes.push("it was saved with another model".to_owned());
        }
        let under = match saved.condition() {
            Some(condition) if self.condition().is_some() => Some((self.voice.under(condition)?, condition.to_owned())),
            _ => None,
        };
        self.replace(options, settings, &held, runs, saved.draws())?;
        self.pin("was saved");
        if saved.is_approximate() && !self.engine().held().is_empty() {
            notes.push(
                "some of its tokens were decoded approximately; they were run again one by one, and numbers differ"
                    .to_owned(),
            );
        }
        let (then, now) = (saved.device(), self.ran_on());
        if let (false, Some(doubt)) = (self.engine().held().is_empty(), replay::doubt(then, &now)) {
            let again = if then == now { "again" } else { "here" };
            notes.push(format!("its tokens were run on {then}, and {again} on {now}: {doubt}"));
        }
        if let Some((template, condition)) = under {
            self.voice.template = template;
            self.voice.condition = Some(condition);
        }
        self.conversation = saved.conversation().clone();
        self.totals = Totals::default();
        Ok(notes)
    }
}

#[cfg(test)]
mod tests;
