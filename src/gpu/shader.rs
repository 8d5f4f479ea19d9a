//! Shaders and the pipelines made of them.
use super::Abilities;
pub(super) struct Pipelines {}
impl Pipelines {
    pub(super) fn new(_: Abilities) -> Self {
        Self {}
    }
}
