//! Does a saved profile still hold?

use super::{Flags, note, plan, session, text_id, windows};
use crate::calibrate::{self, MachineId, ModelId, Perplexity, Profile, Reading, TextId};
use crate::cli::{ProfileFlags, Stop};
use crate::model::{FixedDepth, Model};
use crate::sensors::{EnergyMeter, Machine};
use anyhow::{Context, bail};
use serde_json::json;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// How far a measured time may lie from the profile's before it is called another, as a share.
const SAME_TIME: f64 = 0.15;

/// Compares a profile with this model and machine, and tells what differs. An error if it is for another model, or if its qualities
/// cannot be repeated.
pub(super) fn check(flags: &Flags, model: &Arc<Model>, path: Option<&Path>) -> anyhow::Result<()> {
    let file = flags.model.model.as_path();
    let (profile, from) = match path {
        Some(path) => (Profile::read(path)?, path.display().to_string()),
        None => {
            let found = ProfileFlags::default().find(model, Some(file))?;
            (found.context(super::super::profile::NO_PROFILE)?, "the model's".to_owned())
        }
    };
    let id = ModelId::of(model);
    if profile.model.fingerprint != id.fingerprint {
        bail!(
            "the profile is for {} ({}), and this is {}, or other weights of it",
            profile.model.name,
            profile.model.fingerprint,
            id.name
        );
    }
    let tokenizer = super::super::tokenizer("rdt-calibrate", model)?;
    // As the profile was made, but for the text, which may have another place.
    let (mut flags, made) = (flags.clone(), &profile.text);
    flags.session.ctx_size = Some(made.context);
    flags.session.kv_type = made.kv_type.parse().ok();
    flags.text.chunks = Some(made.windows);
    flags.text.special = made.special;
    flags.text.prefix_len = Some(made.prefix);
    (flags.init.init, flags.init.seed) = (made.init.clone(), made.seed);
    let windows = windows(&flags, model, &tokenizer)?;
    flags.steps = profile.depths.iter().filter_map(|p| p.rule.max_steps()).max();
    let plan = plan(&flags, model, &windows)?;
    let mut session = session(&flags, model, &windows, plan.steps)?;
    let stop = Stop::install()?;
    stop.watch(&session)?;
    let text = text_id(&flags, &windows, &session, plan.prefix);
    let machine = MachineId::here(model, session.threads());

    let same_text = TextId { name: made.name.clone(), ..text.clone() } == *made;
    let published = profile.depths.iter().find(|p| p.rule.max_steps() == Some(profile.published_steps));
    let mut quality = None;
    if let (true, Some(point)) = (same_text, published) {
        note(&format!("repeating {} on {}", point.rule, text.name));
        let mut perplexity = Perplexity::new();
        let reading = Reading { prefix: plan.prefix, readout_exits: false };
        calibrate::evaluate(&mut session, FixedDepth(profile.published_steps), &windows, reading, &mut |row| {
            perplexity.add(row.logits, row.target);
            Ok(())
        })?;
        quality = Some((point.perplexity.value, perplexity.perplexity().value));
    }
    let meter = EnergyMeter::new(&Machine::here());
    let mut times = Vec::new();
    for point in profile.depths.iter().filter(|p| p.timing.is_some()) {
        if let Some(timing) = point.timing {
            let now = calibrate::sweep::time(&mut session, point.rule, &windows.get(0), plan.prefix, &meter)?;
            times.push((point.rule, timing.ms_per_token, now.ms_per_token));
        }
    }
    let same_machine = machine == profile.machine;
    let same_quality = quality.is_none_or(|(then, now)| (now / then - 1.0).abs() < 1e-6);
    let ratio = times.iter().map(|(_, then, now)| now / then).sum::<f64>() / times.len().max(1) as f64;
    let same_times = times.is_empty() || (ratio - 1.0).abs() <= SAME_TIME;

    let mut out = io::stdout().lock();
    if flags.json {
        let report = json!({
            "profile": from,
            "model": true,
            "machine": same_machine,
            "text": same_text,
            "perplexity": quality.map(|(then, now)| json!({"profile": then, "now": now})),
            "time_ratio": (!times.is_empty()).then_some(ratio),
            "holds": same_quality,
        });
        writeln!(out, "{report:#}")?;
    } else {
        let yes = |same: bool| if same { "same" } else { "differs" };
        writeln!(out, "model    same     {} ({})", crate::cli::one_line(&id.name), id.fingerprint)?;
        let (then, now) = (describe(&profile.machine), describe(&machine));
        match same_machine {
            true => writeln!(out, "machine  same     {now}")?,
            false => writeln!(out, "machine  differs  {now}; the profile was made on {then}")?,
        }
        match quality {
            Some((then, now)) => {
                let steps = profile.published_steps;
                writeln!(
                    out,
                    "quality  {:<8} perplexity at {steps} steps {now:.6}, in the profile {then:.6}",
                    yes(same_quality)
                )?;
            }
            None => writeln!(
                out,
                "quality  unknown  the profile was made on {}; name it with -f to have its numbers repeated",
                crate::cli::one_line(&profile.text.name)
            )?,
        }
        match times.is_empty() {
            true => writeln!(out, "time     unknown  the profile has none")?,
            false => writeln!(out, "time     {:<8} {ratio:.2} times the profile's", yes(same_times))?,
        }
        for (rule, then, now) in &times {
            writeln!(out, "         {:<8} {rule}: {now:.3} ms per token, in the profile {then:.3}", "")?;
        }
    }
    out.flush()?;
    if !same_quality {
        bail!("the profile's perplexity cannot be repeated; calibrate again");
    }
    if !same_machine || !same_times {
        note("qualities hold on every machine; times are this machine's only after another calibration");
    }
    Ok(())
}

fn describe(machine: &MachineId) -> String {
    let cpu = machine.cpu.as_deref().unwrap_or("unknown processor");
    crate::cli::one_line(&format!("{}, {cpu}, {}, {} threads", machine.system, machine.isa, machine.threads))
}
