//! What a profile remembers of model, machine and text, and whether they are the same again.

use super::{MachineId, ModelId, Windows};
use crate::hash::Fnv;
use crate::model::Model;
use crate::sensors::Machine;

impl ModelId {
    /// Of a model.
    pub fn of(model: &Model) -> Self {
        let config = model.config();
        Self {
            name: config.name.clone(),
            architecture: config.architecture.clone(),
            fingerprint: format!("{:016x}", model.fingerprint()),
            bytes: model.tensor_bytes(),
        }
    }
}

impl MachineId {
    /// Of this machine, with so many worker threads.
    pub fn here(model: &Model, threads: usize) -> Self {
        let facts = Machine::here().facts();
        Self { system: facts.system, cpu: facts.cpu, isa: model.kernels().isa.to_string(), threads }
    }
}

impl Windows {
    /// A hash over the windows' tokens.
    pub fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        for window in self.iter() {
            window.tokens.iter().for_each(|token| hash.add(&token.to_le_bytes()));
        }
        hash.to_string()
    }
}
