//! Writes down everything that happens in the loop: prelude, initial state, every latent state, logits, exit steps and the
//! statistics that exit rules see.

use anyhow::{Context, bail};
use clap::Parser;
use rdt::cli::{self, DepthFlags, ModelFlags, SessionFlags};
use rdt::exit::{ExitRule, RulePolicy, Signal};
use rdt::files::AtomicFile;
use rdt::kernels::KvType;
use rdt::model::{self, Batch, Config, DepthPolicy, LatentStats, Logits, Row, Verdict};
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitCode;

/// Look inside the loop: latent states, logits and exit statistics of every step, as a safetensors file
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Tensors written (T tokens, R steps, D width, S width of the state, V vocabulary; all f32 but the
first and last):
  tokens [T] i32, prelude [T,D], init_state [T,S], latents [R,T,S], logits [T,V] or [R,T,V],
  step_norm, acceleration, step_cosine [R,T] (NaN where not defined), gate [R,T] (logits of the
  learned exit gate, where the model has one), exit_step [T] i32
A token that has left the loop keeps its last latent state; its statistics are NaN from there on,
and its gate keeps its last value.

A model with several looped segments has latents_0, latents_1 and so on, and likewise for what is
counted in steps; prelude and init_state are those of the first, --all-logits reads out the last.

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
    /// Tokens from the first on that see each other in both directions; only 0 for models that were not trained so
    #[arg(long, value_name = "P", default_value_t = 0)]
    prefix_len: usize,
    /// Logits after every step of the last loop, each as a run of that depth would give them
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
    let prefix = flags.prefix_len;
    if prefix != 0 && !config.prefix_lm {
        bail!("--prefix-len {prefix}: {} models have no prefix mask", config.architecture);
    }
    let tokens = match &flags.prompt {
        None => flags.tokens.clone(),
        // With its BOS it would be a prompt, but hardly the one that was meant.
        Some(text) if text.is_empty() => Vec::new(),
        Some(text) => cli::tokenizer("rdt-trace", &model)?.encode_prompt(text)?,
    };
    if tokens.is_empty() {
        bail!("there is nothing to trace: the prompt is empty");
    }
    if prefix > tokens.len() {
        bail!("--prefix-len {prefix}: there are {} tokens", tokens.len());
    }
    let rule = flags.depth.rule(&model, Some(&flags.model.model), ExitRule::default())?;
    let steps = flags.depth.depth_limit(&rule, &model);
    if let Some(note) = cli::too_deep("--", &rule, flags.depth.steps, &config) {
        eprintln!("rdt-trace: {note}");
    }
    let initial = flags.depth.initial(config.state_width)?;
    let mut session = flags.session.session(&model, steps, initial, KvType::F32)?;
    let shape = *session.kv_shape();
    // Whatever can be refused is refused before anything is said or computed.
    if tokens.len() > shape.context {
        bail!("the prompt has {} tokens, and the context has room for {} (-c)", tokens.len(), shape.context);
    }
    if prefix > session.chunk_rows() {
        return Err(model::Error::PrefixTooLong { asked: prefix, most: session.chunk_rows() }.into());
    }
    if let Some(&token) = tokens.iter().find(|&&t| t as usize >= config.vocab) {
        return Err(model::Error::Token { token, vocab: config.vocab }.into());
    }
    let policy = RulePolicy::new(rule, flags.depth.steps, &config, session.chunk_rows())?;
    let mut recorder = Recorder::new(policy, tokens.len(), &config)?;
    let mut file = AtomicFile::create(&flags.out)?;
    eprintln!(
        "rdt-trace: {} tokens, up to {steps} steps, {rule}; KV {} with {} of {steps} slots, {} threads, {}",
        tokens.len(),
        shape.ty,
        shape.slots,
        session.threads(),
        model.kernels().isa,
    );
    if config.prefix_lm && prefix == 0 {
        eprintln!(
            "rdt-trace: this model was trained with prompts whose tokens see each other in both directions; without \
             --prefix-len every token sees only those before it"
        );
    }

    let mut logits = Vec::new();
    for (tokens, both_ways) in [(&tokens[..prefix], true), (&tokens[prefix..], false)] {
        if !tokens.is_empty() {
            let batch = Batch {
                sequence: 0,
                tokens,
                logits: if flags.all_logits { Logits::None } else { Logits::All },
                // Read-out rules need finished coda keys of all earlier tokens: they are traced token by token.
                readout_exits: rule.signal() == Signal::Readout && !both_ways,
                both_ways,
            };
            logits.extend_from_slice(session.run(batch, &mut recorder)?.logits);
        }
    }
    recorder.freeze();

    // A run of depth k has its own coda keys; read-outs overwrite them, so the depths are read out one after the other.
    let (t, v) = (tokens.len(), config.vocab);
    let mut logits_shape = vec![t, v];
    if let (true, Some(last)) = (flags.all_logits, recorder.loops.last()) {
        logits.reserve_exact(last.steps * t * v);
        for latents in last.latents.chunks_exact(t * config.state_width) {
            logits.extend_from_slice(session.read_out(0, 0, latents, Logits::All)?);
        }
        logits_shape.insert(0, last.steps);
    }

    let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    let mut tensors = vec![
        ("tokens".to_owned(), Tensor::i32(vec![t], &ids)),
        ("init_state".to_owned(), Tensor::f32(vec![t, config.state_width], &recorder.initial)),
        ("prelude".to_owned(), Tensor::f32(vec![t, config.width], &recorder.prelude)),
        ("logits".to_owned(), Tensor::f32(logits_shape, &logits)),
    ];
    for (i, l) in recorder.loops.iter().enumerate() {
        let name = |name: &str| if recorder.loops.len() == 1 { name.to_owned() } else { format!("{name}_{i}") };
        let per_step = |x: &[f32]| Tensor::f32(vec![l.steps, t], x);
        tensors.push((name("latents"), Tensor::f32(vec![l.steps, t, config.state_width], &l.latents)));
        tensors.push((name("step_norm"), per_step(&l.step_norm)));
        tensors.push((name("acceleration"), per_step(&l.acceleration)));
        tensors.push((name("step_cosine"), per_step(&l.step_cosine)));
        if config.exit_gate {
            tensors.push((name("gate"), per_step(&l.gate)));
        }
        tensors.push((name("exit_step"), Tensor::i32(vec![t], &l.exit_step)));
    }
    let bytes = safetensors::serialize(tensors, None)?;
    std::io::Write::write_all(&mut file, &bytes).with_context(|| format!("cannot write {}", flags.out.display()))?;
    file.commit()?;
    let taken: i64 = recorder.loops.iter().flat_map(|l| &l.exit_step).map(|&n| i64::from(n)).sum();
    eprintln!("rdt-trace: wrote {} ({:.2} steps per token)", flags.out.display(), taken as f64 / t as f64);
    Ok(())
}

/// Writes down what passes, and lets the exit rule decide.
struct Recorder {
    policy: RulePolicy,
    tokens: usize,
    /// `[T][D]`, `[T][S]`: what enters the first loop.
    prelude: Vec<f32>,
    initial: Vec<f32>,
    loops: Vec<Loop>,
}

/// What happens in one looped segment: `[R][T][S]`, `[R][T]` and `[T]`.
struct Loop {
    steps: usize,
    latents: Vec<f32>,
    step_norm: Vec<f32>,
    acceleration: Vec<f32>,
    step_cosine: Vec<f32>,
    gate: Vec<f32>,
    exit_step: Vec<i32>,
}

impl Recorder {
    fn new(policy: RulePolicy, tokens: usize, config: &Config) -> anyhow::Result<Self> {
        let of_loop = |i: usize| {
            let steps = policy.max_steps(i);
            let size = tokens.checked_mul(steps).and_then(|n| n.checked_mul(config.state_width));
            let size = size.context("the trace is too large")?;
            let mut latents = Vec::new();
            latents.try_reserve_exact(size).context("not enough memory for the trace; trace fewer tokens or steps")?;
            latents.resize(size, 0.0);
            let per_step = vec![f32::NAN; tokens * steps];
            Ok::<_, anyhow::Error>(Loop {
                steps,
                latents,
                step_norm: per_step.clone(),
                acceleration: per_step.clone(),
                step_cosine: per_step.clone(),
                gate: per_step,
                exit_step: vec![0; tokens],
            })
        };
        Ok(Self {
            tokens,
            prelude: vec![0.0; tokens * config.width],
            initial: vec![0.0; tokens * config.state_width],
            loops: (0..config.loops.len()).map(of_loop).collect::<Result<_, _>>()?,
            policy,
        })
    }

    /// Tokens that have left a loop keep their last latent state and gate.
    fn freeze(&mut self) {
        let tokens = self.tokens;
        for l in &mut self.loops {
            let width = l.latents.len() / (l.steps * tokens);
            for (t, &exit) in l.exit_step.iter().enumerate() {
                for k in (exit as usize).max(1)..l.steps {
                    let from = (k - 1) * tokens + t;
                    l.latents.copy_within(from * width..(from + 1) * width, (from + tokens) * width);
                    l.gate[from + tokens] = l.gate[from];
                }
            }
        }
    }
}

/// Puts a row where its position belongs.
fn put(rows: &mut [f32], at: usize, row: &[f32]) {
    rows[at * row.len()..(at + 1) * row.len()].copy_from_slice(row);
}

impl DepthPolicy for Recorder {
    fn max_steps(&self, segment: usize) -> usize {
        self.policy.max_steps(segment)
    }

    fn begin(&mut self, index: usize, row: &Row, segment: usize, input: &[f32], initial: &[f32]) {
        if segment == 0 {
            put(&mut self.prelude, row.position, input);
            put(&mut self.initial, row.position, initial);
        }
        self.policy.begin(index, row, segment, input, initial);
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        let l = &mut self.loops[stats.segment];
        let at = (stats.step - 1) * self.tokens + row.position;
        put(&mut l.latents, at, latent);
        l.step_norm[at] = stats.step_norm;
        l.acceleration[at] = stats.acceleration;
        l.step_cosine[at] = stats.step_cosine;
        l.gate[at] = stats.gate;
        l.exit_step[row.position] = stats.step as i32;
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
