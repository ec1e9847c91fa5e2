//! SIGINT, SIGTERM, and among ranks SIGUSR1, which launchers pass on: the first asks runs to stop after their step, a later
//! one stops the program at once. One wish may come as several signals: `timeout` tells the process and its group, a
//! terminal and a launcher both tell their own.

use weft::interrupt;
use weft::parallel::Ranks;

/// The exit status of what was stopped by SIGINT: 128 and its number.
pub const STOPPED: u8 = 130;

/// Signals that come this soon after the first are still the first wish.
#[cfg(unix)]
const SAME_WISH: std::time::Duration = std::time::Duration::from_millis(500);

/// From now on the first signal is a wish, a later one an end.
#[cfg(unix)]
pub fn listen(ranks: &Ranks) {
    use signal_hook::consts::{SIGUSR1, TERM_SIGNALS};
    use signal_hook::iterator::Signals;
    let is_alone = ranks.size() == 1;
    let of_launchers = (!is_alone).then_some(SIGUSR1);
    // Where the system refuses, signals end the program as ever; checkpoints are whole in any case.
    let Ok(mut signals) = Signals::new(TERM_SIGNALS.iter().copied().chain(of_launchers)) else { return };
    std::thread::spawn(move || {
        let mut first: Option<std::time::Instant> = None;
        for _ in signals.forever() {
            match first {
                Some(first) if first.elapsed() < SAME_WISH => {}
                Some(_) => {
                    if is_alone {
                        eprintln!("stopped at once; --resume goes on from the last checkpoint that is there");
                    }
                    // Without what a process does at its end, beside threads that go on.
                    signal_hook::low_level::exit(i32::from(STOPPED));
                }
                None => {
                    first = Some(std::time::Instant::now());
                    interrupt::ask();
                    // Among ranks it may be their end: the launcher's signal where one of them has failed.
                    if is_alone {
                        eprintln!("stopping after this step, which is saved; once more stops at once");
                    }
                }
            }
        }
    });
}

#[cfg(not(unix))]
pub fn listen(_: &Ranks) {
    let _ = interrupt::ask;
}
