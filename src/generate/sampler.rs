//! The sampler: one vector of logits in, one token id out.
//!
//! The chain has llama.cpp's stages with llama.cpp's meaning, in this order: repetition penalty, top-k, top-p,
//! min-p, temperature, draw. So top-p and min-p judge the model's own probabilities, before the temperature bends
//! them.
//!
//! Everything is deterministic: ties go to the lowest id, exponentials are `libm`'s, and the random number of
//! draw `i` is a function of `(seed, i)` alone ([`crate::random`]).

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::random;

/// Keeps the sampler's numbers apart from others that share a seed, such as initial latent states.
const STREAM: u64 = u64::from_be_bytes(*b"sampler\0");

/// Room made at once for the recent tokens; a longer window grows as it fills.
const RECENT_CAPACITY: usize = 4096;

/// What can be wrong with a sampler's settings or its input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is not a number in its range.
    #[error("{name} must be {expected}, found {found}")]
    Setting {
        /// The setting's name as in [`SamplerConfig`].
        name: &'static str,
        /// The range in words.
        expected: &'static str,
        /// What was given.
        found: f32,
    },
    /// A logit is NaN or positive infinity: the forward pass went wrong.
    #[error("the logit of token {token} is {found}")]
    Logit {
        /// The token's id.
        token: usize,
        /// Its logit.
        found: f32,
    },
    /// Every token is suppressed or has a logit of negative infinity, or there are no logits at all.
    #[error("none of the {0} tokens can be chosen: all are suppressed or have a logit of -inf")]
    NothingToChoose(usize),
}

/// The sampler's settings. The defaults are llama.cpp's, but for the seed, which is fixed.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by this before the draw. 0 chooses the most likely token. Finite, at least 0; default 0.8.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens are kept; 0 keeps all. Default 40.
    pub top_k: usize,
    /// Only the smallest set of tokens whose probability reaches `top_p` is kept (at least one). In `[0, 1]`, 1
    /// keeps all; default 0.95.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as likely as the most likely one are kept. In `[0, 1]`, 0 keeps all; default 0.05.
    pub min_p: f32,
    /// Positive logits of recent tokens are divided by this, others multiplied (Keskar et al., 2019). Finite,
    /// above 0, 1 is off; default 1.
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at; 0 is off, `usize::MAX` is all. Default 64.
    pub repeat_last_n: usize,
    /// The seed of the draws. Default 0, so that a run can be repeated without being told to.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0, repeat_last_n: 64, seed: 0 }
    }
}

impl SamplerConfig {
    /// The most likely token every time, without penalties.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`Error::Setting`] with the first setting that is NaN, infinite or outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |name, expected, found: f32, ok: bool| match ok && found.is_finite() {
            true => Ok(()),
            false => Err(Error::Setting { name, expected, found }),
        };
        let unit = 0.0..=1.0;
        check("temperature", "a finite number, 0 or above", self.temperature, self.temperature >= 0.0)?;
        check("top_p", "between 0 and 1", self.top_p, unit.contains(&self.top_p))?;
        check("min_p", "between 0 and 1", self.min_p, unit.contains(&self.min_p))?;
        check("repeat_penalty", "a finite number above 0", self.repeat_penalty, self.repeat_penalty > 0.0)
    }
}

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Most likely first, equals by id. Total, because NaN never gets into a candidate.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Chooses tokens and remembers the recent ones. Allocates nothing per token once its buffers have grown, but for
/// guesses under a repetition penalty, which keep a copy of the recent tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    /// Draws made so far: the number of the next draw.
    position: u64,
    /// The last `repeat_last_n` accepted tokens, oldest first.
    recent: VecDeque<u32>,
    /// Ids that are never chosen, ascending and distinct.
    suppressed: Vec<u32>,
    /// Ids from here on are never chosen.
    vocabulary: usize,
    candidates: Vec<Candidate>,
    /// Unnormalised probability of each candidate.
    weights: Vec<f64>,
    /// `penalised[id] == stamp` once the penalty of this call has been applied to `id`.
    penalised: Vec<u64>,
    stamp: u64,
}

impl Sampler {
    /// A sampler with no history.
    ///
    /// # Errors
    /// As [`SamplerConfig::validate`].
    pub fn new(config: SamplerConfig) -> Result<Self, Error> {
        config.validate()?;
        let recent = VecDeque::with_capacity(config.repeat_last_n.min(RECENT_CAPACITY));
        Ok(Self {
            config,
            position: 0,
            recent,
            suppressed: Vec::new(),
            vocabulary: usize::MAX,
            candidates: Vec::new(),
            weights: Vec::new(),
            penalised: Vec::new(),
            stamp: 0,
        })
    }

    /// The settings in force.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Never chooses these ids from now on.
    pub fn suppress(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.suppressed.extend(ids);
        self.suppressed.sort_unstable();
        self.suppressed.dedup();
    }

    /// Never chooses an id of `len` or above: the rows that pad a table beyond the tokenizer's last token.
    pub fn limit_vocabulary(&mut self, len: usize) {
        self.vocabulary = len;
    }

    /// Remembers a token, chosen or of the prompt, for the repetition penalty.
    pub fn accept(&mut self, token: u32) {
        if self.config.repeat_last_n == 0 || self.config.repeat_penalty == 1.0 {
            return;
        }
        if self.recent.len() >= self.config.repeat_last_n {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    /// Forgets the recent tokens and starts the draws again at 0; settings and suppressed ids stay.
    pub fn reset(&mut self) {
        self.recent.clear();
        self.position = 0;
    }

    /// Forgets the recent tokens; the draws go on.
    pub fn forget_recent(&mut self) {
        self.recent.clear();
    }

    /// The number of the next draw.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Sets the number of the next draw, to go on where a saved session stopped or to draw again.
    pub fn set_position(&mut self, position: u64) {
        self.position = position;
    }

    /// Chooses a token from `logits` (one per id) and counts the draw. It is not accepted by itself.
    ///
    /// # Errors
    /// [`Error::Logit`] for NaN or positive infinity, [`Error::NothingToChoose`] if no token is left.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, Error> {
        self.collect(logits)?;
        self.penalise(logits.len());
        let chosen = if self.config.temperature == 0.0 {
            self.candidates.iter().min_by(|a, b| by_rank(a, b))
        } else {
            self.top_k();
            self.top_p();
            self.min_p();
            self.draw()
        };
        let id = chosen.map(|c| c.id);
        let id = id.ok_or(Error::NothingToChoose(logits.len()))?;
        self.position = self.position.wrapping_add(1);
        Ok(id)
    }

    /// What [`sample`](Self::sample) would choose from `logits` if the tokens `ahead` had been drawn and accepted first. Nothing
    /// changes: the number behind draw `i` is fixed, so that a guess and the draw itself agree as often as their logits do.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn guess(&mut self, logits: &[f32], ahead: &[u32]) -> Result<u32, Error> {
        let (position, remembers) = (self.position, self.config.repeat_last_n > 0 && self.config.repeat_penalty != 1.0);
        let recent = remembers.then(|| self.recent.clone());
        ahead.iter().for_each(|&token| self.accept(token));
        self.position = position.wrapping_add(ahead.len() as u64);
        let chosen = self.sample(logits);
        self.position = position;
        if let Some(recent) = recent {
            self.recent = recent;
        }
        chosen
    }

    /// Fills `candidates` with the tokens that may be chosen, in order of their ids.
    fn collect(&mut self, logits: &[f32]) -> Result<(), Error> {
        self.candidates.clear();
        self.candidates.reserve(logits.len());
        let mut suppressed = self.suppressed.iter().copied().peekable();
        for (token, &logit) in logits.iter().enumerate() {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(Error::Logit { token, found: logit });
            }
            let Ok(id) = u32::try_from(token) else { break };
            while suppressed.next_if(|&s| s < id).is_some() {}
            let allowed = token < self.vocabulary && suppressed.peek() != Some(&id);
            if allowed && logit != f32::NEG_INFINITY {
                self.candidates.push(Candidate { id, logit });
            }
        }
        Ok(())
    }

    /// Each distinct recent token once, however often it occurs. `candidates` is still ascending in id.
    fn penalise(&mut self, vocabulary: usize) {
        let penalty = self.config.repeat_penalty;
        if penalty == 1.0 || self.recent.is_empty() {
            return;
        }
        if self.penalised.len() < vocabulary {
            self.penalised.resize(vocabulary, 0);
        }
        self.stamp += 1;
        for &id in &self.recent {
            let Some(seen) = self.penalised.get_mut(id as usize) else {
                continue;
            };
            if std::mem::replace(seen, self.stamp) == self.stamp {
                continue;
            }
            if let Ok(at) = self.candidates.binary_search_by_key(&id, |c| c.id) {
                let logit = &mut self.candidates[at].logit;
                let scaled = match *logit > 0.0 {
                    true => *logit / penalty,
                    false => *logit * penalty,
                };
                // A tiny or huge penalty can push a finite logit over the edge; keep it finite.
                *logit = scaled.clamp(f32::MIN, f32::MAX);
            }
        }
    }

    fn top_k(&mut self) {
        let k = self.config.top_k;
        if k != 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, by_rank);
            self.candidates.truncate(k);
            // The order within the kept part is the selection algorithm's own affair: settle it.
            self.candidates.sort_unstable_by(by_rank);
        }
    }

    fn top_p(&mut self) {
        let p = f64::from(self.config.top_p);
        if p >= 1.0 {
            return;
        }
        self.candidates.sort_unstable_by(by_rank);
        let total = self.weigh(1.0);
        let mut sum = 0.0;
        let reached = self.weights.iter().position(|w| {
            sum += w;
            sum >= p * total
        });
        if let Some(last) = reached {
            self.candidates.truncate(last + 1);
        }
    }

    fn min_p(&mut self) {
        if self.config.min_p <= 0.0 {
            return;
        }
        // p >= min_p * p_max is logit >= logit_max + ln(min_p): no normalisation needed.
        let least = f64::from(self.highest()) + libm::log(f64::from(self.config.min_p));
        self.candidates.retain(|c| f64::from(c.logit) >= least);
    }

    fn draw(&mut self) -> Option<&Candidate> {
        let total = self.weigh(f64::from(self.config.temperature));
        let target = random::uniform(self.config.seed, STREAM, self.position) * total;
        let mut sum = 0.0;
        let drawn = self.weights.iter().position(|w| {
            sum += w;
            sum > target
        });
        // Only reached if rounding made the running sum end below the target.
        let at = drawn.or_else(|| self.weights.iter().rposition(|&w| w > 0.0))?;
        self.candidates.get(at)
    }

    fn highest(&self) -> f32 {
        let logits = self.candidates.iter().map(|c| c.logit);
        logits.fold(f32::NEG_INFINITY, f32::max)
    }

    /// Fills `weights` with exp((logit - highest) / temperature) and returns their sum, which is at least 1
    /// unless there is no candidate.
    fn weigh(&mut self, temperature: f64) -> f64 {
        let highest = f64::from(self.highest());
        self.weights.clear();
        let weigh = |c: &Candidate| libm::exp((f64::from(c.logit) - highest) / temperature);
        self.weights.extend(self.candidates.iter().map(weigh));
        self.weights.iter().sum()
    }
}

#[cfg(test)]
mod tests;
