//! Models in every weight format: they load, and compute what their bytes stand for.

mod common;

use common::{HUGINN, Setup, cosine, gguf};
use rdt::arch;
use rdt::files::Bytes;
use rdt::gguf::{Header, Metadata, TensorDecl, TensorType, Value, Writer};
use rdt::kernels::WEIGHT_TYPES;
use rdt::model::InitialState;
use rdt::quant::{self, Recipe};
use rdt::random::standard_normal;
use std::sync::Arc;

/// Width and feed-forward length: rows of both divide into every format's blocks.
const WIDTH: usize = 256;
const FFN: usize = 512;

/// The checkpoint of the other tests, twice as wide, with weights of its own: metadata, and tensors as f32.
fn wide() -> (Metadata, Vec<(TensorDecl, Vec<f32>)>) {
    let narrow = gguf(HUGINN, Recipe::F32);
    let header = Header::parse(&narrow).unwrap();
    let size = |n: usize| match n {
        128 => WIDTH,
        320 => FFN,
        n => n,
    };
    let mut metadata = header.metadata.clone();
    for (key, value) in header.metadata.iter() {
        let double = ["embedding_length", "head_count", "head_count_kv", "loop.state_length"];
        match value {
            Value::U32(n) if double.iter().any(|end| key.ends_with(end)) => metadata.insert(key, 2 * n),
            Value::U32(_) if key.ends_with("feed_forward_length") => metadata.insert(key, FFN as u32),
            _ => None,
        };
    }
    let tensors = header.tensors.iter().enumerate().map(|(stream, t)| {
        let dims: Vec<usize> = t.dims.iter().map(|&n| size(n)).collect();
        let number = |i: usize| standard_normal(7, stream as u64, i as u64) as f32;
        let n = dims.iter().product::<usize>();
        let values = if t.name.contains("norm") { vec![1.0; n] } else { (0..n).map(|i| number(i) * 0.06).collect() };
        (TensorDecl { name: t.name.clone(), ty: TensorType::F32, dims }, values)
    });
    (metadata, tensors.collect())
}

fn file(metadata: &Metadata, tensors: &[(TensorDecl, Vec<u8>)]) -> Bytes {
    let decls: Vec<_> = tensors.iter().map(|(decl, _)| decl.clone()).collect();
    let mut writer = Writer::new(Vec::new(), metadata, &decls).unwrap();
    for (decl, bytes) in tensors {
        writer.write_tensor(&decl.name, bytes).unwrap();
    }
    Bytes::from(writer.finish().unwrap())
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A model with its matrices in a format, and the same with what the format left of them in f32.
fn stored(ty: TensorType, (metadata, tensors): &(Metadata, Vec<(TensorDecl, Vec<f32>)>)) -> [Bytes; 2] {
    let (mut stored, mut meant) = (Vec::new(), Vec::new());
    for (decl, values) in tensors {
        let &[k, _] = &decl.dims[..] else {
            stored.push((decl.clone(), f32_bytes(values)));
            meant.push((decl.clone(), f32_bytes(values)));
            continue;
        };
        let mut bytes = vec![0; values.len() / k * ty.row_bytes(k).unwrap()];
        quant::quantize_rows(ty, values, k, &mut bytes, None).unwrap();
        let mut back = vec![0.0; values.len()];
        quant::dequantize_rows(ty, &bytes, k, &mut back).unwrap();
        stored.push((TensorDecl { ty, ..decl.clone() }, bytes));
        meant.push((decl.clone(), f32_bytes(&back)));
    }
    [file(metadata, &stored), file(metadata, &meant)]
}

#[test]
fn every_format_runs_and_means_what_its_bytes_say() {
    let tokens = [3, 77, 1023, 500, 8];
    let initial: Vec<f32> = (0..WIDTH).map(|i| standard_normal(1, 0, i as u64) as f32).collect();
    let initial = InitialState::Given(initial.into());
    let wide = wide();
    for ty in WEIGHT_TYPES {
        let [found, expected] = stored(ty, &wide).map(|bytes| {
            let model = Arc::new(arch::from_bytes(bytes).unwrap());
            Setup::fixed(2, &initial).run(&model, &tokens)
        });
        let cosine = cosine(&found.logits, &expected.logits);
        // What remains is the rounding of activations: to 16 bits for q8_0, to 8 for the narrower formats.
        let least = match ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => 0.999_999_999,
            TensorType::Q8_0 => 0.999_999,
            _ => 0.999,
        };
        assert!(cosine > least, "{ty}: {cosine}");
    }
}

#[test]
fn rows_that_are_no_whole_super_blocks_are_refused() {
    let file = gguf(HUGINN, Recipe::F32);
    let name = "blk.0.attn_q.weight";
    let at = file.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
    // Behind the name: the number of dimensions, two dimensions, the type.
    let at = at + name.len() + 4 + 16;
    for ty in WEIGHT_TYPES.into_iter().filter(|ty| ty.block_len() == 256) {
        let mut file = file.clone();
        assert_eq!(file[at..at + 4], TensorType::F32.id().to_le_bytes());
        file[at..at + 4].copy_from_slice(&ty.id().to_le_bytes());
        let error = arch::from_bytes(Bytes::from(file)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("rows of 128 values do not divide into {ty} blocks of 256")), "{error}");
    }
}

#[test]
fn a_type_without_a_kernel_is_refused_by_name() {
    let (metadata, tensors) = wide();
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(decl, values)| match decl.name.as_str() {
            "blk.0.attn_q.weight" => {
                let bytes = vec![0; decl.dims[1] * TensorType::Q2_K.row_bytes(decl.dims[0]).unwrap()];
                (TensorDecl { ty: TensorType::Q2_K, ..decl }, bytes)
            }
            _ => (decl, f32_bytes(&values)),
        })
        .collect();
    let error = arch::from_bytes(file(&metadata, &tensors)).map(|_| ()).unwrap_err();
    let text = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    let text: String = text.map(|e| format!("{e}; ")).collect();
    assert!(text.contains("attn_q") && text.contains("q2_K") && text.contains("q4_K, q5_K, q6_K"), "{text}");
}
