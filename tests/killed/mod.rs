//! A command that is killed again and again.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts a command and kills it, each time a little later, until it ends by itself, with success; returns the number of kills.
pub fn killed_until_done(command: impl Fn() -> Command) -> usize {
    let mut kills = 0;
    for millis in (300..).step_by(400) {
        let mut child = command().stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program starts");
        let deadline = Instant::now() + Duration::from_millis(millis);
        while child.try_wait().expect("the program can be asked").is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(status) = child.try_wait().expect("the program can be asked") {
            assert!(status.success());
            break;
        }
        child.kill().expect("the program can be killed");
        child.wait().expect("the program ends");
        kills += 1;
    }
    kills
}
