//! Published checkpoints: a folder with `config.json`, weights in safetensors or PyTorch files, and the tokenizer's files.
//!
//! Nothing here knows a model family. [`Checkpoint::open`] maps the weights and reads their headers, so a checkpoint
//! of any size opens at once; values are converted to f32 a range of rows at a time, when asked for.

mod config;
mod error;
mod json;
mod shard;
mod tensor;
mod torch;

pub use config::Config;
pub use error::Error;
pub use safetensors::Dtype;
pub use tensor::TensorView;
pub use torch::{TorchError, TorchFile};

use crate::files::Bytes;
use error::shorten;
use serde::Deserialize;
use serde_json::Value;
use shard::{Format, Shard};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt, fs,
    path::{Component, Path, PathBuf},
};

/// The most bytes accepted for each file that is read whole. A parsed JSON file takes up to some twenty times its size.
mod limit {
    pub(super) const CONFIG: u64 = 16 << 20;
    pub(super) const INDEX: u64 = 64 << 20;
    pub(super) const TOKENIZER: u64 = 512 << 20;
    pub(super) const TEMPLATE: u64 = 4 << 20;
}

/// An open checkpoint.
pub struct Checkpoint {
    folder: PathBuf,
    config: Config,
    generation_config: Option<Config>,
    tokenizer_config: Option<Config>,
    tokenizer_json: Option<String>,
    sentencepiece: Option<Vec<u8>>,
    added_tokens: Option<Config>,
    chat_template: Option<String>,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor is found.
struct Place {
    shard: usize,
    /// Its name in the shard, where that is another.
    stored: Option<String>,
}

/// What training programs put before the names of all tensors: `DistributedDataParallel`, `torch.compile`, and a class
/// around the model. In this order each is taken away once.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "model."];

impl Checkpoint {
    /// Opens the checkpoint in a folder.
    ///
    /// Read are `config.json` (required), `generation_config.json`, `tokenizer.json` (without it `tokenizer.model` and
    /// `added_tokens.json`), `tokenizer_config.json` and `chat_template.jinja` where they exist, and the headers of the
    /// weights: the first that exists of `model.safetensors`, the shards that `model.safetensors.index.json` names,
    /// `pytorch_model.bin`, the shards that `pytorch_model.bin.index.json` names, `model.pt`, `model.pth` and `model.bin`.
    /// PyTorch files are read as data: nothing in them is run.
    ///
    /// Names of tensors are those in the files. Only where `config.json` has no `model_type`, as training programs write
    /// it, the prefixes `module.`, `_orig_mod.` and `model.` are taken away.
    ///
    /// The weights are mapped, not read. They must not be changed while the checkpoint is open; if another program
    /// shortens one of the files meanwhile, the operating system ends this one.
    ///
    /// # Errors
    /// A file is missing, unreadable, too large or malformed; each error names it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let kind = fs::metadata(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        if !kind.is_dir() {
            return Err(Error::NotAFolder { path: folder.to_owned() });
        }
        let config = Config::read(folder.join("config.json"), limit::CONFIG)?
            .ok_or_else(|| Error::NoConfig { folder: folder.to_owned() })?;
        let generation_config = Config::read(folder.join("generation_config.json"), limit::CONFIG)?;
        let tokenizer_config = Config::read(folder.join("tokenizer_config.json"), limit::CONFIG)?;
        let tokenizer_json = json::read_text(&folder.join("tokenizer.json"), limit::TOKENIZER)?;
        let (mut sentencepiece, mut added_tokens) = (None, None);
        if tokenizer_json.is_none() {
            sentencepiece = json::read_bytes(&folder.join("tokenizer.model"), limit::TOKENIZER)?;
            added_tokens = Config::read(folder.join("added_tokens.json"), limit::CONFIG)?;
        }
        let chat_template = match json::read_text(&folder.join("chat_template.jinja"), limit::TEMPLATE)? {
            Some(template) => Some(template),
            None => tokenizer_config.as_ref().map(template_of).transpose()?.flatten(),
        };
        let (shards, tensors) = open_weights(folder)?;
        let tensors = name_tensors(folder, tensors, config.get("model_type").is_none())?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            generation_config,
            tokenizer_config,
            tokenizer_json,
            sentencepiece,
            added_tokens,
            chat_template,
            shards,
            tensors,
        })
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `generation_config.json`, if there is one.
    pub fn generation_config(&self) -> Option<&Config> {
        self.generation_config.as_ref()
    }

    /// `tokenizer_config.json`, if there is one.
    pub fn tokenizer_config(&self) -> Option<&Config> {
        self.tokenizer_config.as_ref()
    }

    /// The text of `tokenizer.json`, if there is one; not parsed yet.
    pub fn tokenizer_json(&self) -> Option<&str> {
        self.tokenizer_json.as_deref()
    }

    /// The bytes of `tokenizer.model`, SentencePiece's own file, if that is the only tokenizer; not parsed yet.
    pub fn sentencepiece(&self) -> Option<&[u8]> {
        self.sentencepiece.as_deref()
    }

    /// `added_tokens.json`, which goes with `tokenizer.model`, if there is one.
    pub fn added_tokens(&self) -> Option<&Config> {
        self.added_tokens.as_ref()
    }

    /// The chat template: the file `chat_template.jinja`, or else `chat_template` in `tokenizer_config.json`, of which
    /// the one called `default` is taken where there are several.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::NoTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        Ok(self.tensor_in_file(name)?.0)
    }

    /// The tensor of this name, and the file it lies in.
    ///
    /// # Errors
    /// [`Error::NoTensor`].
    pub(crate) fn tensor_in_file(&self, name: &str) -> Result<(TensorView<'_>, &Bytes), Error> {
        let found = self.tensors.get_key_value(name).and_then(|(name, place)| {
            let shard = self.shards.get(place.shard)?;
            let tensor = shard.tensor(place.stored.as_deref().unwrap_or(name))?;
            Some((TensorView { name, ..tensor }, shard.bytes()))
        });
        found.ok_or_else(|| Error::NoTensor { folder: self.folder.clone(), tensor: shorten(name) })
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("folder", &self.folder)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// The chat template in `tokenizer_config.json`: a string, or a list of `{"name": ..., "template": ...}`.
fn template_of(config: &Config) -> Result<Option<String>, Error> {
    let list = match config.get("chat_template") {
        None => return Ok(None),
        Some(Value::String(template)) => return Ok(Some(template.clone())),
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(config.wrong_type("chat_template", other, "a string or a list of templates"));
        }
    };
    let mut default = None;
    for entry in list {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let (Some(name), Some(template)) = (text("name"), text("template")) else {
            let expected = "an object with the strings name and template";
            return Err(config.wrong_type("an entry of chat_template", entry, expected));
        };
        if name == "default" {
            default = Some(template.to_owned());
        }
    }
    Ok(default)
}

/// Where each tensor lies.
type Weights = (Vec<Shard>, BTreeMap<String, usize>);

fn open_weights(folder: &Path) -> Result<Weights, Error> {
    const INDEX: &str = ".index.json";
    for (name, format) in [
        ("model.safetensors", Format::Safetensors),
        ("model.safetensors.index.json", Format::Safetensors),
        ("pytorch_model.bin", Format::Torch),
        ("pytorch_model.bin.index.json", Format::Torch),
        ("model.pt", Format::Torch),
        ("model.pth", Format::Torch),
        ("model.bin", Format::Torch),
    ] {
        let path = folder.join(name);
        if !name.ends_with(INDEX) {
            if exists(&path)? {
                let shard = open_shard(path, format)?;
                let tensors = shard.names().into_iter().map(|name| (name, 0)).collect();
                return Ok((vec![shard], tensors));
            }
        } else if let Some(text) = json::read_text(&path, limit::INDEX)? {
            return open_shards(folder, &path, &text, format);
        }
    }
    Err(match find_pickle(folder)? {
        Some(path) => Error::UnknownName { path },
        None => Error::NoWeights { folder: folder.to_owned() },
    })
}

/// The tensors under the names they are asked for by; `bare` takes prefixes away.
fn name_tensors(folder: &Path, tensors: BTreeMap<String, usize>, bare: bool) -> Result<BTreeMap<String, Place>, Error> {
    let mut named: BTreeMap<String, Place> = BTreeMap::new();
    for (stored, shard) in tensors {
        let name = PREFIXES.iter().fold(stored.as_str(), |name, prefix| name.strip_prefix(prefix).unwrap_or(name));
        let place = |stored| Place { shard, stored };
        let (name, place) =
            if bare && name != stored { (name.to_owned(), place(Some(stored))) } else { (stored, place(None)) };
        match named.entry(name) {
            Entry::Vacant(entry) => entry.insert(place),
            Entry::Occupied(entry) => {
                let stored = |place: &Place| shorten(place.stored.as_ref().unwrap_or(entry.key()));
                let (first, second) = (stored(entry.get()), stored(&place));
                return Err(Error::SameName { folder: folder.to_owned(), first, second });
            }
        };
    }
    Ok(named)
}

/// Opens the shards an index names. The index decides where a tensor lies; tensors that it does not name are taken
/// from the shard they are in, as the transformers library does.
fn open_shards(folder: &Path, index: &Path, text: &str, format: Format) -> Result<Weights, Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: json::Pairs<String>,
    }
    let Index { weight_map: json::Pairs(pairs) } = json::parse(index, text)?;

    let mut shards: Vec<Shard> = Vec::new();
    let mut opened = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (tensor, name) in pairs {
        let number = match opened.entry(name) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                if !is_plain_file_name(entry.key()) {
                    return Err(Error::ShardName { index: index.to_owned(), shard: shorten(entry.key()) });
                }
                let path = folder.join(entry.key());
                if !exists(&path)? {
                    return Err(Error::MissingShard { index: index.to_owned(), shard: path });
                }
                shards.push(open_shard(path, format)?);
                *entry.insert(shards.len() - 1)
            }
        };
        let shard = &shards[number];
        if !shard.holds(&tensor) {
            return Err(Error::NotInShard {
                index: index.to_owned(),
                shard: shard.path().to_owned(),
                tensor: shorten(&tensor),
            });
        }
        tensors.insert(tensor, number);
    }

    let mut unnamed: BTreeMap<String, usize> = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        for tensor in shard.names().into_iter().filter(|tensor| !tensors.contains_key(tensor)) {
            match unnamed.entry(tensor) {
                Entry::Vacant(entry) => entry.insert(number),
                Entry::Occupied(entry) => {
                    return Err(Error::DuplicateTensor {
                        tensor: shorten(entry.key()),
                        first: shards[*entry.get()].path().to_owned(),
                        second: shard.path().to_owned(),
                    });
                }
            };
        }
    }
    tensors.append(&mut unnamed);
    Ok((shards, tensors))
}

fn open_shard(path: PathBuf, format: Format) -> Result<Shard, Error> {
    // SAFETY: the documentation of `Checkpoint::open` asks the user to leave the files alone, which is all that any
    // reader of a mapped file can do. Bytes are only ever read as numbers or checked as text, never trusted.
    unsafe { Shard::open(path, format) }
}

/// Whether `name` is a file's name and nothing else, on every operating system.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    one && components.next().is_none() && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}

/// The first file, by name, that looks like PyTorch weights.
fn find_pickle(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut first: Option<PathBuf> = None;
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let known = path.extension().is_some_and(|e| ["bin", "pt", "pth", "ckpt"].iter().any(|known| e == *known));
        if known && first.as_ref().is_none_or(|first| path < *first) {
            first = Some(path);
        }
    }
    Ok(first)
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Refuses folders, pipes and devices: opening or reading those may never end.
fn require_regular_file(path: &Path) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(kind) if kind.is_file() => Ok(()),
        Ok(_) => Err(Error::NotAFile { path: path.to_owned() }),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests;
