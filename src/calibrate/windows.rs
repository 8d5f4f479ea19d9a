//! How a text becomes windows.

use super::Error;
use std::ops::Range;

/// The shortest window of which something can be scored.
pub(super) const LEAST: usize = 3;

/// A text's tokens, cut into windows. Each window is a sequence of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    tokens: Vec<u32>,
    context: usize,
    /// From the start of a window to that of the next.
    step: usize,
    scored: Range<usize>,
    bos: Option<u32>,
    count: usize,
}

/// One window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Which, from 0.
    pub index: usize,
    /// Its tokens, BOS put in; position p predicts token p + 1.
    pub tokens: Vec<u32>,
}

impl Windows {
    /// As llama.cpp's perplexity: windows of `context` tokens side by side, what is left at the end dropped. The predictions of
    /// positions `context / 2` to `context - 2` are scored, so that each has half a window or more to go by. With `bos`, to be given
    /// where the model's prompts start with it, the first token of every window gives way to it.
    ///
    /// # Errors
    /// [`Error::Context`], [`Error::TooShort`].
    pub fn new(tokens: Vec<u32>, context: usize, bos: Option<u32>) -> Result<Self, Error> {
        let windows = Self::whole(tokens, context, bos)?;
        windows.long_enough()?;
        Ok(windows)
    }

    /// As [`new`](Self::new), for tokens that are windows already, such as those of a stored base run: one window will do.
    ///
    /// # Errors
    /// [`Error::Context`].
    pub fn whole(tokens: Vec<u32>, context: usize, bos: Option<u32>) -> Result<Self, Error> {
        if context < LEAST {
            return Err(Error::Context { context, least: LEAST });
        }
        let count = tokens.len() / context;
        Ok(Self { tokens, context, step: context, scored: context / 2..context - 1, bos, count })
    }

    /// As llama.cpp's perplexity with `--ppl-stride`: each window starts `stride` tokens after the one before, and its last `stride`
    /// predictions are scored, so that each has `context - stride` tokens or more to go by. Windows keep their own first token: there,
    /// llama.cpp puts no BOS in.
    ///
    /// # Errors
    /// [`Error::Stride`], [`Error::TooShort`].
    pub fn strided(tokens: Vec<u32>, context: usize, stride: usize) -> Result<Self, Error> {
        if stride == 0 || stride >= context {
            return Err(Error::Stride { stride, context });
        }
        let scored = context - 1 - stride..context - 1;
        let count = tokens.len().saturating_sub(context).div_ceil(stride);
        let windows = Self { tokens, context, step: stride, scored, bos: None, count };
        windows.long_enough()?;
        Ok(windows)
    }

    fn long_enough(&self) -> Result<(), Error> {
        match self.tokens.len() / 2 < self.context {
            true => Err(Error::TooShort { tokens: self.tokens.len(), context: self.context }),
            false => Ok(()),
        }
    }

    /// The first `n` windows only.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.count = self.count.min(n);
        self
    }

    /// One window of these, as if there were no others.
    ///
    /// # Panics
    /// If there is no such window.
    #[must_use]
    pub fn only(&self, index: usize) -> Self {
        assert!(index < self.count, "window {index} of {}", self.count);
        let start = index * self.step;
        Self { tokens: self.tokens[start..start + self.context].to_vec(), count: 1, ..self.without_tokens() }
    }

    fn without_tokens(&self) -> Self {
        Self { tokens: Vec::new(), scored: self.scored.clone(), ..*self }
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Tokens per window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of the whole text.
    pub fn text_len(&self) -> usize {
        self.tokens.len()
    }

    /// Positions of a window whose predictions are scored.
    pub fn scored(&self) -> Range<usize> {
        self.scored.clone()
    }

    /// Scored positions of all windows together.
    pub fn scored_len(&self) -> u64 {
        self.count as u64 * self.scored.len() as u64
    }

    /// A window.
    ///
    /// # Panics
    /// If there is no such window.
    pub fn get(&self, index: usize) -> Window {
        assert!(index < self.count, "window {index} of {}", self.count);
        let start = index * self.step;
        let mut tokens = self.tokens[start..start + self.context].to_vec();
        if let Some(bos) = self.bos {
            tokens[0] = bos;
        }
        Window { index, tokens }
    }

    /// All windows, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = Window> + '_ {
        (0..self.count).map(|index| self.get(index))
    }

    /// The tokens of all windows side by side, without the BOS that was put in.
    pub(super) fn stored(&self) -> &[u32] {
        &self.tokens[..self.count * self.context]
    }

    /// Do windows overlap?
    pub fn is_strided(&self) -> bool {
        self.step != self.context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: u32) -> Vec<u32> {
        (10..10 + n).collect()
    }

    #[test]
    fn halves_by_hand() {
        let windows = Windows::new(text(14), 6, Some(1)).unwrap();
        let found: Vec<_> = windows.iter().map(|w| w.tokens).collect();
        // Tokens 22 and 23 are less than a window.
        assert_eq!(found, [[1, 11, 12, 13, 14, 15], [1, 17, 18, 19, 20, 21]]);
        assert_eq!((windows.scored(), windows.scored_len()), (3..5, 4));
        assert_eq!(windows.stored(), text(12), "BOS is not stored");
        let odd = Windows::new(text(14), 7, None).unwrap();
        assert_eq!((odd.len(), odd.scored()), (2, 3..6));
        assert_eq!(odd.get(1).tokens, [17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(windows.first(1).len(), 1);
    }

    #[test]
    fn strides_by_hand() {
        let windows = Windows::strided(text(13), 6, 2).unwrap();
        // (13 - 6) / 2, rounded up: the last starts at 6 and token 22 stays unscored.
        let found: Vec<_> = windows.iter().map(|w| w.tokens).collect();
        assert_eq!(
            found,
            [[10, 11, 12, 13, 14, 15], [12, 13, 14, 15, 16, 17], [14, 15, 16, 17, 18, 19], [16, 17, 18, 19, 20, 21]]
        );
        // Predictions of tokens 4 and 5 of each window: 14, 15, then 16, 17 and so on, each once.
        assert_eq!((windows.scored(), windows.scored_len()), (3..5, 8));
        assert!(windows.is_strided());
    }

    #[test]
    fn what_cannot_be_cut_says_what_could() {
        let short = Windows::new(text(11), 6, None).unwrap_err().to_string();
        assert_eq!(
            short,
            "the text has 11 tokens, and perplexity with a context of 6 takes at least 12; take a longer text, or -c 5 or less"
        );
        let tiny = Windows::new(text(5), 6, None).unwrap_err().to_string();
        assert!(tiny.ends_with("at least 12; take a longer text"), "{tiny}");
        assert!(matches!(Windows::new(text(9), 2, None), Err(Error::Context { context: 2, least: 3 })));
        for stride in [0, 6, 7, usize::MAX] {
            assert!(matches!(Windows::strided(text(99), 6, stride), Err(Error::Stride { .. })), "{stride}");
        }
        assert!(matches!(Windows::strided(text(11), 6, 1), Err(Error::TooShort { .. })));
        assert!(matches!(Windows::new(text(11), usize::MAX, None), Err(Error::TooShort { .. })));
        assert!(Windows::new(text(6), 3, None).is_ok());
        assert_eq!(Windows::whole(text(6), 6, None).unwrap().len(), 1);
    }
}
