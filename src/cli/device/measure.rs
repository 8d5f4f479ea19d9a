//! How long a model takes to generate a token, on a GPU and on the CPU.

use super::auto::{Measured, Timings};
use super::{put, reason};
use crate::cli::{Contents, LoadFlags, stay_on_fast_cores};
use crate::gpu::Gpu;
use crate::model::{self, Batch, FixedDepth, Model, Session, SessionOptions};
use crate::random;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of the prompt, and tokens that are generated behind it.
const PROMPT: usize = 32;
const GENERATED: usize = 8;
/// Time for each of the two, beyond which a large model runs fewer tokens.
const MOST: Duration = Duration::from_millis(500);

/// The model on the GPU, which need not be put there again if that is the faster one.
pub(super) struct Kept {
    pub(super) model: Arc<Model>,
    /// The line about its weights.
    pub(super) said: Option<String>,
}

/// Measures a model on the CPU, with so many threads where that is asked for, and on the likely fastest GPU. It is opened for each: on
/// the CPU its weights are interleaved.
pub(super) fn measure(
    load: LoadFlags,
    contents: &Contents,
    threads: Option<NonZeroUsize>,
    kept: &mut Option<Kept>,
) -> Result<Measured, String> {
    // The one after the other: where they share memory, both at once would be twice the model.
    let mut model = contents.open().map_err(|e| e.to_string())?;
    load.interleave(&mut model).map_err(|e| e.to_string())?;
    let cpu_ms = milliseconds(&Arc::new(model), threads).map_err(Failure::words)?;

    let mut model = contents.open().map_err(|e| e.to_string())?;
    let said = match Gpu::open(None).and_then(|gpu| put(&gpu, &mut model)) {
        Ok(said) => said,
        Err(e) => return Ok(Measured::Failed(e.to_string())),
    };
    let model = Arc::new(model);
    let gpu_ms = match milliseconds(&model, threads) {
        Ok(ms) => ms,
        Err(Failure::Device(why)) => return Ok(Measured::Failed(why)),
        Err(Failure::Other(why)) => return Err(why),
    };
    *kept = Some(Kept { model, said });
    Ok(Measured::Milliseconds(Timings { gpu_ms, cpu_ms }))
}

/// Why there are no timings.
#[derive(Debug)]
enum Failure {
    /// The device was left.
    Device(String),
    /// Something that another device would not have changed.
    Other(String),
}

impl Failure {
    fn words(self) -> String {
        match self {
            Self::Device(why) | Self::Other(why) => why,
        }
    }
}

impl From<model::Error> for Failure {
    fn from(error: model::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Milliseconds per generated token at the model's own depth, where the model is: the median of some tokens.
fn milliseconds(model: &Arc<Model>, threads: Option<NonZeroUsize>) -> Result<f64, Failure> {
    let (config, steps) = (model.config(), model.config().mean_steps());
    let context = (1 + PROMPT + GENERATED).min(config.context);
    let options = SessionOptions { threads, context: Some(context), steps: Some(steps), ..SessionOptions::default() };
    stay_on_fast_cores();
    let mut session = Session::new(Arc::clone(model), &options)?;
    let mut run = |tokens: &[u32]| -> Result<_, Failure> {
        let begin = Instant::now();
        let output = session.run(Batch::next(tokens), &mut FixedDepth(steps))?;
        let took = begin.elapsed();
        let best = output.last().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let next = best.map_or(0, |(i, _)| i as u32);
        match session.take_notice() {
            Some(notice) => Err(Failure::Device(reason(&notice).to_owned())),
            None => Ok((next, took)),
        }
    };
    let token = |i: usize| (random::bits(0, 0, i as u64) % config.vocab as u64) as u32;
    // The first one brings weights into memory, and makes kernels ready.
    run(&[token(0)])?;
    let (_, took) = run(&[token(1)])?;
    let fit = MOST.as_nanos() / took.as_nanos().max(1);
    let prompt: Vec<u32> = (2..PROMPT.min(context / 2)).map(token).take(fit.try_into().unwrap_or(PROMPT)).collect();
    let mut next = match prompt.is_empty() {
        true => token(2),
        false => run(&prompt)?.0,
    };
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < GENERATED.min(context / 2) && (times.is_empty() || begin.elapsed() < MOST) {
        let (chosen, took) = run(&[next])?;
        next = chosen;
        times.push(took);
    }
    times.sort();
    let median = times.get(times.len() / 2).ok_or_else(|| Failure::Other("nothing was measured".into()))?;
    Ok(1e3 * median.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, Load};
    use std::path::Path;

    #[test]
    fn a_model_is_timed_where_it_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let model = Arc::new(arch::open(&path, Load::Map).unwrap());
        let ms = milliseconds(&model, NonZeroUsize::new(1)).unwrap();
        assert!(ms > 0.0 && ms < 60_000.0, "{ms}");
    }
}
