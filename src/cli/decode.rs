//! `--decode`: how tokens come out of the loop, and what is told of it.

use crate::generate::{DecodeStats, Engine, Strategy};
use clap::Args;
use serde_json::{Value, json};

/// How tokens come out of the loop.
#[derive(Args, Debug, Clone, Copy)]
#[command(next_help_heading = "Decoding")]
pub struct DecodeFlags {
    /// How tokens come out of the loop: plain, one after another; pipeline[:every=N][,rows=N], several in flight, each entering on
    /// a guess from its predecessor's shallow read-out, with the same text to the last bit; speculative[:tokens=N][,steps=N], the
    /// same in blocks; wavefront[:inner=N][,rows=N][,ema=X][,noise=X][,freeze=CRITERION], the published sampler whose tokens settle
    /// together, which is approximate. What is not given is chosen while it runs, or as published
    #[arg(long, value_name = "STRATEGY", default_value_t)]
    pub decode: Strategy,
}

/// What a user should know of a strategy that does not do what its name promises.
pub fn decode_note(engine: &Engine) -> Option<String> {
    let name = engine.strategy().name();
    if let Some(why) = engine.plain_because() {
        return Some(format!("decoding is plain instead of {name}: {why}"));
    }
    let session = engine.session();
    if let Strategy::Wavefront(config) = engine.strategy() {
        let slots = session.kv_shape().slots;
        let better = if slots > config.inner_steps { "; it is made for a session with --kv-steps 1" } else { "" };
        return Some(format!(
            "a wavefront is approximate: its text may differ from plain decoding's, and exit rules have no say in it{better}"
        ));
    }
    (!engine.is_exact()).then(|| {
        format!(
            "{name} is approximate here: {} of {} loop steps have KV slots of their own, and the text may differ from plain \
             decoding's (rdt-eval measures by how much; --kv-steps or --kv-memory give more slots)",
            session.kv_shape().slots,
            session.steps()
        )
    })
}

/// How an engine decodes and what came of it, for programs: the strategy; whether it gives plain decoding's text to the last bit; why it decodes
/// plainly all the same (null: it does not); counts; rows per pass and passes per token (null if nothing was in flight); how guesses
/// came out by the loop steps they were made at; and the tokens per second of plain decoding as estimated from passes of one row (null before any).
pub fn decode_json(engine: &Engine, stats: &DecodeStats) -> Value {
    let flew = |x: f64| (stats.passes > 0).then_some(x);
    let guesses = stats.guesses.iter();
    json!({
        "strategy": engine.strategy().to_string(),
        "exact": engine.is_exact(),
        "plain_because": engine.plain_because(),
        "tokens": stats.tokens,
        "passes": stats.passes,
        "rows_per_pass": flew(stats.rows_per_pass()),
        "passes_per_token": flew(stats.passes_per_token()),
        "read_outs": stats.reads,
        "guessed": stats.guessed,
        "dropped": stats.dropped,
        "guesses": guesses.map(|g| json!({"steps": g.steps, "made": g.made, "right": g.right})).collect::<Vec<_>>(),
        "plain_tokens_per_second": engine.plain_tokens_per_second(),
    })
}

/// A few words: rows per pass and passes per token; `None` if nothing was in flight.
pub fn decode_words(stats: &DecodeStats) -> Option<String> {
    (stats.tokens > 0).then(|| {
        format!("{:.2} rows per pass, {:.2} passes per token", stats.rows_per_pass(), stats.passes_per_token())
    })
}

/// A line on how often guesses came true, by the depth they were made at.
pub fn acceptance_words(stats: &DecodeStats) -> String {
    let made = stats.guesses.iter().filter(|g| g.made > 0);
    let rates: Vec<String> = made.map(|g| format!("{:.0} % after {}", 100.0 * g.rate(), g.steps)).collect();
    if rates.is_empty() { "none yet".to_owned() } else { format!("{} loop steps", rates.join(", ")) }
}
