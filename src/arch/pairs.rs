//! Order of the rows of query and key projections: rotation acts on neighbouring rows of a head, or on its two halves.

/// The published row that becomes row `row`, see [`Slice::paired`](super::Slice::paired).
pub(super) fn source_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_stand_next_to_each_other() {
        let order = |rows: usize, head| (0..rows).map(|r| source_row(r, head)).collect::<Vec<_>>();
        assert_eq!(order(4, 2), [0, 1, 2, 3]);
        assert_eq!(order(6, 6), [0, 3, 1, 4, 2, 5]);
        assert_eq!(order(8, 4), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
