//! slice
use rdt::{arch, checkpoint::Checkpoint, files::AtomicFile, gguf::Writer};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a[1].ends_with(".gguf") {
        let b = rdt::files::Bytes::read(a[1].as_ref()).unwrap();
        let h = rdt::gguf::Header::parse(&b).unwrap();
        let plan = arch::Conversion::of_gguf(&h);
        let f = AtomicFile::create(a[2].as_ref()).unwrap();
        let (f, _s) = plan.write(&arch::Input::Gguf(&b, &h), a[3].parse().unwrap(), f, &mut |_| true).unwrap();
        f.commit().unwrap();
        return;
    }
    let c = Checkpoint::open(&a[1]).unwrap();
    let mut plan = arch::conversion(&c).unwrap();
    let rows = plan.metadata.require_usize("huginn.vocab_size").unwrap();
    eprintln!("{:?}", rdt::text::write_metadata(&c, rows, &mut plan.metadata));
    let f = AtomicFile::create(a[2].as_ref()).unwrap();
    let _ = std::marker::PhantomData::<Writer<Vec<u8>>>;
    let (f, s) = plan.write(&arch::Input::Checkpoint(&c), a[3].parse().unwrap(), f, &mut |_| true).unwrap();
    f.commit().unwrap();
    eprintln!("{} tensors {} bytes {:.2} bpw", s.tensors.len(), s.file_bytes, s.bits_per_weight());
}
