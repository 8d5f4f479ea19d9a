use super::*;
use safetensors::SafeTensors;
use std::{fs, path::PathBuf};

mod hostile;

/// A file under `tests/data`; `tests/reference/torch_files.py` makes those of `torch`.
fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(name: &str) -> TorchFile {
    TorchFile::parse(&data(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The error's message, checked to be one line that a terminal shows as it is.
#[track_caller]
fn message(file: &[u8]) -> String {
    let text = TorchFile::parse(file).unwrap_err().to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 1000, "{} bytes: {text}", text.len());
    text
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// What `torch.load` gives, of contiguous, shared, cut and transposed tensors, under every pickle protocol.
#[test]
fn values_are_those_that_pytorch_reads() {
    let expected = data("torch/expected.safetensors");
    let expected = SafeTensors::deserialize(&expected).unwrap();
    for name in ["plain.pt", "training.pt", "protocol3.pt", "protocol4.pt", "protocol5.pt"] {
        let bytes = data(&format!("torch/{name}"));
        let file = TorchFile::parse(&bytes).unwrap();
        let whole: Vec<_> = file.names().filter(|name| expected.tensor(name).is_err()).collect();
        assert_eq!(whole, ["bool", "c64", "i16", "i32", "i64", "i8", "u8"], "{name}");
        assert_eq!(file.names().len(), whole.len() + expected.len(), "{name}");
        for (tensor, wanted) in expected.tensors() {
            let found = file.tensor(&bytes, &tensor).unwrap();
            assert_eq!(found.shape, wanted.shape(), "{name}: {tensor}");
            let wanted: Vec<_> = wanted.data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            assert_eq!(bits(&found.to_f32().unwrap()), wanted, "{name}: {tensor}");
            // The last row on its own.
            let (rows, row_len) = (found.rows(), found.row_len());
            let mut row = vec![0.0; if rows == 0 { 0 } else { row_len }];
            found.rows_f32(rows.saturating_sub(1)..rows, &mut row).unwrap();
            assert_eq!(bits(&row), wanted[wanted.len() - row.len()..], "{name}: {tensor}");
        }
    }
}

#[test]
fn tensors_stay_in_the_file_and_share_values() {
    let bytes = data("torch/plain.pt");
    let file = TorchFile::parse(&bytes).unwrap();
    let tensor = |name| file.tensor(&bytes, name).unwrap();
    let range = bytes.as_ptr_range();
    assert!(file.names().all(|name| range.contains(&tensor(name).data.as_ptr())));
    assert_eq!(tensor("tied").data.as_ptr(), tensor("wide").data.as_ptr());
    assert_eq!(tensor("cut").data.as_ptr(), tensor("wide").data[80..].as_ptr());
    assert!(tensor("cut").strides.is_none() && tensor("single").strides.is_none());
    assert_eq!(tensor("transposed").strides, Some(vec![1, 10]));
    assert_eq!(tensor("i64").dtype, Dtype::I64);
    assert!(matches!(tensor("i64").to_f32(), Err(crate::checkpoint::Error::Dtype { .. })));
    for name in ["transposed", "wide"] {
        let wrong = tensor(name).rows_f32(0..1, &mut [0.0; 2]);
        assert!(matches!(wrong, Err(crate::checkpoint::Error::Buffer { found: 2, .. })), "{name}: {wrong:?}");
        let wrong = tensor(name).rows_f32(10..11, &mut [0.0; 6]);
        assert!(matches!(wrong, Err(crate::checkpoint::Error::Rows { .. })), "{name}: {wrong:?}");
    }
    assert!(file.tensor(&bytes[..100], "wide").is_none());
}

#[test]
fn a_published_model_is_read() {
    let bytes = data("parcae/model.pt");
    let file = TorchFile::parse(&bytes).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&data("parcae/tensors.json")).unwrap();
    let expected = expected.as_object().unwrap();
    assert!(file.names().eq(expected.keys()));
    for (name, expected) in expected {
        let tensor = file.tensor(&bytes, name).unwrap();
        assert_eq!(serde_json::json!(tensor.shape), expected["shape"], "{name}");
        let values = tensor.to_f32().unwrap();
        let hash = values
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(format!("{hash:016x}"), expected["fnv1a"], "{name}");
    }
}

#[test]
fn a_module_s_state_dict_is_read() {
    assert!(parse("torch/module.pt").names().eq(["0.bias", "0.weight", "1.bias", "1.weight"]));
}

/// What PyTorch can write and this reader does not read, by name.
#[test]
fn other_pytorch_files_are_refused_by_name() {
    for (name, expected) in [
        ("legacy.pt", "PyTorch's format from before version 1.6; load it with a newer PyTorch and save it again"),
        ("expanded.pt", "tensor \"w\" repeats its values, as expand() does; save it after contiguous()"),
        ("tensor.pt", "no dict of tensors but a single tensor"),
        ("object.pt", "asks for \"torch.nn.modules.container.Sequential\"; this reader runs nothing"),
        ("uint16.pt", "asks for \"torch._utils._rebuild_tensor_v3\""),
        ("script.pt", "a TorchScript program"),
    ] {
        let text = message(&data(&format!("torch/{name}")));
        assert!(text.contains(expected), "{name}: {text}");
    }
}
