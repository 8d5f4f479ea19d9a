//! Good files, changed: what is said of them must be one line that names what is wrong.

use crate::common::{data, gguf};
use rdt::arch;
use rdt::checkpoint::Checkpoint;
use rdt::files::Bytes;
use rdt::gguf::{Header, Metadata, TensorDecl, Value, Writer};
use rdt::quant::Recipe;
use serde_json::Value as Json;
use std::fs;

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

    /// What opening it says; `None` if it opens.
    pub(crate) fn refusal(&self) -> Option<String> {
        let decls: Vec<_> = self.tensors.iter().map(|(decl, _)| decl.clone()).collect();
        let mut writer = Writer::new(Vec::new(), &self.metadata, &decls).unwrap();
        for (decl, data) in &self.tensors {
            writer.write_tensor(&decl.name, data).unwrap();
        }
        arch::from_bytes(Bytes::from(writer.finish().unwrap())).err().map(|e| e.to_string())
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

    /// Refused without any one of its tensors, and of the architecture's keys but `optional` ones, by name.
    #[track_caller]
    pub(crate) fn misses_everything(&self, optional: &[&str]) {
        assert_eq!(self.refusal(), None, "the good file");
        for (i, (decl, _)) in self.tensors.iter().enumerate() {
            let mut file = Self { metadata: self.metadata.clone(), tensors: self.tensors.clone() };
            file.tensors.remove(i);
            let line = file.refusal().unwrap_or_else(|| panic!("not missed: {}", decl.name));
            assert!(line.contains(&decl.name), "{line}");
        }
        let architecture = self.metadata.require_str("general.architecture").unwrap();
        for (key, _) in self.metadata.iter() {
            let Some(name) = key.strip_prefix(&format!("{architecture}.")) else { continue };
            if optional.contains(&name) {
                continue;
            }
            let mut file = Self { metadata: self.metadata.clone(), tensors: self.tensors.clone() };
            file.metadata.remove(key);
            let line = file.refusal().unwrap_or_else(|| panic!("not missed: {key}"));
            assert!(line.contains(key), "{key}: {line}");
        }
    }

    /// The loop's and the shape's counts as nothing sensible.
    #[track_caller]
    pub(crate) fn refuses_bad_counts(&self) {
        for key in [
            "block_count",
            "embedding_length",
            "vocab_size",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "feed_forward_length",
            "context_length",
            "loop.core_count",
            "loop.mean_steps",
            "loop.state_length",
        ] {
            for value in [0, u64::MAX, 1 << 63, 1 << 31] {
                self.refuses(key, value);
            }
        }
        for key in ["loop.prelude_count", "loop.coda_count"] {
            for value in [1 << 31, u64::MAX] {
                self.refuses(key, value);
            }
        }
        for key in ["attention.layer_norm_rms_epsilon", "rope.freq_base", "embedding_scale", "loop.state_std"] {
            for value in [f32::NAN, f32::INFINITY, -1.0] {
                self.refuses(key, value);
            }
        }
        for key in ["loop.injection", "loop.state_init", "loop.block_kind", "loop.activation", "loop.rope_style"] {
            self.refuses(key, "other");
        }
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
