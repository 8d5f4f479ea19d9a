//! Files that are written, read, and written again.

use std::path::Path;

use proptest::prelude::*;
use rdt::files::Bytes;
use rdt::gguf::{Array, Error, Header, Metadata, TensorDecl, TensorType, Value, Writer};

fn decl(name: &str, ty: TensorType, dims: &[usize]) -> TensorDecl {
    TensorDecl { name: name.into(), ty, dims: dims.into() }
}

/// One key of each type, scalar and array, with extreme values.
fn sample_metadata() -> Metadata {
    let mut m = Metadata::new();
    m.insert("general.architecture", "huginn");
    m.insert("general.alignment", 64u32);
    m.insert("scalar.u8", u8::MAX);
    m.insert("scalar.i8", i8::MIN);
    m.insert("scalar.u16", u16::MAX);
    m.insert("scalar.i16", i16::MIN);
    m.insert("scalar.u32", u32::MAX);
    m.insert("scalar.i32", i32::MIN);
    m.insert("scalar.f32", 0.1f32);
    m.insert("scalar.bool", true);
    m.insert("scalar.string", "gr\u{fc}\u{df} \u{1f600}");
    m.insert("scalar.empty", "");
    m.insert("scalar.u64", u64::MAX);
    m.insert("scalar.i64", i64::MIN);
    m.insert("scalar.f64", 0.1f64);
    m.insert("array.u8", vec![0u8, u8::MAX]);
    m.insert("array.i8", vec![i8::MIN, i8::MAX]);
    m.insert("array.u16", vec![0u16, u16::MAX]);
    m.insert("array.i16", vec![i16::MIN, i16::MAX]);
    m.insert("array.u32", vec![0u32, u32::MAX]);
    m.insert("array.i32", vec![i32::MIN, i32::MAX]);
    m.insert("array.f32", vec![-0.1f32, f32::MAX, f32::MIN_POSITIVE]);
    m.insert("array.bool", vec![false, true, true]);
    m.insert("array.u64", vec![0u64, u64::MAX]);
    m.insert("array.i64", vec![i64::MIN, i64::MAX]);
    m.insert("array.f64", vec![-0.1f64, f64::MAX]);
    let tokens: Vec<String> = ["<s>", "", "\u{2581}a", "\u{10ffff}"].map(String::from).into();
    m.insert("tokenizer.ggml.tokens", tokens);
    m
}

/// PyPI's `gguf` 0.19 gives q8_1 the size it had in 2023, and does not know q2_0.
const UNKNOWN_TO_THE_OTHER_READER: [TensorType; 2] = [TensorType::Q8_1, TensorType::Q2_0];

/// A tensor of each type, and of each number of dimensions.
fn sample_tensors() -> Vec<TensorDecl> {
    let mut tensors: Vec<_> = TensorType::ALL
        .iter()
        .filter(|ty| !UNKNOWN_TO_THE_OTHER_READER.contains(ty))
        .map(|&ty| decl(&format!("blk.0.{ty}.weight"), ty, &[256, 3]))
        .collect();
    tensors.push(decl("one", TensorType::F32, &[5]));
    tensors.push(decl("three", TensorType::Q4_0, &[32, 2, 3]));
    tensors.push(decl("four", TensorType::F16, &[1, 2, 3, 5]));
    tensors
}

/// Writes a file whose data is a count of bytes, so that a shift would show.
fn write_file(metadata: &Metadata, tensors: &[TensorDecl]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), metadata, tensors).unwrap();
    let size = writer.file_size();
    let mut next = 0u8;
    for t in tensors {
        let rows: usize = t.dims[1..].iter().product();
        let bytes = t.ty.row_bytes(t.dims[0]).unwrap() * rows;
        let data: Vec<u8> = (0..bytes)
            .map(|_| {
                next = next.wrapping_add(1);
                next
            })
            .collect();
        writer.write_tensor(&t.name, &data).unwrap();
    }
    let file = writer.finish().unwrap();
    assert_eq!(file.len() as u64, size);
    file
}

/// Reads a file and writes what was read.
fn rewrite(file: &[u8]) -> Vec<u8> {
    let header = Header::parse(file).unwrap();
    let decls: Vec<TensorDecl> = header.tensors.iter().map(TensorDecl::from).collect();
    let mut writer = Writer::new(Vec::new(), &header.metadata, &decls).unwrap();
    for t in &header.tensors {
        writer.write_tensor(&t.name, t.data(file).unwrap()).unwrap();
    }
    writer.finish().unwrap()
}

pub(crate) fn sample_file() -> Vec<u8> {
    write_file(&sample_metadata(), &sample_tensors())
}

#[test]
fn what_is_written_is_read() {
    let (metadata, tensors) = (sample_metadata(), sample_tensors());
    let file = write_file(&metadata, &tensors);
    let header = Header::parse(&file).unwrap();
    assert_eq!((header.version, header.alignment), (3, 64));
    assert_eq!(header.metadata, metadata);
    assert_eq!(header.data_offset % 64, 0);
    let mut next = 0u8;
    for (info, decl) in header.tensors.iter().zip(&tensors) {
        assert_eq!(&TensorDecl::from(info), decl);
        assert_eq!(info.offset % 64, 0);
        for &byte in info.data(&file).unwrap() {
            next = next.wrapping_add(1);
            assert_eq!(byte, next, "{}", info.name);
        }
    }
    assert_eq!(rewrite(&file), file);
}

/// Leaves `sample.gguf` and `sample.json` in cargo's folder for test output, where `tests/gguf_reader.py`
/// compares them through another implementation.
#[test]
fn a_file_is_committed_for_the_other_reader() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join("sample.gguf");
    let bytes = sample_file();
    let header = Header::parse(&bytes).unwrap();
    let tensors = sample_tensors();
    let mut writer = Writer::create(&path, &sample_metadata(), &tensors).unwrap();
    for t in &header.tensors {
        writer.write_tensor(&t.name, t.data(&bytes).unwrap()).unwrap();
    }
    writer.commit().unwrap();
    assert_eq!(&*Bytes::read(&path).unwrap(), &bytes[..]);
    let json = serde_json::to_vec_pretty(&header).unwrap();
    std::fs::write(folder.join("sample.json"), json).unwrap();
}

#[test]
fn a_file_without_tensors_or_keys() {
    let file = write_file(&Metadata::new(), &[]);
    assert_eq!(file.len(), 32);
    let header = Header::parse(&file).unwrap();
    assert!(header.metadata.is_empty() && header.tensors.is_empty());
    // ggml reads such a file without the padding.
    Header::parse(&file[..24]).unwrap();
}

#[test]
fn a_tensor_can_be_written_in_pieces() {
    let tensors = [decl("a", TensorType::F32, &[3]), decl("b", TensorType::F32, &[1])];
    let mut whole = Writer::new(Vec::new(), &Metadata::new(), &tensors).unwrap();
    whole.write_tensor("a", &[1; 12]).unwrap();
    whole.write_tensor("b", &[2; 4]).unwrap();

    let mut pieces = Writer::new(Vec::new(), &Metadata::new(), &tensors).unwrap();
    pieces.begin_tensor("a").unwrap();
    for piece in [5, 0, 7] {
        pieces.write_chunk(&vec![1; piece]).unwrap();
    }
    pieces.begin_tensor("b").unwrap();
    pieces.write_chunk(&[2; 4]).unwrap();
    assert_eq!(pieces.finish().unwrap(), whole.finish().unwrap());
}

#[test]
fn tensors_out_of_turn_are_refused() {
    let tensors = [decl("a", TensorType::F32, &[1]), decl("b", TensorType::F32, &[1])];
    let mut writer = Writer::new(Vec::new(), &Metadata::new(), &tensors).unwrap();
    let out_of_turn = |result: Result<(), Error>, turn: Option<&str>| {
        assert!(matches!(result, Err(Error::Order { expected, .. }) if expected.as_deref() == turn));
    };
    out_of_turn(writer.write_tensor("b", &[0; 4]), Some("a"));
    out_of_turn(writer.begin_tensor("c"), Some("a"));
    writer.begin_tensor("a").unwrap();
    writer.write_chunk(&[0; 2]).unwrap();
    out_of_turn(writer.begin_tensor("b"), Some("a"));
    out_of_turn(writer.begin_tensor("a"), Some("a"));
    writer.write_chunk(&[0; 2]).unwrap();
    writer.write_tensor("b", &[0; 4]).unwrap();
    out_of_turn(writer.write_tensor("b", &[0; 4]), None);
    writer.finish().unwrap();
}

#[test]
fn tensors_of_the_wrong_size_are_refused() {
    let tensors = [decl("a", TensorType::F32, &[2])];
    let mut writer = Writer::new(Vec::new(), &Metadata::new(), &tensors).unwrap();
    for len in [0, 7, 9] {
        assert!(matches!(
            writer.write_tensor("a", &vec![0; len]),
            Err(Error::Size { expected: 8, found, .. }) if found == len
        ));
    }
    assert!(matches!(writer.write_chunk(&[0]), Err(Error::Size { .. })));
    writer.begin_tensor("a").unwrap();
    writer.write_chunk(&[0; 6]).unwrap();
    assert!(matches!(writer.write_chunk(&[0; 3]), Err(Error::Size { expected: 8, found: 9, .. })));
    writer.write_chunk(&[0; 2]).unwrap();
    assert!(matches!(writer.write_chunk(&[0]), Err(Error::Size { .. })));
    writer.finish().unwrap();
}

#[test]
fn an_unfinished_file_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let tensors = [decl("a", TensorType::F32, &[2]), decl("b", TensorType::F32, &[2])];
    for bytes_of_b in [0, 4] {
        let mut writer = Writer::create(&path, &Metadata::new(), &tensors).unwrap();
        writer.write_tensor("a", &[0; 8]).unwrap();
        writer.begin_tensor("b").unwrap();
        writer.write_chunk(&vec![0; bytes_of_b]).unwrap();
        assert!(matches!(
            writer.commit(),
            Err(Error::Unfinished { written: 1, declared: 2, next }) if next == "b"
        ));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let new = |metadata: &Metadata, tensors: &[TensorDecl]| {
        let mut out = Vec::new();
        let error = Writer::new(&mut out, metadata, tensors).map(|_| ()).unwrap_err();
        assert!(out.is_empty());
        error
    };
    let none = Metadata::new();
    let f32s = |name: &str, dims: &[usize]| [decl(name, TensorType::F32, dims)];

    let long = "x".repeat(rdt::gguf::MAX_NAME + 1);
    for name in ["", &long] {
        let keys = [(name, 1u8)].into_iter().collect();
        assert!(matches!(new(&keys, &[]), Error::NameLength { .. }));
        assert!(matches!(new(&none, &f32s(name, &[1])), Error::NameLength { .. }));
    }
    let alignment = |value: Value| [("general.alignment", value)].into_iter().collect();
    assert!(matches!(new(&alignment(48u32.into()), &[]), Error::Alignment { found: 48 }));
    assert!(matches!(new(&alignment(32u64.into()), &[]), Error::KeyType { .. }));
    let deep = (0..4).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
    let keys = [("deep", deep)].into_iter().collect();
    assert!(matches!(new(&keys, &[]), Error::Depth { .. }));

    let twice = [f32s("t", &[1]), f32s("t", &[1])].concat();
    assert!(matches!(new(&none, &twice), Error::DuplicateTensor { .. }));
    assert!(matches!(new(&none, &f32s("t", &[])), Error::Dims { found: 0, .. }));
    assert!(matches!(new(&none, &f32s("t", &[1; 5])), Error::Dims { found: 5, .. }));
    assert!(matches!(new(&none, &f32s("t", &[1, 0])), Error::ZeroDim { .. }));
    let broken = [decl("t", TensorType::Q8_0, &[33])];
    assert!(matches!(new(&none, &broken), Error::RowLength { row: 33, .. }));
    for dims in [&[usize::MAX][..], &[1 << 60, 8]] {
        assert!(matches!(new(&none, &f32s("t", dims)), Error::TooLarge { .. }));
    }
    // Each can be counted, their sum cannot.
    let huge: Vec<_> = ["a", "b", "c"].map(|n| decl(n, TensorType::I8, &[1 << 62])).into();
    assert!(matches!(new(&none, &huge), Error::TooLarge { tensor, .. } if tensor == "b"));
}

/// Any array that can stand in a file, nested ones included.
fn arrays() -> impl Strategy<Value = Array> {
    fn of<T: std::fmt::Debug + Clone + 'static>(
        item: impl Strategy<Value = T> + 'static,
        wrap: fn(Vec<T>) -> Array,
    ) -> BoxedStrategy<Array> {
        prop::collection::vec(item, 0..6).prop_map(wrap).boxed()
    }
    let flat = prop_oneof![
        of(any::<u8>(), Array::U8),
        of(any::<i8>(), Array::I8),
        of(any::<u16>(), Array::U16),
        of(any::<i16>(), Array::I16),
        of(any::<u32>(), Array::U32),
        of(any::<i32>(), Array::I32),
        of(any::<u32>().prop_map(f32::from_bits), Array::F32),
        of(any::<bool>(), Array::Bool),
        of(any::<String>(), Array::String),
        of(any::<u64>(), Array::U64),
        of(any::<i64>(), Array::I64),
        of(any::<u64>().prop_map(f64::from_bits), Array::F64),
    ];
    flat.prop_recursive(3, 24, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array))
}

fn values() -> impl Strategy<Value = Value> {
    let scalars = prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u32>().prop_map(|bits| Value::F32(f32::from_bits(bits))),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<u64>().prop_map(|bits| Value::F64(f64::from_bits(bits))),
    ];
    prop_oneof![scalars, arrays().prop_map(Value::Array)]
}

fn tensors() -> impl Strategy<Value = Vec<TensorDecl>> {
    let one = (prop::sample::select(TensorType::ALL), 1usize..3, prop::collection::vec(1usize..4, 0..4));
    prop::collection::hash_map(".{1,20}", one, 0..8).prop_map(|tensors| {
        tensors
            .into_iter()
            .map(|(name, (ty, blocks, outer))| {
                let dims = [vec![ty.block_len() * blocks], outer].concat();
                TensorDecl { name, ty, dims }
            })
            .collect()
    })
}

proptest! {
    /// Bytes are compared, not values: a NaN differs from itself, but its bits must come through.
    #[test]
    fn any_file_comes_back_byte_for_byte(
        keys in prop::collection::hash_map(".{1,20}", values(), 0..8),
        alignment in prop::option::of(0u32..13),
        tensors in tensors(),
    ) {
        let mut metadata: Metadata = keys.into_iter().collect();
        metadata.remove("general.alignment");
        if let Some(bits) = alignment {
            metadata.insert("general.alignment", 1u32 << bits);
        }
        let file = write_file(&metadata, &tensors);
        let header = Header::parse(&file).unwrap();
        prop_assert!(header.metadata.iter().map(|(k, _)| k).eq(metadata.iter().map(|(k, _)| k)));
        let decls: Vec<TensorDecl> = header.tensors.iter().map(TensorDecl::from).collect();
        prop_assert_eq!(decls, tensors);
        prop_assert_eq!(rewrite(&file), file);
    }

    #[test]
    fn noise_after_the_magic_is_never_a_panic(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::parse(&[&b"GGUF\x03\0\0\0"[..], &noise].concat());
    }
}
