//! Generated rows of a task, in the form of a user's own file: chat turns to train on, and problems to score.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::synthetic::{self, Choices, Difficulty, Side};
use crate::error::Result;
use crate::files::{make_folder, write_whole};

/// The number of empty cells of a Sudoku, as in d1's test set.
const EMPTY_CELLS: usize = 8;

/// A task whose problems can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Puzzle {
    /// 4x4 Sudoku.
    Sudoku,
    /// Make a target of three numbers from 1 to 50.
    Countdown,
    /// Make a target of three numbers from 1 to 9, which are named in the order in which an expression uses them: only
    /// the operators are left to find.
    CountdownInOrder,
}

impl Puzzle {
    /// The task's name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sudoku => "sudoku",
            Self::Countdown => "countdown",
            Self::CountdownInOrder => "countdown_in_order",
        }
    }
}

/// Writes `train.jsonl` and `held-out.jsonl`, whose rows have `messages`, and `question` and `ground_truth` for
/// scoring. No puzzle is in both files.
///
/// # Errors
/// A file that can't be written.
pub fn write(puzzle: Puzzle, seed: u64, [train, held_out]: [usize; 2], folder: &Path) -> Result<[PathBuf; 2]> {
    make_folder(folder)?;
    let write = |file: &str, rows: usize, (seed, side): (u64, Side)| -> Result<PathBuf> {
        let path = folder.join(file);
        let lines: String = (0..rows as u64).map(|i| format!("{}\n", row(puzzle, seed, i, side))).collect();
        write_whole(&path, lines.as_bytes())?;
        Ok(path)
    };
    // Held-out problems are the same for every seed.
    Ok([write("train.jsonl", train, (seed, Side::Train))?, write("held-out.jsonl", held_out, (0, Side::HeldOut))?])
}

fn row(puzzle: Puzzle, seed: u64, index: u64, side: Side) -> Value {
    let mut choices = Choices::new(seed, index);
    let (question, answer, ground_truth) = match puzzle {
        Puzzle::Sudoku => {
            let sudoku = synthetic::sudoku(&mut choices, EMPTY_CELLS, side);
            let question = format!("Solve the following Sudoku puzzle: {}\n", sudoku.puzzle);
            (question, sudoku.solution.clone(), json!(sudoku.solution))
        }
        Puzzle::Countdown | Puzzle::CountdownInOrder => {
            let is_in_order = puzzle == Puzzle::CountdownInOrder;
            let difficulty = Difficulty { largest: if is_in_order { 9 } else { 50 }, is_in_order };
            let made = synthetic::countdown(&mut choices, difficulty, side);
            let question = format!("Numbers: {:?}\nTarget: {}", made.numbers, made.target);
            (question, format!("\\boxed{{{}}}", made.expression), json!([made.numbers, made.target]))
        }
    };
    json!({
        "messages": [
            { "role": "user", "content": question },
            { "role": "assistant", "content": format!("<answer>\n{answer}\n</answer>") },
        ],
        "question": question,
        "ground_truth": ground_truth,
    })
}
