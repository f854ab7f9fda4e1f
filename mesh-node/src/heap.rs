//! The memory of the process, as far as the allocator must be told.

/// Gives free memory back to the system. Reading a configuration takes many times the memory of what is kept
/// of it, and the allocator would hold on to it. Walks the whole heap: for rare events only.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes the allocator's own locks and touches only memory that nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
}
