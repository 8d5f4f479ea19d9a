//! Where the bytes of a looped model lie, and how many of them a token has to read.

use crate::gguf::{Header, TensorInfo};
use serde::Serialize;
use std::ops::Range;

/// A part of a looped model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The table of token embeddings.
    Embedding,
    /// Blocks before the loop, and what else is computed once per token before it.
    Prelude,
    /// What every loop step runs.
    Core,
    /// Blocks after the loop.
    Coda,
    /// The output head and the norm before it. A tied head is the embedding's table and counts there.
    Head,
    /// Tensors that are in none of these.
    Other,
}

impl Part {
    const ALL: [Self; 6] = [Self::Embedding, Self::Prelude, Self::Core, Self::Coda, Self::Head, Self::Other];

    /// The name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Prelude => "prelude",
            Self::Core => "core",
            Self::Coda => "coda",
            Self::Head => "head",
            Self::Other => "other",
        }
    }
}

/// What a part takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The part.
    pub part: Part,
    /// Tensors in it.
    pub tensors: usize,
    /// Values in them.
    pub values: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// The parts of a looped model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anatomy {
    /// Every part that has tensors.
    pub parts: Vec<Share>,
    /// Loop steps that the model was trained with on average.
    pub mean_steps: usize,
    /// Weight bytes that every loop step reads.
    pub bytes_per_step: u64,
    /// Weight bytes that a token reads outside the loop: one row of the embedding, prelude, coda, head.
    pub bytes_outside: u64,
}

impl Anatomy {
    /// The anatomy of a file, by the names of its tensors; `None` for one without the `*.loop.*` keys of a looped model.
    pub fn of(header: &Header) -> Option<Self> {
        let architecture = header.metadata.str("general.architecture").ok()??;
        let count = |name: &str| header.metadata.usize(&format!("{architecture}.loop.{name}")).ok()?;
        let prelude = 0..count("prelude_count")?;
        let core = prelude.end..prelude.end.checked_add(count("core_count")?)?;
        let coda = core.end..core.end.checked_add(count("coda_count")?)?;
        let part = |t: &TensorInfo| part(&t.name, [&prelude, &core, &coda]);
        let parts: Vec<Share> = Part::ALL
            .into_iter()
            .map(|p| {
                let of_part = || header.tensors.iter().filter(|t| part(t) == p);
                Share {
                    part: p,
                    tensors: of_part().count(),
                    values: of_part().map(values).sum(),
                    bytes: of_part().map(|t| t.bytes as u64).sum(),
                }
            })
            .filter(|share| share.tensors > 0)
            .collect();
        let bytes = |p: Part| parts.iter().filter(|s| s.part == p).map(|s| s.bytes).sum::<u64>();
        let table = bytes(Part::Embedding);
        let rows = header.tensor("token_embd.weight").and_then(|t| t.dims.get(1)).map_or(1, |&n| n as u64);
        let tied = if header.tensor("output.weight").is_none() { table } else { 0 };
        Some(Self {
            mean_steps: count("mean_steps")?,
            bytes_per_step: bytes(Part::Core),
            bytes_outside: table / rows.max(1) + bytes(Part::Prelude) + bytes(Part::Coda) + bytes(Part::Head) + tied,
            parts,
        })
    }

    /// Weight bytes that a token reads when it is generated alone, with this many loop steps.
    pub fn bytes_per_token(&self, steps: usize) -> u64 {
        self.bytes_outside.saturating_add(self.bytes_per_step.saturating_mul(steps as u64))
    }
}

fn values(tensor: &TensorInfo) -> u64 {
    tensor.dims.iter().product::<usize>() as u64
}

/// The part that a tensor belongs to, by its name.
fn part(name: &str, [prelude, core, coda]: [&Range<usize>; 3]) -> Part {
    if let Some(block) = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()) {
        return match block {
            b if prelude.contains(&b) => Part::Prelude,
            b if core.contains(&b) => Part::Core,
            b if coda.contains(&b) => Part::Coda,
            _ => Part::Other,
        };
    }
    match name {
        "token_embd.weight" => Part::Embedding,
        "output.weight" | "output_norm.weight" => Part::Head,
        // Its product with the prelude's output is the same in every step, and computed once.
        "loop.adapter_input.weight" => Part::Prelude,
        _ if name.starts_with("loop.") => Part::Core,
        _ => Part::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Metadata, TensorDecl, TensorType, Writer};

    /// A file of f32 tensors of two rows, each named with its row length.
    fn header(tensors: &[(&str, usize)], keys: &[(&str, u32)]) -> Header {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "x");
        for &(key, value) in keys {
            metadata.insert(format!("x.loop.{key}"), value);
        }
        let decls: Vec<_> = tensors
            .iter()
            .map(|&(name, k)| TensorDecl { name: name.into(), ty: TensorType::F32, dims: vec![k, 2] })
            .collect();
        let mut writer = Writer::new(Vec::new(), &metadata, &decls).unwrap();
        for &(name, k) in tensors {
            writer.write_tensor(name, &vec![0; 8 * k]).unwrap();
        }
        Header::parse(&writer.finish().unwrap()).unwrap()
    }

    const KEYS: [(&str, u32); 4] = [("prelude_count", 1), ("core_count", 2), ("coda_count", 1), ("mean_steps", 8)];

    #[test]
    fn every_tensor_is_in_one_part() {
        let tensors = [
            ("token_embd.weight", 1),
            ("blk.0.ffn_up.weight", 2),
            ("loop.adapter_input.weight", 4),
            ("loop.adapter_state.weight", 8),
            ("blk.1.ffn_up.weight", 16),
            ("blk.2.ffn_up.weight", 32),
            ("blk.3.ffn_up.weight", 64),
            ("output.weight", 128),
            ("blk.4.ffn_up.weight", 256),
            ("blk.x", 512),
        ];
        let anatomy = Anatomy::of(&header(&tensors, &KEYS)).unwrap();
        let found: Vec<_> = anatomy.parts.iter().map(|s| (s.part.name(), s.tensors, s.values)).collect();
        assert_eq!(
            found,
            [
                ("embedding", 1, 2),
                ("prelude", 2, 12),
                ("core", 3, 112),
                ("coda", 1, 128),
                ("head", 1, 256),
                ("other", 2, 1536)
            ]
        );
        assert_eq!(anatomy.bytes_per_step, 4 * 112);
        assert_eq!(anatomy.bytes_per_token(3), 4 * (1 + 12 + 3 * 112 + 128 + 256));
        assert_eq!(anatomy.mean_steps, 8);
    }

    #[test]
    fn a_tied_head_is_read_from_the_table() {
        let anatomy = Anatomy::of(&header(&[("token_embd.weight", 4)], &KEYS)).unwrap();
        assert_eq!(anatomy.bytes_per_token(100), 4 * (4 + 8));
    }

    #[test]
    fn other_models_have_none() {
        assert_eq!(Anatomy::of(&header(&[], &KEYS[..3])), None);
        assert_eq!(Anatomy::of(&header(&[], &[])), None);
    }

    #[test]
    fn absurd_counts_are_harmless() {
        let keys = KEYS.map(|(key, _)| (key, u32::MAX));
        let anatomy = Anatomy::of(&header(&[("blk.7.ffn_up.weight", 4)], &keys)).unwrap();
        assert_eq!(anatomy.bytes_per_token(usize::MAX), 32);
        assert_eq!(anatomy.parts[0].part, Part::Prelude);
    }
}
