//! Counts what the present thread allocates.
#![allow(unsafe_code, reason = "an allocator is unsafe by its signature")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// May be below zero: memory can be freed by another thread than the one that asked for it.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is being torn down has no counters, and nothing to measure.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
        let _ = CALLS.try_with(|calls| calls.set(calls.get() + u64::from(bytes > 0)));
    });
}

// SAFETY: every call goes on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Old and new may both be there for a moment.
        count(new_size.cast_signed());
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Bytes that this thread has asked for and not given back.
pub fn live() -> isize {
    LIVE.get()
}

/// The most that [`live`] was since [`restart_peak`].
pub fn peak() -> isize {
    PEAK.get()
}

pub fn restart_peak() {
    PEAK.set(LIVE.get());
}

/// How often this thread has asked for memory, or for more of it.
pub fn calls() -> u64 {
    CALLS.get()
}
