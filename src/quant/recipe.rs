//! Recipes: which format each tensor of a model is stored in.
//!
//! A recipe is named after the format that most of the model gets. It knows a tensor by its [`Role`], its shape and its place
//! among the blocks ([`Seen`]), never by its name, so that model families do not have to agree on names. A user who knows
//! better names tensors by pattern ([`Override`]).

use crate::gguf::TensorType;
use regex::Regex;
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

impl Role {
    /// Few numbers that are always f32, whatever their shape.
    pub fn is_small(self) -> bool {
        matches!(self, Self::Norm | Self::Bias | Self::Gate | Self::State)
    }
}

/// A tensor as a recipe sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its part in the model.
    pub role: Role,
    /// Its shape in ggml's order: the row length comes first.
    pub dims: &'a [usize],
    /// The type it was published in.
    pub published: TensorType,
    /// Which physical block it is in, and how many there are.
    pub block: Option<(usize, usize)>,
}

impl Seen<'_> {
    /// In the blocks to which llama.cpp's `_m` mixtures give more bits: the first and last eighth, and every third between.
    /// Physical blocks are counted, as llama.cpp does for values; for `ffn_down` it divides the number of passes of a looped model
    /// instead, so that no matrix is in the last eighth there.
    fn in_favoured_block(&self) -> bool {
        self.block.is_some_and(|(b, n)| b < n / 8 || b >= 7 * n / 8 || (b - n / 8) % 3 == 2)
    }
}

/// How a model is stored.
///
/// What holds in every recipe:
/// - Norms, biases, gates, state constants and everything with one dimension are f32. They are few, they are used as
///   f32, and widening a 16 bit value changes nothing.
/// - Learned positions are never in a block format: a small table, of which a token reads one row.
/// - A matrix whose rows do not divide into the blocks of the format that is meant for it gets another one, with a reason:
///   see [`fitting`].
///
/// What holds in every recipe of 4 to 6 bits, save [`Recipe::Pure`]:
/// - The output head, and a table of embeddings that is one, keep at least 6 bits: the head runs once per token however deep
///   the loop goes, and its errors move the choice of the token directly.
/// - The two halves of the loop's adapter, and what takes the state out of the loop, are q8_0: a small share of the weights,
///   through which the whole state passes at every step, so that their errors are fed back.
/// - Tables that are only read a row per token cost no time, and their error is made once: they are as the head.
///
/// The text form ([`Recipe::NAMED`], `pure:TYPE`) is what [`FromStr`] reads and `Display` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the recipes are known by llama.cpp's names")]
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
    /// Matrices in q6_K.
    Q6_K,
    /// Matrices in q5_K, and q6_K for values and `ffn_down` of the blocks that llama.cpp favours.
    Q5_K_M,
    /// Matrices in q4_K, and q6_K for values and `ffn_down` of the blocks that llama.cpp favours.
    Q4_K_M,
    /// Matrices in q4_K, and q5_K for values.
    Q4_K_S,
    /// Matrices in q4_0: the fastest.
    Q4_0,
    /// Matrices in iq4_nl: as large as q4_0 and more exact, since its 16 levels lie as weights do.
    IQ4_NL,
    /// Every matrix in one type.
    Pure(TensorType),
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
    /// The recipes that have a name, in the order that help texts list them.
    pub const NAMED: [(&'static str, Self); 11] = [
        ("f32", Self::F32),
        ("f16", Self::F16),
        ("bf16", Self::BF16),
        ("q8_0", Self::Q8_0),
        ("q6_k", Self::Q6_K),
        ("q5_k_m", Self::Q5_K_M),
        ("q4_k_m", Self::Q4_K_M),
        ("q4_k_s", Self::Q4_K_S),
        ("q4_0", Self::Q4_0),
        ("iq4_nl", Self::IQ4_NL),
        ("published", Self::Published),
    ];

    /// The type for a tensor.
    pub fn tensor_type(&self, seen: &Seen<'_>) -> Choice {
        let plain = |ty| Choice { ty, why: None };
        if seen.role.is_small() || seen.dims.len() <= 1 {
            return plain(TensorType::F32);
        }
        let meant = match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Published => seen.published,
            _ if seen.role == Role::PositionEmbedding => TensorType::F16,
            Self::Pure(ty) => *ty,
            Self::Q8_0 => match seen.role {
                Role::AttnV | Role::AdapterState | Role::AdapterInput => TensorType::F16,
                _ => TensorType::Q8_0,
            },
            _ => match seen.role {
                Role::AdapterState | Role::AdapterInput | Role::Readout => TensorType::Q8_0,
                Role::TokenEmbedding | Role::ValueEmbedding | Role::Output => match self {
                    Self::Q4_0 | Self::IQ4_NL => TensorType::Q8_0,
                    _ => TensorType::Q6_K,
                },
                Role::AttnV | Role::FfnDown => self.of_values(seen),
                _ => self.of_most(),
            },
        };
        fitting(meant, seen.dims[0])
    }

    /// The format of most of a model.
    fn of_most(self) -> TensorType {
        match self {
            Self::Q4_K_M | Self::Q4_K_S => TensorType::Q4_K,
            Self::Q5_K_M => TensorType::Q5_K,
            Self::Q6_K => TensorType::Q6_K,
            Self::IQ4_NL => TensorType::IQ4_NL,
            _ => TensorType::Q4_0,
        }
    }

    /// The format of the matrices whose errors go into the stream as they are: the value projection and `ffn_down`.
    fn of_values(self, seen: &Seen<'_>) -> TensorType {
        match self {
            Self::Q4_K_M | Self::Q5_K_M if seen.in_favoured_block() => match seen.dims[0].is_multiple_of(256) {
                true => TensorType::Q6_K,
                // q8_0, which stands in for q6_K elsewhere, is more than a favour.
                false => TensorType::Q5_1,
            },
            Self::Q4_K_S if seen.role == Role::AttnV => TensorType::Q5_K,
            _ => self.of_most(),
        }
    }

    /// The recipe's text form.
    pub fn name(self) -> String {
        match self {
            Self::Pure(ty) => format!("pure:{}", ty.name().to_lowercase()),
            _ => Self::NAMED.iter().find(|(_, recipe)| *recipe == self).map_or("", |(name, _)| name).to_owned(),
        }
    }
}

/// `meant`, or what stands in for it where rows of `k` values do not divide into its blocks, with the reason.
///
/// Blocks of 256 values give way to blocks of 32 that are no larger than need be (most of Huginn's rows are 5280 = 165 · 32
/// long). llama.cpp takes q5_0 for q4_K; the sixteen levels of iq4_nl lie as weights do, and on trained models it loses as little
/// as q4_K does at the same 4.5 bits (docs/quantisation.md), so a file keeps the size that was asked for. Rows that do not
/// divide into 32 either become f16.
pub fn fitting(meant: TensorType, k: usize) -> Choice {
    if meant.row_bytes(k).is_some() {
        return Choice { ty: meant, why: None };
    }
    let why = Some(format!("rows of {k} do not divide into {meant} blocks of {}", meant.block_len()));
    let smaller = match meant {
        TensorType::Q4_K | TensorType::IQ4_XS => TensorType::IQ4_NL,
        TensorType::Q5_K => TensorType::Q5_0,
        TensorType::Q6_K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    let ty = if smaller.row_bytes(k).is_some() { smaller } else { TensorType::F16 };
    Choice { ty, why }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

/// A text that names no recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown type {text:?}; known are {}, and pure:TYPE with TYPE one of {}", names(), super::supported_names())]
pub struct UnknownRecipe {
    /// The text.
    pub text: String,
}

fn names() -> String {
    Recipe::NAMED.map(|(name, _)| name).join(", ")
}

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    /// Upper and lower case are the same, as llama.cpp's users are used to writing `Q4_K_M`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownRecipe { text: text.to_owned() };
        let lower = text.to_lowercase();
        if let Some(ty) = lower.strip_prefix("pure:") {
            return known_type(ty).map(Self::Pure).ok_or_else(unknown);
        }
        let named = Self::NAMED.iter().find(|(name, _)| *name == lower);
        named.map(|(_, recipe)| *recipe).ok_or_else(unknown)
    }
}

/// A type that tensors can be converted to.
fn known_type(name: &str) -> Option<TensorType> {
    name.parse().ok().filter(|&ty| super::format(ty).is_some())
}

/// A type for the tensors whose name a pattern is found in: `attn_v=q6_K`, `blk\.[0-3]\.ffn_.*=q8_0`.
///
/// It goes before what the recipe says, for matrices of every role; where the rows do not divide into the type's blocks,
/// [`fitting`] speaks.
#[derive(Debug, Clone)]
pub struct Override {
    pattern: Pattern,
    /// The type.
    pub ty: TensorType,
}

/// Which tensors an [`Override`] is for.
#[derive(Debug, Clone)]
enum Pattern {
    /// The one of this name.
    Exact(String),
    /// Those in whose name this is found.
    Found(Regex),
}

impl Override {
    /// The type for the tensor of exactly this name.
    pub fn exactly(name: &str, ty: TensorType) -> Self {
        Self { pattern: Pattern::Exact(name.to_owned()), ty }
    }

    /// Does the pattern occur in this name?
    pub fn matches(&self, name: &str) -> bool {
        match &self.pattern {
            Pattern::Exact(exact) => exact == name,
            Pattern::Found(regex) => regex.is_match(name),
        }
    }
}

/// A text that is no [`Override`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum BadOverride {
    /// No `=`.
    #[error("{0:?} is not of the form PATTERN=TYPE, such as attn_v=q6_k")]
    Form(String),
    /// The part before it is no regular expression.
    #[error("{0}")]
    Pattern(#[from] regex::Error),
    /// The part behind it is no type.
    #[error("unknown type {name:?}; known are {}", super::supported_names())]
    Type {
        /// What stands there.
        name: String,
    },
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = match &self.pattern {
            Pattern::Exact(exact) => exact,
            Pattern::Found(regex) => regex.as_str(),
        };
        write!(f, "{pattern}={}", self.ty.name().to_lowercase())
    }
}

impl FromStr for Override {
    type Err = BadOverride;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pattern, ty) =
            text.rsplit_once('=').filter(|(p, _)| !p.is_empty()).ok_or_else(|| BadOverride::Form(text.into()))?;
        let ty = known_type(ty).ok_or_else(|| BadOverride::Type { name: ty.into() })?;
        Ok(Self { pattern: Pattern::Found(Regex::new(pattern)?), ty })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(role: Role, dims: &[usize]) -> Seen<'_> {
        Seen { role, dims, published: TensorType::BF16, block: None }
    }

    fn choose(recipe: Recipe, role: Role, dims: &[usize]) -> TensorType {
        let choice = recipe.tensor_type(&seen(role, dims));
        assert_eq!(choice.why, None);
        choice.ty
    }

    fn all() -> impl Iterator<Item = Recipe> {
        Recipe::NAMED.into_iter().map(|(_, recipe)| recipe).chain([Recipe::Pure(TensorType::Q5_1)])
    }

    #[test]
    fn small_tensors_stay_f32_in_every_recipe() {
        for recipe in all() {
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
        assert_eq!(choose(Recipe::Pure(TensorType::Q4_1), Role::Output, &[128, 4]), TensorType::Q4_1);
    }

    #[test]
    fn embedding_head_and_adapter_keep_their_bits() {
        for recipe in [Recipe::Q8_0, Recipe::Q4_0, Recipe::Q4_K_M] {
            assert_eq!(choose(recipe, Role::PositionEmbedding, &[128, 40]), TensorType::F16);
        }
        for role in [Role::TokenEmbedding, Role::Output, Role::AdapterState, Role::AdapterInput] {
            assert_eq!(choose(Recipe::Q4_0, role, &[128, 4]), TensorType::Q8_0);
        }
        for role in [Role::AttnQkv, Role::AttnOutput, Role::FfnGate, Role::FfnDown, Role::Other] {
            assert_eq!(choose(Recipe::Q4_0, role, &[128, 4]), TensorType::Q4_0);
        }
    }

    /// The types of a value projection or `ffn_down` over the blocks of a model.
    fn by_block(recipe: Recipe, role: Role, blocks: usize) -> Vec<TensorType> {
        let of = |b| recipe.tensor_type(&Seen { block: Some((b, blocks)), ..seen(role, &[256, 4]) }).ty;
        (0..blocks).map(of).collect()
    }

    #[test]
    fn mixtures_favour_the_blocks_that_llama_cpp_favours() {
        use TensorType::{Q4_K, Q5_K, Q6_K};
        let expected = [Q4_K, Q4_K, Q6_K, Q6_K];
        assert_eq!(by_block(Recipe::Q4_K_M, Role::AttnV, 4), expected);
        let expected = [Q6_K, Q4_K, Q4_K, Q6_K, Q4_K, Q4_K, Q6_K, Q6_K];
        assert_eq!(by_block(Recipe::Q4_K_M, Role::FfnDown, 8), expected);
        assert_eq!(by_block(Recipe::Q4_K_M, Role::FfnUp, 8), [Q4_K; 8]);
        assert_eq!(by_block(Recipe::Q4_K_S, Role::AttnV, 8), [Q5_K; 8]);
        assert_eq!(by_block(Recipe::Q5_K_M, Role::AttnV, 2), [Q5_K, Q6_K]);
    }

    #[test]
    fn rows_that_do_not_divide_fall_back_with_a_reason() {
        let choice = Recipe::Q4_0.tensor_type(&seen(Role::FfnUp, &[100, 4]));
        assert_eq!(choice.ty, TensorType::F16);
        assert_eq!(choice.why.as_deref(), Some("rows of 100 do not divide into q4_0 blocks of 32"));
        let choice = Recipe::Q4_K_M.tensor_type(&seen(Role::FfnUp, &[5280, 4]));
        assert_eq!(choice.ty, TensorType::IQ4_NL);
        assert_eq!(choice.why.as_deref(), Some("rows of 5280 do not divide into q4_K blocks of 256"));
        for &meant in TensorType::ALL {
            for k in [1, 31, 32, 100, 128, 256, 5280] {
                let Choice { ty, why } = fitting(meant, k);
                assert!(ty.row_bytes(k).is_some(), "{meant} {k}");
                assert_eq!(why.is_none(), ty == meant);
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for recipe in all() {
            assert_eq!(recipe.to_string().parse(), Ok(recipe));
            assert_eq!(recipe.to_string().to_uppercase().parse(), Ok(recipe));
        }
        for wrong in ["q5", "pure:", "pure:q2_K", "pure:i32", ""] {
            let error = wrong.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")) && error.contains("q8_0"), "{error}");
        }
    }

    #[test]
    fn overrides_are_patterns() {
        let of = |text: &str| text.parse::<Override>();
        let matches = |text: &str, name: &str| of(text).unwrap().matches(name);
        assert!(matches("attn_v=q6_k", "blk.3.attn_v.weight"));
        assert!(matches(r"blk\.[0-3]\.ffn_.*=Q8_0", "blk.3.ffn_up.weight"));
        assert!(!matches(r"blk\.[0-3]\.ffn_.*=q8_0", "blk.13.ffn_up.weight"));
        assert_eq!(of("a=b=q6_K").unwrap().ty, TensorType::Q6_K);
        assert!(matches!(of("attn_v"), Err(BadOverride::Form(_))));
        assert!(matches!(of("=q8_0"), Err(BadOverride::Form(_))));
        assert!(matches!(of("(=q8_0"), Err(BadOverride::Pattern(_))));
        assert!(matches!(of("a=i8"), Err(BadOverride::Type { .. })));
        let exact = Override::exactly("blk.1.attn_v.weight", TensorType::F16);
        assert!(exact.matches("blk.1.attn_v.weight") && !exact.matches("blk.11.attn_v.weight"));
        assert!(!exact.matches("blk.1.attn_v.weight.x") && !exact.matches("blk-1.attn_v.weight"));
    }
}
