//! `weft generate` on a terminal: a chat of several turns. An answer is printed as far as it is found, and Ctrl-C stops
//! it. `line_editor` reads the user's lines.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use weft::base::Base;
use weft::data::chat::Turn;
use weft::error::Result;
use weft::eval::answer_rows::shown;
use weft::model::positions;
use weft::sampler::generate::{Prompt, Sampling, generate_until};

use super::asking::asked;
use super::line_editor::LineEditor;
use super::signals;

/// What `/help` prints.
const HELP: &str = "\
/reset        forgets the turns so far
/system TEXT  sets the system turn; without TEXT there is none
/help         prints these lines
exit          leaves the chat, and so do quit, /exit, /quit, and Ctrl-C and Ctrl-D in an empty line
Ctrl-C        stops an answer, or drops the line that is being typed
\\             at the end of a line continues it in the next one
Up, Down      bring back what was typed before; Ctrl-R searches it";

/// A chat, with the model and the settings that generate its answers.
struct Chat<'a> {
    base: &'a Base,
    sampling: &'a Sampling,
    keeps_special_tokens: bool,
    system: Option<String>,
    turns: Vec<Turn>,
    signals: Arc<Signals>,
}

/// The flags that the chat shares with the thread that receives Ctrl-C.
#[derive(Default)]
struct Signals {
    is_answering: AtomicBool,
    stops: AtomicBool,
}

/// What a line that the user typed asks for.
enum Line {
    Quit,
    Turn(String),
    Nothing,
}

/// Chats until the user ends it.
pub fn run(base: &Base, system: Option<String>, sampling: &Sampling, keeps_special_tokens: bool) -> Result<()> {
    let signals = Arc::new(Signals::default());
    let heard = signals.clone();
    signals::on_interrupt(move || match heard.is_answering.load(Ordering::Relaxed) {
        true => heard.stops.store(true, Ordering::Relaxed),
        // The line editor reads Ctrl-C as a key, so this signal came from elsewhere, or from a terminal without editing.
        false => std::process::exit(i32::from(signals::STOPPED)),
    });
    let mut chat = Chat { base, sampling, keeps_special_tokens, system, turns: vec![], signals };
    let mut editor = LineEditor::open()?;
    let adapter =
        base.adapter.as_ref().map(|folder| format!(" and the adapter {}", folder.display())).unwrap_or_default();
    tell!("a chat with {}{adapter}; /help lists the commands, Ctrl-D leaves", base.name);
    while let Some(line) = editor.read()? {
        match chat.command(line) {
            Line::Quit => return Ok(()),
            Line::Turn(content) => {
                if let Err(error) = chat.answer(&content) {
                    // The chat goes on without the turn that can't be answered.
                    tell!("error: {error}");
                }
            }
            Line::Nothing => {}
        }
    }
    Ok(())
}

impl Chat<'_> {
    /// Runs the command in a line.
    fn command(&mut self, line: String) -> Line {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((&line[..], ""));
        match (command, rest.trim()) {
            _ if line.trim().is_empty() => Line::Nothing,
            ("exit" | "quit" | "/exit" | "/quit" | "/bye", "") => Line::Quit,
            ("/reset", "") => {
                self.turns.clear();
                tell!("the turns so far are forgotten");
                Line::Nothing
            }
            ("/system", system) => {
                self.system = (!system.is_empty()).then(|| system.to_owned());
                tell!("{}", if system.is_empty() { "there is no system turn now" } else { "the system turn is set" });
                Line::Nothing
            }
            ("/help" | "/?", "") => {
                tell!("{HELP}");
                Line::Nothing
            }
            _ if line.starts_with('/') => {
                tell!("no such command: {command}; a space before the / makes it a turn\n{HELP}");
                Line::Nothing
            }
            _ => Line::Turn(line),
        }
    }

    /// Answers a user's turn. Both turns become part of the chat if there is an answer.
    fn answer(&mut self, content: &str) -> Result<()> {
        let base = self.base;
        let system = self.system.iter().map(|system| Turn::new("system", system));
        let mut turns: Vec<Turn> = system.chain(self.turns.iter().cloned()).collect();
        turns.push(Turn::new("user", content));
        let ids = asked(base, base.text.prompt_of_turns(&turns, None)?)?;
        self.warn_of_positions(ids.len());
        // The first answer is the one that --prompt gets.
        let prompts = [Prompt { ids: &ids, example: self.turns.len() as u64 / 2 }];
        let (sender, steps) = channel();
        let Signals { is_answering, stops } = &*self.signals;
        stops.store(false, Ordering::Relaxed);
        is_answering.store(true, Ordering::Relaxed);
        let (outputs, printed) = std::thread::scope(|scope| {
            let (chat, start) = (&*self, ids.len());
            let printing = scope.spawn(move || chat.print(&steps, start));
            let outputs = generate_until(&base.model, &prompts, self.sampling, Some(sender), stops);
            (outputs, printing.join().unwrap_or_default())
        });
        is_answering.store(false, Ordering::Relaxed);
        let output = outputs?.remove(0);
        let answer = self.text(&output.ids[ids.len()..]);
        let is_empty = answer.trim().is_empty();
        match answer.strip_prefix(&printed) {
            Some(_) if is_empty && printed.is_empty() => {}
            Some(rest) => say!("{rest}"),
            // Some tokenizers decode the beginning of a text differently once more of it is there.
            None => say!("\n{answer}"),
        }
        match (stops.load(Ordering::Relaxed), is_empty) {
            (true, _) => tell!("(stopped)"),
            (false, true) => tell!("(the answer is empty)"),
            _ => {}
        }
        if !is_empty {
            self.turns.extend([Turn::new("user", content), Turn::new("assistant", &answer)]);
        }
        Ok(())
    }

    /// Prints what each step adds to the answer's beginning; returns what was printed.
    fn print(&self, steps: &Receiver<Vec<Vec<u32>>>, start: usize) -> String {
        let mut printed = String::new();
        for canvases in steps {
            let text = self.text(&canvases[0][start..]);
            // The bytes of a character may be divided among tokens.
            let whole = text.trim_end_matches('\u{fffd}');
            if let Some(more) = whole.strip_prefix(&printed).filter(|more| !more.is_empty()) {
                let mut out = std::io::stdout();
                // If standard output can't be written to, writing the whole answer below reports it.
                let _ = write!(out, "{more}").and_then(|()| out.flush());
                printed = whole.to_owned();
            }
        }
        printed
    }

    /// The text of an answer up to its first mask or end.
    fn text(&self, ids: &[u32]) -> String {
        let mask = self.base.model.config.mask_token_id;
        let found = ids.iter().position(|id| *id == mask).unwrap_or(ids.len());
        shown(self.base, &ids[..found], self.keeps_special_tokens)
    }

    /// Warns of a chat that is longer than what the model was trained for.
    fn warn_of_positions(&self, prompt: usize) {
        let longest = prompt + self.sampling.gen_length;
        let fix = |_| "/reset forgets the turns so far".to_owned();
        let warning = positions::warning(self.base.config(), longest, "the chat with its answer", fix);
        warning.into_iter().for_each(|warning| tell!("warning: {warning}"));
    }
}
