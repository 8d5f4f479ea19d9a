//! A catalogue of malformed files. Each is refused with the error that says what is wrong with it, without a
//! panic and without memory beyond a small multiple of the file's size.
//!
//! Cases with a CVE or issue number replay what has gone wrong in other readers.

use rdt::gguf::{Error, Header, MAX_ALIGNMENT, MAX_DEPTH, MAX_NAME};

use crate::memory::peak_during;
use crate::round_trip::sample_file;

const F32: u32 = 0;
const Q4_0: u32 = 2;
const Q4_K: u32 = 12;

const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&u64s(&[bytes.len() as u64]), bytes].concat()
}

/// A key with its value's type and bytes.
fn kv(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [&text(key.as_bytes()), &u32s(&[ty]), value].concat()
}

/// An array's type, count and bytes.
fn array(ty: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&u32s(&[ty]), &u64s(&[count]), items].concat()
}

fn tensor(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    [&text(name.as_bytes())[..], &u32s(&[dims.len() as u32]), &u64s(dims), &u32s(&[ty]), &u64s(&[offset])].concat()
}

fn prologue(version: u32, tensor_count: u64, key_count: u64) -> Vec<u8> {
    [&b"GGUF"[..], &u32s(&[version]), &u64s(&[tensor_count, key_count])].concat()
}

/// A file of version 3 with alignment 32 and `data` bytes of zeros.
fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut file = prologue(3, tensors.len() as u64, keys.len() as u64);
    file.extend(keys.concat());
    file.extend(tensors.concat());
    file.resize(file.len().next_multiple_of(32) + data, 0);
    file
}

/// Parses, and checks that memory stayed within bounds whatever came of it.
fn parse(file: &[u8]) -> Result<Header, Error> {
    let (result, peak) = peak_during(|| Header::parse(file));
    let bound = 64 * file.len() + 4096;
    assert!(peak <= bound, "{peak} bytes held for a file of {}", file.len());
    result
}

#[track_caller]
fn refused(file: &[u8]) -> Error {
    let error = parse(file).expect_err("the file must be refused");
    let message = error.to_string();
    assert!(!message.contains('\n') && message.len() < 500, "{message}");
    error
}

/// `refused!(file, pattern)`: the file is refused with an error of this pattern.
macro_rules! refused {
    ($file:expr, $($pattern:tt)+) => {{
        let error = refused(&$file);
        assert!(matches!(&error, $($pattern)+), "{error:?}");
    }};
}

#[test]
fn the_builder_makes_good_files() {
    let keys = [
        kv("general.alignment", U32, &u32s(&[32])),
        kv("tokens", ARRAY, &array(STRING, 2, &[text(b"a"), text(b"b")].concat())),
    ];
    let tensors = [tensor("a", &[32, 2], Q4_0, 0), tensor("b", &[2], F32, 64)];
    let header = parse(&file(&keys, &tensors, 96)).unwrap();
    assert_eq!(header.metadata.require_strings("tokens").unwrap(), ["a", "b"]);
    assert_eq!(header.tensor("a").unwrap().bytes, 36);
    assert_eq!(header.tensor("b").unwrap().offset, header.data_offset + 64);
    assert!(header.tensor("c").is_none());
}

#[test]
fn every_truncation_is_an_error() {
    let sample = sample_file();
    let header = parse(&sample).unwrap();
    let last = header.tensors.last().unwrap();
    let end = last.offset + last.bytes;
    assert!(end > header.data_offset && header.data_offset > 1000);
    for len in 0..end {
        match refused(&sample[..len]) {
            Error::NotGguf { .. } => assert!(len < 4),
            Error::Truncated { at, left, .. } => assert_eq!(at + left, len),
            Error::FileTooShort { expected, found, .. } => {
                assert_eq!((expected, found), (end as u64, len as u64));
            }
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    // Only the padding after the last tensor may be missing.
    for len in end..=sample.len() {
        parse(&sample[..len]).unwrap();
    }
}

#[test]
fn no_single_byte_can_do_harm() {
    let mut bytes = sample_file();
    let data_offset = parse(&bytes).unwrap().data_offset;
    for at in 0..data_offset {
        let good = bytes[at];
        for bad in [0, 1, 9, 0x7f, 0x80, 0xff, good.wrapping_add(1), !good, good ^ 0x20] {
            bytes[at] = bad;
            if let Ok(header) = parse(&bytes) {
                for tensor in &header.tensors {
                    assert_eq!(tensor.data(&bytes).map(<[u8]>::len), Some(tensor.bytes));
                }
            }
        }
        bytes[at] = good;
    }
}

#[test]
fn an_empty_file() {
    refused!([], Error::NotGguf { found } if found.is_empty());
}

#[test]
fn another_format() {
    refused!(*b"PK\x03\x04 a zip file", Error::NotGguf { found } if found == b"PK\x03\x04");
    refused!(*b"ggjt old", Error::NotGguf { .. });
}

#[test]
fn version_0_1_and_4() {
    for version in [0, 1, 4, 0x1_0001] {
        refused!(prologue(version, 0, 0), Error::Version { found } if *found == version);
    }
}

#[test]
fn version_2_is_read() {
    let mut bytes = file(&[], &[tensor("t", &[4], F32, 0)], 16);
    bytes[4] = 2;
    assert_eq!(parse(&bytes).unwrap().version, 2);
}

#[test]
fn a_big_endian_file() {
    let bytes = [&b"GGUF"[..], &3u32.to_be_bytes(), &[0; 16]].concat();
    refused!(bytes, Error::BigEndian);
}

#[test]
fn counts_beyond_the_file() {
    for count in [1, 2, 1 << 32, 1 << 63, u64::MAX / 14 + 1, u64::MAX] {
        refused!(prologue(3, count, 0), Error::Truncated { .. });
        refused!(prologue(3, 0, count), Error::Truncated { .. });
        refused!(prologue(3, count, count), Error::Truncated { .. });
    }
}

/// llama.cpp pull 19856, CVE-2026-27940 and CVE-2025-53630: the memory for all tensors wraps.
#[test]
fn tensor_sizes_that_add_up_past_64_bits() {
    let half = (1u64 << 62) - 64;
    let tensors: Vec<_> = (0..5).map(|i| tensor(&format!("t{i}"), &[half / 4], F32, i * half)).collect();
    refused!(file(&[], &tensors, 64), Error::FileTooShort { .. });
    let tensors = [tensor("a", &[8], F32, 0), tensor("b", &[1 << 60], F32, u64::MAX - 31)];
    refused!(file(&[], &tensors, 64), Error::FileTooShort { expected: u64::MAX, .. });
}

#[test]
fn a_string_beyond_the_file() {
    for len in [1 << 30, 1 << 63, u64::MAX] {
        let keys = [kv("k", STRING, &u64s(&[len]))];
        refused!(file(&keys, &[], 0), Error::Truncated { needed, .. } if *needed == len);
    }
}

/// ggml pull 1516, ollama issue 17042: gigabytes asked for by a file of 160 bytes. llama.cpp pull 27188: an
/// array of 2^63 that never ends.
#[test]
fn an_array_beyond_the_file() {
    for ty in 0..=12 {
        for count in [1 << 30, 1 << 61, 1 << 63, u64::MAX] {
            let keys = [kv("k", ARRAY, &array(ty, count, &[0; 64]))];
            refused!(file(&keys, &[], 0), Error::Truncated { .. });
        }
    }
}

/// The same within an array of arrays.
#[test]
fn a_nested_array_beyond_the_file() {
    let inner = array(U64, 1 << 60, &[]);
    let keys = [kv("k", ARRAY, &array(ARRAY, 1, &inner))];
    refused!(file(&keys, &[], 0), Error::Truncated { .. });
}

#[test]
fn arrays_nested_without_end() {
    let nested = |depth: usize| {
        let outer = array(ARRAY, 1, &[]).repeat(depth - 1);
        file(&[kv("k", ARRAY, &[outer, array(U8, 1, &[7])].concat())], &[], 0)
    };
    parse(&nested(MAX_DEPTH)).unwrap();
    refused!(nested(MAX_DEPTH + 1), Error::Depth { key } if key == "k");
    refused!(nested(100_000), Error::Depth { .. });
}

#[test]
fn an_unknown_value_type() {
    refused!(file(&[kv("k", 13, &[0; 8])], &[], 0), Error::ValueType { found: 13, .. });
    refused!(file(&[kv("k", ARRAY, &array(u32::MAX, 1, &[0; 8]))], &[], 0), Error::ValueType { found: u32::MAX, .. });
}

#[test]
fn a_bool_that_is_neither() {
    refused!(file(&[kv("k", BOOL, &[2])], &[], 0), Error::Bool { found: 2, .. });
    let keys = [kv("k", ARRAY, &array(BOOL, 3, &[0, 1, 255]))];
    refused!(file(&keys, &[], 0), Error::Bool { found: 255, .. });
}

#[test]
fn text_that_is_not_utf8() {
    let bad = text(&[0xff, 0xfe]);
    let values =
        [kv("k", STRING, &bad), kv("k", ARRAY, &array(STRING, 1, &bad)), [&bad[..], &u32s(&[U8]), &[0]].concat()];
    for value in values {
        refused!(file(&[value], &[], 0), Error::Utf8 { .. });
    }
    let mut name = tensor("xx", &[1], F32, 0);
    name[8] = 0xc3;
    refused!(file(&[], &[name], 32), Error::Utf8 { what: "a tensor name", .. });
}

/// llama.cpp pull 26946: empty and duplicate keys.
#[test]
fn an_empty_key() {
    refused!(file(&[kv("", U8, &[0])], &[], 0), Error::NameLength { found: 0, .. });
}

#[test]
fn a_duplicate_key() {
    let keys = [kv("a", U8, &[0]), kv("b", U8, &[0]), kv("a", U32, &[0; 4])];
    refused!(file(&keys, &[], 0), Error::DuplicateKey { key } if key == "a");
}

#[test]
fn names_have_a_longest_length() {
    let longest = "x".repeat(MAX_NAME);
    let too_long = "x".repeat(MAX_NAME + 1);
    parse(&file(&[kv(&longest, U8, &[0])], &[tensor(&longest, &[1], F32, 0)], 32)).unwrap();
    refused!(file(&[kv(&too_long, U8, &[0])], &[], 0), Error::NameLength { .. });
    refused!(file(&[], &[tensor(&too_long, &[1], F32, 0)], 32), Error::NameLength { .. });
}

#[test]
fn an_empty_tensor_name() {
    refused!(file(&[], &[tensor("", &[1], F32, 0)], 32), Error::NameLength { what: "a tensor name", found: 0 });
}

#[test]
fn a_duplicate_tensor() {
    let tensors = [tensor("a", &[1], F32, 0), tensor("a", &[2], F32, 32)];
    refused!(file(&[], &tensors, 64), Error::DuplicateTensor { tensor } if tensor == "a");
}

/// llama.cpp pulls 24997 and 26318: alignments that divide by zero or wrap the padding.
#[test]
fn an_alignment_that_is_none() {
    for found in [0, 3, 33, 48, MAX_ALIGNMENT as u32 * 2, 1 << 31, u32::MAX] {
        let keys = [kv("general.alignment", U32, &u32s(&[found]))];
        refused!(file(&keys, &[], 0), Error::Alignment { found: f } if *f == found);
    }
}

#[test]
fn an_alignment_of_the_wrong_type() {
    let wrong = [
        kv("general.alignment", U64, &u64s(&[32])),
        kv("general.alignment", U8, &[32]),
        kv("general.alignment", STRING, &text(b"32")),
        kv("general.alignment", ARRAY, &array(U32, 1, &u32s(&[32]))),
    ];
    for key in wrong {
        refused!(file(&[key], &[], 0), Error::KeyType { expected: "u32", .. });
    }
}

#[test]
fn alignment_is_honoured() {
    for alignment in [1, 8, 64, 4096] {
        let keys = [kv("general.alignment", U32, &u32s(&[alignment]))];
        let mut bytes = prologue(3, 1, 1);
        bytes.extend(keys.concat());
        bytes.extend(tensor("t", &[1], F32, u64::from(alignment)));
        let data = bytes.len().next_multiple_of(alignment as usize);
        bytes.resize(data + alignment as usize + 4, 0);
        let header = parse(&bytes).unwrap();
        assert_eq!(header.data_offset, data);
        assert_eq!(header.tensors[0].offset, data + alignment as usize);
    }
}

#[test]
fn a_misaligned_tensor() {
    for offset in [1, 4, 16, 33, u64::MAX] {
        refused!(
            file(&[], &[tensor("t", &[1], F32, offset)], 64),
            Error::Misaligned { found, alignment: 32, .. } if *found == offset
        );
    }
}

#[test]
fn no_dimensions_or_five() {
    refused!(file(&[], &[tensor("t", &[], F32, 0)], 32), Error::Dims { found: 0, .. });
    refused!(file(&[], &[tensor("t", &[1; 5], F32, 0)], 32), Error::Dims { found: 5, .. });
    let mut many = tensor("t", &[1], F32, 0);
    many[9..13].fill(0xff);
    refused!(file(&[], &[many], 32), Error::Dims { found: 0xffff_ffff, .. });
}

/// llama.cpp issue 26366: a division by a dimension of zero.
#[test]
fn a_dimension_of_zero() {
    for dims in [&[0][..], &[0, 4], &[32, 0], &[32, 4, 0, 1], &[1 << 63, 0], &[0, 0, 0, 0]] {
        for ty in [F32, Q4_0] {
            refused!(file(&[], &[tensor("t", dims, ty, 0)], 64), Error::ZeroDim { .. });
        }
    }
}

/// llama.cpp pull 18674, CVE-2026-33298: the product of the dimensions wraps to something small.
#[test]
fn a_product_of_dimensions_that_wraps() {
    let wraps: [&[u64]; 7] = [
        &[(1 << 42) + 1, 1 << 22],
        &[1 << 32, 1 << 32],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        &[1 << 62, 4],
        &[1 << 63],
        &[u64::MAX - 3],
        &[4, u64::MAX],
    ];
    for dims in wraps {
        refused!(file(&[], &[tensor("t", dims, F32, 0)], 64), Error::TooLarge { .. });
    }
    // In bytes this one is small enough to count, in values it is not.
    refused!(file(&[], &[tensor("t", &[256, 1 << 56], Q4_K, 0)], 64), Error::TooLarge { .. });
}

#[test]
fn negative_dimensions() {
    let dims = [-1i64 as u64 & !31, -2i64 as u64];
    refused!(file(&[], &[tensor("t", &dims, Q4_0, 0)], 64), Error::TooLarge { .. });
}

#[test]
fn a_row_of_broken_blocks() {
    refused!(file(&[], &[tensor("t", &[33], Q4_0, 0)], 64), Error::RowLength { row: 33, .. });
    // 256 values in all, but not in each row.
    refused!(file(&[], &[tensor("t", &[128, 2], Q4_K, 0)], 256), Error::RowLength { row: 128, .. });
}

#[test]
fn an_unknown_tensor_type() {
    for id in [4, 5, 31, 36, 999, u32::MAX] {
        refused!(
            file(&[], &[tensor("t", &[32], id, 0)], 64),
            Error::TensorType { found, .. } if *found == id
        );
    }
}

#[test]
fn overlapping_tensors() {
    let same = [tensor("a", &[8], F32, 0), tensor("b", &[8], F32, 0)];
    refused!(file(&[], &same, 64), Error::Overlap { .. });
    let inside = [tensor("late", &[8], F32, 64), tensor("inner", &[1], F32, 32), tensor("outer", &[9], F32, 0)];
    refused!(
        file(&[], &inside, 96),
        Error::Overlap { first, second } if first == "outer" && second == "inner"
    );
    // One long tensor over several short ones, each of which is clear of its neighbours.
    let over = [tensor("long", &[64], F32, 0), tensor("b", &[1], F32, 64), tensor("c", &[1], F32, 256)];
    refused!(file(&[], &over, 320), Error::Overlap { first, .. } if first == "long");
}

#[test]
fn tensors_out_of_order_and_gaps_are_read() {
    let tensors = [tensor("b", &[8], F32, 128), tensor("a", &[8], F32, 0)];
    let header = parse(&file(&[], &tensors, 160)).unwrap();
    assert_eq!(header.tensors[0].offset, header.data_offset + 128);
}

/// CVE-2026-7482: a tensor that is larger than its file, read beyond the end when it is converted.
#[test]
fn a_tensor_larger_than_the_file() {
    let tensors = [tensor("a", &[8], F32, 0), tensor("b", &[1000], F32, 32)];
    let bytes = file(&[], &tensors, 64);
    let needed = bytes.len() as u64 - 32 + 4000;
    let error = refused(&bytes);
    assert!(
        matches!(&error, Error::FileTooShort { tensor, expected, found }
            if tensor == "b" && *expected == needed && *found == bytes.len() as u64),
        "{error:?}"
    );
    let message = error.to_string();
    assert!(message.contains(&needed.to_string()) && message.contains("cut short"), "{message}");
}

#[test]
fn a_file_that_ends_before_its_data_section() {
    let entry = tensor("t", &[8], F32, 0);
    let header_end = prologue(3, 1, 0).len() + entry.len();
    let bytes = file(&[], &[entry], 32);
    let expected = bytes.len() as u64;
    refused!(
        bytes[..header_end],
        Error::FileTooShort { expected: e, found: f, .. } if (*e, *f) == (expected, header_end as u64)
    );
}

#[test]
fn names_in_messages_are_escaped() {
    let keys = [kv("\x1b]0;owned\x07\n", 99, &[0])];
    let message = refused(&file(&keys, &[], 0)).to_string();
    assert!(message.chars().all(|c| !c.is_control()), "{message:?}");
}

/// llama.cpp issue 19919: a reader that compares each name with all others takes minutes for this. Here the
/// count and the memory bound in `parse` are checked; a quadratic reader would show by never ending.
#[test]
fn many_names_are_read_in_linear_time() {
    let n = 100_000;
    let keys: Vec<_> = (0..n).map(|i| kv(&format!("{i}"), U8, &[0])).collect();
    let tensors: Vec<_> = (0..n).map(|i| tensor(&format!("{i}"), &[1], F32, i * 32)).collect();
    let header = parse(&file(&keys, &tensors, 32 * n as usize)).unwrap();
    assert_eq!((header.metadata.len(), header.tensors.len()), (n as usize, n as usize));
}
