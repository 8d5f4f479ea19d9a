//! Calibrations that never were, with numbers such as there are.

use crate::calibrate::{
    Band, Cost, Drift, Dynamics, Estimate, FORMAT, Findings, LoopDynamics, MachineId, ModelId, Path, Paths, Point,
    Profile, Sample, SampleToken, Screened, TextId, Timing,
};
use crate::random;
use std::collections::BTreeMap;

/// What text could do harm with.
pub(super) const HOSTILE: &str =
    "</script><img src=x onerror=\"alerted=true\"><svg/onload=alert(1)>'\"&`\u{0}\u{202e}</style>]]>-->{{7}}";

/// How a model's cross-entropy follows its steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Nats at infinite depth.
    pub(super) floor: f64,
    /// Nats above it after no step.
    pub(super) gain: f64,
    /// What is left of the gain after a step.
    pub(super) rate: f64,
    /// What the acceleration rule takes of the steps that a fixed depth of the same quality takes.
    pub(super) acceleration: f64,
}

pub(super) const GOOD: Shape = Shape { floor: 2.41, gain: 2.9, rate: 0.52, acceleration: 0.68 };

pub(super) fn estimate(value: f64, error: f64) -> Estimate {
    Estimate { value, error }
}

impl Shape {
    pub(super) fn at(self, steps: f64) -> f64 {
        self.floor + self.gain * self.rate.powf(steps)
    }

    pub(super) fn point(self, rule: &str, mean_steps: f64, like: f64, spread: f64) -> Point {
        let ce = self.at(like);
        let deepest = 16.min((mean_steps * 2.5) as usize).max(1);
        let bell = |k: usize| ((k as f64 - mean_steps) / spread).powi(2);
        let steps: BTreeMap<_, _> = match rule.starts_with("fixed") {
            true => [(mean_steps as usize, 12_288)].into(),
            false => (1..=deepest).map(|k| (k, (2200.0 * (-bell(k)).exp()) as u64)).collect(),
        };
        let slow = if rule.starts_with("kl") { 1.35 } else { 1.0 };
        Point {
            rule: rule.parse().unwrap(),
            mean_steps,
            steps,
            cross_entropy: estimate(ce, 0.021),
            perplexity: estimate(ce.exp(), ce.exp() * 0.021),
            kl: estimate((self.gain * self.rate.powf(like) * 0.8).max(1e-6), 0.0004),
            same_top: estimate(1.0 - 0.6 * self.rate.powf(like), 0.003),
            capped: if rule.starts_with("acceleration") { 0.013 } else { 0.0 },
            seed_variance: Some(estimate(0.2 * 0.8f64.powf(like), 0.002)),
            timing: Some(Timing {
                ms_per_token: slow * (1.9 + 0.61 * mean_steps),
                mean_steps,
                joules_per_token: Some(0.02 * (1.9 + 0.61 * mean_steps)),
            }),
        }
    }
}

pub(super) fn profile(shape: Shape) -> Profile {
    let depths = (1..=16).map(|k| shape.point(&format!("fixed:{k}"), f64::from(k), f64::from(k), 1.0)).collect();
    let mut rules = Vec::new();
    for like in [4.0, 5.0, 6.0, 7.5, 9.0, 12.0] {
        let acceleration = format!("acceleration:{:.3},hits=2,max=16", 0.5 / like / like);
        rules.push(shape.point(&acceleration, like * shape.acceleration, like, 1.4));
        rules.push(shape.point(&format!("step-norm:{:.3},max=16", 0.4 / like / like), like * 0.85, like, 1.1));
        rules.push(shape.point(&format!("kl:{:.4},max=16", 0.05 / like / like), like * 0.8, like, 2.0));
    }
    Profile {
        format: FORMAT,
        program: "0.1.0".into(),
        model: ModelId {
            name: "Huginn small, 7 M".into(),
            architecture: "huginn".into(),
            fingerprint: "9f2c1a77d0e4b3aa".into(),
            bytes: 11_799_680,
        },
        machine: MachineId {
            system: "linux x86_64".into(),
            cpu: Some("Some CPU @ 2.60 GHz".into()),
            isa: "avx512".into(),
            threads: 4,
        },
        text: TextId {
            name: "wiki.test.raw".into(),
            fingerprint: "51c0ffee".into(),
            special: false,
            context: 512,
            windows: 48,
            scored: 12_288,
            prefix: 0,
            kv_type: "f16".into(),
            kv_steps: 16,
            init: "noise".into(),
            seed: 0,
        },
        published_steps: 16,
        full_depth: 11,
        depths,
        rules,
        cost: Some(Cost { base_ms: 1.9, step_ms: 0.61, threads: [(1, 0.3), (2, 0.55), (4, 1.0)].into() }),
    }
}

pub(super) fn band(median: f64, width: f64) -> Band {
    let (w, v) = (width, width * width);
    Band { p10: median / v, p25: median / w, median, p75: median * w, p90: median * v }
}

pub(super) const NO_BAND: Band = Band { p10: f64::NAN, p25: f64::NAN, median: f64::NAN, p75: f64::NAN, p90: f64::NAN };

pub(super) fn motion(steps: usize, rate: f64) -> LoopDynamics {
    let over = |of: &dyn Fn(f64) -> Band, from: usize| -> Vec<_> {
        (1..=steps).map(|k| if k < from { NO_BAND } else { of(k as f64) }).collect()
    };
    let degrees = |k: f64| 60.0 + 40.0 * (1.0 - rate.powf(k));
    LoopDynamics {
        state_norm: over(&|k| band(18.0 - 6.0 * rate.powf(k), 1.05), 1),
        step_norm: over(&|k| band(1.1 * rate.powf(k - 1.0), 1.4), 1),
        angle: over(
            &|k| Band {
                p10: degrees(k) - 25.0,
                p25: degrees(k) - 12.0,
                median: degrees(k),
                p75: degrees(k) + 9.0,
                p90: degrees(k) + 20.0,
            },
            2,
        ),
        acceleration: over(&|k| band(1.4 * rate.powf(k - 1.0), 1.45), 2),
        curvature: over(&|k| band(1.2 / rate.powf(k - 1.0), 1.3), 2),
    }
}

pub(super) fn dynamics(loops: usize) -> Dynamics {
    let mut drift = Vec::new();
    let mut push = |block: usize, part: &str, step: Option<usize>, moved: f64| {
        let cosine = if matches!(block, 0 | 2 | 6) {
            NO_BAND
        } else {
            Band { p10: -0.2, p25: 0.0, median: 0.1 * moved, p75: 0.3, p90: 0.5 }
        };
        drift.push(Drift { block, part: part.into(), step, moved: band(moved, 1.25), cosine });
    };
    push(0, "prelude", None, 2.4);
    push(1, "prelude", None, 0.8);
    for step in 1..=16 {
        for block in 2..6 {
            push(block, "core", Some(step), 0.35 + 0.4 / step as f64 + 0.05 * block as f64);
        }
    }
    push(6, "coda", None, 0.5);
    push(7, "coda", None, 0.9);
    let path = |i: usize| {
        let turn = |k: usize| 0.9 * k as f64 + i as f64;
        let far = |k: usize| 9.0 * 0.75f64.powi(k as i32);
        let center = [(i as f64 * 1.7).sin() * 6.0, (i as f64 * 2.3).cos() * 4.0];
        Path {
            text: [" the", " Norway", "\n", " 1887", "ing", " was", ".", " (", "</svg><b>"][i % 9].into(),
            position: 31 * (i + 1),
            points: (0..=16)
                .map(|k| [center[0] + far(k) * turn(k).cos(), center[1] + far(k) * turn(k).sin()])
                .collect(),
        }
    };
    Dynamics {
        loops: (0..loops).map(|i| motion(16, 0.72 - 0.08 * i as f64)).collect(),
        drift,
        paths: Paths { explained: [0.41, 0.22], tokens: (0..6).map(path).collect() },
    }
}

fn sample() -> Sample {
    let text = "The fox had lived under the roots of the old oak for eleven winters , and in the spring of 1887 she moved her cubs \
                to a dry bank above the river Glomma , where nobody came . \n\n = = Habitat = = \n\n Foxes of this kind weigh \
                between 5 @.@ 9 and 8 @.@ 2 kilograms ; they eat voles , beetles and , in autumn , berries . \n";
    let mut tokens: Vec<_> = text
        .split_inclusive(' ')
        .flat_map(|word| if word.len() > 7 { vec![&word[..4], &word[4..]] } else { vec![word] })
        .zip(0..)
        .map(|(text, i)| {
            let u = random::uniform(7, 0, i);
            SampleToken { text: text.into(), steps: 3 + (u * u * 12.0) as usize, nll: 6.0 * u * u + 0.2 }
        })
        .collect();
    for text in ["\t", "", "\u{1b}[31m", "\u{fffd}", "\u{202e}abc", "\u{200b}", "日本語", "🦊", HOSTILE] {
        tokens.push(SampleToken { text: text.into(), steps: 9, nll: 2.5 });
    }
    tokens[0] = SampleToken { steps: 0, nll: f64::NAN, ..tokens[0].clone() };
    Sample { rule: "acceleration:0.05,hits=2,max=16".parse().unwrap(), tokens }
}

/// Everything that there can be.
pub(super) fn rich(shape: Shape, loops: usize) -> Findings {
    let profile = profile(shape);
    let mut screened = Vec::new();
    for i in 0..24 {
        let like = 2.0 + 0.55 * f64::from(i);
        let mut add = |rule: &str, share: f64| {
            screened.push(Screened {
                rule: rule.parse().unwrap(),
                mean_steps: like * share,
                cross_entropy: shape.at(like) * 0.999,
                kl: 0.01 / like,
            });
        };
        add(&format!("acceleration:{:.4},max=16", 0.5 / like / like), shape.acceleration);
        add(&format!("step-norm:{:.4},max=16", 0.4 / like / like), 0.85);
        add(&format!("kl:{:.5},max=16", 0.05 / like / like), 0.8);
        add(&format!("acceleration-raw:{:.3},max=16", 8.0 / like / like), 0.78);
    }
    Findings { profile, screened, dynamics: dynamics(loops), sample: sample() }
}

/// Hardly anything, and that with numbers that are none.
pub(super) fn poor() -> Findings {
    let mut profile = profile(GOOD);
    profile.cost = None;
    profile.rules.clear();
    profile.depths.truncate(2);
    for point in &mut profile.depths {
        point.timing = None;
        point.seed_variance = None;
        point.kl = estimate(f64::NAN, f64::NAN);
        point.same_top = estimate(f64::INFINITY, f64::NAN);
        point.cross_entropy.error = f64::NAN;
        point.perplexity.error = f64::NAN;
        point.capped = f64::NAN;
    }
    Findings { profile, screened: Vec::new(), dynamics: Dynamics::default(), sample: Sample::default() }
}

/// Every name and text that comes from outside is hostile.
pub(super) fn hostile() -> Findings {
    let mut f = rich(GOOD, 1);
    let p = &mut f.profile;
    let bad = || HOSTILE.to_owned();
    (p.program, p.model.name, p.model.architecture, p.model.fingerprint) = (bad(), bad(), bad(), bad());
    (p.machine.system, p.machine.cpu, p.machine.isa) = (bad(), Some(bad()), bad());
    (p.text.name, p.text.fingerprint, p.text.kv_type, p.text.init) = (bad(), bad(), bad(), bad());
    f.dynamics.drift.iter_mut().for_each(|d| d.part = bad());
    f.dynamics.paths.tokens.iter_mut().for_each(|t| t.text = bad());
    f.sample.tokens.iter_mut().for_each(|t| t.text = bad());
    f
}
