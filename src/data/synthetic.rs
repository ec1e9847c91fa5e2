//! Generated text and tasks: arithmetic, 4x4 Sudoku with unique solutions, number puzzles. Everything is a function of
//! a seed and an index. A hash of each puzzle assigns it to the training or the held-out side, so that no training set,
//! not even the embedded base's, contains a puzzle that is scored.

use std::sync::LazyLock;

use weft_kernels::philox::philox;

use crate::rng::{Draws, Stream};

/// The side of a task that a puzzle belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Seven of eight puzzles.
    Train,
    /// One of eight puzzles.
    HeldOut,
}

/// The random choices of one generated text, in order.
pub struct Choices {
    draws: Draws,
    next: u64,
}

/// A 4x4 Sudoku, both grids row by row, `0` for an empty cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sudoku {
    /// The clues.
    pub puzzle: String,
    /// The only solution.
    pub solution: String,
}

/// Numbers, each to be used once, and what they must make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Countdown {
    /// The numbers.
    pub numbers: [i64; 3],
    /// The target.
    pub target: i64,
    /// One way to make it.
    pub expression: String,
}

impl Choices {
    /// The choices of the text with this index.
    pub fn new(seed: u64, index: u64) -> Self {
        Self { draws: Draws::new(seed, Stream::Text, 0, index), next: 0 }
    }

    /// Draws a number in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        ((self.draws.unit_f64(self.next) * n as f64) as usize).min(n - 1)
    }

    /// Draws a number in `from..=to`.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below((to - from + 1) as usize) as i64
    }

    /// Draws one of some items.
    pub fn one_of<'a, T: ?Sized>(&mut self, things: &[&'a T]) -> &'a T {
        things[self.below(things.len())]
    }

    fn shuffle<T>(&mut self, things: &mut [T]) {
        for i in (1..things.len()).rev() {
            things.swap(i, self.below(i + 1));
        }
    }
}

fn side(text: &str) -> Side {
    let mut words = [0u32; 4];
    for byte in text.bytes() {
        words[0] ^= u32::from(byte);
        words = philox(0x5ead_0001, words);
    }
    if words[0].is_multiple_of(8) { Side::HeldOut } else { Side::Train }
}

/// All 288 solved grids.
static GRIDS: LazyLock<Vec<[u8; 16]>> = LazyLock::new(|| {
    let mut grids = vec![];
    solve(&mut [0; 16], &mut |grid| grids.push(*grid));
    grids
});

/// Calls `found` for each solution.
fn solve(grid: &mut [u8; 16], found: &mut impl FnMut(&[u8; 16])) {
    let Some(cell) = grid.iter().position(|d| *d == 0) else {
        return found(grid);
    };
    for digit in 1..=4 {
        if !peers(cell).any(|peer| grid[peer] == digit) {
            grid[cell] = digit;
            solve(grid, found);
            grid[cell] = 0;
        }
    }
}

/// The cells in the row, column and 2x2 box of a cell.
fn peers(cell: usize) -> impl Iterator<Item = usize> {
    let (row, column) = (cell / 4, cell % 4);
    (0..16).filter(move |&p| {
        p != cell && (p / 4 == row || p % 4 == column || (p / 8 == row / 2 && p % 4 / 2 == column / 2))
    })
}

fn is_unique(puzzle: &[u8; 16]) -> bool {
    let mut count = 0;
    solve(&mut puzzle.clone(), &mut |_| count += 1);
    count == 1
}

/// A puzzle with one solution and as many empty cells as asked for, if the drawn grid allows that many.
pub fn sudoku(choices: &mut Choices, num_empty: usize, wanted: Side) -> Sudoku {
    loop {
        let solution = GRIDS[choices.below(GRIDS.len())];
        let mut cells: Vec<usize> = (0..16).collect();
        choices.shuffle(&mut cells);
        let (mut puzzle, mut empty) = (solution, 0);
        for cell in cells {
            if empty == num_empty {
                break;
            }
            let digit = std::mem::replace(&mut puzzle[cell], 0);
            match is_unique(&puzzle) {
                true => empty += 1,
                false => puzzle[cell] = digit,
            }
        }
        let text = |grid: [u8; 16]| grid.iter().map(|d| char::from(b'0' + d)).collect::<String>();
        let puzzle = text(puzzle);
        if side(&puzzle) == wanted {
            return Sudoku { puzzle, solution: text(solution) };
        }
    }
}

/// The difficulty of a Countdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difficulty {
    /// The largest number.
    pub largest: i64,
    /// Whether the numbers are named in the order in which an expression uses them.
    pub is_in_order: bool,
}

/// Draws three numbers and a target that they make.
pub fn countdown(choices: &mut Choices, difficulty: Difficulty, wanted: Side) -> Countdown {
    loop {
        let numbers = [(); 3].map(|()| choices.between(1, difficulty.largest));
        let mut order = numbers;
        if !difficulty.is_in_order {
            choices.shuffle(&mut order);
        }
        let operators = [(); 2].map(|()| choices.one_of(&["+", "-", "*"]));
        let [a, b, c] = order;
        let first = calculate(a, operators[0], b);
        let target = calculate(first, operators[1], c);
        // A product of a sum would need brackets; the puzzle stays a chain.
        let is_chain = operators[1] != "*" || operators[0] == "*";
        let expression = format!("{a} {} {b} {} {c}", operators[0], operators[1]);
        let name = format!("{numbers:?}{target}");
        if is_chain && (1..100).contains(&target) && side(&name) == wanted {
            return Countdown { numbers, target, expression };
        }
    }
}

fn calculate(a: i64, operator: &str, b: i64) -> i64 {
    match operator {
        "+" => a + b,
        "-" => a - b,
        _ => a * b,
    }
}

/// A line of arithmetic, `37 + 45 = 82`.
pub fn arithmetic(choices: &mut Choices) -> String {
    let operator = choices.one_of(&["+", "-", "*"]);
    let largest = if operator == "*" { 12 } else { 99 };
    let (mut a, mut b) = (choices.between(0, largest), choices.between(0, largest));
    if operator == "-" && a < b {
        std::mem::swap(&mut a, &mut b);
    }
    format!("{a} {operator} {b} = {}", calculate(a, operator, b))
}

const NAMES: [&str; 12] =
    ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Lena", "Tom"];
const THINGS: [&str; 12] = [
    "apples", "books", "coins", "stickers", "pencils", "marbles", "cookies", "eggs", "flowers", "GPUs", "stamps",
    "shells",
];
const PLACES: [&str; 6] = ["the market", "school", "the store", "the library", "the farm", "the park"];

/// A number puzzle in words: its question and its worked answer.
pub(crate) fn word_problem(choices: &mut Choices) -> (String, String) {
    let (who, other) = (choices.one_of(&NAMES), choices.one_of(&NAMES));
    let (thing, place) = (choices.one_of(&THINGS), choices.one_of(&PLACES));
    let (a, b, c) = (choices.between(20, 60), choices.between(2, 9), choices.between(1, 9));
    let day = choices.one_of(&["Monday", "Tuesday", "Friday", "Sunday", "the weekend", "a day", "the morning"]);
    match choices.below(6) {
        0 => (
            format!(
                "{who} has {a} {thing}. On {day} {who} buys {b} more at {place} and gives {c} of them to {other}. How many {thing} does {who} have now?"
            ),
            format!(
                "First there are {a} + {b} = {} {thing}.\nAfter giving away {c} there are {} - {c} = {} {thing} left.\n#### {}",
                a + b,
                a + b,
                a + b - c,
                a + b - c
            ),
        ),
        1 => (
            format!(
                "Each box holds {b} {thing}. {who} fills {c} boxes and has {a} {thing} left. How many {thing} were there in total?"
            ),
            format!(
                "The boxes hold {b} * {c} = {} {thing}.\nWith the rest there were {} + {a} = {} {thing} in total.\n#### {}",
                b * c,
                b * c,
                b * c + a,
                b * c + a
            ),
        ),
        2 => (
            format!("{who} sells {b} {thing} for ${c} each at {place}. How much money does she earn?"),
            format!("She earns {b} * {c} = ${}.\n#### {}", b * c, b * c),
        ),
        3 => (
            format!(
                "{who} reads {b} pages every day. How many pages has she read after {c} days, and how many of {} pages are left?",
                100 + a
            ),
            format!(
                "She has read {b} * {c} = {} pages.\nThere are {} - {} = {} pages left.\n#### {}",
                b * c,
                100 + a,
                b * c,
                100 + a - b * c,
                100 + a - b * c
            ),
        ),
        4 => (
            format!("{who} is {b} years older than {other}, who is {a} years old. How old will {who} be in {c} years?"),
            format!(
                "{who} is {a} + {b} = {} years old.\nIn {c} years that will be {} + {c} = {}.\n#### {}",
                a + b,
                a + b,
                a + b + c,
                a + b + c
            ),
        ),
        _ => (
            format!(
                "A bag costs ${b} and a ticket costs ${a}. {who} pays for {c} bags and one ticket at {place}. How much does he pay?"
            ),
            format!(
                "The bags cost {c} * {b} = ${}.\nTogether he pays {} + {a} = ${}.\n#### {}",
                c * b,
                c * b,
                c * b + a,
                c * b + a
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sudoku_is_unique_and_solved() {
        assert_eq!(GRIDS.len(), 288, "the number of 4x4 Sudoku grids");
        for index in 0..200 {
            let sudoku = sudoku(&mut Choices::new(3, index), 8, Side::Train);
            let digits: Vec<u8> = sudoku.puzzle.bytes().map(|b| b - b'0').collect();
            let mut solutions = vec![];
            solve(&mut digits.try_into().expect("16 cells"), &mut |g| solutions.push(*g));
            let [only] = solutions[..] else { panic!("{} has {} solutions", sudoku.puzzle, solutions.len()) };
            assert_eq!(only.map(|d| char::from(b'0' + d)).iter().collect::<String>(), sudoku.solution);
            assert_eq!(side(&sudoku.puzzle), Side::Train);
        }
    }

    #[test]
    fn a_countdown_has_the_answer_it_names() {
        for (index, is_in_order) in (0..200).flat_map(|i| [(i, false), (i, true)]) {
            let puzzle = countdown(&mut Choices::new(3, index), Difficulty { largest: 50, is_in_order }, Side::HeldOut);
            let parts: Vec<&str> = puzzle.expression.split(' ').collect();
            let number = |i: usize| parts[i].parse::<i64>().expect("a number");
            let value = calculate(calculate(number(0), parts[1], number(2)), parts[3], number(4));
            assert_eq!(value, puzzle.target, "{}", puzzle.expression);
            let mut used = [number(0), number(2), number(4)];
            let mut numbers = puzzle.numbers;
            assert!(!is_in_order || used == numbers, "{}", puzzle.expression);
            used.sort_unstable();
            numbers.sort_unstable();
            assert_eq!(used, numbers);
        }
    }
}
