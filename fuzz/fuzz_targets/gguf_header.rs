//! Any bytes at all: parsing gives a header or an error. A header's tensors lie inside the bytes, and what was
//! parsed can be written again and reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rdt::gguf::{Header, TensorDecl, Writer};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    let decls: Vec<TensorDecl> = header.tensors.iter().map(TensorDecl::from).collect();
    let mut writer = Writer::new(Vec::new(), &header.metadata, &decls).expect("it was readable");
    for tensor in &header.tensors {
        let data = tensor.data(bytes).expect("it was checked to lie inside");
        writer.write_tensor(&tensor.name, data).expect("its size was computed");
    }
    let written = writer.finish().expect("every tensor is written");
    let again = Header::parse(&written).expect("what is written is readable");
    assert!(again.metadata.iter().map(|(key, _)| key).eq(header.metadata.iter().map(|(key, _)| key)));
    for (a, b) in again.tensors.iter().zip(&header.tensors) {
        assert_eq!(a.data(&written), b.data(bytes));
    }
});
