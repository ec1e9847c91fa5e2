//! Scoring: its rules one by one, texts of any kind, and real generations with what d1's scorer made of them.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft::eval::{Task, accuracy, score};

fn countdown(generation: &str) -> usize {
    score(Task::Countdown, "", generation, &json!([[4, 6, 8], 16])).correct
}

fn sudoku(generation: &str) -> (String, usize, usize) {
    let question = "Solve the following Sudoku puzzle: 0143431221343401\n";
    let score = score(Task::Sudoku, question, generation, &json!("2143431221343421"));
    (score.extracted, score.correct, score.total)
}

#[test]
fn an_expression_must_use_each_number_once_and_make_the_target() {
    for right in ["\\boxed{4 * 6 - 8}", "\\boxed{-8+6*4}", "\\boxed{(4*6)-8 = 16}", "\\boxed 4\\times6-8$ so"] {
        assert_eq!(countdown(right), 1, "{right}");
    }
    assert_eq!(countdown("<answer> 4 * 6 - 8 </answer> \\boxed{"), 1, "an open box lets the tags count");
    for wrong in ["\\boxed{4 * 4}", "\\boxed{16}", "\\boxed{4 + 6 + 8}", "\\boxed{4*6-8", "\\boxed{4/0*6-8}", "", "16"]
    {
        assert_eq!(countdown(wrong), 0, "{wrong}");
    }
    assert_eq!(countdown(&format!("\\boxed{{{}4*6-8{}}}", "(".repeat(1 << 20), ")".repeat(1 << 20))), 1);
}

#[test]
fn only_cells_that_were_empty_count() {
    assert_eq!(sudoku("<answer>\n2143431221343421\n</answer>"), ("2143431221343421".to_owned(), 2, 2));
    assert_eq!(sudoku("<answer>2</answer>"), ("2000000000000000".to_owned(), 1, 2));
    assert_eq!(sudoku("it is 2143431221343421"), ("2143431221343421".to_owned(), 2, 2));
    assert_eq!(sudoku("no idea"), (String::new(), 0, 2));
}

#[test]
fn the_standard_error_takes_a_problem_as_a_cluster() {
    let scores = [1, 0, 1, 0].map(|correct| weft::eval::Score { extracted: String::new(), correct, total: 1 });
    let result = accuracy(&scores);
    assert_eq!((result.accuracy, result.correct, result.total), (0.5, 2, 4));
    assert!((result.standard_error - (4.0 / 3.0 * 4.0 * 0.25f64).sqrt() / 4.0).abs() < 1e-12);
    assert_eq!(accuracy(&[]).accuracy, 0.0);
}

proptest! {
    #[test]
    fn no_text_breaks_the_scorers(text in ".*", grammar in "[0-9+*/() .=<>\\\\boxed{}answer-]*") {
        for generation in [&text, &grammar, &format!("<answer>{text}</answer>"), &format!("\\boxed{{{grammar}}}")] {
            countdown(generation);
            sudoku(generation);
            score(Task::Sudoku, generation, generation, &json!(generation));
            score(Task::Countdown, generation, generation, &json!([generation, 1]));
        }
    }
}

#[test]
fn real_generations_score_as_d1_scores_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden/scoring");
    if !folder.exists() {
        return eprintln!("SKIPPED: {} is absent, no generations to score", folder.display());
    }
    for (task, file, points) in
        [(Task::Sudoku, "sudoku_128.jsonl", [240, 2048]), (Task::Countdown, "countdown_128.jsonl", [53, 256])]
    {
        let text = std::fs::read_to_string(folder.join(file)).expect("the file is there");
        let mut sums = [0, 0];
        for (i, line) in text.lines().enumerate() {
            let row: Value = serde_json::from_str(line).expect("a row is JSON");
            let field = |key: &str| row[key].as_str().expect("the row has the text");
            let got = score(task, field("question"), field("generation"), &row["ground_truth"]);
            let points = [got.correct, got.total];
            assert_eq!(points.map(Value::from), [row["correct"].clone(), row["total"].clone()], "{file}:{}", i + 1);
            assert_eq!(got.extracted, field("extracted"), "{file}:{}", i + 1);
            sums = [sums[0] + points[0], sums[1] + points[1]];
        }
        assert_eq!(sums, points, "{file}");
    }
}
