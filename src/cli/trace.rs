//! Shows the denoising of an answer step by step: redrawn in place on a terminal, one line per step elsewhere.

use std::sync::mpsc::Receiver;

use console::{Style, Term};
use weft::data::chat_template::TextModel;
use weft::report::visible::visible;

/// The sign for a masked token.
const MASK: &str = "\u{2591}";

/// An answer that is being denoised.
pub struct Trace<'a> {
    pub text: &'a TextModel,
    pub prompt_len: usize,
    pub mask_token_id: u32,
}

/// The state of a token after a step.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Masked,
    New,
    Old,
}

impl Trace<'_> {
    /// Shows every step it receives, until the sender is gone.
    pub fn show(&self, steps: &Receiver<Vec<Vec<u32>>>) {
        let term = Term::stderr();
        let (mut before, mut drawn): (Vec<u32>, usize) = (vec![], 0);
        for (step, canvases) in (1..).zip(steps) {
            let answer = &canvases[0][self.prompt_len..];
            let runs = self.runs(answer, &before);
            let left = answer.iter().filter(|id| **id == self.mask_token_id).count();
            if term.is_term() {
                let text: String = runs.iter().map(|(state, text)| style(*state).apply_to(text).to_string()).collect();
                let text = format!("step {step}, {left} masked\n{text}");
                let width = usize::from(term.size().1).max(1);
                let _ = term.clear_last_lines(drawn);
                let _ = term.write_line(&text);
                let lines = |line: &str| console::measure_text_width(line).div_ceil(width).max(1);
                drawn = text.split('\n').map(lines).sum();
            } else {
                let text: String = runs.into_iter().map(|(_, text)| text).collect();
                eprintln!("step {step}, {left} masked: {}", text.replace('\n', "\u{21b5}"));
            }
            before = answer.to_vec();
        }
    }

    /// Joins neighbouring tokens of the same state into texts; a masked token is one sign.
    fn runs(&self, answer: &[u32], before: &[u32]) -> Vec<(State, String)> {
        let state = |(i, id): (usize, &u32)| match (*id == self.mask_token_id, before.get(i) == Some(id)) {
            (true, _) => State::Masked,
            (_, true) => State::Old,
            (_, false) => State::New,
        };
        let states: Vec<State> = answer.iter().enumerate().map(state).collect();
        let mut start = 0;
        let run = |run: &[State]| {
            let ids = &answer[start..start + run.len()];
            start += run.len();
            let text = match run[0] {
                State::Masked => MASK.repeat(ids.len()),
                _ => visible(&self.text.decode_canvas(ids)).into_owned(),
            };
            (run[0], text)
        };
        states.chunk_by(|a, b| a == b).map(run).collect()
    }
}

fn style(state: State) -> Style {
    match state {
        State::Masked => Style::new().for_stderr().dim(),
        State::New => Style::new().for_stderr().bold().green(),
        State::Old => Style::new().for_stderr(),
    }
}
