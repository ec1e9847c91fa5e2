//! Guards calls into the crates that read parquet and tokenizers, which panic on some damaged files: such a panic
//! becomes an ordinary error, and its message never reaches the terminal.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread would be caught.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls such a crate and turns a panic into an error.
///
/// # Errors
/// The call's own error, or that it panicked, as a part of a sentence.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                told(info);
            }
        }));
    });
    IS_GUARDED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    IS_GUARDED.set(false);
    result.unwrap_or_else(|_| Err("its bytes contradict each other".to_owned()))
}
