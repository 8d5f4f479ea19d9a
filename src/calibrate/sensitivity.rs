//! What an error in each tensor does at the end of the loop.
//!
//! Tensors differ in two ways: in the error that a type makes in them, which weights tell, and in what becomes of such an error. An
//! error in the core is made anew in every step and fed back; one in the coda is made once. The second is measured: one tensor at a
//! time is replaced by its coarsest type, the model runs over text, and its logits and latent states are compared with those of
//! the model as it is. KL grows with the square of a small error, so what was measured for one type tells of all others:
//!
//! ```text
//! KL(tensor, type) ≈ KL(tensor, probe) · E(tensor, type) / E(tensor, probe)
//! E(tensor, type) = Σ over rows and columns of importance[column] · (w − w as stored)²
//! ```
//! and errors in several tensors add up. Both are approximations, good while KL is small.

use super::{Error, Evaluation, Reading, Recorder, Windows, importance};
use crate::arch;
use crate::exit::{ExitRule, RulePolicy, divergence, log_sum_exp};
use crate::files::Bytes;
use crate::gguf::{Header, TensorInfo, TensorType};
use crate::model::{Model, Replaced, Session, SessionOptions};
use crate::quant::{self, Imatrix, Role};
use rayon::prelude::*;
use std::sync::Arc;

/// What is measured on.
#[derive(Debug, Clone)]
pub struct Trial<'a> {
    /// The model file, with weights as they were published or nearly so.
    pub bytes: Bytes,
    /// The text.
    pub windows: &'a Windows,
    /// How it is read.
    pub reading: Reading,
    /// How sessions are set up. Context and steps are those of the trial.
    pub options: SessionOptions,
    /// How deep tokens go.
    pub rule: ExitRule,
    /// Steps at most; `None`: the rule's or the model's own.
    pub steps: Option<usize>,
}

/// A type that a tensor could be stored in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The type.
    pub ty: TensorType,
    /// Bytes of the tensor in it.
    pub bytes: u64,
    /// E: squared error of the weights, columns weighted by their importance.
    pub error: f64,
    /// KL of the read-out that this error makes, in nats per token: measured for the first candidate, inferred for the others.
    pub kl: f64,
}

/// What is known of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// The tensor.
    pub tensor: String,
    /// Its values.
    pub values: u64,
    /// How often a token reads it: once per loop step in the core; for tables of which a token reads a row, that share.
    pub reads: f64,
    /// Types it could be stored in, the smallest first.
    pub candidates: Vec<Candidate>,
    /// KL of the read-out with the tensor in the first candidate's type, mean over the text in nats per token.
    pub kl: f64,
    /// ‖s'_k − s_k‖ / ‖s_k‖ with the tensor in that type, mean over tokens and loop steps.
    pub drift: f64,
}

/// What has been done, for a progress bar.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The tensor in work; empty for the run of the model as it is.
    pub tensor: &'a str,
    /// Tensors measured.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
}

/// The run of the model as it is.
struct Reference {
    /// Per piece of the text: logits `[rows][V]` and latent states.
    pieces: Vec<(Vec<f32>, Recorder<RulePolicy>)>,
}

type Policy = Recorder<RulePolicy>;

impl Trial<'_> {
    /// Measures every matrix of the model that `types` has candidates for, and the importance of all columns by the way.
    ///
    /// `types` gives, for a tensor of a role and row length, the types that it could be stored in, in any order. `importance`, where
    /// there is one, is what the candidates are quantised with; else the one measured here is. `progress` is called before each
    /// run; if it gives false, the measurement stops.
    ///
    /// Memory: logits and latent states of the scored text, and one tensor.
    ///
    /// # Errors
    /// The file is no model; a session cannot be set up or run; [`Error::Quant`]; [`Error::Stopped`].
    pub fn measure(
        &self,
        types: &dyn Fn(Role, usize) -> Vec<TensorType>,
        given: Option<Arc<Imatrix>>,
        progress: &mut dyn FnMut(Step<'_>) -> bool,
    ) -> Result<(Vec<Sensitivity>, Arc<Imatrix>), Error> {
        let header = Header::parse(&self.bytes).map_err(crate::model::Error::from)?;
        let tensors: Vec<(&TensorInfo, Vec<TensorType>)> = header
            .tensors
            .iter()
            .filter(|t| t.dims.len() == 2)
            .map(|t| (t, candidates(types(arch::role(&t.name), t.dims[0]), t)))
            .filter(|(_, types)| !types.is_empty())
            .collect();
        let total = tensors.len();
        let mut go_on = |tensor: &str, done| match progress(Step { tensor, done, total }) {
            true => Ok(()),
            false => Err(Error::Stopped),
        };

        go_on("", 0)?;
        let (mut session, policy) = self.session(&Replaced::new())?;
        session.record_inputs();
        let reference = self.reference(&mut session, policy)?;
        let measured = importance::taken(&mut session, self.windows);
        let tokens = (self.windows.len() * self.windows.scored().end) as f64;
        let scored = self.windows.scored_len() as f64;
        let reads = |t: &TensorInfo| match (measured.get(&t.name), arch::role(&t.name)) {
            // The head runs where logits are wanted.
            (Some(entry), Role::Output | Role::TokenEmbedding) => f64::from(entry.rows) / scored,
            (Some(entry), _) => f64::from(entry.rows) / tokens,
            (None, _) => 1.0 / t.dims[1] as f64,
        };
        let reads: Vec<f64> = tensors.iter().map(|(t, _)| reads(t)).collect();
        let importance = given.unwrap_or_else(|| Arc::new(measured));
        drop(session);

        let mut found = Vec::new();
        for ((t, types), reads) in tensors.iter().zip(reads) {
            go_on(&t.name, found.len())?;
            found.push(self.of_tensor(t, types, reads, &importance, &reference)?);
        }
        go_on("", total)?;
        Ok((found, importance))
    }

    /// A session of the model with some tensors replaced.
    fn session(&self, replaced: &Replaced) -> Result<(Session, Policy), Error> {
        let model: Arc<Model> = Arc::new(arch::with_replaced(self.bytes.clone(), replaced)?);
        let steps = RulePolicy::depth_limit(&self.rule, self.steps, model.config());
        let options =
            SessionOptions { context: Some(self.windows.context()), steps: Some(steps), ..self.options.clone() };
        let session = Session::new(Arc::clone(&model), &options)?;
        let policy = RulePolicy::new(self.rule, self.steps, model.config(), session.chunk_rows())?;
        Ok((session, Recorder::new(policy, model.config())))
    }

    fn reference(&self, session: &mut Session, policy: Policy) -> Result<Reference, Error> {
        let mut run = Evaluation::new(session, policy, self.windows, self.reading)?;
        let mut pieces = Vec::new();
        while let Some((_, rows)) = run.upcoming() {
            run.policy_mut().expect(rows);
            run.advance()?;
            let logits = run.scored().flat_map(|row| row.logits.iter().copied()).collect();
            pieces.push((logits, run.policy().clone()));
        }
        Ok(Reference { pieces })
    }

    fn of_tensor(
        &self,
        t: &TensorInfo,
        types: &[TensorType],
        reads: f64,
        importance: &Imatrix,
        reference: &Reference,
    ) -> Result<Sensitivity, Error> {
        let quant = |source| Error::Quant { tensor: t.name.clone(), source };
        let k = t.dims[0];
        let weights = importance.get(&t.name).and_then(quant::imatrix::Entry::importance);
        let weights = weights.filter(|w| w.len() == k);
        let mut candidates = Vec::new();
        let mut probe = None;
        for &ty in types {
            let (bytes, error) = stored_as(&self.bytes, t, ty, weights.as_deref()).map_err(quant)?;
            candidates.push(Candidate { ty, bytes: bytes.len() as u64, error, kl: 0.0 });
            if probe.is_none() {
                probe = Some((ty, Bytes::from(bytes)));
            }
        }
        let replaced = Replaced::from_iter(probe.map(|probe| (t.name.clone(), probe)));
        let (kl, drift) = self.compare(&replaced, reference)?;
        let first = candidates.first().map_or(0.0, |c| c.error);
        for c in &mut candidates {
            c.kl = if first > 0.0 { kl * c.error / first } else { 0.0 };
        }
        Ok(Sensitivity { tensor: t.name.clone(), values: (t.dims[0] * t.dims[1]) as u64, reads, candidates, kl, drift })
    }

    /// Mean KL and drift of the model with some tensors replaced.
    fn compare(&self, replaced: &Replaced, reference: &Reference) -> Result<(f64, f64), Error> {
        let (mut session, policy) = self.session(replaced)?;
        let mut run = Evaluation::new(&mut session, policy, self.windows, self.reading)?;
        let (mut kl, mut drift) = (super::Moments::default(), super::Moments::default());
        let mut pieces = reference.pieces.iter();
        while let Some((_, rows)) = run.upcoming() {
            let count = rows.len();
            run.policy_mut().expect(rows);
            run.advance()?;
            let Some((logits, states)) = pieces.next() else { break };
            for (row, base) in run.scored().zip(logits.chunks_exact(logits.len() / count)) {
                let (a, b) = ((base, log_sum_exp(base)), (row.logits, log_sum_exp(row.logits)));
                kl.add(divergence(a, b, f64::NEG_INFINITY));
            }
            for row in 0..count {
                for segment in 0..states.segments() {
                    for step in 1.. {
                        let (old, new) = (states.latent(segment, row, step), run.policy().latent(segment, row, step));
                        let (Some(old), Some(new)) = (old, new) else { break };
                        drift.add(relative_distance(old, new));
                    }
                }
            }
        }
        Ok((kl.mean().value, drift.mean().value))
    }
}

/// Candidates that are smaller than the tensor as it is, the smallest first.
fn candidates(types: Vec<TensorType>, t: &TensorInfo) -> Vec<TensorType> {
    let bits = |ty: TensorType| ty.bits_per_value();
    let mut types: Vec<_> =
        types.into_iter().filter(|ty| ty.row_bytes(t.dims[0]).is_some() && bits(*ty) <= bits(t.ty)).collect();
    types.sort_by(|a, b| bits(*a).total_cmp(&bits(*b)));
    types.dedup();
    types
}

/// ‖b − a‖ / ‖a‖.
fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let distance: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*b) - f64::from(*a))).sum();
    let norm: f64 = a.iter().map(|a| square(f64::from(*a))).sum();
    libm::sqrt(distance / norm)
}

/// Values that are in work at a time.
const CHUNK: usize = 1 << 20;

/// A tensor's bytes in another type, and its weighted squared error, which is the same at any number of threads.
fn stored_as(
    file: &[u8],
    t: &TensorInfo,
    ty: TensorType,
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, f64), quant::Error> {
    let unsupported = |ty| quant::Error::Unsupported { ty };
    let (k, data) = (t.dims[0], t.data(file).unwrap_or_default());
    let from = t.ty.row_bytes(k).ok_or(unsupported(t.ty))?;
    let to = ty.row_bytes(k).ok_or(unsupported(ty))?;
    let mut bytes = vec![0; data.len() / from * to];
    let step = (CHUNK / k).max(1);
    let mut error = 0.0;
    for (from, to) in data.chunks(step * from).zip(bytes.chunks_mut(step * to)) {
        let rows = to.len() / ty.row_bytes(k).unwrap_or(to.len());
        let (mut before, mut after) = (vec![0.0; rows * k], vec![0.0; rows * k]);
        quant::dequantize_rows(t.ty, from, k, &mut before)?;
        quant::quantize_rows(ty, &before, k, to, importance)?;
        quant::dequantize_rows(ty, to, k, &mut after)?;
        let of_row = |(a, b): (&[f32], &[f32])| -> f64 {
            let column = |(i, (a, b)): (usize, (&f32, &f32))| {
                let off = f64::from(*a) - f64::from(*b);
                importance.map_or(1.0, |w| f64::from(w[i])) * off * off
            };
            a.iter().zip(b).enumerate().map(column).sum()
        };
        let rows: Vec<f64> = before.par_chunks_exact(k).zip(after.par_chunks_exact(k)).map(of_row).collect();
        error += rows.iter().sum::<f64>();
    }
    Ok((bytes, error))
}
