//! `weft generate` on a terminal, which `script` (of util-linux) gives it: chats of several turns, and a trace that is
//! redrawn within its window. Without `script` these tests say that they are skipped.
#![cfg(target_os = "linux")]

// The commands begin with `exec`, because a shell that has seen Ctrl-C ends by it once its command has ended.
mod scratch;

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A command on a terminal of its own.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<String>>,
    read: usize,
}

impl Terminal {
    /// `None` where there is no `script`.
    fn open(command: &str) -> Option<Self> {
        let mut script = Command::new("script");
        script.args(["-qec", command, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
        let started = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            eprintln!("skipped: there is no script");
            return None;
        };
        let (keys, mut out) = (child.stdin.take()?, child.stdout.take()?);
        let shown = Arc::new(Mutex::new(String::new()));
        let to = shown.clone();
        std::thread::spawn(move || {
            let (mut all, mut bytes) = (vec![], [0; 4096]);
            while let Ok(count @ 1..) = out.read(&mut bytes) {
                all.extend_from_slice(&bytes[..count]);
                *to.lock().expect("nobody panics") = String::from_utf8_lossy(&all).replace('\r', "");
            }
        });
        Some(Self { child, keys, shown, read: 0 })
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("the terminal listens");
    }

    /// What is shown up to a text that has to appear, from where the last call ended. What moves the cursor is left out: a
    /// line that is edited appears as often as it is drawn.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let began = Instant::now();
        loop {
            let shown = console::strip_ansi_codes(&self.shown.lock().expect("nobody panics")).into_owned();
            if let Some(at) = shown[self.read..].find(text) {
                let found = shown[self.read..self.read + at].to_owned();
                self.read += at + text.len();
                return found;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{text:?} is shown: {:?}", &shown[self.read..]);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ends(mut self) -> String {
        drop(self.keys);
        assert!(self.child.wait().expect("it ends").success());
        std::thread::sleep(Duration::from_millis(100));
        self.shown.lock().expect("nobody panics").clone()
    }
}

#[test]
fn a_chat_has_turns_and_commands() {
    let short = format!("exec '{WEFT}' generate --model tiny-base --gen-length 8 --diffusion-steps 4");
    let Some(mut chat) = Terminal::open(&short) else { return };
    let asked =
        Command::new("sh").arg("-c").arg(format!("{short} --prompt 'What is 7 + 5?'")).stdin(Stdio::null()).output();
    let asked = String::from_utf8(asked.expect("a shell starts").stdout).expect("UTF-8");
    chat.until("a chat with tiny-base; /help lists the commands, Ctrl-D leaves\n> ");
    // A key too many is taken back, which is drawn by moving the cursor.
    chat.type_in("What is 7 + 55\u{7f}?\n");
    chat.until("?\n");
    assert_eq!(chat.until("> "), asked);
    // What was asked before is asked again, with more at its end.
    chat.type_in("\u{1b}[A And \\\n8 + 5?\n");
    chat.until("What is 7 + 5? And \\\n");
    chat.until("8 + 5?\n");
    assert!(!chat.until("> ").trim().is_empty(), "there is a second answer");
    chat.type_in("/system Be brief.\n");
    chat.until("the system turn is set\n> ");
    chat.type_in("/nonsense\n");
    chat.until("no such command: /nonsense;");
    chat.until("> ");
    chat.type_in("What is <|mdm_mask|>?\n");
    chat.until("error: the prompt contains the mask token <|mdm_mask|>");
    chat.until("> ");
    chat.type_in("What is <|eot_id|>?\n");
    chat.until("warning: <|eot_id|> in the prompt is read as text");
    chat.until("> ");
    chat.type_in("/system\n/reset\n");
    chat.until("there is no system turn now\n");
    chat.until("the turns so far are forgotten\n> ");
    chat.type_in("What is 7 + 5?\n");
    chat.until("What is 7 + 5?\n");
    assert_eq!(chat.until("> "), asked, "a chat begins anew");
    chat.type_in("/quit\n");
    chat.ends();
}

#[test]
fn a_chat_names_its_adapter() {
    let folder = scratch::folder("chat-adapter");
    let row = "{\"prompt\": \"What is 7 + 5?\", \"response\": \"12\"}\n";
    std::fs::write(folder.join("rows.jsonl"), row.repeat(4)).expect("the rows are written");
    let recipe = "[model]\nlora_rank = 1\n[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nmax_steps = 1\n";
    std::fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    let trained = Command::new(WEFT).current_dir(&folder).args(["train", "recipe.toml", "--quiet"]).output();
    assert!(trained.expect("weft starts").status.success());
    let adapter = folder.join("run/adapter");
    let command = format!("exec '{WEFT}' generate --model tiny-base --adapter '{}' --gen-length 8", adapter.display());
    let Some(mut chat) = Terminal::open(&command) else { return };
    let told = format!("a chat with tiny-base and the adapter {}; /help lists the commands", adapter.display());
    chat.until(&told);
    chat.until("> ");
    chat.type_in("\u{4}");
    chat.ends();
}

#[test]
fn a_chat_is_left_by_words_and_keys() {
    let short = format!("exec '{WEFT}' generate --model tiny-base --gen-length 8 --diffusion-steps 4");
    for keys in ["exit\n", "quit \n", "/exit\n", "\u{3}", "half a line\u{3}\u{3}", "\u{4}"] {
        let Some(mut chat) = Terminal::open(&short) else { return };
        chat.until("> ");
        chat.type_in(keys);
        chat.ends();
    }
}

#[test]
fn an_empty_answer_is_noted() {
    // The one token that is found is the end token.
    let empty = format!("exec '{WEFT}' generate --model tiny-base --gen-length 1");
    let Some(mut chat) = Terminal::open(&empty) else { return };
    chat.until("> ");
    chat.type_in("What is 7 + 5?\n");
    chat.until("What is 7 + 5?\n(the answer is empty)\n> ");
    chat.type_in("\u{4}");
    chat.ends();
}

#[test]
fn an_answer_is_stopped_and_the_chat_goes_on() {
    let long = format!("exec '{WEFT}' generate --model tiny-base --gen-length 4096 --block-length 8 --whole-canvas");
    let Some(mut chat) = Terminal::open(&long) else { return };
    chat.until("> ");
    chat.type_in("What is 7 + 5?\n");
    chat.until("warning: the chat with its answer has");
    chat.until("/reset forgets the turns so far\n");
    std::thread::sleep(Duration::from_secs(1));
    chat.type_in("\u{3}");
    chat.until("(stopped)\n> ");
    chat.type_in("/help\n");
    chat.until("Ctrl-C        stops an answer, or drops the line that is being typed\n");
    chat.until("> ");
    // A line that is dropped isn't asked, and the chat goes on.
    chat.type_in("half a line\u{3}");
    chat.until("half a line\n> ");
    chat.type_in("/system\n");
    chat.until("there is no system turn now\n> ");
    chat.type_in("\u{4}");
    chat.ends();
}

#[test]
fn a_trace_is_redrawn_within_the_window() {
    let long =
        "generate --model tiny-base --prompt 'What is 7 + 5?' --gen-length 480 --diffusion-steps 15 --whole-canvas";
    let command = format!("stty rows 12 cols 40; '{WEFT}' {long} --trace");
    let Some(trace) = Terminal::open(&command) else { return };
    let shown = trace.ends();
    let steps: Vec<&str> = shown.split("step ").skip(1).collect();
    assert_eq!(steps.len(), 15, "{shown}");
    for (i, step) in steps.iter().enumerate() {
        // The last one is followed by the answer.
        let lines = step.matches('\n').count();
        assert!(lines <= 11 || i + 1 == steps.len(), "{lines} lines: {step}");
        assert!(i + 1 == steps.len() || step.matches("\u{1b}[2K").count() <= 12, "{step:?}");
    }
    assert!(steps[0].matches('\u{2591}').count() > 200, "{}", steps[0]);
}
