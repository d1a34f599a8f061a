//! What was freed goes back to the system.

/// Gives back what the allocator keeps for later. After a burst of small allocations that is most
/// of what they took.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "nothing safe asks the C library for this")]
    // SAFETY: it takes a number and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
