//! The largest piece of memory asked for at once: what must not depend on a length that was read
//! and not yet compared with what is there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static WATCHED: Watched = Watched;

struct Watched;

// SAFETY: everything is the system allocator's; a number is noted beside it.
#[expect(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        LARGEST.fetch_max(bytes, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(old, layout, bytes) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Runs something and checks that it asked for no piece of memory larger than this.
pub fn bounded<T>(bytes_max: usize, run: impl FnOnce() -> T) -> T {
    LARGEST.store(0, Ordering::Relaxed);
    let result = run();
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= bytes_max, "{largest} bytes asked for at once; {bytes_max} would do");
    result
}
