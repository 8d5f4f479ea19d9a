//! Model files: a good one, and ways to spoil it.

use std::fs;
use std::path::{Path, PathBuf};

use rdt::gguf::{Header, Metadata, TensorDecl, Writer};

use crate::programs::{QUANTIZE, run};

/// A published checkpoint without a tokenizer.
pub(crate) fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-shapes/untied")
}

/// A published checkpoint with a tokenizer and everything else.
pub(crate) fn chat_checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops")
}

/// Copies the files of a checkpoint.
pub(crate) fn copy_checkpoint(from: &Path, to: &Path) {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// The bytes of a GGUF made of [`checkpoint`].
pub(crate) fn gguf(recipe: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint();
    let args = [checkpoint.as_os_str(), "model.gguf".as_ref(), "--type".as_ref(), recipe.as_ref()];
    run(QUANTIZE, dir.path(), &args).ok("the good checkpoint");
    fs::read(dir.path().join("model.gguf")).unwrap()
}

/// A file taken apart.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<(TensorDecl, Vec<u8>)>,
}

impl Parts {
    pub(crate) fn of(file: &[u8]) -> Self {
        let header = Header::parse(file).unwrap();
        let tensors = header.tensors.iter().map(|t| (TensorDecl::from(t), t.data(file).unwrap().to_vec())).collect();
        Self { metadata: header.metadata, tensors }
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let decls: Vec<_> = self.tensors.iter().map(|(decl, _)| decl.clone()).collect();
        let mut writer = Writer::new(Vec::new(), &self.metadata, &decls).unwrap();
        for (decl, data) in &self.tensors {
            writer.write_tensor(&decl.name, data).unwrap();
        }
        writer.finish().unwrap()
    }
}
