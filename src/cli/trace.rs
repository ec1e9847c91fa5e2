//! Shows the denoising of an answer step by step: redrawn in place on a terminal, one line per step elsewhere. An answer
//! that is longer than the window is shown in part, around the tokens that the step found.

use std::sync::mpsc::Receiver;

use console::{Style, Term, measure_text_width};
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
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Masked,
    New,
    Old,
}

/// A text of tokens of the same state.
type Run = (State, String);

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
                let (height, width) = term.size();
                // The cursor is on its own line below the drawing.
                let lines = within(&lines(&runs, usize::from(width)), usize::from(height).saturating_sub(2));
                let _ = term.clear_last_lines(drawn);
                let text: Vec<String> = lines.iter().map(|line| styled(line)).collect();
                let _ = term.write_line(&[vec![format!("step {step}, {left} masked")], text].concat().join("\n"));
                drawn = 1 + lines.len();
            } else {
                let text: String = runs.into_iter().map(|(_, text)| text).collect();
                tell!("step {step}, {left} masked: {}", text.replace('\n', "\u{21b5}"));
            }
            before = answer.to_vec();
        }
    }

    /// Joins neighbouring tokens of the same state into texts; a masked token is one sign.
    fn runs(&self, answer: &[u32], before: &[u32]) -> Vec<Run> {
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

/// Divides runs into lines of at most `width` columns, as the terminal would. Characters that move the cursor are replaced.
fn lines(runs: &[Run], width: usize) -> Vec<Vec<Run>> {
    let (mut lines, mut column): (Vec<Vec<Run>>, usize) = (vec![vec![]], 0);
    for (state, text) in runs {
        for c in text.chars() {
            if c == '\n' {
                lines.push(vec![]);
                column = 0;
                continue;
            }
            let c = if c.is_control() { '\u{fffd}' } else { c };
            let columns = measure_text_width(c.encode_utf8(&mut [0; 4]));
            if column + columns > width.max(1) {
                lines.push(vec![]);
                column = 0;
            }
            column += columns;
            let line = lines.last_mut().expect("there is a line");
            match line.last_mut().filter(|(of, _)| of == state) {
                Some((_, text)) => text.push(c),
                None => line.push((*state, c.to_string())),
            }
        }
    }
    lines
}

/// The part of the lines that fits into `height` lines, with the first line that is new in its upper third.
fn within(lines: &[Vec<Run>], height: usize) -> Vec<Vec<Run>> {
    let height = height.clamp(1, lines.len());
    let is_new = |line: &Vec<Run>| line.iter().any(|(state, _)| *state == State::New);
    let new = lines.iter().position(is_new).unwrap_or(0);
    let start = new.saturating_sub(height / 3).min(lines.len() - height);
    lines[start..start + height].to_vec()
}

fn styled(line: &[Run]) -> String {
    line.iter().map(|(state, text)| style(*state).apply_to(text).to_string()).collect()
}

fn style(state: State) -> Style {
    match state {
        State::Masked => Style::new().for_stderr().dim(),
        State::New => Style::new().for_stderr().bold().green(),
        State::Old => Style::new().for_stderr(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_fits_into_the_window() {
        let runs = [(State::Old, "ab\ncdefg\u{1b}h".to_owned()), (State::New, "\u{6f22}\u{6f22}".to_owned())];
        let texts = |lines: &[Vec<Run>]| -> Vec<String> {
            lines.iter().map(|line| line.iter().map(|(_, text)| text.as_str()).collect()).collect()
        };
        let all = lines(&runs, 4);
        assert_eq!(texts(&all), ["ab", "cdef", "g\u{fffd}h", "\u{6f22}\u{6f22}"]);
        assert_eq!(texts(&within(&all, 9)), texts(&all));
        assert_eq!(texts(&within(&all, 2)), ["g\u{fffd}h", "\u{6f22}\u{6f22}"]);
        assert_eq!(texts(&within(&all, 0)), ["\u{6f22}\u{6f22}"], "a window of one line shows what is new");
        let first = lines(&[(State::New, "x".repeat(100))], 10);
        assert_eq!((first.len(), within(&first, 3).len()), (10, 3));
    }
}
