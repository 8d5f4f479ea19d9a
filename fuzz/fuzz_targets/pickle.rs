//! Any bytes at all, as a PyTorch file and as the pickle in one: reading gives tensors or an error of one line. The
//! tensors lie inside the file and can be converted whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rdt::checkpoint::{Error, TorchFile};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&archive(&[("m/data.pkl", bytes), ("m/data/0", &[0; 64]), ("m/data/1", &[0; 6])]));
});

fn check(file: &[u8]) {
    match TorchFile::parse(file) {
        Ok(read) => {
            for name in read.names() {
                let tensor = read.tensor(file, name).expect("it was checked to lie inside");
                let values = tensor.rows() * tensor.row_len();
                match tensor.to_f32() {
                    Ok(converted) => assert_eq!(converted.len(), values),
                    Err(Error::Dtype { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    }
}

/// A zip archive of plainly stored parts, as PyTorch writes it.
fn archive(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, bytes) in parts {
        let (mut entry, config) = writer.new_file(*name).start().expect("memory is writable");
        let mut data = config.wrap(&mut entry);
        std::io::Write::write_all(&mut data, bytes).expect("memory is writable");
        let (_, descriptor) = data.finish().expect("memory is writable");
        entry.finish(descriptor).expect("memory is writable");
    }
    writer.finish().expect("memory is writable")
}
