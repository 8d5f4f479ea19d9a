//! The `tokenizer.ggml.*` keys of GGUF: a tokenizer from them alone, and them from a tokenizer.
//!
//! Only byte-level BPE (model `gpt2`) is known. Its rules for cutting text into words are not in the file; the key
//! `tokenizer.ggml.pre` names them. The names and rules below are llama.cpp's (`src/llama-vocab.cpp`).

use serde_json::{Value, json};
use tokenizers::NormalizerWrapper;

use super::{Error, SpecialIds, Tokenizer};

/// Token type of an ordinary token.
pub const TOKEN_NORMAL: i32 = 1;
/// Token type of the token that stands for what the vocabulary cannot say.
pub const TOKEN_UNKNOWN: i32 = 2;
/// Token type of a control token.
pub const TOKEN_CONTROL: i32 = 3;
/// Token type of an added word.
pub const TOKEN_USER_DEFINED: i32 = 4;
/// Token type of a row that no text uses.
pub const TOKEN_UNUSED: i32 = 5;

/// The model name of byte-level BPE.
const GPT2_MODEL: &str = "gpt2";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// One way of cutting text into words.
struct Pre {
    /// The names it goes by; the first is the one we write.
    names: &'static [&'static str],
    /// Applied one after the other, each to every piece the one before left.
    regexes: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    ignore_merges: bool,
    /// Whether a prompt starts with BOS where the file does not say.
    add_bos: bool,
}

const fn pre(names: &'static [&'static str], regexes: &'static [&'static str]) -> Pre {
    Pre { names, regexes, ignore_merges: false, add_bos: false }
}

const PRES: &[Pre] = &[
    pre(
        &["gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "olmo", "mpt", "jais", "trillion"],
        &[GPT2],
    ),
    Pre {
        ignore_merges: true,
        add_bos: true,
        ..pre(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"], &[LLAMA3])
    },
    pre(&["dbrx", "smaug-bpe"], &[LLAMA3]),
    pre(&["qwen2", "deepseek-r1-qwen", "stablelm2"], &[QWEN2]),
    pre(&["qwen35"], &[QWEN35]),
    pre(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], &[r"\p{N}", GPT2]),
    pre(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    pre(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
    pre(&["deepseek-v3"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3]),
    pre(&[DEFAULT], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

/// The name of the rules that llama.cpp falls back on.
const DEFAULT: &str = "default";

/// The vocabulary of a GGUF file, as its keys have it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VocabParts {
    /// `tokenizer.ggml.model`; only `gpt2` is known.
    pub model: String,
    /// `tokenizer.ggml.pre`; empty if the file has none, which means the default.
    pub pre: String,
    /// `tokenizer.ggml.tokens`, in order of their ids.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, one per token; empty if the file has none.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, each two tokens with a space between, the first applied first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id` and its like.
    pub special: SpecialIds,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
}

/// What to write into a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgmlKeys {
    /// The keys' values. `add_bos` is always given.
    pub parts: VocabParts,
    /// Whether `parts.pre` names exactly the tokenizer's own rules. Otherwise it is the default, and another program that
    /// goes by these keys may cut some text differently.
    pub pre_is_exact: bool,
}

impl Tokenizer {
    /// Builds a tokenizer from the `tokenizer.ggml.*` keys of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown model or pre-tokenizer, [`Error::Range`] for lists that do not fit
    /// together, [`Error::Merge`] and [`Error::Ambiguous`] for bad entries, [`Error::UnknownId`] for a special id
    /// outside the vocabulary.
    pub fn from_parts(parts: VocabParts) -> Result<Self, Error> {
        if parts.model != GPT2_MODEL {
            return Err(Error::Unsupported {
                what: "tokenizer.ggml.model",
                found: parts.model,
                known: GPT2_MODEL.to_owned(),
            });
        }
        let name = match parts.pre.as_str() {
            "" => DEFAULT,
            name => name,
        };
        let rules = PRES.iter().find(|p| p.names.contains(&name));
        let rules = rules.ok_or_else(|| Error::Unsupported {
            what: "tokenizer.ggml.pre",
            found: name.to_owned(),
            known: PRES.iter().flat_map(|p| p.names).copied().collect::<Vec<_>>().join(", "),
        })?;
        let mut tokenizer = Self::from_value(tokenizer_json(&parts, rules)?)?;
        tokenizer.set_special_ids(parts.special)?;
        let add_bos = parts.add_bos.unwrap_or(rules.add_bos);
        tokenizer.set_add_bos(add_bos && parts.special.bos.is_some());
        Ok(tokenizer)
    }

    /// The `tokenizer.ggml.*` keys that say what this tokenizer does, for a table of `rows` rows. Rows that are no
    /// token's are named `[PAD{row}]` and marked unused.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the tokenizer is byte-level BPE, [`Error::Range`] if it has more tokens than the
    /// table has rows.
    pub fn ggml_keys(&self, rows: usize) -> Result<GgmlKeys, Error> {
        let bpe = &self.model;
        let regexes = self.byte_level_regexes().ok_or_else(|| Error::Unsupported {
            what: "for GGUF, the tokenizer's model",
            found: "BPE that is not byte-level".to_owned(),
            known: "byte-level BPE".to_owned(),
        })?;
        if rows < self.vocabulary() {
            return Err(Error::Range {
                what: "the number of rows of the embedding table",
                expected: format!("at least the vocabulary's {}", self.vocabulary()),
                found: rows as u64,
            });
        }
        // Unlike a vocabulary in memory, one in JSON gives its merges away.
        let model = serde_json::to_value(bpe).unwrap_or_default();
        let merge = |rule: &Value| match rule.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(format!("{} {}", rule[0].as_str()?, rule[1].as_str()?)),
        };
        let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
        let merges = merges.iter().filter_map(merge).collect();

        let mut tokens: Vec<Option<String>> = vec![None; rows];
        let mut token_types = vec![TOKEN_UNUSED; rows];
        for (text, id) in bpe.get_vocab() {
            tokens[id as usize] = Some(text);
            token_types[id as usize] = TOKEN_NORMAL;
        }
        for token in self.added.iter() {
            tokens[token.id as usize] = Some(token.content.clone());
            token_types[token.id as usize] = match token.special {
                true => TOKEN_CONTROL,
                false => TOKEN_USER_DEFINED,
            };
        }
        let pad = |(row, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("[PAD{row}]"));
        let ignore_merges = bpe.ignore_merges;
        let exact = PRES.iter().find(|p| p.ignore_merges == ignore_merges && same_rules(p.regexes, &regexes));
        Ok(GgmlKeys {
            parts: VocabParts {
                model: GPT2_MODEL.to_owned(),
                pre: exact.map_or(DEFAULT, |p| p.names[0]).to_owned(),
                tokens: tokens.into_iter().enumerate().map(pad).collect(),
                token_types,
                merges,
                special: self.special_ids(),
                add_bos: Some(self.add_bos()),
            },
            pre_is_exact: exact.is_some(),
        })
    }

    /// The expressions that cut text into words before the byte-level alphabet, or `None` if there is none. A rule
    /// that is no regular expression becomes an empty one, which equals no other.
    fn byte_level_regexes(&self) -> Option<Vec<String>> {
        let rules = serde_json::to_value(self.pre_tokenizer.as_ref()?).ok()?;
        let steps = match rules["pretokenizers"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(&rules),
        };
        let mut regexes = Vec::new();
        let mut byte_level = false;
        for step in steps {
            let unknown = String::new;
            match step["type"].as_str().unwrap_or_default() {
                "ByteLevel" => {
                    byte_level = true;
                    if step["add_prefix_space"] == true {
                        regexes.push(unknown());
                    }
                    if step["use_regex"] != false {
                        regexes.push(GPT2.to_owned());
                    }
                }
                "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                    let regex = step["pattern"]["Regex"].as_str();
                    regexes.push(regex.map_or_else(unknown, str::to_owned));
                }
                "Digits" if step["individual_digits"] == true => regexes.push(r"\p{N}".to_owned()),
                _ => regexes.push(unknown()),
            }
        }
        // Composing characters (NFC) is what llama.cpp leaves out for the models that want it; other normalisers
        // change ordinary text.
        if !matches!(self.normalizer, None | Some(NormalizerWrapper::NFC(_))) {
            regexes.push(String::new());
        }
        byte_level.then_some(regexes)
    }
}

/// Whether two lists of expressions cut every text alike, as far as their spelling tells.
fn same_rules(a: &[&str], b: &[String]) -> bool {
    /// The known spellings of the same expression. A final `\s+` cuts where an isolated rest is cut anyway.
    fn plain(regex: &str) -> String {
        const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
        let regex = regex.strip_suffix(r"|\s+").unwrap_or(regex);
        regex.replace(CONTRACTIONS, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
    }
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| plain(a) == plain(b))
}

/// The tokenizer.json that says what the keys say.
fn tokenizer_json(parts: &VocabParts, rules: &Pre) -> Result<Value, Error> {
    let count = parts.tokens.len();
    if !parts.token_types.is_empty() && parts.token_types.len() != count {
        return Err(Error::Range {
            what: "the length of tokenizer.ggml.token_type",
            expected: format!("{count}, one per token"),
            found: parts.token_types.len() as u64,
        });
    }
    let mut vocabulary = serde_json::Map::with_capacity(count);
    let mut added = Vec::new();
    for (id, text) in parts.tokens.iter().enumerate() {
        let kind = parts.token_types.get(id).copied().unwrap_or(TOKEN_NORMAL);
        if kind == TOKEN_UNUSED {
            continue;
        }
        if matches!(kind, TOKEN_CONTROL | TOKEN_USER_DEFINED) {
            added.push(json!({"id": id, "content": text, "special": kind == TOKEN_CONTROL}));
        }
        if let Some(first) = vocabulary.insert(text.clone(), json!(id)) {
            return Err(Error::Ambiguous {
                first: text.clone(),
                first_id: first.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX),
                second: text.clone(),
                second_id: u32::try_from(id).unwrap_or(u32::MAX),
            });
        }
    }
    let mut merges = Vec::with_capacity(parts.merges.len());
    for (index, rule) in parts.merges.iter().enumerate() {
        // The alphabet has no space, so the one space is the border.
        let two = rule.split_once(' ').filter(|(a, b)| {
            let known = |t: &str| vocabulary.contains_key(t);
            known(a) && known(b) && known(&format!("{a}{b}"))
        });
        let Some((a, b)) = two else {
            let found = rule.clone();
            return Err(Error::Merge { index, found });
        };
        merges.push(json!([a, b]));
    }
    let mut steps: Vec<Value> = rules
        .regexes
        .iter()
        .map(|r| json!({"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": false}))
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    steps.push(bytes.clone());
    Ok(json!({
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "ignore_merges": rules.ignore_merges,
            "vocab": vocabulary,
            "merges": merges,
        },
    }))
}

#[cfg(test)]
mod tests;
