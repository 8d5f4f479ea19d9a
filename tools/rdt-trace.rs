//! Writes down everything that happens in the loop: prelude, initial state, every latent state, logits, exit steps, the statistics
//! that exit rules see, and how states move.

use anyhow::{Context, bail};
use clap::Parser;
use rdt::calibrate::{Band, Moments, principal_plane};
use rdt::cli::{self, DepthFlags, ModelFlags, SessionFlags};
use rdt::exit::{ExitRule, RulePolicy, Signal};
use rdt::files::AtomicFile;
use rdt::kernels::KvType;
use rdt::model::{
    self, Batch, Config, DepthPolicy, InitialState, LatentStats, Logits, Model, Row, Segment, Session, Start, Verdict,
    WaypointOptions, Waypoints,
};
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
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
  learned exit gate, where the model has one), exit_step [T] i32, and how states move:
  state_norm [R,T], angle [R,T] (between a step and the one before, in degrees), curvature [R,T]
  (the angle in radians, over the mean length of the two steps, times the norm of the state)
A token that has left the loop keeps its last latent state; its statistics are NaN from there on,
and its gate keeps its last value.

With --blocks, for every run of every block, in order (NaN where a token had left): block_in_norm,
  block_move_norm [N,T]: norms of the residual stream that enters and of what the block changes in
  it; block_move_cosine [N,T]: cosine of that with what the block before it changed. The metadata
  entry 'blocks' is a JSON list of what each of the N is: segment, step (0 outside loops), pass of
  the step, block, part (prelude, core, between or coda).
With --seeds N, over runs with N seeds of the initial state (--seed and those that follow it):
  seed_logit_variance [T]: variance of log-probabilities, the mean over the vocabulary;
  seed_nll_variance [T-1]: variance of the log-likelihood of the next token.
With --pca: pca [R+1,T,2], initial state and latents in the plane in which they spread most, and
  pca_explained [2], the share of the variance along either direction.

A model with several looped segments has latents_0, latents_1 and so on, and likewise for what is
counted in steps; prelude and init_state are those of the first, --all-logits reads out the last.
What moves how far is also said in a few lines on stderr: medians over tokens.

Examples:
  rdt-trace -m model.gguf -p 'What is 4 + 5?' --out trace.safetensors
  rdt-trace -m model.gguf --tokens 0,2,17 --steps 16 --init zeros --all-logits --out trace.safetensors
  rdt-trace -m model.gguf -p 'Hi' --steps 32 --exit-rule acceleration --out trace.safetensors
  rdt-trace -m model.gguf -p 'Hi' --steps 32 --blocks --pca --seeds 8 --out trace.safetensors"
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
    /// How far every block moves the residual stream, in every step
    #[arg(long)]
    blocks: bool,
    /// How much the logits vary over N seeds of the initial state; takes N runs, and 24 bytes per logit
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    seeds: Option<u64>,
    /// Paths of the latent states in two dimensions
    #[arg(long)]
    pca: bool,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

fn at_least_two(s: &str) -> Result<u64, String> {
    s.parse().ok().filter(|&n| n >= 2).ok_or_else(|| "expected a whole number from 2".into())
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
    if flags.seeds.is_some() {
        if !matches!(initial, InitialState::Noise { .. }) {
            bail!("--seeds: only --init noise has seeds");
        }
        if !model.plan().loops().any(|l| l.start == Start::Initial) {
            bail!("--seeds: the loops of {} models start from their input, not from noise", config.architecture);
        }
    }
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
    let policy = |session: &Session| RulePolicy::new(rule, flags.depth.steps, &config, session.chunk_rows());
    let mut recorder = Recorder::new(policy(&session)?, tokens.len(), &config)?;
    let mut spread = flags.seeds.map(|_| Spread::new(&tokens, config.vocab)).transpose()?;
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

    let read = |session: &mut Session, policy: &mut dyn DepthPolicy, wanted: Logits| {
        let mut logits = Vec::new();
        for (tokens, both_ways) in [(&tokens[..prefix], true), (&tokens[prefix..], false)] {
            if !tokens.is_empty() {
                let batch = Batch {
                    sequence: 0,
                    tokens,
                    logits: wanted,
                    // Read-out rules need finished coda keys of all earlier tokens: they are traced token by token.
                    readout_exits: rule.signal() == Signal::Readout && !both_ways,
                    both_ways,
                };
                logits.extend_from_slice(session.run(batch, policy)?.logits);
            }
        }
        Ok::<_, model::Error>(logits)
    };
    if flags.blocks {
        session.record_waypoints(WaypointOptions { most: tokens.len(), ..WaypointOptions::default() });
    }
    let wanted = if flags.all_logits { Logits::None } else { Logits::All };
    let mut logits = read(&mut session, &mut recorder, wanted)?;
    recorder.freeze();
    let waypoints = session.take_waypoints();

    // A run of depth k has its own coda keys; read-outs overwrite them, so the depths are read out one after the other.
    let (t, v) = (tokens.len(), config.vocab);
    let mut logits_shape = vec![t, v];
    if let (true, Some(last)) = (flags.all_logits, recorder.loops.last()) {
        let size = last.steps.checked_mul(t).and_then(|n| n.checked_mul(v)).context("the trace is too large")?;
        logits.try_reserve_exact(size).context("--all-logits: not enough memory; trace fewer tokens or steps")?;
        for latents in last.latents.chunks_exact(t * config.state_width) {
            logits.extend_from_slice(session.read_out(0, 0, latents, Logits::All)?);
        }
        logits_shape.insert(0, last.steps);
    }
    // Two KV caches at a time would be one too many.
    drop(session);
    if let Some(spread) = &mut spread {
        spread.add(&logits[logits.len() - t * v..]);
        for seed in 1..flags.seeds.unwrap_or(1) {
            let initial = InitialState::Noise { seed: flags.depth.exits.init.seed.wrapping_add(seed) };
            let mut session = flags.session.session(&model, steps, initial, KvType::F32)?;
            let mut policy = policy(&session)?;
            spread.add(&read(&mut session, &mut policy, Logits::All)?);
        }
    }

    let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    let mut tensors = vec![
        ("tokens".to_owned(), Tensor::i32(vec![t], &ids)),
        ("init_state".to_owned(), Tensor::f32(vec![t, config.state_width], &recorder.loops[0].initial)),
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
        tensors.push((name("state_norm"), per_step(&l.state_norm)));
        tensors.push((name("angle"), per_step(&l.angle)));
        tensors.push((name("curvature"), per_step(&l.curvature)));
        if flags.pca {
            let (paths, explained) = l.paths(t, config.state_width);
            tensors.push((name("pca"), Tensor::f32(vec![l.steps + 1, t, 2], &paths)));
            tensors.push((name("pca_explained"), Tensor::f32(vec![2], &explained)));
        }
        if config.exit_gate {
            tensors.push((name("gate"), per_step(&l.gate)));
        }
        tensors.push((name("exit_step"), Tensor::i32(vec![t], &l.exit_step)));
    }
    if let Some(spread) = &spread {
        let (logits, nll) = spread.variances();
        tensors.push(("seed_logit_variance".to_owned(), Tensor::f32(vec![t], &logits)));
        tensors.push(("seed_nll_variance".to_owned(), Tensor::f32(vec![t - 1], &nll)));
    }
    let depths: Vec<usize> = recorder.loops.iter().map(|l| l.steps).collect();
    let blocks = waypoints.map(|points| Blocks::new(&model, &depths, t, points));
    let mut metadata = None;
    if let Some(blocks) = &blocks {
        let shape = vec![blocks.passages.len(), t];
        tensors.push(("block_in_norm".to_owned(), Tensor::f32(shape.clone(), &blocks.in_norm)));
        tensors.push(("block_move_norm".to_owned(), Tensor::f32(shape.clone(), &blocks.move_norm)));
        tensors.push(("block_move_cosine".to_owned(), Tensor::f32(shape, &blocks.move_cosine)));
        metadata = Some(HashMap::from([("blocks".to_owned(), blocks.list())]));
    }
    let bytes = safetensors::serialize(tensors, metadata)?;
    std::io::Write::write_all(&mut file, &bytes).with_context(|| format!("cannot write {}", flags.out.display()))?;
    file.commit()?;
    for (i, l) in recorder.loops.iter().enumerate() {
        l.say(t, if recorder.loops.len() == 1 { String::new() } else { format!(" of loop {i}") });
    }
    if let Some(blocks) = &blocks {
        blocks.say(t);
    }
    if let Some(spread) = &spread {
        let (logits, _) = spread.variances();
        let median = Band::of(logits.iter().map(|&x| f64::from(x))).median;
        eprintln!("  over {} seeds, log-probabilities of a token vary by {median:.2e} nats² (median)", spread.seeds);
    }
    let taken: i64 = recorder.loops.iter().flat_map(|l| &l.exit_step).map(|&n| i64::from(n)).sum();
    eprintln!("rdt-trace: wrote {} ({:.2} steps per token)", flags.out.display(), taken as f64 / t as f64);
    Ok(())
}

/// Writes down what passes, and lets the exit rule decide.
struct Recorder {
    policy: RulePolicy,
    tokens: usize,
    /// `[T][D]`: what enters the first loop.
    prelude: Vec<f32>,
    loops: Vec<Loop>,
}

/// What happens in one looped segment: `[R][T][S]`, `[R][T]` and `[T]`.
struct Loop {
    steps: usize,
    /// `[T][S]`
    initial: Vec<f32>,
    latents: Vec<f32>,
    step_norm: Vec<f32>,
    acceleration: Vec<f32>,
    step_cosine: Vec<f32>,
    state_norm: Vec<f32>,
    angle: Vec<f32>,
    curvature: Vec<f32>,
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
                initial: vec![0.0; tokens * config.state_width],
                latents,
                step_norm: per_step.clone(),
                acceleration: per_step.clone(),
                step_cosine: per_step.clone(),
                state_norm: per_step.clone(),
                angle: per_step.clone(),
                curvature: per_step.clone(),
                gate: per_step,
                exit_step: vec![0; tokens],
            })
        };
        Ok(Self {
            tokens,
            prelude: vec![0.0; tokens * config.width],
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

impl Loop {
    /// Initial state and latents, `[R+1][T][2]`, in the plane of the states that tokens were in (each once: not those that they only
    /// keep after they have left), and the share of the variance along either direction.
    fn paths(&self, tokens: usize, width: usize) -> (Vec<f32>, [f32; 2]) {
        let mut states = Vec::new();
        for (t, &exit) in self.exit_step.iter().enumerate() {
            states.extend_from_slice(&self.initial[t * width..(t + 1) * width]);
            for k in 0..exit as usize {
                states.extend_from_slice(&self.latents[(k * tokens + t) * width..][..width]);
            }
        }
        let plane = principal_plane(&states, width);
        let (mut paths, mut first) = (vec![0.0; (self.steps + 1) * tokens * 2], 0);
        for (t, &exit) in self.exit_step.iter().enumerate() {
            for k in 0..=self.steps {
                let point = plane.points[first + k.min(exit as usize)];
                put(&mut paths, k * tokens + t, &point.map(|x| x as f32));
            }
            first += exit as usize + 1;
        }
        (paths, plane.explained.map(|x| x as f32))
    }

    /// Medians over tokens, of some steps, on stderr.
    fn say(&self, tokens: usize, which: String) {
        /// Lines that are short enough to be read: steps one by one, then fewer and fewer.
        const SHOWN: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
        eprintln!("  step{which}: |step|/|state|, angle, |acceleration|/|state| (medians)");
        let deepest = self.exit_step.iter().map(|&n| n as usize).max().unwrap_or(0);
        for k in (1..=deepest).filter(|k| SHOWN.contains(k) || *k == deepest) {
            let at = (k - 1) * tokens..k * tokens;
            let over = |x: &[f32]| {
                let norms = &self.state_norm[at.clone()];
                Band::of(x[at.clone()].iter().zip(norms).map(|(&x, &n)| f64::from(x) / f64::from(n))).median
            };
            let angle = Band::of(self.angle[at.clone()].iter().map(|&x| f64::from(x))).median;
            let (step, acceleration) = (over(&self.step_norm), over(&self.acceleration));
            match k {
                1 => eprintln!("  {k:4}: {step:.4}"),
                _ => eprintln!("  {k:4}: {step:.4}, {angle:.1}°, {acceleration:.4}"),
            }
        }
    }
}

/// Every run of every block, `[N][T]` where not said otherwise.
struct Blocks {
    /// `[N]`: what each of them is.
    passages: Vec<Passage>,
    in_norm: Vec<f32>,
    move_norm: Vec<f32>,
    move_cosine: Vec<f32>,
}

#[derive(serde::Serialize, Clone, Copy)]
struct Passage {
    segment: usize,
    step: usize,
    pass: usize,
    block: usize,
    part: &'static str,
}

impl Blocks {
    /// The runs of a model whose loops take up to so many steps each, and what was seen of them.
    fn new(model: &Model, depths: &[usize], tokens: usize, mut points: Waypoints) -> Self {
        let (mut passages, mut depths) = (Vec::new(), depths.iter());
        let loops = model.plan().loops().count();
        for (segment, of) in model.plan().segments.iter().enumerate() {
            match of {
                Segment::Once(blocks) => {
                    let part = match depths.len() {
                        0 => "coda",
                        n if n == loops => "prelude",
                        _ => "between",
                    };
                    passages.extend(blocks.clone().map(|block| Passage { segment, step: 0, pass: 0, block, part }));
                }
                Segment::Looped(l) => {
                    for step in 1..=*depths.next().unwrap_or(&0) {
                        for (pass, stack) in l.passes.iter().enumerate() {
                            let of = |block| Passage { segment, step, pass, block, part: "core" };
                            passages.extend(stack.blocks.clone().map(of));
                        }
                    }
                }
            }
        }
        let key = |segment: usize, step: usize, pass: usize, block: usize| (segment, step, pass, block);
        let rows = passages.iter().enumerate().map(|(i, p)| (key(p.segment, p.step, p.pass, p.block), i));
        let places: HashMap<_, usize> = rows.collect();
        let none = vec![f32::NAN; passages.len() * tokens];
        let (mut in_norm, mut move_norm, mut move_cosine) = (none.clone(), none.clone(), none);
        for visited in points.visited() {
            for p in visited.passages() {
                if let Some(row) = places.get(&key(p.segment, p.step, p.pass, p.block)) {
                    let at = row * tokens + visited.row.position;
                    in_norm[at] = p.in_norm as f32;
                    move_norm[at] = p.move_norm as f32;
                    move_cosine[at] = p.cosine as f32;
                }
            }
        }
        Self { passages, in_norm, move_norm, move_cosine }
    }

    /// What each of the runs is, as JSON.
    fn list(&self) -> String {
        serde_json::json!(self.passages).to_string()
    }

    /// Medians over tokens and steps, on stderr.
    fn say(&self, tokens: usize) {
        let mut blocks: Vec<usize> = self.passages.iter().map(|p| p.block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        eprintln!("  block: how far it moves the stream, of the stream's norm (median over tokens and steps)");
        for block in blocks {
            let runs = || self.passages.iter().enumerate().filter(|(_, p)| p.block == block);
            let moved = runs().flat_map(|(i, _)| {
                let at = i * tokens..(i + 1) * tokens;
                self.move_norm[at.clone()].iter().zip(&self.in_norm[at])
            });
            let median = Band::of(moved.map(|(&m, &n)| f64::from(m) / f64::from(n))).median;
            let part = runs().next().map_or("", |(_, p)| p.part);
            eprintln!("  {block:5}: {median:.4} ({part})");
        }
    }
}

/// How far the logits of runs with different seeds differ.
struct Spread {
    tokens: Vec<u32>,
    vocab: usize,
    seeds: u64,
    /// `[T][V]`: log-probabilities.
    moments: Vec<Moments>,
}

impl Spread {
    fn new(tokens: &[u32], vocab: usize) -> anyhow::Result<Self> {
        let mut moments = Vec::new();
        let size = tokens.len().checked_mul(vocab).context("--seeds: the trace is too large")?;
        moments.try_reserve_exact(size).context("--seeds: not enough memory; trace fewer tokens")?;
        moments.resize(size, Moments::default());
        Ok(Self { tokens: tokens.to_vec(), vocab, seeds: 0, moments })
    }

    /// Takes in the logits `[T][V]` of a run.
    fn add(&mut self, logits: &[f32]) {
        self.seeds += 1;
        for (logits, moments) in logits.chunks_exact(self.vocab).zip(self.moments.chunks_exact_mut(self.vocab)) {
            let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let all = most + libm::log(logits.iter().map(|&x| libm::exp(f64::from(x) - most)).sum());
            moments.iter_mut().zip(logits).for_each(|(m, &x)| m.add(f64::from(x) - all));
        }
    }

    /// `[T]`: the unbiased variance, mean over the vocabulary; `[T-1]`: that of the token that follows.
    fn variances(&self) -> (Vec<f32>, Vec<f32>) {
        let rows = || self.moments.chunks_exact(self.vocab);
        let mean = |row: &[Moments]| row.iter().map(Moments::variance).sum::<f64>() / self.vocab as f64;
        let next = rows().zip(self.tokens.iter().skip(1)).map(|(row, &next)| row[next as usize].variance() as f32);
        (rows().map(|row| mean(row) as f32).collect(), next.collect())
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
        }
        put(&mut self.loops[segment].initial, row.position, initial);
        self.policy.begin(index, row, segment, input, initial);
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        let l = &mut self.loops[stats.segment];
        let at = (stats.step - 1) * self.tokens + row.position;
        put(&mut l.latents, at, latent);
        l.step_norm[at] = stats.step_norm;
        l.acceleration[at] = stats.acceleration;
        l.step_cosine[at] = stats.step_cosine;
        l.state_norm[at] = stats.state_norm;
        l.angle[at] = stats.turning_angle().to_degrees() as f32;
        l.curvature[at] = stats.curvature() as f32;
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
