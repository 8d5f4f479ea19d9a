//! Weights files that are wrong in one way each.

use super::*;
use crate::checkpoint::shard::HEADER_LIMIT;
use proptest::prelude::*;

/// Every header that contradicts itself or its file, and a piece of the message it must give.
#[test]
fn malformed_headers_are_refused() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let good = tensor("F32", "[2]", "[0,8]");
    let other = |offsets: &str| format!(r#""v":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}"#);
    let max = u64::MAX;
    let catalogue = [
        ("".to_owned(), "EOF"),
        ("[]".to_owned(), "expected an object of tensors"),
        ("{".to_owned(), "EOF"),
        (format!("{{{good}}} x"), "trailing"),
        (format!("{{{good},{good}}}"), "\"w\" is there twice"),
        (format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{good}}}"#), "is there twice"),
        (r#"{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_owned(), "duplicate field"),
        (r#"{"w":{"dtype":"F32","shape":[2]}}"#.to_owned(), "missing field `data_offsets`"),
        (r#"{"w":3}"#.to_owned(), "invalid type"),
        (format!("{{{}}}", tensor("F31", "[2]", "[0,8]")), "unknown variant `F31`"),
        (format!("{{{}}}", tensor("\\u001b[31m", "[2]", "[0,8]")), r"unknown variant `\u{1b}[31m`"),
        (format!("{{{}}}", tensor(&"F".repeat(5000), "[2]", "[0,8]")), "unknown variant `FFF"),
        (format!("{{{}}}", tensor("F32", "[-2]", "[0,8]")), "invalid value"),
        (format!("{{{}}}", tensor("F32", "[2.0]", "[0,8]")), "invalid type"),
        (format!("{{{}}}", tensor("F32", "2", "[0,8]")), "invalid type"),
        (format!("{{{}}}", tensor("F32", "[2]", "[0]")), "invalid length"),
        (format!("{{{}}}", tensor("F32", "[2]", "[0,4,8]")), "trailing"),
        (
            format!("{{{}}}", tensor("F32", "[3]", "[0,8]")),
            "tensor \"w\" of type F32 and shape [3] does not fill its 8",
        ),
        (format!("{{{}}}", tensor("F32", "[2,0]", "[0,8]")), "does not fill"),
        (format!("{{{}}}", tensor("F32", "[4294967296,4294967296]", "[0,8]")), "does not fill"),
        (format!("{{{}}}", tensor("F32", "[4611686018427387904]", "[0,8]")), "does not fill"),
        (format!("{{{}}}", tensor("F4", "[15]", "[0,8]")), "does not fill"),
        (format!("{{{}}}", tensor("F32", "[0]", "[8,0]")), "ends at byte 0, before its start at 8"),
        (format!("{{{}}}", tensor("F32", "[1]", "[0,4]")), "should have"),
        (format!("{{{}}}", tensor("F32", "[3]", "[0,12]")), "was the download cut short?"),
        ("{}".to_owned(), "should have 10 bytes by its header and has 18"),
        (format!("{{{good},{}}}", other("[4,8]")), "invalid offset"),
        (format!("{{{good},{}}}", other("[0,4]")), "invalid offset"),
        (format!("{{{}}}", tensor("F32", "[1]", "[4,8]")), "invalid offset for tensor `w`"),
        (format!("{{{}}}", tensor("U8", &format!("[{}]", 8), &format!("[{},{max}]", max - 8))), "should have"),
        (
            r#"{"\u001b[2J":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#.to_owned(),
            r"invalid offset for tensor `\u{1b}[2J`",
        ),
        (format!(r#"{{"w":{}"#, "[".repeat(2000)), "expected value"),
        (format!(r#"{{"__metadata__":{}"#, "[".repeat(2000)), "EOF"),
    ];
    for (header, expected) in catalogue {
        let shown = &header[..header.len().min(200)];
        let result = open_weights_file(&header, &[0; 8]);
        assert!(result.is_err(), "{shown} was accepted");
        let text = message(result);
        assert!(text.contains(expected) && text.contains("model.safetensors"), "{shown}: {text}");
    }
}

/// Tensors of nearly 2^61 bytes each, whose end is so near 2^64 that adding the header's length to it overflows.
#[test]
fn sizes_that_overflow_are_refused() {
    let step = (1u64 << 61) - 1;
    let tensor = |i: u64| {
        let (start, end) = (i * step, (i + 1) * step);
        format!(r#""t{i}":{{"dtype":"U8","shape":[{step}],"data_offsets":[{start},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..8).map(tensor).collect::<Vec<_>>().join(","));
    let result = open_weights_file(&header, &[]);
    assert!(matches!(result, Err(Error::Size { .. })), "{result:?}");
}

#[test]
fn impossible_header_lengths_are_refused() {
    for length in [1u64 << 63, u64::MAX, u64::MAX - 7, HEADER_LIMIT + 1] {
        let file = [length.to_le_bytes().as_slice(), b"{}"].concat();
        let result = open(&[("model.safetensors", &file)]);
        assert!(matches!(result, Err(Error::HeaderLength { found, .. }) if found == length));
    }
    for length in [3u64, HEADER_LIMIT] {
        let file = [length.to_le_bytes().as_slice(), b"{}"].concat();
        let result = open(&[("model.safetensors", &file)]);
        assert!(matches!(result, Err(Error::Size { expected, found: 10, .. }) if expected == 8 + length));
    }
    let file = weights("{\"\u{e9}\": 1}", &[]).iter().map(|&b| if b == 0xc3 { 0xff } else { b }).collect::<Vec<_>>();
    assert!(matches!(open(&[("model.safetensors", &file)]), Err(Error::Utf8 { offset: 10, .. })));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = published(&[("a", Dtype::F32, &[2, 2], &[1; 16]), ("b", Dtype::BF16, &[3], &[2; 6])]);
    open(&[("model.safetensors", &file)]).unwrap();
    for end in 0..file.len() {
        let result = open(&[("model.safetensors", &file[..end])]);
        assert!(matches!(result, Err(Error::Size { found, .. }) if found == end as u64), "{end}: {result:?}");
    }
    let longer = [file.as_slice(), &[0]].concat();
    assert!(matches!(open(&[("model.safetensors", &longer)]), Err(Error::Size { .. })));
}

proptest! {
    /// Damage anywhere gives an error or a checkpoint whose tensors can all be read.
    #[test]
    fn damaged_files_never_panic(damage in prop::collection::vec((0usize..400, any::<u8>()), 1..4)) {
        let mut file = published(&[("a", Dtype::F32, &[2, 2], &[1; 16]), ("b", Dtype::BF16, &[3], &[2; 6])]);
        for (at, byte) in damage {
            let at = at % file.len();
            file[at] = byte;
        }
        if let Ok(checkpoint) = open(&[("model.safetensors", &file)]) {
            for name in checkpoint.names() {
                let tensor = checkpoint.tensor(name).unwrap();
                prop_assert!(tensor.to_f32().is_ok() || tensor.tensor_type().is_none());
            }
        }
    }
}
