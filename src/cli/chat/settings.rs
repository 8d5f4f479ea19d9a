//! How answers are made, and how deep the loop may go for them.

use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::generate::{SamplerConfig, Strategy};
use crate::model::Config;

/// Deepest loop that a command or a saved conversation may ask for. Far beyond what any model gains from; a typing error or a
/// hostile file should not keep the machine busy for hours.
pub const MOST_STEPS: usize = 4096;

/// What a user can change between two answers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When a token leaves the loop.
    pub rule: ExitRule,
    /// Loop steps at most, besides the rule's own maximum.
    pub steps: Option<usize>,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// How tokens come out of the loop.
    pub strategy: Strategy,
    /// Tokens per answer at most; `None` leaves that to the model and the context.
    pub predict: Option<usize>,
    /// Never choose a token that ends an answer.
    pub ignore_end: bool,
    /// Thinking before the answer, on or off; `None` leaves it to the template.
    pub reasoning: Option<bool>,
}

impl Settings {
    /// Loop steps at most. Where neither the rule nor the user says, a rule that can leave early may go twice as deep as the
    /// model's mean, so that hard tokens have room; others take the mean.
    pub fn depth_limit(&self, config: &Config) -> usize {
        let adaptive = self.rule.signal() != Signal::None;
        if adaptive && self.rule.max_steps().is_none() && self.steps.is_none() {
            let most = config.max_steps().unwrap_or(usize::MAX);
            return config.mean_steps().saturating_mul(2).min(most).max(1);
        }
        RulePolicy::depth_limit(&self.rule, self.steps, config)
    }
}
