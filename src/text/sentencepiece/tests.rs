use super::*;
use crate::text::{TOKEN_BYTE, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNKNOWN, Tokenizer};
use proptest::prelude::*;

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn number(field: u64, n: u64) -> Vec<u8> {
    [varint(field << 3), varint(n)].concat()
}

fn bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn piece(text: &str, score: f32, kind: i32) -> Vec<u8> {
    let score = [varint(2 << 3 | 5), score.to_le_bytes().to_vec()].concat();
    let message = [bytes(1, text.as_bytes()), score, number(3, kind as u64)].concat();
    bytes(field::PIECES, &message)
}

/// A small model: three special tokens, the bytes, and a few words.
fn file() -> Vec<u8> {
    let mut file = Vec::new();
    let special = [("<unk>", TOKEN_UNKNOWN), ("<s>", TOKEN_CONTROL), ("</s>", TOKEN_CONTROL)];
    special.iter().for_each(|(text, kind)| file.extend(piece(text, 0.0, *kind)));
    (0..256).for_each(|b| file.extend(piece(&format!("<0x{b:02X}>"), 0.0, TOKEN_BYTE)));
    let words = [("▁a", -0.0), ("ab", -1.0), ("▁", -2.0), ("a", -3.0), ("b", -4.0)];
    words.iter().for_each(|(text, score)| file.extend(piece(text, *score, TOKEN_NORMAL)));
    // No padding is -1, as ten bytes.
    let trainer = [number(3, 2), number(35, 1), number(40, 0), number(41, 1), number(42, 2), number(43, u64::MAX)];
    file.extend(bytes(field::TRAINER, &trainer.concat()));
    let normalizer = [bytes(1, b"identity"), number(3, 1), number(4, 0), number(5, 1)];
    file.extend(bytes(field::NORMALIZER, &normalizer.concat()));
    // What later versions add is skipped.
    file.extend([varint(99 << 3 | 1), vec![0; 8]].concat());
    file
}

#[test]
fn a_model_is_read_whole() {
    let read = read(&file()).unwrap();
    assert_eq!(read.warnings, [""; 0]);
    let parts = read.parts;
    assert_eq!((parts.tokens.len(), parts.tokens[259].as_str(), parts.scores[260]), (264, "▁a", -1.0));
    assert_eq!((parts.token_types[0], parts.token_types[3], parts.token_types[263]), (TOKEN_UNKNOWN, TOKEN_BYTE, 1));
    assert_eq!(parts.special, SpecialIds { bos: Some(1), eos: Some(2), pad: None, unk: Some(0) });
    assert_eq!(parts.add_space_prefix, Some(true));
    let t = Tokenizer::from_parts(parts).unwrap();
    assert_eq!(t.encode_prompt("ab é").unwrap(), [1, 259, 263, 261, 3 + 0xC3, 3 + 0xA9]);
}

#[test]
fn what_is_not_done_is_said() {
    let normalizer = [bytes(2, b"charsmap"), number(3, 0), number(5, 0)].concat();
    let suffix = bytes(field::TRAINER, &[number(3, 2), number(24, 1)].concat());
    let read = read(&[file(), bytes(field::NORMALIZER, &normalizer), suffix].concat()).unwrap();
    assert_eq!(read.warnings.len(), 4, "{:?}", read.warnings);
    assert_eq!(read.parts.add_space_prefix, Some(false));
}

#[test]
fn hostile_files_are_errors() {
    let good = file();
    let refused = |file: &[u8]| read(file).unwrap_err();
    assert_eq!(
        refused(b""),
        Error::Unsupported { what: "tokenizer.model of type", found: "Unigram".into(), known: "BPE".into() }
    );
    assert!(matches!(refused(&bytes(field::TRAINER, &number(3, u64::MAX))), Error::Unsupported { .. }));
    assert_eq!(refused(&bytes(field::TRAINER, &number(3, 2))), Error::SentencePiece("no tokens"));
    // A length beyond the file, one beyond any address, a number without end, a group, half a score, no UTF-8.
    let endless = [0xFF; 11];
    let bad: [&[u8]; 6] = [
        &[0x0A, 0x7F],
        &[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1],
        &endless,
        &[0x0B],
        &[0x15, 0],
        &[],
    ];
    for tail in &bad[..5] {
        assert!(matches!(refused(&[&good, *tail].concat()), Error::SentencePiece(_)), "{tail:?}");
    }
    for message in [&[0x0A, 1, 0xFF][..], &[0x0A, 9], &[0x15, 0], &[0x18]] {
        assert!(matches!(refused(&[good.clone(), bytes(1, message)].concat()), Error::SentencePiece(_)), "{message:?}");
    }
    // An id beyond the vocabulary is none.
    let trainer = bytes(field::TRAINER, &[number(3, 2), number(41, 4_000_000_000)].concat());
    assert_eq!(read(&[good, trainer].concat()).unwrap().parts.special.bos, None);
}

#[test]
fn truncated_files_are_errors_or_shorter() {
    let good = file();
    for end in 0..good.len() {
        if let Ok(read) = read(&good[..end]) {
            assert_eq!(read.parts.tokens.len(), 264);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_do_harm(noise in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..2000, flip in any::<u8>()) {
        let _ = read(&noise);
        let mut file = file();
        let at = at % file.len();
        file[at] ^= flip;
        if let Ok(read) = read(&file) {
            let _ = Tokenizer::from_parts(read.parts).map(|t| t.encode_plain("ab é <s>"));
        }
    }
}
