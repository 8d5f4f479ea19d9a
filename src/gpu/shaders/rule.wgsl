// The exit rule in force. Rust: `rule_words` in session.rs; what its parts mean is said in `exit`.
struct Rule {
    statistic: u32,
    hits: u32,
    min: u32,
    every: u32,
    // Steps from which on nothing is checked; 0xffffffff: there are none.
    max: u32,
    threshold: f32,
    // May a rule on the read-out act?
    readout: u32,
    unused: u32,
    // Steps after which a row leaves, per loop, four to a vector.
    most: array<vec4<u32>, 16>,
}

const ACCELERATION: u32 = 1u;
const ACCELERATION_RAW: u32 = 2u;
const ACCELERATION_BY_STEP: u32 = 3u;
const STEP_NORM: u32 = 4u;
const COSINE: u32 = 5u;
const GATE: u32 = 6u;
// This and those behind it: of the read-out.
const KL: u32 = 7u;
const MIN_P_KL: u32 = 8u;
const ENTROPY: u32 = 9u;
const ARGMAX: u32 = 10u;

@group(0) @binding(2) var<uniform> rule: Rule;
