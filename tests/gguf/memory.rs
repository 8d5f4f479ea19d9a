//! Measures the most memory that a piece of code holds at once, so that tests can bound it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread holds now, and the most it held since `peak_during` began.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(change: isize) {
    // Fails only while the thread is being torn down, when nothing is measured.
    let _ = HELD.try_with(|held| {
        let (now, peak) = held.get();
        let now = now + change;
        held.set((now, peak.max(now)));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory of the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Runs `f` and returns what it returns, and the most bytes it held at once.
pub(crate) fn peak_during<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let result = f();
    let (_, peak) = HELD.with(Cell::get);
    (result, (peak - before) as usize)
}

#[test]
fn memory_is_counted() {
    let (_, peak) = peak_during(|| drop(vec![1u8; 100_000]));
    assert!((100_000..110_000).contains(&peak), "{peak}");
}
