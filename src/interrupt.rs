//! A wish to stop: a run that sees it ends its step, saves a checkpoint and says how to go on. Whoever hears the user,
//! a signal's handler for one, tells of it here.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// Asks every run of this process to stop after its step.
pub fn ask() {
    IS_ASKED.store(true, Ordering::Relaxed);
}

/// Whether a run is to stop.
pub fn is_asked() -> bool {
    IS_ASKED.load(Ordering::Relaxed)
}
