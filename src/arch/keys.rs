//! Metadata values that every family reads, with their bounds.

use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_HEADS, MOST_STEPS, MOST_TOKENS, MOST_WIDTH};
use crate::gguf::Metadata;
use crate::model::{Depth, Error};

/// Typed, checked access to the keys of one architecture.
pub(super) struct Keys<'a> {
    pub metadata: &'a Metadata,
    pub prefix: &'a str,
}

/// Physical blocks of a model with one loop: prelude, core, coda, one after the other.
pub(super) struct Stacks {
    /// First block of the core.
    pub core: usize,
    /// First block of the coda.
    pub coda: usize,
    /// All blocks.
    pub count: usize,
}

/// The sizes that a transformer of any family has.
pub(super) struct Sizes {
    pub width: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    /// Per physical block, as are the next two.
    pub heads: Vec<usize>,
    pub kv_heads: Vec<usize>,
    pub hidden: Vec<usize>,
}

impl Keys<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// The error of a value that is not what is expected.
    pub(super) fn wrong(&self, name: &str, found: impl ToString, expected: impl Into<String>) -> Error {
        Error::Key { key: self.key(name), found: found.to_string(), expected: expected.into() }
    }

    /// A count or size in 1..=`most`.
    pub(super) fn size(&self, name: &str, most: usize) -> Result<usize, Error> {
        self.within(name, self.metadata.require_usize(&self.key(name))?, 1, most)
    }

    /// As [`size`](Self::size), where the file may be silent.
    pub(super) fn size_or(&self, name: &str, most: usize, otherwise: usize) -> Result<usize, Error> {
        let found = self.metadata.usize(&self.key(name))?.unwrap_or(otherwise);
        self.within(name, found, 1, most)
    }

    /// A count in 0..=`most`.
    pub(super) fn count(&self, name: &str, most: usize) -> Result<usize, Error> {
        self.within(name, self.metadata.require_usize(&self.key(name))?, 0, most)
    }

    fn within(&self, name: &str, found: usize, least: usize, most: usize) -> Result<usize, Error> {
        if found < least || found > most {
            return Err(self.wrong(name, found, format!("{least} to {most}")));
        }
        Ok(found)
    }

    /// A finite number above zero.
    pub(super) fn positive(&self, name: &str) -> Result<f32, Error> {
        self.above_zero(name, self.metadata.require_f32(&self.key(name))?)
    }

    /// As [`positive`](Self::positive), where the file may be silent.
    pub(super) fn positive_or(&self, name: &str, otherwise: f32) -> Result<f32, Error> {
        self.above_zero(name, self.metadata.f32(&self.key(name))?.unwrap_or(otherwise))
    }

    /// A finite number.
    pub(super) fn number(&self, name: &str) -> Result<f32, Error> {
        Ok(self.metadata.require_f32(&self.key(name))?)
    }

    fn above_zero(&self, name: &str, found: f32) -> Result<f32, Error> {
        if found.is_finite() && found > 0.0 { Ok(found) } else { Err(self.wrong(name, found, "a number above 0")) }
    }

    /// A required yes or no.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Error> {
        Ok(self.metadata.require_bool(&self.key(name))?)
    }

    /// A yes or no, where the file may be silent.
    pub(super) fn flag_or(&self, name: &str, otherwise: bool) -> Result<bool, Error> {
        Ok(self.metadata.bool(&self.key(name))?.unwrap_or(otherwise))
    }

    /// A name that must be the one that is implemented.
    pub(super) fn only(&self, name: &str, value: &str) -> Result<(), Error> {
        let found = self.metadata.require_str(&self.key(name))?;
        if found != value {
            let found = format!("'{}'", found.chars().take(80).collect::<String>());
            return Err(self.wrong(name, found, format!("'{value}'")));
        }
        Ok(())
    }

    /// A number that must be the one that is implied by others, if it is there.
    pub(super) fn equal(&self, name: &str, value: usize, why: &str) -> Result<(), Error> {
        match self.metadata.usize(&self.key(name))? {
            Some(found) if found != value => Err(self.wrong(name, found, format!("{value}, {why}"))),
            _ => Ok(()),
        }
    }

    /// The sizes of a model of `blocks` physical blocks. The vocabulary is `{arch}.vocab_size`, else the tokenizer's; the head size
    /// is `attention.key_length`, else width / heads.
    pub(super) fn sizes(&self, blocks: usize) -> Result<Sizes, Error> {
        let width = self.size("embedding_length", MOST_WIDTH)?;
        let heads = self.metadata.require_usize_per_block(&self.key("attention.head_count"), blocks)?;
        let kv_key = self.key("attention.head_count_kv");
        let kv_heads = match self.metadata.get(&kv_key) {
            Some(_) => self.metadata.require_usize_per_block(&kv_key, blocks)?,
            None => heads.clone(),
        };
        let hidden = self.metadata.require_usize_per_block(&self.key("feed_forward_length"), blocks)?;
        for b in 0..blocks {
            if heads[b] == 0 || heads[b] > MOST_HEADS {
                return Err(self.wrong("attention.head_count", heads[b], format!("1 to {MOST_HEADS}")));
            }
            if kv_heads[b] == 0 || !heads[b].is_multiple_of(kv_heads[b]) {
                return Err(self.wrong("attention.head_count_kv", kv_heads[b], format!("a divisor of {}", heads[b])));
            }
            if hidden[b] == 0 || hidden[b] > MOST_WIDTH {
                return Err(self.wrong("feed_forward_length", hidden[b], format!("1 to {MOST_WIDTH}")));
            }
        }
        let head_dim = match heads.first() {
            Some(&n) => self.size_or("attention.key_length", MOST_WIDTH, width / n)?,
            None => return Err(self.wrong("block_count", 0, format!("1 to {MOST_BLOCKS}"))),
        };
        for name in ["attention.value_length", "rope.dimension_count"] {
            self.equal(name, head_dim, "the head size")?;
        }
        if !head_dim.is_multiple_of(2) {
            return Err(self.wrong("attention.key_length", head_dim, "an even head size"));
        }
        let tokens = self.metadata.strings("tokenizer.ggml.tokens")?.map_or(0, <[String]>::len);
        let vocab = self.size_or("vocab_size", MOST_TOKENS, tokens)?;
        let context = self.size("context_length", MOST_CONTEXT)?;
        Ok(Sizes { width, head_dim, vocab, context, heads, kv_heads, hidden })
    }

    /// The stacks that `loop.prelude_count`, `.core_count` and `.coda_count` describe; `block_count` is their sum.
    pub(super) fn stacks(&self) -> Result<Stacks, Error> {
        let core = self.count("loop.prelude_count", MOST_BLOCKS)?;
        let coda = core + self.size("loop.core_count", MOST_BLOCKS)?;
        let count = coda + self.count("loop.coda_count", MOST_BLOCKS)?;
        let found = self.size("block_count", 3 * MOST_BLOCKS)?;
        if found != count {
            return Err(self.wrong("block_count", found, format!("{count} (prelude + core + coda)")));
        }
        Ok(Stacks { core, coda, count })
    }

    /// `loop.state_std`.
    pub(super) fn state_std(&self) -> Result<f32, Error> {
        let std = self.metadata.require_f32(&self.key("loop.state_std"))?;
        if std.is_finite() && std >= 0.0 {
            return Ok(std);
        }
        Err(self.wrong("loop.state_std", std, "a number not below 0"))
    }

    /// A required list of at most `most` counts.
    pub(super) fn counts(&self, name: &str, most: usize) -> Result<Vec<usize>, Error> {
        let key = self.key(name);
        let Some(list) = self.metadata.i64s(&key)? else {
            return Err(crate::gguf::Error::MissingKey { key }.into());
        };
        if list.len() > most {
            return Err(self.wrong(name, format!("{} numbers", list.len()), format!("at most {most}")));
        }
        let count = |n: i64| usize::try_from(n).map_err(|_| self.wrong(name, n, "counts"));
        list.into_iter().map(count).collect()
    }

    /// Refuses rotary angles that are scaled for longer contexts.
    pub(super) fn plain_rope(&self) -> Result<(), Error> {
        match self.metadata.get(&self.key("rope.scaling.type")) {
            Some(_) => self.only("rope.scaling.type", "none"),
            None => Ok(()),
        }
    }

    /// Depth of the only loop, from `loop.mean_steps` and `loop.max_steps`.
    pub(super) fn depth(&self) -> Result<Depth, Error> {
        let max_steps = match self.metadata.usize(&self.key("loop.max_steps"))? {
            None => None,
            Some(_) => Some(self.size("loop.max_steps", MOST_STEPS)?),
        };
        Ok(Depth { mean_steps: self.size("loop.mean_steps", MOST_STEPS)?, max_steps })
    }

    /// `general.name`, or empty.
    pub(super) fn name(&self) -> Result<String, Error> {
        Ok(self.metadata.str("general.name")?.unwrap_or_default().to_owned())
    }
}
