//! What a device's work leaves behind: nothing. A program of its own, as other tests' memory would hide it.

#![cfg(all(feature = "gpu", target_os = "linux"))]

mod common;

use rdt::arch;
use rdt::files::Bytes;
use rdt::gpu::{self, Gpu};
use rdt::model::{Batch, FixedDepth, Session, SessionOptions};
use rdt::quant::Recipe;
use std::sync::Arc;

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A thousand tokens leave as much memory in use as a hundred, on the device and here; sessions that come and go leave nothing.
#[test]
fn a_thousand_tokens_leak_nothing() {
    let Some(device) = gpu::devices().first().cloned() else {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "REQUIRE_GPU is set, and there is no GPU");
        return;
    };
    let gpu = Gpu::open(Some(&device.name)).unwrap();
    let mut model = arch::from_bytes(Bytes::from(common::gguf("huginn-hops", Recipe::Q4_0))).unwrap();
    model.place_on(gpu::load(&gpu, &model, &mut |_, _| {}).unwrap());
    let model = Arc::new(model);
    let options = SessionOptions { context: Some(40), steps: Some(4), ..SessionOptions::default() };
    let start = || Session::new(Arc::clone(&model), &options).unwrap();
    let run = |session: &mut Session, n: usize| {
        for i in 0..n {
            if session.len(0) == 40 {
                session.truncate(0, 3);
            }
            session.run(Batch::next(&[i as u32 % 30]), &mut FixedDepth(4)).unwrap();
        }
        assert!(session.take_notice().is_none());
        (gpu.allocated(), resident())
    };
    let mut session = start();
    let (on_device, here) = run(&mut session, 200);
    let (on_device_after, here_after) = run(&mut session, 1000);
    assert!(on_device.is_some_and(|bytes| bytes > 0), "the driver does not tell what is allocated");
    assert_eq!(on_device, on_device_after);
    // A token takes a hundred dispatches and more: a hundred bytes lost by each would be 10 MB.
    eprintln!("{} KiB more behind a thousand tokens", here_after.saturating_sub(here) >> 10);
    assert!(here_after < here + (6 << 20), "{here} bytes, then {here_after}");
    drop(session);
    for i in 0..8 {
        run(&mut start(), 2);
        let now = gpu.allocated();
        assert!(now <= on_device, "session {i}: {now:?}, {on_device:?}");
    }
}
