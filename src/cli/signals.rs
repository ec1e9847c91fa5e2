//! Handles SIGINT, SIGTERM and, among ranks, SIGUSR1, which launchers pass on. The first signal asks runs to stop after
//! their current step; a later one stops the program at once. One request may arrive as several signals: `timeout`
//! signals the process and its group, and a terminal and a launcher each send their own. A chat handles SIGINT itself.

use weft::interrupt::{self, Stage};
use weft::parallel::Ranks;

/// The exit status of a program stopped by SIGINT: 128 plus the signal's number.
pub const STOPPED: u8 = 130;

/// Signals that arrive within this time of the first belong to the same request.
#[cfg(unix)]
const SAME_WISH: std::time::Duration = std::time::Duration::from_millis(500);

/// Installs the handlers: from now on the first signal asks the program to stop, and a later one ends it.
#[cfg(unix)]
pub fn listen(ranks: &Ranks) {
    use signal_hook::consts::{SIGUSR1, TERM_SIGNALS};
    use signal_hook::iterator::Signals;
    let is_alone = ranks.size() == 1;
    let of_launchers = (!is_alone).then_some(SIGUSR1);
    // Where the system refuses, signals end the program as usual; checkpoints are whole in any case.
    let Ok(mut signals) = Signals::new(TERM_SIGNALS.iter().copied().chain(of_launchers)) else { return };
    std::thread::spawn(move || {
        let mut first: Option<std::time::Instant> = None;
        for _ in signals.forever() {
            match first {
                Some(first) if first.elapsed() < SAME_WISH => {}
                Some(_) => {
                    if is_alone {
                        tell!("stopped at once; --resume continues from the last checkpoint");
                    }
                    // Exits without the usual cleanup, because other threads are still running.
                    signal_hook::low_level::exit(i32::from(STOPPED));
                }
                None => {
                    first = Some(std::time::Instant::now());
                    interrupt::ask();
                    // Among ranks this may be the end of the program: the launcher sends the signal when one of them
                    // has failed.
                    if is_alone {
                        answer(interrupt::stage());
                    }
                }
            }
        }
    });
}

/// Says what a request to stop waits for; ends the program where there is nothing to wait for.
#[cfg(unix)]
fn answer(stage: Stage) {
    let at_once = |told: &str| {
        tell!("{told}");
        // Exits without the usual cleanup, because other threads are still running.
        signal_hook::low_level::exit(i32::from(STOPPED))
    };
    match stage {
        Stage::Start => at_once("stopped before the first step; nothing has been trained, so there is nothing to save"),
        Stage::Resumed => at_once("stopped before another step; --resume continues from the last checkpoint"),
        Stage::Steps => tell!("stopping after this step, which is saved; a second signal stops at once"),
        Stage::Scoring => {
            tell!("stopping once the tasks are scored, with the last step saved; a second signal stops at once");
        }
        Stage::End => {
            tell!(
                "the last step is done and saved; the run ends once it is scored and its results are written; a second signal \
                 stops at once"
            );
        }
    }
}

#[cfg(not(unix))]
pub fn listen(_: &Ranks) {
    let _ = interrupt::ask;
}

/// From now on SIGINT calls `interrupted`, on a thread of its own, instead of ending the program.
#[cfg(unix)]
pub fn on_interrupt(interrupted: impl Fn() + Send + 'static) {
    use signal_hook::consts::SIGINT;
    use signal_hook::iterator::Signals;
    // If the system refuses, the signal ends the program as usual.
    let Ok(mut signals) = Signals::new([SIGINT]) else { return };
    std::thread::spawn(move || signals.forever().for_each(|_| interrupted()));
}

#[cfg(not(unix))]
pub fn on_interrupt(_: impl Fn() + Send + 'static) {}

/// The first SIGINT or SIGTERM calls `asked`, on a thread of its own; a later one ends the program at once.
#[cfg(unix)]
pub fn on_stop(asked: impl FnOnce() + Send + 'static) {
    use signal_hook::consts::TERM_SIGNALS;
    use signal_hook::iterator::Signals;
    // If the system refuses, the signal ends the program as usual.
    let Ok(mut signals) = Signals::new(TERM_SIGNALS) else { return };
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            asked();
            let first = std::time::Instant::now();
            if signals.any(|_| first.elapsed() >= SAME_WISH) {
                // Exits without the usual cleanup, because other threads are still running.
                signal_hook::low_level::exit(i32::from(STOPPED));
            }
        }
    });
}

#[cfg(not(unix))]
pub fn on_stop(_: impl FnOnce() + Send + 'static) {}
