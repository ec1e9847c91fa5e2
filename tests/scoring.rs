//! Scoring: the rules of Sudoku and Countdown, texts of any kind for every task, and real generations with what d1's
//! scorer made of them. GSM8K's and MATH-500's rules are in `answers.rs`.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft::eval::arithmetic::evaluate;
use weft::eval::{Score, Task, accuracy, score};

fn countdown(generation: &str) -> usize {
    score(Task::Countdown, "", generation, &json!([[4, 6, 8], 16])).correct
}

const SUDOKU: &str = "Solve the following Sudoku puzzle: 0143431221343401\n";

fn sudoku(generation: &str) -> (String, usize, usize) {
    let score = score(Task::Sudoku, SUDOKU, generation, &json!("2143431221343421"));
    (score.extracted.as_str().expect("a text").to_owned(), score.correct, score.total)
}

/// A question and a truth that fit a task.
fn posed(task: Task) -> (&'static str, Value) {
    match task {
        Task::Sudoku => (SUDOKU, json!("2143431221343421")),
        Task::Countdown => ("Numbers: [4, 6, 8]\nTarget: 16", json!([[4, 6, 8], 16])),
        Task::Gsm8k => ("How many?", json!(18.0)),
        Task::Math500 => ("What is it?", json!("\\frac{3}{4}")),
        Task::Naturalquestions => ("who?", json!(["Weft", "the Weft project"])),
        Task::Hellaswag | Task::Arc | Task::Raft => ("Which?", json!(1)),
        Task::Humaneval | Task::Mbpp => ("Write it.", json!({ "tests": "assert True" })),
    }
}

#[test]
fn an_expression_must_use_each_number_once_and_make_the_target() {
    for right in ["\\boxed{4 * 6 - 8}", "\\boxed{-8+6*4}", "\\boxed{(4*6)-8 = 16}", "\\boxed 4\\times6-8$ so"] {
        assert_eq!(countdown(right), 1, "{right}");
    }
    assert_eq!(countdown("<answer> 4 * 6 - 8 </answer> \\boxed{"), 1, "an open box lets the tags count");
    assert_eq!(countdown("4*6-8"), 1, "without a box the whole text counts");
    assert_eq!(countdown("\\fbox{4*6-8 = 16}"), 1, "an equation's left side counts wherever it stands");
    for wrong in ["\\boxed{4 * 4}", "\\boxed{16}", "\\boxed{4 + 6 + 8}", "\\boxed{4*6-8", "\\boxed{4/0*6-8}", "", "16"]
    {
        assert_eq!(countdown(wrong), 0, "{wrong}");
    }
    for wrong in
        ["\\fbox{4*6-8}", "<answer>4*6-8<|eot_id|> \\boxed{", "\\boxed{4*6-8} \\boxed{6}", "\\boxed\\text{4*6-8}"]
    {
        assert_eq!(countdown(wrong), 0, "{wrong}");
    }
    assert_eq!(countdown(&format!("\\boxed{{{}4*6-8{}}}", "(".repeat(1 << 20), ")".repeat(1 << 20))), 1);
}

/// The values are Python's.
#[test]
fn expressions_have_pythons_values() {
    for (expression, value) in [
        ("2**3**2", 512.0),
        ("-2**2", -4.0),
        ("2**-1", 0.5),
        ("2**-2*8", 2.0),
        ("7//2*2", 6.0),
        ("-7//2", -4.0),
        ("7//-2", -4.0),
        ("1.//.1", 9.0),
        ("-1//.1", -10.0),
        ("10**30+1-10**30", 1.0),
        ("3//10**50-10", -10.0),
        ("17//97**400", 0.0),
        ("(4\n*6)", 24.0),
        ("+-+4", -4.0),
        ("000+04.5", 4.5),
        ("8-4-2", 2.0),
        ("8/4/2", 1.0),
    ] {
        assert_eq!(evaluate(expression), Some(value), "{expression}");
    }
    for none in [
        "4\n*6",
        "04",
        "4 6",
        "4(6)",
        "()",
        "(4",
        "4)",
        "4*",
        "*4",
        "4.5.6",
        ".",
        "4 * * 6",
        "4/ /6",
        "1/0",
        "1//0",
        "1//0.0",
        "0**-1",
        "(-8)**.5",
        "10.0**999",
        "2**10000",
        "",
        "４",
        "x",
        "4 %6",
    ] {
        assert_eq!(evaluate(none), None, "{none}");
    }
}

#[test]
fn only_cells_that_were_empty_count() {
    assert_eq!(sudoku("<answer>\n2143431221343421\n</answer>"), ("2143431221343421".to_owned(), 2, 2));
    assert_eq!(sudoku("<answer>2</answer>"), ("2000000000000000".to_owned(), 1, 2));
    assert_eq!(sudoku("<answer>2<|eot_id|> 2143431221343421"), ("2000000000000000".to_owned(), 1, 2));
    assert_eq!(sudoku("it is 2143431221343421"), ("2143431221343421".to_owned(), 2, 2));
    assert_eq!(sudoku("it is 21434312213434211"), (String::new(), 0, 2));
    assert_eq!(sudoku("no idea"), (String::new(), 0, 2));
}

#[test]
fn the_standard_error_takes_a_problem_as_a_cluster() {
    let scores = [1, 0, 1, 0].map(|correct| Score { extracted: Value::Null, correct, total: 1 });
    let result = accuracy(&scores);
    assert_eq!((result.accuracy, result.correct, result.total), (0.5, 2, 4));
    assert!((result.standard_error - (4.0 / 3.0 * 4.0 * 0.25f64).sqrt() / 4.0).abs() < 1e-12);
    assert_eq!(accuracy(&[]).accuracy, 0.0);
}

/// An expression of whole numbers with its value, brackets around every operation.
fn expressions() -> impl Strategy<Value = (String, Option<f64>)> {
    let number = (0..100i32).prop_map(|n| (n.to_string(), Some(f64::from(n))));
    number.prop_recursive(4, 16, 2, |inner| {
        (inner.clone(), prop::sample::select(vec!["+", "-", "*", "/"]), inner).prop_map(|(a, sign, b)| {
            let value = a.1.zip(b.1).and_then(|(a, b)| match sign {
                "+" => Some(a + b),
                "-" => Some(a - b),
                "*" => Some(a * b),
                _ => (b != 0.0).then(|| a / b),
            });
            (format!("({} {sign}{})", a.0, b.0), value)
        })
    })
}

const FRAGMENTS: [&str; 36] = [
    "\\boxed{",
    "\\boxed ",
    "\\boxed",
    "\\fbox{",
    "}",
    "{",
    "$",
    "<answer>",
    "</answer>",
    "<|eot_id|>",
    "<|endoftext|>",
    "\\text{ ",
    "\\frac",
    "\\sqrt",
    "\\frac1",
    "{.",
    "\n",
    "-",
    "1_000",
    "1e999",
    "nan",
    "/0",
    "//0",
    "**",
    "(",
    ")",
    "=",
    ".",
    "\\%",
    "\\\\",
    "```",
    "2143431221343421",
    "\u{ff13}",
    "\u{bd}",
    "99999999999999999999999999",
    "\u{0}",
];

/// A realistic answer after a few insertions, cuts and repetitions.
fn mutated() -> impl Strategy<Value = String> {
    let answers = vec![
        "So it is 18.\n</reasoning>\n<answer>\n\\boxed{18}\n</answer><|eot_id|><|endoftext|>",
        "</reasoning>\n<answer>\n\\boxed{\\dfrac{3}{4}\\text{ cm}}\n</answer><|eot_id|>",
        "x = \\boxed{\\left( \\sqrt3, \\frac12 \\right)}",
        "</reasoning>\n<answer>\n\\boxed{4 \\times 6 - 8 = 16}\n</answer>",
        "<answer>\n2143431221343421\n</answer><|eot_id|>",
    ];
    let place = any::<prop::sample::Index>();
    let edits = prop::collection::vec((0..3, place, prop::sample::select(FRAGMENTS.to_vec()), 1..40usize), 0..8);
    (prop::sample::select(answers), edits).prop_map(|(answer, edits)| {
        let mut text: Vec<char> = answer.chars().collect();
        for (kind, place, fragment, length) in edits {
            let at = place.index(text.len() + 1);
            let end = (at + length).min(text.len());
            match kind {
                0 => drop(text.splice(at..at, fragment.chars())),
                1 => drop(text.drain(at..end)),
                _ => drop(text.splice(at..at, text[at..end].to_vec())),
            }
        }
        text.into_iter().collect()
    })
}

fn check_every_task(generation: &str, truth: &Value) {
    for task in Task::ALL {
        let (question, usual) = posed(task);
        for (question, truth) in [(question, &usual), (generation, truth)] {
            let Score { correct, total, .. } = score(task, question, generation, truth);
            assert!(correct <= total && total <= 16, "{task:?} {generation:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_scorers(text in "\\PC*|.*", latex in "[0-9_+*/() .=<>{}$\\\\boxedfracsqrttext{}answer\n-]*") {
        for generation in [&text, &latex, &format!("<answer>{text}</answer>"), &format!("\\boxed{{{latex}}}")] {
            for truth in [json!(text), json!(latex), json!([[text, 1], 1]), json!([[1, 2], 1e300]), Value::Null] {
                check_every_task(generation, &truth);
            }
        }
    }

    #[test]
    fn no_mutation_of_an_answer_breaks_the_scorers(generation in mutated(), truth in mutated()) {
        check_every_task(&generation, &json!(truth));
    }

    #[test]
    fn an_expression_has_its_trees_value((expression, value) in expressions()) {
        match (evaluate(&expression), value) {
            (Some(got), Some(value)) => prop_assert!((got - value).abs() <= 1e-9 * value.abs().max(1.0), "{expression}"),
            (got, value) => prop_assert_eq!(got, value, "{}", expression),
        }
    }
}

#[test]
fn long_texts_take_no_longer_than_their_length_asks() {
    for fragment in
        FRAGMENTS.iter().chain(&["\\boxed{1", "<answer>1", "(1+", "\\boxed{}", "\\frac{", "1_", "{}{", "-4**"])
    {
        let text = fragment.repeat((1 << 18) / fragment.len());
        for generation in [&text, &format!("\\boxed{{{text}}}"), &format!("<answer>{text}</answer> \\boxed{{")] {
            check_every_task(generation, &json!(text));
        }
    }
}

#[test]
fn real_generations_score_as_d1_scores_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden/scoring");
    if !folder.exists() {
        return eprintln!("SKIPPED: {} is absent, no generations to score", folder.display());
    }
    for (task, points) in Task::ALL.into_iter().zip([[240, 2048], [53, 256], [783, 1130], [130, 500]]) {
        let file = format!("{}_128.jsonl", task.name());
        let text = std::fs::read_to_string(folder.join(&file)).expect("the file is there");
        let mut sums = [0, 0];
        for (i, line) in text.lines().enumerate() {
            let row: Value = serde_json::from_str(line).expect("a row is JSON");
            let field = |key: &str| row[key].as_str().expect("the row has the text");
            let got = score(task, field("question"), field("generation"), &row["ground_truth"]);
            let points = [got.correct, got.total];
            assert_eq!(points.map(Value::from), [row["correct"].clone(), row["total"].clone()], "{file}:{}", i + 1);
            assert_eq!(got.extracted, row["extracted"], "{file}:{}", i + 1);
            sums = [sums[0] + points[0], sums[1] + points[1]];
        }
        assert_eq!(sums, points, "{file}");
    }
}
