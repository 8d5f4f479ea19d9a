//! PyTorch files that are wrong, or made to do harm.

use super::*;
use proptest::prelude::*;

/// A zip archive as PyTorch writes it, without the padding.
fn archive(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for &(name, bytes) in parts {
        let offset = file.len() as u32;
        // Version, flags, method, time, date, checksum, sizes, lengths of the name and the extra field.
        let mut common = [20u16, 0, 0, 0, 0, 0, 0].map(u16::to_le_bytes).concat();
        common.extend([bytes.len() as u32; 2].map(u32::to_le_bytes).concat());
        common.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());
        file.extend([b"PK\x03\x04", common.as_slice(), name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\x14\x00", common.as_slice(), &[0; 10]].concat());
        directory.extend([offset.to_le_bytes().as_slice(), name.as_bytes()].concat());
    }
    let (start, count) = (file.len() as u32, parts.len() as u16);
    file.append(&mut directory);
    let size = file.len() as u32 - start;
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count, count].map(u16::to_le_bytes).concat());
    file.extend([size, start].map(u32::to_le_bytes).concat());
    file.extend([0, 0]);
    file
}

/// A file with this pickle and 16 bytes of values.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    archive(&[("m/data.pkl", pickle), ("m/data/0", &[0; 16])])
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(int: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &int.to_le_bytes()].concat()
}

fn tuple(ints: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), ints.iter().flat_map(|&n| int(n)).collect(), b"t".to_vec()].concat()
}

fn storage(key: &str, values: i64) -> Vec<u8> {
    storage_of("Float", key, values)
}

fn storage_of(class: &str, key: &str, values: i64) -> Vec<u8> {
    let class = format!("ctorch\n{class}Storage\n").into_bytes();
    [b"(".to_vec(), text("storage"), class, text(key), text("cpu"), int(values), b"tQ".to_vec()].concat()
}

/// A tensor in a storage of four values.
fn tensor(offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    tensor_in(&storage("0", 4), offset, &tuple(shape), &tuple(strides))
}

fn tensor_in(storage: &[u8], offset: i64, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, &int(offset), shape, strides, b"\x89NtR"].concat()
}

/// A pickle of a dict with one entry.
fn dict(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", text("w").as_slice(), value, b"s."].concat()
}

#[test]
fn the_archive_made_here_is_read() {
    let file = with_pickle(&dict(&tensor(0, &[2, 2], &[2, 1])));
    let read = TorchFile::parse(&file).unwrap();
    assert_eq!(read.tensor(&file, "w").unwrap().to_f32().unwrap(), [0.0; 4]);
}

#[test]
fn pickles_that_do_more_than_hold_tensors_are_refused() {
    let max = i64::MAX;
    let good = tensor(0, &[4], &[1]);
    let key = |key: &str| dict(&tensor_in(&storage(key, 4), 0, &tuple(&[4]), &tuple(&[1])));
    let of = |offset: i64, shape: &[i64], strides: &[i64]| dict(&tensor(offset, shape, strides));
    let catalogue: Vec<(Vec<u8>, &str)> = vec![
        // Names of things to run, in every way in which they can be given.
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.".to_vec(), "asks for \"os.system\"; this reader runs nothing"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.".to_vec(), "asks for \"os.system\""),
        (b"\x80\x02cbuiltins\neval\n.".to_vec(), "asks for \"builtins.eval\""),
        (b"\x80\x02ctorch\nload\n.".to_vec(), "asks for \"torch.load\""),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.".to_vec(), "_rebuild_tensor_v2.__globals__"),
        (b"\x80\x02c\x1b[31m\n\x07\n.".to_vec(), r"\u{1b}[31m.\u{7}"),
        ([b"\x80\x02c".to_vec(), vec![b'x'; 9000], b"\ny\n.".to_vec()].concat(), "asks for \"xxxx"),
        (b"\x80\x02c\xff\nx\n.".to_vec(), "a name is not UTF-8"),
        (b"\x80\x02(S'id'\nios\nsystem\n.".to_vec(), "opcode 0x53"),
        (b"\x80\x02(ios\nsystem\n.".to_vec(), "opcode 0x69"),
        (b"\x80\x02(cos\nsystem\no.".to_vec(), "os.system"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.".to_vec(), "opcode 0x81"),
        (b"\x80\x02\x82\x01.".to_vec(), "opcode 0x82"),
        (b"\x80\x02}}b)R.".to_vec(), "what is called is no function"),
        (b"\x80\x02ccollections\nOrderedDict\nNR.".to_vec(), "the arguments of a call are no tuple"),
        (b"\x80\x02ccollections\nOrderedDict\n(Nt\x85R.".to_vec(), "other arguments than PyTorch gives"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.".to_vec(), "other arguments than PyTorch gives"),
        (dict(&[good.as_slice(), b"}b"].concat()), "attributes are set on what is no dict"),
        (b"\x80\x02}Nb.".to_vec(), "attributes are set on what is no dict"),
        // Pickles that are no programs.
        (Vec::new(), "byte 0 of data.pkl: data.pkl ends in the middle of it"),
        (b"\x80\x01}.".to_vec(), "not one of 2 to 5"),
        (b"\x80\xff}.".to_vec(), "not one of 2 to 5"),
        (b"\x80\x02\xff".to_vec(), "byte 2 of data.pkl is the pickle opcode 0xff"),
        (b"\x80\x02.".to_vec(), "needs more values than there are"),
        (b"\x80\x02(.".to_vec(), "needs more values than there are"),
        (b"\x80\x02}}.".to_vec(), "values left over"),
        (b"\x80\x02(N.".to_vec(), "values left over"),
        (b"\x80\x02}..".to_vec(), "ends before the end of data.pkl"),
        (b"\x80\x02t.".to_vec(), "there is no mark"),
        (b"\x80\x02N(\x85.".to_vec(), "needs more values than there are"),
        (b"\x80\x02}(Ns.".to_vec(), "needs more values than there are"),
        (b"\x80\x02}(Nu.".to_vec(), "a key has no value"),
        (b"\x80\x02(NNu.".to_vec(), "no dict"),
        (b"\x80\x02}((NNu.".to_vec(), "no dict"),
        (b"\x80\x02NNNs.".to_vec(), "items are set on what is no dict"),
        (b"\x80\x02NNa.".to_vec(), "appended to what is no list"),
        (b"\x80\x02](e(e.".to_vec(), "no dict of tensors but a list"),
        (b"\x80\x02h\x00.".to_vec(), "nothing was stored here"),
        (b"\x80\x02j\xff\xff\xff\xff.".to_vec(), "nothing was stored here"),
        (b"\x80\x02q\x00.".to_vec(), "needs more values than there are"),
        (b"\x80\x02X\xff\xff\xff\xffx.".to_vec(), "data.pkl ends in the middle of it"),
        (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.".to_vec(), "data.pkl ends in the middle of it"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.".to_vec(), "data.pkl ends in the middle of it"),
        (b"\x80\x02\x8a\xff\x01.".to_vec(), "data.pkl ends in the middle of it"),
        (b"\x80\x02cos".to_vec(), "data.pkl ends in the middle of it"),
        (b"\x80\x02X\x01\0\0\0\xff.".to_vec(), "a string is not UTF-8"),
        (b"\x80\x02NN\x93.".to_vec(), "a name is no string"),
        // Results that are no dicts of tensors.
        (b"\x80\x02N.".to_vec(), "no dict of tensors but None"),
        (b"\x80\x02}.".to_vec(), "a dict without tensors; its keys are none"),
        (dict(b"K\x01"), "a dict without tensors; its keys are \"w\""),
        (dict(b"}"), "a dict without tensors; its keys are \"w\""),
        ([b"\x80\x02}K\x01", good.as_slice(), b"s."].concat(), "has an int as a key, which is no name"),
        ([b"\x80\x02}(", text("w").as_slice(), &good, &text("w"), &good, b"u."].concat(), "has \"w\" as a key twice"),
        // References to values.
        (b"\x80\x02X\x01\0\0\x000Q.".to_vec(), "something else than a storage"),
        (b"\x80\x02)Q.".to_vec(), "something else than a storage"),
        (key("1"), "lies in data/\"1\", which the archive does not hold"),
        (key("../../etc/passwd"), "lies in data/\"../../etc/passwd\", which the archive does not hold"),
        (key("../data.pkl"), "which the archive does not hold"),
        (key("/etc/passwd"), "which the archive does not hold"),
        (key(""), "which the archive does not hold"),
        (key(&"0".repeat(5000)), "something else than a storage"),
        (dict(&tensor_in(&storage("0", 5), 0, &tuple(&[4]), &tuple(&[1]))), "hold 5 values of F32 and has 16 bytes"),
        (dict(&tensor_in(&storage("0", 3), 0, &tuple(&[3]), &tuple(&[1]))), "hold 3 values of F32 and has 16 bytes"),
        (dict(&tensor_in(&storage("0", -4), 0, &tuple(&[4]), &tuple(&[1]))), "hold -4 values"),
        (dict(&tensor_in(&storage("0", 1 << 62), 0, &tuple(&[4]), &tuple(&[1]))), "values of F32 and has 16 bytes"),
        (dict(&tensor_in(b"N", 0, &tuple(&[4]), &tuple(&[1]))), "other arguments than PyTorch gives"),
        // Shapes.
        (of(0, &[5], &[1]), "tensor \"w\" reaches beyond the values that are stored for it"),
        (of(1, &[4], &[1]), "reaches beyond"),
        (of(0, &[2], &[4]), "reaches beyond"),
        (of(5, &[0], &[1]), "reaches beyond"),
        (of(max, &[1], &[1]), "reaches beyond"),
        (of(0, &[1 << 32, 1 << 32], &[1, 1]), "reaches beyond"),
        (of(0, &[2, 2], &[max, max]), "reaches beyond"),
        (of(0, &[max, 2], &[2, 1]), "reaches beyond"),
        (of(-1, &[1], &[1]), "begins before its storage"),
        (of(0, &[-1], &[1]), "has a shape which is no tuple of sizes"),
        (of(0, &[2], &[-1]), "has strides which are no tuple of sizes"),
        (of(0, &[2], &[]), "different lengths"),
        (of(0, &[1; 65], &[1; 65]), "more than 64 dimensions"),
        (of(0, &[1 << 40], &[0]), "repeats its values"),
        (of(0, &[4, 4], &[1, 0]), "repeats its values"),
        (of(0, &[1 << 20, 1 << 20], &[0, 0]), "repeats its values"),
        (dict(&tensor_in(&storage("0", 4), 0, b"N", &tuple(&[1]))), "has a shape which is no tuple of sizes"),
        (dict(&tensor_in(&storage("0", 4), 0, b"N\x85", &tuple(&[1]))), "has a shape which is no tuple of sizes"),
    ];
    for (pickle, expected) in catalogue {
        let text = message(&with_pickle(&pickle));
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// The same storage cannot be described in two ways.
#[test]
fn a_storage_has_one_type() {
    let other = tensor_in(&storage_of("Half", "0", 8), 0, &tuple(&[8]), &tuple(&[1]));
    let both = [text("a"), tensor(0, &[4], &[1]), text("b"), other].concat();
    let text = message(&with_pickle(&[b"\x80\x02}(", both.as_slice(), b"u."].concat()));
    assert!(text.contains("tensor \"b\" lies in data/0, which should hold 8 values of F16"), "{text}");
}

/// Values beside the tensors may be anything that is data: cyclic, shared, deep or empty.
#[test]
fn what_is_no_tensor_is_passed_over() {
    let good = tensor(0, &[4], &[1]);
    // A list that holds itself, and a dict that does.
    let cyclic = b"]q\x00h\x00a".to_vec();
    let own = [b"}q\x01".to_vec(), text("x"), b"h\x01s".to_vec()].concat();
    // Each holds the one before twice: 2^60 leaves, if they were copied.
    let doubling = |step: &[u8]| [b"(]q\x02".to_vec(), step.repeat(60), b"t".to_vec()].concat();
    let (lists, tuples) = (doubling(b"](h\x02h\x02eq\x02"), doubling(b"h\x02h\x02\x86q\x02"));
    let deep = [vec![b')'], vec![0x85; 200_000]].concat();
    let far = b"Nr\xff\xff\xff\xff".to_vec();
    let huge = [b"\x8a\xff".to_vec(), vec![0x7f; 255]].concat();
    let floats = b"G\0\0\0\0\0\0\0\0".to_vec();
    for other in [cyclic, own, lists, tuples, deep, far, huge, floats, b"C\x01x".to_vec(), b"\x88".to_vec()] {
        let pickle = [b"\x80\x02}(".to_vec(), text("o"), other, text("w"), good.clone(), b"u.".to_vec()].concat();
        let read = TorchFile::parse(&with_pickle(&pickle)).unwrap();
        assert!(read.names().eq(["w"]));
    }
    // The dict of tensors holds itself as `model`.
    let pickle =
        [b"\x80\x02}q\x00(".to_vec(), text("model"), b"h\x00".to_vec(), text("w"), good, b"u.".to_vec()].concat();
    assert!(TorchFile::parse(&with_pickle(&pickle)).unwrap().names().eq(["w"]));
}

#[test]
fn endless_pickles_are_refused() {
    for piece in [b"N".as_slice(), b"(", b"}", b"\x80\x02", b"Nq\x00", b"N\x94", b")", b"\x95\0\0\0\0\0\0\0\0"] {
        let text = message(&with_pickle(&piece.repeat(super::super::pickle::OPCODE_LIMIT + 1)));
        assert!(text.contains("more than 2097152 opcodes"), "{text}");
    }
    // Many tensors share one shape of many dimensions, which is not walked for each.
    let shape = [b"(".to_vec(), b"K\x01".repeat(100_000), b"tq\x00".to_vec()].concat();
    let call = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01".to_vec();
    let arguments = [b"(".to_vec(), storage("0", 4), b"K\x00h\x00h\x00\x89Ntq\x02".to_vec()].concat();
    let calls = b"h\x01h\x02R".repeat(100_000);
    let pickle = [b"\x80\x02(".to_vec(), shape, call, arguments, calls, b"t.".to_vec()].concat();
    let text = message(&with_pickle(&pickle));
    assert!(text.contains("no dict of tensors but a tuple"), "{text}");
}

#[test]
fn archives_that_are_not_pytorch_s_are_refused() {
    let pickle = dict(&tensor(0, &[4], &[1]));
    let good: [(&str, &[u8]); 2] = [("m/data.pkl", &pickle), ("m/data/0", &[0; 16])];
    let with = |name, bytes| archive(&[good.as_slice(), &[(name, bytes)]].concat());
    TorchFile::parse(&with("m/byteorder", b"little")).unwrap();
    TorchFile::parse(&with("other/data/0", b"")).unwrap();
    for (file, expected) in [
        (Vec::new(), "does not begin like a zip archive"),
        (b"PK\x03".to_vec(), "does not begin like a zip archive"),
        (b"\x80\x02}.".to_vec(), "does not begin like a zip archive"),
        (b"PK\x03\x04".to_vec(), "the zip archive cannot be read"),
        (archive(&[("data.pkl", b"")]), "holds no FOLDER/data.pkl"),
        (archive(&[("/data.pkl", b"")]), "holds no FOLDER/data.pkl"),
        (archive(&[("a/b/data.pkl", b"")]), "holds no FOLDER/data.pkl"),
        (archive(&[("m/data/0", b"")]), "holds no FOLDER/data.pkl"),
        (with("m/data.pkl", b""), "holds \"data.pkl\" twice"),
        (with("m/data/0", b""), "holds \"data/0\" twice"),
        (with("m/byteorder", b"big"), "big endian"),
        (with("m/constants.pkl", b""), "a TorchScript program"),
    ] {
        let text = message(&file);
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Fields of the directory's entry for the values: flags, method, size, offset.
    let file = archive(&good);
    let entry = file.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    for (at, value, expected) in [
        (8, &[1, 0][..], "\"data/0\" is encrypted in the archive"),
        (10, &[8, 0], "\"data/0\" is compressed in the archive; PyTorch stores it plainly"),
        (20, &[15, 0, 0, 0], "has two sizes"),
        (20, &[0xfe; 4], "the zip archive cannot be read"),
        (42, &[0xfe; 4], "the zip archive cannot be read"),
        (42, &[1, 0, 0, 0], "the zip archive cannot be read"),
    ] {
        let mut file = file.clone();
        file[entry + at..entry + at + value.len()].copy_from_slice(value);
        let text = message(&file);
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // The number of entries.
    let mut file = file;
    let end = file.len() - 22;
    file[end + 10] = 3;
    assert!(message(&file).contains("says that it has 3 parts and lists 2"));
}

/// Reads all that a file offers, if it offers anything.
fn read_all(file: &[u8]) {
    match TorchFile::parse(file) {
        Ok(read) => {
            for name in read.names() {
                let tensor = read.tensor(file, name).expect("it was checked to lie inside");
                let values = tensor.rows() * tensor.row_len();
                match tensor.to_f32() {
                    Ok(read) => assert_eq!(read.len(), values),
                    Err(error) => assert!(matches!(error, crate::checkpoint::Error::Dtype { .. }), "{error}"),
                }
            }
        }
        Err(_) => drop(message(file)),
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in ["torch/plain.pt", "torch/training.pt", "torch/protocol4.pt"] {
        let file = data(name);
        for end in 0..file.len() {
            message(&file[..end]);
        }
    }
    let pickle = dict(&tensor(0, &[4], &[1]));
    for end in 0..pickle.len() {
        message(&with_pickle(&pickle[..end]));
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        for name in ["torch/plain.pt", "torch/protocol4.pt"] {
            let mut file = data(name);
            for (at, byte) in &damage {
                let at = at.index(file.len());
                file[at] = *byte;
            }
            read_all(&file);
        }
    }

    #[test]
    fn damaged_pickles_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut pickle = dict(&tensor(0, &[2, 2], &[1, 2]));
        for (at, byte) in &damage {
            let at = at.index(pickle.len());
            pickle[at] = *byte;
        }
        read_all(&with_pickle(&pickle));
    }

    /// Opcodes in any order, of which some are meant to be followed.
    #[test]
    fn arbitrary_pickles_never_panic(pieces in prop::collection::vec(prop::sample::select(pieces()), 0..40)) {
        read_all(&with_pickle(&[b"\x80\x02}".as_slice(), &pieces.concat(), b"."].concat()));
    }

    #[test]
    fn arbitrary_layouts_lie_inside(
        offset in -1i64..6,
        dims in prop::collection::vec((-1i64..4, -1i64..4), 0..4),
        huge in prop::option::of((any::<prop::sample::Index>(), any::<i64>())),
    ) {
        let (mut shape, mut strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
        if let Some((at, value)) = huge.filter(|_| !shape.is_empty()) {
            let at = at.index(2 * shape.len());
            *shape.iter_mut().chain(&mut strides).nth(at).unwrap() = value;
        }
        read_all(&with_pickle(&dict(&tensor(offset, &shape, &strides))));
    }
}

fn pieces() -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> =
        b"(.N}])tu".iter().chain(b"aesRbQ\x85\x86\x87\x88\x89\x93\x94").map(|&b| vec![b]).collect();
    pieces.extend([b"q\x00".to_vec(), b"h\x00".to_vec(), b"q\x01".to_vec(), b"h\x01".to_vec(), b"K\x01".to_vec()]);
    pieces.extend([text("w"), text("model"), int(-1), tuple(&[2]), storage("0", 4), tensor(1, &[3], &[1])]);
    pieces.push(b"ccollections\nOrderedDict\n".to_vec());
    pieces.push(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec());
    pieces.push(b"ctorch\nFloatStorage\n".to_vec());
    pieces
}
