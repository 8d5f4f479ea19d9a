//! Good files, changed: what is said of them must be one line that names what is wrong.

use crate::common::{data, gguf};
use rdt::arch;
use rdt::checkpoint::Checkpoint;
use rdt::files::Bytes;
use rdt::gguf::{Header, Metadata, TensorDecl, Value, Writer};
use rdt::model::Model;
use rdt::quant::Recipe;
use serde_json::Value as Json;
use std::fs;
use std::sync::Arc;

/// A model file taken apart.
pub(crate) struct File {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<(TensorDecl, Vec<u8>)>,
}

impl File {
    /// Of a checkpoint in f32.
    pub(crate) fn of(folder: &str) -> Self {
        let bytes = gguf(folder, Recipe::F32);
        let header = Header::parse(&bytes).unwrap();
        let tensors = header.tensors.iter().map(|t| (TensorDecl::from(t), t.data(&bytes).unwrap().to_vec())).collect();
        Self { metadata: header.metadata, tensors }
    }

    /// Opened as it is.
    pub(crate) fn open(&self) -> Result<Arc<Model>, String> {
        let decls: Vec<_> = self.tensors.iter().map(|(decl, _)| decl.clone()).collect();
        let mut writer = Writer::new(Vec::new(), &self.metadata, &decls).unwrap();
        for (decl, data) in &self.tensors {
            writer.write_tensor(&decl.name, data).unwrap();
        }
        arch::from_bytes(Bytes::from(writer.finish().unwrap())).map(Arc::new).map_err(|e| e.to_string())
    }

    /// What opening it says; `None` if it opens.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.open().err()
    }

    /// Without some tensors.
    pub(crate) fn without(mut self, names: &[&str]) -> Self {
        self.tensors.retain(|(decl, _)| !names.contains(&decl.name.as_str()));
        self
    }

    /// With a key of the architecture changed, or removed.
    pub(crate) fn with<V: Into<Value>>(mut self, key: &str, value: Option<V>) -> Self {
        let key = format!("{}.{key}", self.metadata.require_str("general.architecture").unwrap());
        match value {
            Some(value) => drop(self.metadata.insert(key, value)),
            None => drop(self.metadata.remove(&key)),
        }
        self
    }

    /// Refused, with another value under a key of the architecture, in one line that names the key.
    #[track_caller]
    pub(crate) fn refuses(&self, key: &str, value: impl Into<Value>) {
        let architecture = self.metadata.require_str("general.architecture").unwrap();
        let key = format!("{architecture}.{key}");
        let value = value.into();
        let mut file = Self { metadata: self.metadata.clone(), tensors: self.tensors.clone() };
        file.metadata.insert(key.clone(), value.clone());
        let line = file.refusal().unwrap_or_else(|| panic!("{key} = {value:?} is accepted"));
        assert!(line.contains(&key) && !line.contains('\n'), "{key} = {value:?}: {line}");
    }
}

/// What a conversion says when config.json holds these values too; `None` if it goes well.
pub(crate) fn conversion_refusal(folder: &str, changes: &[(&str, Json)]) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data(folder)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: Json =
        serde_json::from_str(&fs::read_to_string(data(folder).join("config.json")).unwrap()).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs::remove_file(&path).unwrap();
    fs::write(&path, config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    arch::conversion(&checkpoint).err().map(|e| e.to_string())
}

/// Refused with this value in config.json, in one line that names the key.
#[track_caller]
pub(crate) fn conversion_refuses(folder: &str, key: &str, value: Json) {
    let line = conversion_refusal(folder, &[(key, value.clone())]);
    let line = line.unwrap_or_else(|| panic!("{key} = {value} is accepted"));
    assert!(line.contains(key) && !line.contains('\n'), "{key} = {value}: {line}");
}
