//! SIGINT and SIGTERM: the first asks runs to stop after their step, the second stops the program at once.

use weft::train::interrupt;

/// The exit status of what was stopped by SIGINT: 128 and its number.
pub const STOPPED: u8 = 130;

/// From now on the first signal is a wish, the second an end.
#[cfg(unix)]
pub fn listen() {
    use signal_hook::consts::TERM_SIGNALS;
    use signal_hook::iterator::Signals;
    // Where the system refuses, signals end the program as ever; checkpoints are whole in any case.
    let Ok(mut signals) = Signals::new(TERM_SIGNALS) else { return };
    std::thread::spawn(move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(i32::from(STOPPED));
            }
            interrupt::ask();
            eprintln!("stopping after this step, which is saved; once more stops at once");
        }
    });
}

#[cfg(not(unix))]
pub fn listen() {
    let _ = interrupt::ask;
}
