//! Writes down everything that happens in the loop: prelude, initial state, every latent state, logits, exit steps and the
//! statistics that exit rules see.

use anyhow::{Context, bail};
use clap::Parser;
use rdt::cli::{self, DepthFlags, ModelFlags, SessionFlags};
use rdt::exit::{ExitRule, RulePolicy, Signal};
use rdt::files::AtomicFile;
use rdt::kernels::KvType;
use rdt::model::{self, Batch, DepthPolicy, LatentStats, Logits, Row, Verdict};
use rdt::text::Tokenizer;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitCode;

/// Look inside the loop: latent states, logits and exit statistics of every step, as a safetensors file
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Tensors written (T tokens, R steps, D width, V vocabulary; all f32 but the first and last):
  tokens [T] i32, prelude [T,D], init_state [T,D], latents [R,T,D], logits [T,V] or [R,T,V],
  step_norm, acceleration, step_cosine [R,T] (NaN where not defined), exit_step [T] i32,
  and gate [R,T], the exit gate's logit, where the model has one
A token that has left the loop keeps its last latent state; its statistics are NaN from there on.

Examples:
  rdt-trace -m model.gguf -p 'What is 4 + 5?' --out trace.safetensors
  rdt-trace -m model.gguf --tokens 0,2,17 --steps 16 --init zeros --all-logits --out trace.safetensors
  rdt-trace -m model.gguf -p 'Hi' --steps 32 --exit-rule acceleration --out trace.safetensors"
)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    /// Token ids, separated by commas
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        conflicts_with = "prompt",
        required_unless_present = "prompt"
    )]
    tokens: Vec<u32>,
    /// Text; special tokens in it are plain text, a leading BOS is added where the model asks for it
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    #[command(flatten)]
    depth: DepthFlags,
    #[command(flatten)]
    session: SessionFlags,
    /// Tokens that see each other in both directions; only 0 for models without a prefix mask
    #[arg(long, value_name = "P", default_value_t = 0)]
    prefix_len: usize,
    /// Logits after every step, each as a run of that depth would give them
    #[arg(long)]
    all_logits: bool,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

fn main() -> ExitCode {
    cli::run("rdt-trace", run)
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let model = flags.model.open()?;
    let config = model.config().clone();
    if flags.prefix_len != 0 {
        bail!("--prefix-len {}: {} models have no prefix mask", flags.prefix_len, config.architecture);
    }
    let tokens = match &flags.prompt {
        None => flags.tokens.clone(),
        // With its BOS it would be a prompt, but hardly the one that was meant.
        Some(text) if text.is_empty() => Vec::new(),
        Some(text) => Tokenizer::from_gguf(model.metadata())?.encode_prompt(text)?,
    };
    if tokens.is_empty() {
        bail!("there is nothing to trace: the prompt is empty");
    }
    let rule = flags.depth.rule(ExitRule::default());
    let steps = flags.depth.depth_limit(&rule, &model);
    if let Some(note) = cli::too_deep("--", &rule, flags.depth.steps, &config) {
        eprintln!("rdt-trace: {note}");
    }
    let initial = flags.depth.initial(config.width)?;
    let mut session = flags.session.session(&model, steps, initial, KvType::F32)?;
    let shape = *session.kv_shape();
    // Whatever can be refused is refused before anything is said or computed.
    if tokens.len() > shape.context {
        bail!("the prompt has {} tokens, and the context has room for {} (-c)", tokens.len(), shape.context);
    }
    if let Some(&token) = tokens.iter().find(|&&t| t as usize >= config.vocab) {
        return Err(model::Error::Token { token, vocab: config.vocab }.into());
    }
    let policy = RulePolicy::new(rule, flags.depth.steps, &config, session.chunk_rows())?;
    let mut recorder = Recorder::new(policy, tokens.len(), steps, config.width)?;
    let mut file = AtomicFile::create(&flags.out)?;
    eprintln!(
        "rdt-trace: {} tokens, up to {steps} steps, {rule}; KV {} with {} of {steps} slots, {} threads, {}",
        tokens.len(),
        shape.ty,
        shape.slots,
        session.threads(),
        model.kernels().isa,
    );

    let batch = Batch {
        sequence: 0,
        tokens: &tokens,
        logits: if flags.all_logits { Logits::None } else { Logits::All },
        // Read-out rules need finished coda keys of all earlier tokens: they are traced token by token.
        readout_exits: rule.signal() == Signal::Readout,
        both_ways: false,
    };
    let output = session.run(batch, &mut recorder)?;
    let exit_step: Vec<i32> = output.steps.iter().map(|&n| n as i32).collect();
    let mut logits = output.logits.to_vec();
    recorder.freeze(&exit_step);

    // A run of depth k has its own coda keys; read-outs overwrite them, so the depths are read out one after the other.
    if flags.all_logits {
        logits.reserve_exact(steps * tokens.len() * config.vocab);
        for k in 0..steps {
            let n = tokens.len() * config.width;
            logits.extend_from_slice(session.read_out(0, 0, &recorder.latents[k * n..(k + 1) * n])?);
        }
    }

    let (t, d, v, r) = (tokens.len(), config.width, config.vocab, steps);
    let logits_shape = if flags.all_logits { vec![r, t, v] } else { vec![t, v] };
    let tokens: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    let gate = config.exit_gate.then(|| ("gate", Tensor::f32(vec![r, t], &recorder.gate)));
    let tensors = [
        ("tokens", Tensor::i32(vec![t], &tokens)),
        ("init_state", Tensor::f32(vec![t, d], &recorder.initial)),
        ("prelude", Tensor::f32(vec![t, d], &recorder.prelude)),
        ("latents", Tensor::f32(vec![r, t, d], &recorder.latents)),
        ("logits", Tensor::f32(logits_shape, &logits)),
        ("step_norm", Tensor::f32(vec![r, t], &recorder.step_norm)),
        ("acceleration", Tensor::f32(vec![r, t], &recorder.acceleration)),
        ("step_cosine", Tensor::f32(vec![r, t], &recorder.step_cosine)),
        ("exit_step", Tensor::i32(vec![t], &exit_step)),
    ];
    let bytes = safetensors::serialize(tensors.into_iter().chain(gate), None)?;
    std::io::Write::write_all(&mut file, &bytes).with_context(|| format!("cannot write {}", flags.out.display()))?;
    file.commit()?;
    let mean = exit_step.iter().map(|&n| f64::from(n)).sum::<f64>() / t as f64;
    eprintln!("rdt-trace: wrote {} ({mean:.2} steps per token)", flags.out.display());
    Ok(())
}

/// Writes down what passes, and lets the exit rule decide.
struct Recorder {
    policy: RulePolicy,
    tokens: usize,
    width: usize,
    prelude: Vec<f32>,
    initial: Vec<f32>,
    latents: Vec<f32>,
    step_norm: Vec<f32>,
    acceleration: Vec<f32>,
    step_cosine: Vec<f32>,
    gate: Vec<f32>,
}

impl Recorder {
    fn new(policy: RulePolicy, tokens: usize, steps: usize, width: usize) -> anyhow::Result<Self> {
        let size = tokens.checked_mul(steps).and_then(|n| n.checked_mul(width)).context("the trace is too large")?;
        let mut latents = Vec::new();
        latents.try_reserve_exact(size).context("not enough memory for the trace; trace fewer tokens or steps")?;
        latents.resize(size, 0.0);
        let per_step = vec![f32::NAN; tokens * steps];
        Ok(Self {
            policy,
            tokens,
            width,
            prelude: vec![0.0; tokens * width],
            initial: vec![0.0; tokens * width],
            latents,
            step_norm: per_step.clone(),
            acceleration: per_step.clone(),
            step_cosine: per_step.clone(),
            gate: per_step,
        })
    }

    /// Tokens that have left the loop keep their last latent state.
    fn freeze(&mut self, exit_step: &[i32]) {
        let steps = self.step_norm.len() / self.tokens;
        for (t, &exit) in exit_step.iter().enumerate() {
            for k in exit as usize..steps {
                let from = ((k - 1) * self.tokens + t) * self.width;
                let to = (k * self.tokens + t) * self.width;
                self.latents.copy_within(from..from + self.width, to);
            }
        }
    }
}

impl DepthPolicy for Recorder {
    fn max_steps(&self, segment: usize) -> usize {
        self.policy.max_steps(segment)
    }

    fn begin(&mut self, index: usize, row: &Row, segment: usize, prelude: &[f32], initial: &[f32]) {
        let at = row.position * self.width..(row.position + 1) * self.width;
        self.prelude[at.clone()].copy_from_slice(prelude);
        self.initial[at].copy_from_slice(initial);
        self.policy.begin(index, row, segment, prelude, initial);
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        let at = (stats.step - 1) * self.tokens + row.position;
        self.latents[at * self.width..(at + 1) * self.width].copy_from_slice(latent);
        self.step_norm[at] = stats.step_norm;
        self.acceleration[at] = stats.acceleration;
        self.step_cosine[at] = stats.step_cosine;
        self.gate[at] = stats.gate;
        self.policy.after_step(index, row, stats, latent)
    }

    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        self.policy.after_readout(index, row, stats, logits)
    }
}

/// A tensor to be written.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn f32(shape: Vec<usize>, data: &[f32]) -> Self {
        Self { dtype: Dtype::F32, shape, bytes: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }

    fn i32(shape: Vec<usize>, data: &[i32]) -> Self {
        Self { dtype: Dtype::I32, shape, bytes: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
