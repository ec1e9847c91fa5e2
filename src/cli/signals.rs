//! SIGINT and SIGTERM: the first asks runs to stop after their step, a later one stops the program at once. One wish may
//! come as several signals: `timeout` tells the process and its group, a terminal and a launcher both tell their own.

use weft::train::interrupt;

/// The exit status of what was stopped by SIGINT: 128 and its number.
pub const STOPPED: u8 = 130;

/// Signals that come this soon after the first are still the first wish.
#[cfg(unix)]
const SAME_WISH: std::time::Duration = std::time::Duration::from_millis(500);

/// From now on the first signal is a wish, a later one an end.
#[cfg(unix)]
pub fn listen() {
    use signal_hook::consts::TERM_SIGNALS;
    use signal_hook::iterator::Signals;
    // Where the system refuses, signals end the program as ever; checkpoints are whole in any case.
    let Ok(mut signals) = Signals::new(TERM_SIGNALS) else { return };
    std::thread::spawn(move || {
        let mut first: Option<std::time::Instant> = None;
        for _ in signals.forever() {
            match first {
                Some(first) if first.elapsed() < SAME_WISH => {}
                Some(_) => {
                    eprintln!("stopped at once; --resume goes on from the last checkpoint that is there");
                    std::process::exit(i32::from(STOPPED));
                }
                None => {
                    first = Some(std::time::Instant::now());
                    interrupt::ask();
                    eprintln!("stopping after this step, which is saved; once more stops at once");
                }
            }
        }
    });
}

#[cfg(not(unix))]
pub fn listen() {
    let _ = interrupt::ask;
}
