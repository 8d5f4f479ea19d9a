//! The rules by which byte-level BPE cuts text into words, under the names that `tokenizer.ggml.pre` has for them.
//!
//! Names and rules are llama.cpp's (`src/llama-vocab.cpp`). Where it approximates the expression of the original
//! tokenizer, the original is used: in `tekken` and `gpt-4o` only ASCII letters have a case there, and in
//! `deepseek-llm` the ideographic space is no punctuation. Rules that it computes by code of their own are not known
//! here.

use tokenizers::NormalizerWrapper;

use crate::text::Tokenizer;

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Letters with a case, as its tokenizer.json lists them.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";

/// One way of cutting text into words.
pub(super) struct Pre {
    /// The names it goes by; the first is the one we write.
    pub(super) names: &'static [&'static str],
    /// Applied one after the other, each to every piece the one before left.
    pub(super) regexes: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a prompt starts with BOS where the file does not say.
    pub(super) add_bos: bool,
}

const fn pre(names: &'static [&'static str], regexes: &'static [&'static str]) -> Pre {
    Pre { names, regexes, ignore_merges: false, add_bos: false }
}

/// The name of the rules that llama.cpp falls back on.
pub(super) const DEFAULT: &str = "default";

/// All that are known. Of two with the same rules the first is the one we write.
pub(super) const PRES: &[Pre] = &[
    pre(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "olmo",
            "mpt",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    Pre {
        ignore_merges: true,
        add_bos: true,
        ..pre(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
            &[LLAMA3],
        )
    },
    Pre { ignore_merges: true, ..pre(&["glm4", "glm5"], &[LLAMA3]) },
    pre(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    pre(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN2],
    ),
    pre(&["qwen35"], &[QWEN35]),
    pre(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    pre(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    pre(&["deepseek-llm"], &["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"]),
    pre(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3]),
    pre(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    Pre { ignore_merges: true, add_bos: true, ..pre(&["tekken"], &[TEKKEN]) },
    pre(&["seed-coder"], &[SEED_CODER]),
    pre(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    pre(&["ufakzeka"], &[UFAKZEKA]),
    pre(&["laguna"], &[r"[^\n]+|[\n]+", QWEN2]),
    pre(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    pre(&["viking"], &[BLOOM, r"\p{N}"]),
    pre(&[DEFAULT], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

/// The rules of a name.
pub(super) fn by_name(name: &str) -> Option<&'static Pre> {
    PRES.iter().find(|p| p.names.contains(&name))
}

impl Pre {
    /// The rules that a tokenizer.json's expressions spell.
    pub(super) fn recognise(regexes: &[String], ignore_merges: bool) -> Option<&'static Self> {
        PRES.iter().find(|p| p.ignore_merges == ignore_merges && same_rules(p.regexes, regexes))
    }
}

impl Tokenizer {
    /// The expressions that cut text into words before the byte-level alphabet, or `None` if there is none. A rule
    /// that is no regular expression becomes an empty one, which equals no other.
    pub(super) fn byte_level_regexes(&self) -> Option<Vec<String>> {
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
                // These expressions match everywhere, so keeping the matches and isolating them is the same.
                "Split"
                    if (step["behavior"] == "Isolated" && step["invert"] == false)
                        || (step["behavior"] == "Removed" && step["invert"] == true) =>
                {
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
