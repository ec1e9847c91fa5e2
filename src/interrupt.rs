//! A request to stop: a run that sees it finishes its step, saves a checkpoint and says how to resume. Whoever hears
//! from the user, such as a signal handler, passes the request on here.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// Asks every run of this process to stop after its current step.
pub fn ask() {
    IS_ASKED.store(true, Ordering::Relaxed);
}

/// Whether runs have been asked to stop.
pub fn is_asked() -> bool {
    IS_ASKED.load(Ordering::Relaxed)
}
