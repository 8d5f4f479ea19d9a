//! Which tensor gets how many bits, where bytes are few.
//!
//! Every tensor has some types it could be stored in, each with its bytes and the loss that it is expected to make. Bytes are
//! scarce twice over: a file takes room once, and a token moves the bytes of a tensor as often as it reads it: the core's once per
//! loop step. Both are limits here. From the smallest types on, the step up that buys the most for what it takes of what is left
//! of both is taken again and again (Toyoda's heuristic for knapsacks with several limits, Management Science 21, 1975), along the
//! lower convex hull of each tensor, on which each next step buys less.

/// A type that a tensor could be stored in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// Bytes stored.
    pub bytes: u64,
    /// Loss that is expected of it, in any unit that adds up over tensors.
    pub loss: f64,
}

/// A tensor that is to be given one of several types.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanting {
    /// What it could be stored in.
    pub offers: Vec<Offer>,
    /// How often a token reads its bytes.
    pub reads: f64,
}

/// What all tensors together may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes stored.
    pub stored: u64,
    /// Bytes read per token.
    pub moved: f64,
}

/// The smallest types take more than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the smallest types there are take {stored} bytes and move {moved:.0} per token; allowed are {} and {:.0}", limits.stored, limits.moved)]
pub struct TooLittle {
    /// Bytes that they store.
    pub stored: u64,
    /// Bytes that they move per token.
    pub moved: f64,
    /// What was allowed.
    pub limits: Limits,
}

/// Which offer each tensor takes.
///
/// # Errors
/// [`TooLittle`], also where a tensor has no offers.
pub fn allocate(tensors: &[Wanting], limits: Limits) -> Result<Vec<usize>, TooLittle> {
    let hulls: Vec<Vec<usize>> = tensors.iter().map(|t| hull(&t.offers)).collect();
    // Where each tensor stands on its hull.
    let mut places = vec![0; tensors.len()];
    let (mut stored, mut moved) = (0u64, 0.0);
    for (t, hull) in tensors.iter().zip(&hulls) {
        let bytes = hull.first().map_or(u64::MAX, |&least| t.offers[least].bytes);
        stored = stored.saturating_add(bytes);
        moved += t.reads * bytes as f64;
    }
    // A limit that is met to the last bit is met.
    if stored > limits.stored || moved > limits.moved * (1.0 + 1e-12) {
        return Err(TooLittle { stored, moved, limits });
    }
    loop {
        let (room, air) = ((limits.stored - stored) as f64, limits.moved - moved);
        let mut best: Option<(f64, usize, u64, f64)> = None;
        for (i, (t, hull)) in tensors.iter().zip(&hulls).enumerate() {
            let Some(&next) = hull.get(places[i] + 1) else { continue };
            let (from, to) = (t.offers[hull[places[i]]], t.offers[next]);
            let bytes = to.bytes - from.bytes;
            let (take, breathe) = (bytes as f64, t.reads * bytes as f64);
            if take > room || breathe > air {
                continue;
            }
            let worth = (from.loss - to.loss) / (take / room + if breathe > 0.0 { breathe / air } else { 0.0 });
            if best.is_none_or(|(most, ..)| worth > most) {
                best = Some((worth, i, bytes, breathe));
            }
        }
        let Some((_, i, bytes, breathe)) = best else { break };
        places[i] += 1;
        stored += bytes;
        moved += breathe;
    }
    Ok(hulls.iter().zip(places).map(|(hull, place)| hull[place]).collect())
}

/// The lower convex hull of the offers, from the smallest to the one of least loss: indices, bytes ascending, loss descending.
fn hull(offers: &[Offer]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..offers.len()).collect();
    order.sort_by(|&a, &b| offers[a].bytes.cmp(&offers[b].bytes).then(offers[a].loss.total_cmp(&offers[b].loss)));
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        let new = offers[i];
        if let Some(&last) = hull.last()
            && (offers[last].bytes == new.bytes || offers[last].loss <= new.loss)
        {
            continue;
        }
        // Loss bought per byte: what buys less than what comes after it is passed over.
        let slope = |a: Offer, b: Offer| (a.loss - b.loss) / (b.bytes - a.bytes) as f64;
        while let [.., before, last] = hull[..] {
            if slope(offers[before], offers[last]) > slope(offers[last], new) {
                break;
            }
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offers(list: &[(u64, f64)]) -> Vec<Offer> {
        list.iter().map(|&(bytes, loss)| Offer { bytes, loss }).collect()
    }

    fn stored(tensors: &[Wanting], chosen: &[usize]) -> u64 {
        tensors.iter().zip(chosen).map(|(t, &c)| t.offers[c].bytes).sum()
    }

    fn moved(tensors: &[Wanting], chosen: &[usize]) -> f64 {
        tensors.iter().zip(chosen).map(|(t, &c)| t.reads * t.offers[c].bytes as f64).sum()
    }

    fn loss(tensors: &[Wanting], chosen: &[usize]) -> f64 {
        tensors.iter().zip(chosen).map(|(t, &c)| t.offers[c].loss).sum()
    }

    #[test]
    fn hulls_leave_out_what_is_never_worth_it() {
        // The third costs more and is worse, the fourth lies above the line from the second to the fifth.
        let list = offers(&[(4, 10.0), (5, 4.0), (6, 4.5), (7, 3.9), (8, 1.0), (16, 0.9), (8, 2.0)]);
        assert_eq!(hull(&list), [0, 1, 4, 5]);
        assert_eq!(hull(&[]), [0; 0]);
    }

    #[test]
    fn bytes_go_where_they_buy_most() {
        let sensitive = Wanting { offers: offers(&[(4, 10.0), (8, 1.0)]), reads: 1.0 };
        let dull = Wanting { offers: offers(&[(4, 1.0), (8, 0.1)]), reads: 1.0 };
        let limits = |stored, moved| Limits { stored, moved };
        let both = [sensitive.clone(), dull.clone()];
        assert_eq!(allocate(&both, limits(12, 100.0)).unwrap(), [1, 0]);
        assert_eq!(allocate(&both, limits(16, 100.0)).unwrap(), [1, 1]);
        assert_eq!(allocate(&both, limits(11, 100.0)).unwrap(), [0, 0]);
        assert_eq!(allocate(&both, limits(16, 12.0)).unwrap(), [1, 0], "what is moved is a limit too");
        let error = allocate(&both, limits(7, 100.0)).unwrap_err();
        assert_eq!((error.stored, error.moved), (8, 8.0));
        // Read eight times per token, the sensitive one costs more than it is worth where little may be moved.
        let often = [Wanting { reads: 8.0, ..sensitive }, dull];
        assert_eq!(allocate(&often, limits(16, 40.0)).unwrap(), [0, 1]);
        assert!(allocate(&[Wanting { offers: vec![], reads: 0.0 }], limits(99, 99.0)).is_err());
        assert_eq!(allocate(&[], limits(0, 0.0)).unwrap(), [0; 0]);
    }

    proptest! {
        /// Within the limits, never worse than any one type for all of the same size, and near the best there is.
        #[test]
        fn near_the_best(
            kinds in prop::collection::vec((1u64..40, 0.01f64..100.0, 0usize..3), 1..7),
            share in 0.0f64..1.0,
            air in 0.0f64..1.0,
        ) {
            const BITS: [u64; 4] = [4, 5, 6, 8];
            let tensors: Vec<Wanting> = kinds.iter().map(|&(size, weight, reads)| Wanting {
                offers: BITS.iter().map(|&b| Offer { bytes: size * b, loss: weight * 0.25f64.powi(b as i32) }).collect(),
                reads: [0.0, 1.0, 8.0][reads],
            }).collect();
            let of = |place: usize| vec![place; tensors.len()];
            let between = |f: &dyn Fn(&[usize]) -> f64, t: f64| f(&of(0)) + t * (f(&of(3)) - f(&of(0)));
            let limits = Limits {
                stored: between(&|c| stored(&tensors, c) as f64, share) as u64,
                moved: between(&|c| moved(&tensors, c), air),
            };
            let chosen = allocate(&tensors, limits).unwrap();
            prop_assert!(stored(&tensors, &chosen) <= limits.stored);
            prop_assert!(moved(&tensors, &chosen) <= limits.moved * (1.0 + 1e-9) + 1e-9);
            let fits = |c: &[usize]| stored(&tensors, c) <= limits.stored && moved(&tensors, c) <= limits.moved;
            let mut best = f64::INFINITY;
            for code in 0..4usize.pow(tensors.len() as u32) {
                let c: Vec<usize> = (0..tensors.len()).map(|i| code / 4usize.pow(i as u32) % 4).collect();
                if fits(&c) {
                    best = best.min(loss(&tensors, &c));
                }
            }
            // One step on one tensor is the most that the greedy way can be short of; with few tensors that is much.
            let step = tensors.iter().map(|t| t.offers[0].loss).fold(0.0, f64::max);
            prop_assert!(loss(&tensors, &chosen) <= best + step);
        }
    }
}
