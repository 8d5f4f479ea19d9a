//! Recipes: which format each tensor of a model is stored in.
//!
//! A recipe is named after the format that most of the model gets. It knows a tensor by its [`Role`] and shape, never
//! by its name, so that model families do not have to agree on names.

use crate::gguf::TensorType;
use std::{fmt, str::FromStr};

/// The part a tensor plays in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Rows looked up by token id. In a tied model it is the output head too.
    TokenEmbedding,
    /// Learned positions: rows looked up by position and added to the embedding.
    PositionEmbedding,
    /// The output head, one row per token of the vocabulary.
    Output,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Query, key and value projections in one matrix.
    AttnQkv,
    /// Projection for the gate on the attention output.
    AttnGate,
    /// Projection of the attention output.
    AttnOutput,
    /// Gate half of a gated feed-forward layer.
    FfnGate,
    /// First matrix of a feed-forward layer.
    FfnUp,
    /// Last matrix of a feed-forward layer.
    FfnDown,
    /// Rows looked up by token id and added to a block's values.
    ValueEmbedding,
    /// The half of the loop's adapter that multiplies the latent state.
    AdapterState,
    /// The half of the loop's adapter that multiplies the prelude's output.
    AdapterInput,
    /// What takes the latent state out of the loop, once per token.
    Readout,
    /// Weight of a norm.
    Norm,
    /// Added to something; also when it has more than one dimension, as query and key biases do.
    Bias,
    /// A gate with few rows, such as the one that decides on leaving the loop.
    Gate,
    /// Initial states, decay rates and the like: few numbers that act at every step of the loop.
    State,
    /// Any other matrix.
    Other,
}

/// How a model is stored.
///
/// What holds in every recipe:
/// - Norms, biases, gates, state constants and everything with one dimension are f32. They are few, they are used as
///   f32, and widening a 16 bit value changes nothing.
/// - Learned positions are never in a block format: a small table, of which a token reads one row.
/// - A matrix whose rows do not divide into the format's blocks falls back to f16, with a reason.
///
/// The text form (`f32`, `f16`, `bf16`, `q8_0`, `q4_0`, `published`) is what [`FromStr`] reads and `Display` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recipe {
    /// Every matrix in f32.
    F32,
    /// Every matrix in f16.
    F16,
    /// Every matrix in bf16.
    BF16,
    /// Matrices in q8_0, save the value projections and the two halves of the adapter, which are f16: a tenth of a
    /// core's weights that carries a third of the error which 8 bits make in the read-out of a looped model.
    Q8_0,
    /// Matrices in q4_0, save a few that stay at q8_0. Embeddings are read one row per token and cost no time;
    /// the output head runs once per token however deep the loop goes, and its errors move the choice of the token
    /// directly. The two halves of the adapter are a small share of the core, and the state passes through them at
    /// every step, so their errors are fed back; what takes the state out of the loop is as near to the head.
    Q4_0,
    /// Each matrix in the type it was published in.
    Published,
}

/// What a recipe decided for a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The type to store the tensor in.
    pub ty: TensorType,
    /// Why it is not what the recipe meant for this role, in one phrase; `None` when it is.
    pub why: Option<String>,
}

impl Recipe {
    /// Every recipe, in the order that help texts list them.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Published];

    /// The type for a tensor of this role and of `dims` (ggml's order: the row length comes first), published as
    /// `published`.
    pub fn tensor_type(&self, role: Role, dims: &[usize], published: TensorType) -> Choice {
        let meant = match self {
            _ if dims.len() <= 1 => TensorType::F32,
            _ if matches!(role, Role::Norm | Role::Bias | Role::Gate | Role::State) => TensorType::F32,
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Q8_0 | Self::Q4_0 if role == Role::PositionEmbedding => TensorType::F16,
            Self::Q8_0 => match role {
                Role::AttnV | Role::AdapterState | Role::AdapterInput => TensorType::F16,
                _ => TensorType::Q8_0,
            },
            Self::Q4_0 => match role {
                Role::TokenEmbedding | Role::ValueEmbedding | Role::Output => TensorType::Q8_0,
                Role::AdapterState | Role::AdapterInput | Role::Readout => TensorType::Q8_0,
                _ => TensorType::Q4_0,
            },
            Self::Published => published,
        };
        match dims.first() {
            Some(&k) if meant.row_bytes(k).is_none() => Choice {
                ty: TensorType::F16,
                why: Some(format!("rows of {k} do not divide into {meant} blocks of {}", meant.block_len())),
            },
            _ => Choice { ty: meant, why: None },
        }
    }

    /// The recipe's text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Published => "published",
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown type {text:?}; known are {}", Recipe::ALL.map(Recipe::name).join(", "))]
pub struct UnknownRecipe {
    /// The text.
    pub text: String,
}

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    /// Upper and lower case are the same, as llama.cpp's users are used to writing `Q4_0`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|recipe| recipe.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownRecipe { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(recipe: Recipe, role: Role, dims: &[usize]) -> TensorType {
        let choice = recipe.tensor_type(role, dims, TensorType::BF16);
        assert_eq!(choice.why, None);
        choice.ty
    }

    #[test]
    fn small_tensors_stay_f32_in_every_recipe() {
        for recipe in Recipe::ALL {
            assert_eq!(choose(recipe, Role::Norm, &[128]), TensorType::F32);
            assert_eq!(choose(recipe, Role::Other, &[128]), TensorType::F32);
            assert_eq!(choose(recipe, Role::Bias, &[32, 4, 1, 2]), TensorType::F32);
            assert_eq!(choose(recipe, Role::Gate, &[32, 4]), TensorType::F32);
            assert_eq!(choose(recipe, Role::Other, &[]), TensorType::F32);
        }
    }

    #[test]
    fn matrices_get_what_the_recipe_says() {
        assert_eq!(choose(Recipe::F32, Role::FfnUp, &[128, 4]), TensorType::F32);
        assert_eq!(choose(Recipe::F16, Role::Output, &[128, 4]), TensorType::F16);
        assert_eq!(choose(Recipe::BF16, Role::AttnQkv, &[128, 4]), TensorType::BF16);
        assert_eq!(choose(Recipe::Q8_0, Role::FfnUp, &[128, 4]), TensorType::Q8_0);
        for role in [Role::AttnV, Role::AdapterState, Role::AdapterInput] {
            assert_eq!(choose(Recipe::Q8_0, role, &[128, 4]), TensorType::F16);
        }
        assert_eq!(choose(Recipe::Published, Role::FfnUp, &[127, 4]), TensorType::BF16);
    }

    #[test]
    fn q4_0_keeps_embedding_head_and_adapter_at_8_bits() {
        for recipe in [Recipe::Q8_0, Recipe::Q4_0] {
            assert_eq!(choose(recipe, Role::PositionEmbedding, &[128, 40]), TensorType::F16);
        }
        for role in [Role::TokenEmbedding, Role::Output, Role::AdapterState, Role::AdapterInput] {
            assert_eq!(choose(Recipe::Q4_0, role, &[128, 4]), TensorType::Q8_0);
        }
        for role in [Role::AttnQkv, Role::AttnOutput, Role::FfnGate, Role::FfnDown, Role::Other] {
            assert_eq!(choose(Recipe::Q4_0, role, &[128, 4]), TensorType::Q4_0);
        }
    }

    #[test]
    fn rows_that_do_not_divide_fall_back_with_a_reason() {
        let choice = Recipe::Q4_0.tensor_type(Role::FfnUp, &[100, 4], TensorType::F32);
        assert_eq!(choice.ty, TensorType::F16);
        assert_eq!(choice.why.as_deref(), Some("rows of 100 do not divide into q4_0 blocks of 32"));
    }

    #[test]
    fn names_are_read_back() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.to_string().parse(), Ok(recipe));
            assert_eq!(recipe.to_string().to_uppercase().parse(), Ok(recipe));
        }
        let error = "q5".parse::<Recipe>().unwrap_err().to_string();
        assert!(error.contains("\"q5\"") && error.contains("q8_0"), "{error}");
    }
}
