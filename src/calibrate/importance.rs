//! From text to an importance matrix, through the loop.

use super::{Error, Evaluation, Reading, Scored, Windows};
use crate::model::{DepthPolicy, Session};
use crate::quant::Imatrix;
use crate::quant::imatrix::Entry;

/// Runs a session over all windows and gives the importance of every column of every matrix that it multiplies: the mean square of
/// what the column meets, over all tokens and all loop steps. `each` sees every scored position, as in [`super::evaluate`].
///
/// A tied head counts for the table of token embeddings, with the scored positions only, which is where logits are computed.
///
/// # Errors
/// As [`super::evaluate`].
pub fn importance<P: DepthPolicy>(
    session: &mut Session,
    policy: P,
    windows: &Windows,
    reading: Reading,
    each: &mut dyn FnMut(Scored<'_>) -> Result<(), Error>,
) -> Result<Imatrix, Error> {
    session.record_inputs();
    let mut evaluation = Evaluation::new(session, policy, windows, reading)?;
    while evaluation.advance()? {
        evaluation.scored().try_for_each(&mut *each)?;
    }
    Ok(taken(session, windows))
}

/// What a session recorded, as an importance matrix.
pub(super) fn taken(session: &mut Session, windows: &Windows) -> Imatrix {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut imatrix = Imatrix::default();
    imatrix.chunk_count = number(windows.len());
    imatrix.chunk_size = number(windows.context());
    let mut inputs = session.take_inputs();
    for (name, sums, rows) in inputs.iter_mut().flat_map(|inputs| inputs.entries()) {
        let sums = sums.iter().map(|&s| s as f32).collect();
        imatrix.insert(name, Entry { sums, rows: rows as f32 });
    }
    imatrix
}
