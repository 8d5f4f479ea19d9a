//! PyTorch files as the weights of a checkpoint.

use super::*;

/// A file under `tests/data`.
fn data(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

#[test]
fn a_folder_with_model_pt_is_opened() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parcae");
    let checkpoint = Checkpoint::open(folder).unwrap();
    assert_eq!(checkpoint.config().str("model_type").unwrap(), None);
    assert_eq!(checkpoint.config().require_str("_class_name").unwrap(), "ParcaeConfig");
    assert!(checkpoint.tokenizer_json().is_some());
    let embedding = checkpoint.tensor("transformer.wte.weight").unwrap();
    assert_eq!((embedding.rows(), embedding.row_len(), embedding.dtype), (1024, 128, Dtype::F32));
    let head = checkpoint.tensor("lm_head.weight").unwrap();
    assert_eq!(head.data.as_ptr(), embedding.data.as_ptr(), "tied");
}

#[test]
fn shards_are_joined_by_their_index() {
    let names =
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"];
    let files = names.map(|name| data(&format!("torch/{name}")));
    let all: Vec<(&str, &[u8])> = names.into_iter().zip(files.iter().map(Vec::as_slice)).collect();
    let checkpoint = open(&all).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["first", "second"]);
    let (first, second) = (checkpoint.tensor("first").unwrap(), checkpoint.tensor("second").unwrap());
    assert_eq!((first.shape.as_slice(), second.shape.as_slice()), ([6, 10].as_slice(), [10, 6].as_slice()));
    let (first, second) = (first.to_f32().unwrap(), second.to_f32().unwrap());
    assert!((0..60).all(|i| first[i] == second[i % 10 * 6 + i / 10]), "one is the other, transposed");

    let result = open(&all[1..]);
    assert!(matches!(&result, Err(Error::MissingShard { .. })), "{result:?}");
    message(result);
}

#[test]
fn safetensors_come_first() {
    let file = published(&[("a", Dtype::F32, &[1], &[0; 4])]);
    let both = open(&[("model.pt", &data("torch/module.pt")), ("model.safetensors", &file)]).unwrap();
    assert!(both.contains("a") && both.names().len() == 1);
    let both = open(&[("model.pt", b""), ("pytorch_model.bin", &data("torch/module.pt"))]).unwrap();
    assert!(both.contains("0.weight"));
}

#[test]
fn an_error_names_the_file() {
    let text = message(open(&[("model.pt", &data("torch/object.pt"))]));
    assert!(text.contains("model.pt: the file asks for \"torch.nn.modules.container.Sequential\""), "{text}");
}

/// Training programs leave prefixes in the names; libraries that write `model_type` mean the names as they are.
#[test]
fn prefixes_are_taken_away_without_a_model_type() {
    let one: (Dtype, &[usize], &[u8]) = (Dtype::F32, &[1], &[0; 4]);
    let names = ["a", "model.b", "module._orig_mod.model.c", "_orig_mod.d", "model.model.e", "f.model.g"];
    let open_with = |config: &str, names: &[&str]| {
        let file = published(&names.iter().map(|name| (*name, one.0, one.1, one.2)).collect::<Vec<_>>());
        let folder = folder(&[("model.safetensors", &file)]);
        fs::write(folder.path().join("config.json"), config).unwrap();
        Checkpoint::open(folder)
    };
    let bare = open_with(r#"{"_class_name": "ParcaeConfig"}"#, &names).unwrap();
    assert_eq!(bare.names().collect::<Vec<_>>(), ["a", "b", "c", "d", "f.model.g", "model.e"]);
    for name in bare.names() {
        assert_eq!(bare.tensor(name).unwrap().name, name);
    }
    assert!(bare.tensor("model.b").is_err());
    let whole = open_with(CONFIG, &names).unwrap();
    assert!(names.iter().all(|name| whole.tensor(name).is_ok()));

    let text = message(open_with("{}", &["model.w", "w"]));
    assert!(text.contains("have the same name but for a prefix"), "{text}");
    assert!(text.contains("tensors \"model.w\" and \"w\" in "), "{text}");
}
