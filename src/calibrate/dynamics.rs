//! How latent states move, as "Two-Scale Latent Dynamics for Recurrent-Depth Transformers" (arXiv:2509.23314) looks at it: small
//! refinements inside a loop, larger drift from block to block.

use super::score::number;
use serde::{Deserialize, Serialize};

/// How latent states moved over many positions of a text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dynamics {
    /// Every looped segment.
    pub loops: Vec<LoopDynamics>,
    /// Every block, in the order of the model; looped ones once per step that was looked at.
    pub drift: Vec<Drift>,
    /// Paths of a few tokens in the plane of their largest spread, of the last looped segment.
    pub paths: Paths,
}

/// What happens in one looped segment, step by step; s_0 is the initial state, Δ_k = s_k − s_{k−1}. Entry k − 1 is step k. What does
/// not exist (angles, accelerations and curvatures at step 1) is a band of NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoopDynamics {
    /// ‖s_k‖.
    pub state_norm: Vec<Band>,
    /// ‖Δ_k‖ / ‖s_k‖.
    pub step_norm: Vec<Band>,
    /// The angle between Δ_k and Δ_{k−1}, in degrees: 90 is orthogonal, 180 is to and fro.
    pub angle: Vec<Band>,
    /// ‖Δ_k − Δ_{k−1}‖ / ‖s_k‖.
    pub acceleration: Vec<Band>,
    /// Turning angle (in radians) over the mean length of the two steps, times ‖s_k‖: how sharply the path bends, without a scale.
    pub curvature: Vec<Band>,
}

/// How a number is spread over positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Band {
    #[serde(deserialize_with = "number")]
    pub p10: f64,
    #[serde(deserialize_with = "number")]
    pub p25: f64,
    #[serde(deserialize_with = "number")]
    pub median: f64,
    #[serde(deserialize_with = "number")]
    pub p75: f64,
    #[serde(deserialize_with = "number")]
    pub p90: f64,
}

/// How far one block moves the residual stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Physical block, from 0.
    pub block: usize,
    /// `prelude`, `core` or `coda`.
    pub part: String,
    /// Loop step, from 1; `None` outside loops.
    pub step: Option<usize>,
    /// ‖x_out − x_in‖ / ‖x_in‖ of the residual stream.
    pub moved: Band,
    /// Cosine of x_out − x_in with that of the block before it in the same segment and step; NaN where there is none.
    pub cosine: Band,
}

/// Trajectories of a few tokens, projected onto the two directions in which all of their states together spread most (principal
/// component analysis about their mean).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Paths {
    /// Share of the variance along either direction.
    pub explained: [f64; 2],
    /// The tokens.
    pub tokens: Vec<Path>,
}

/// One token's trajectory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Its text.
    pub text: String,
    /// Position in its window.
    pub position: usize,
    /// Where it was after 0, 1, 2, … steps.
    pub points: Vec<[f64; 2]>,
}
