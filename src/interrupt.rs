//! A request to stop: a run that sees it finishes its step, saves a checkpoint and says how to resume. Whoever hears
//! from the user, such as a signal handler, passes the request on here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

static IS_ASKED: AtomicBool = AtomicBool::new(false);
static STAGE: Mutex<Stage> = Mutex::new(Stage::Steps);

/// The stage of a run, which decides what a request to stop has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing has been trained yet, so there is nothing to save.
    Start,
    /// The run is being resumed and hasn't trained since its last checkpoint.
    Resumed,
    /// Steps are being taken; a run stops after the current one.
    Steps,
    /// The tasks are being scored between two steps; a run stops once they are.
    Scoring,
    /// The last step is done and saved, and what follows it is under way.
    End,
}

/// Records the stage of this process's run.
pub fn enter(stage: Stage) {
    *STAGE.lock().unwrap_or_else(PoisonError::into_inner) = stage;
}

/// The stage of this process's run; [`Stage::Steps`] if none was recorded.
pub fn stage() -> Stage {
    *STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks every run of this process to stop after its current step.
pub fn ask() {
    IS_ASKED.store(true, Ordering::Relaxed);
}

/// Whether runs have been asked to stop.
pub fn is_asked() -> bool {
    IS_ASKED.load(Ordering::Relaxed)
}
