//! What decoding with several tokens in flight did.

/// How guesses from one depth came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guesses {
    /// Loop steps at which they were made.
    pub steps: usize,
    /// Guesses about tokens that were drawn later.
    pub made: u64,
    /// Those that were the token drawn.
    pub right: u64,
}

impl Guesses {
    /// The part that was right; 0 if there was none.
    pub fn rate(&self) -> f64 {
        if self.made == 0 { 0.0 } else { self.right as f64 / self.made as f64 }
    }
}

/// Counts of a decoder, since it began or was asked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecodeStats {
    /// Tokens drawn from rows in flight.
    pub tokens: u64,
    /// Passes over the core.
    pub passes: u64,
    /// Rows in all of these passes.
    pub row_steps: u64,
    /// Read-outs: runs of coda and head.
    pub reads: u64,
    /// Rows in all of these read-outs.
    pub read_rows: u64,
    /// Rows that entered on a guess.
    pub guessed: u64,
    /// Rows that were dropped: their guess, or one before it, was wrong, or the text had ended. (Those that are in flight when a text ends
    /// count once the next begins.)
    pub dropped: u64,
    /// How guesses came out, by the depth they were made at, ascending.
    pub guesses: Vec<Guesses>,
}

impl DecodeStats {
    /// Rows per pass over the core.
    pub fn rows_per_pass(&self) -> f64 {
        if self.passes == 0 { 0.0 } else { self.row_steps as f64 / self.passes as f64 }
    }

    /// Passes over the core per token.
    pub fn passes_per_token(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.passes as f64 / self.tokens as f64 }
    }

    /// Counts those of another decoder too.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.passes += other.passes;
        self.row_steps += other.row_steps;
        self.reads += other.reads;
        self.read_rows += other.read_rows;
        self.guessed += other.guessed;
        self.dropped += other.dropped;
        for g in &other.guesses {
            let at = self.at(g.steps);
            (at.made, at.right) = (at.made + g.made, at.right + g.right);
        }
    }

    /// Counts a guess made after `steps` steps.
    pub(super) fn note(&mut self, steps: usize, right: bool) {
        let at = self.at(steps);
        (at.made, at.right) = (at.made + 1, at.right + u64::from(right));
    }

    fn at(&mut self, steps: usize) -> &mut Guesses {
        let i = self.guesses.binary_search_by_key(&steps, |g| g.steps).unwrap_or_else(|i| {
            self.guesses.insert(i, Guesses { steps, made: 0, right: 0 });
            i
        });
        &mut self.guesses[i]
    }
}
