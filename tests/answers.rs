//! GSM8K's and MATH-500's rules one by one: which answer is extracted, which number it is, which LaTeX says the same,
//! and which rows are problems.

mod scratch;

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft::eval::answer::{boxed, is_equivalent, number};
use weft::eval::{Problem, Score, Task, read_problems, score};

fn gsm8k(generation: &str) -> Value {
    score(Task::Gsm8k, "", generation, &json!(18)).extracted
}

fn math500(generation: &str) -> Value {
    score(Task::Math500, "", generation, &json!("18")).extracted
}

#[test]
fn the_last_box_is_read_as_d1_reads_it() {
    for (text, found) in [
        ("\\boxed{1} or \\boxed{\\frac{1}{2}} or", Some("\\frac{1}{2}")),
        ("\\boxed{1} \\boxed 2$ cm", Some("2")),
        ("\\boxed 1$ then \\boxed{2}", Some("1")),
        ("\\boxed{}", Some("")),
        ("\\boxed{1", None),
        ("\\boxed{1} and \\boxed", None),
        ("no box", Some("no box")),
        ("so \\fbox{1}.", Some("\\fbox{1}")),
        ("\\boxed\\text{1}", Some("\\boxed\\text{1}")),
        ("\\boxed}{a} b", None),
        ("\\boxed}{{a} b}", Some("\\boxed}{{a}")),
        ("", Some("")),
    ] {
        assert_eq!(boxed(text), found, "{text}");
    }
}

#[test]
fn a_number_is_pythons_float() {
    for (text, value) in
        [(" 18 ", 18.0), ("-1.5e3", -1500.0), (".5", 0.5), ("5.", 5.0), ("1_000", 1000.0), ("\u{ff11}\u{666}", 16.0)]
    {
        assert_eq!(number(text), Some(value), "{text}");
    }
    // The last digits of five alphabets that stand side by side.
    assert_eq!(number("\u{1d7d7}\u{1d7e1}\u{1d7eb}\u{1d7f5}\u{1d7ff}"), Some(99999.0));
    assert_eq!(number("-Infinity"), Some(f64::NEG_INFINITY));
    assert!(number("nan").is_some_and(f64::is_nan));
    for none in ["", ".", "1,000", "1__0", "_1", "1_", "1_.5", "1 0", "0x1", "\u{bd}", "\u{b2}", "$5"] {
        assert_eq!(number(none), None, "{none}");
    }
}

#[test]
fn the_first_box_with_a_number_counts_then_the_last_number_of_the_tags() {
    for (generation, extracted) in [
        ("\\boxed{18}", json!(18.0)),
        ("\\boxed{...} \\boxed{x} \\boxed{18\\text{ cm}} \\boxed{3}", json!(18.0)),
        ("\\boxed{\\$18.50}", json!(18.5)),
        ("\\boxed{1,000}", json!(1.0)),
        ("\\boxed{-5 or 6}", json!(-5.0)),
        ("\\boxed{ 1_8 }", json!(18.0)),
        ("\\boxed{18\n}", Value::Null),
        ("\\boxed{18", Value::Null),
        ("\\boxed{} <answer>\n18\n</answer>", json!(18.0)),
        ("<answer>3 times 6 is 18.</answer>", json!(18.0)),
        ("<answer>18<|eot_id|>", Value::Null),
        ("18", Value::Null),
        ("\\boxed{inf}", json!("inf")),
        ("\\boxed{1e999}", json!("inf")),
        ("\\boxed{nan}", json!("NaN")),
    ] {
        assert_eq!(gsm8k(generation), extracted, "{generation}");
    }
    let correct = |truth: Value| score(Task::Gsm8k, "", "\\boxed{18}", &truth).correct;
    assert_eq!([json!(18), json!(18.0), json!(18.5), json!("18"), Value::Null].map(correct), [1, 1, 0, 0, 0]);
    assert_eq!(score(Task::Gsm8k, "", "nothing", &Value::Null).correct, 0, "no answer is not the answer null");
}

#[test]
fn the_last_box_counts_then_the_tags_then_the_text() {
    for (generation, extracted) in [
        ("\\boxed{1} \\boxed{18}", json!("18")),
        ("\\boxed{} <answer> 18 </answer>", json!("18")),
        ("\\boxed{ } <answer> 18 </answer>", json!(" ")),
        ("\\boxed{18 <answer> 19 </answer>", json!("19")),
        ("\\boxed{18", Value::Null),
        ("<answer>18</answer>", json!("<answer>18</answer>")),
        ("", json!("")),
    ] {
        assert_eq!(math500(generation), extracted, "{generation}");
    }
    let correct = |generation: &str| score(Task::Math500, "", generation, &json!("\\frac{3}{4}")).correct;
    assert_eq!(["\\boxed{\\dfrac34}", "\\boxed{3/4}", "\\boxed{0.75}", "\\boxed{"].map(correct), [1, 1, 0, 0]);
    assert_eq!(score(Task::Math500, "", "18", &json!(18)).correct, 0, "the truth is a text");
}

#[test]
fn latex_that_says_the_same_is_equivalent() {
    for (a, b) in [
        ("\\frac12", "\\frac{1}{2}"),
        ("\\frac1{72}", "\\frac{1}{72}"),
        ("\\tfrac{1}{2}", "\\dfrac12"),
        ("0.5", "1/2"),
        (".5", "\\frac{1}{2}"),
        ("-3/4", "\\frac{-3}{4}"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("x = 5", "5"),
        ("10\\text{ cm}", "10"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        ("50\\%", "50"),
        ("\\$5", "5"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("1\\!000", "1000"),
        ("a\\\\b", "a\\b"),
        ("{.5}", "{0.5}"),
        ("x .5", "x0.5"),
        ("1\n0", "10"),
        ("\\frac", "\\frac"),
        ("\\sqrt", "\\sqrt"),
        ("", " "),
    ] {
        assert!(is_equivalent(a, b), "{a} and {b}");
    }
    for (a, b) in [
        ("1,000", "1000"),
        ("0.50", "\\frac{1}{2}"),
        ("\\frac{72}1", "\\frac{72}{1}"),
        ("xyz = 5", "5"),
        ("x = y = 5", "5"),
        ("10\\text{cm}", "10"),
        ("1\\text{ m}2\\text{ m}", "1"),
        ("01/2", "\\frac{01}{2}"),
        ("-0/2", "\\frac{-0}{2}"),
        // d1's code fails on a fraction of letters and compares the texts as they stand.
        ("x/2 ", "x/2"),
        ("\\sqrt ", "\\sqrt"),
        ("a \\frac", "a\\frac"),
        ("1/2/3", "\\frac{1}{2}/3"),
        ("2", "3"),
    ] {
        assert!(!is_equivalent(a, b), "{a} and {b}");
    }
}

proptest! {
    #[test]
    fn equivalence_is_reflexive_and_symmetric(a in "[0-9./={}\\\\fracsqrttext %\u{e9}-]*", b in ".*") {
        prop_assert!(is_equivalent(&a, &a) && is_equivalent(&b, &b));
        prop_assert_eq!(is_equivalent(&a, &b), is_equivalent(&b, &a));
    }

    #[test]
    fn every_whole_fraction_is_its_slash(a in any::<i64>(), b in any::<i64>()) {
        let slash = format!("{a}/{b}");
        let fraction = format!("\\frac{{{a}}}{{{b}}}");
        prop_assert!(is_equivalent(&slash, &fraction));
        let another = format!("\\frac{{{b}1}}{{{a}}}");
        prop_assert!(!is_equivalent(&slash, &another));
    }

    #[test]
    fn every_number_is_read_back(x in -1e15..1e15f64, boxed in any::<bool>()) {
        let generation = if boxed { format!("\\boxed{{{x}}}") } else { format!("<answer> {x}\n</answer>") };
        let right = score(Task::Gsm8k, "", &generation, &json!(x));
        prop_assert_eq!(right, Score { extracted: json!(x), correct: 1, total: 1 });
        prop_assert_eq!(score(Task::Gsm8k, "", &generation, &json!(x + 1.0)).correct, 0);
    }
}

fn read(name: &str, task: Task, rows: &str) -> Result<Vec<Problem>, String> {
    let path = scratch::folder(name).join("rows.jsonl");
    std::fs::write(&path, rows).expect("the rows are written");
    let problems = read_problems(task, &path).map_err(|e| e.to_string());
    problems.map_err(|e| e.replace(&path.display().to_string(), "rows.jsonl"))
}

#[test]
fn a_problem_is_asked_by_d1s_protocol() {
    let row = "{\"question\": \"How many?\", \"answer\": \"3 * 6 = <<3*6=18>>18\\n#### $-1,018.5\"}\n";
    let problem = read("gsm8k", Task::Gsm8k, row).expect("a problem").remove(0);
    assert_eq!((problem.question.as_str(), &problem.ground_truth), ("How many?", &json!(-1018.5)));
    assert_eq!(problem.prefill, "<reasoning>");
    let [turn] = &problem.prompt.turns[..] else { panic!("{} turns", problem.prompt.turns.len()) };
    assert_eq!(turn.role, "user");
    assert!(turn.text().ends_with("\n\nHow many?") && turn.text().contains("\\boxed{"), "{}", turn.text());

    let row = "{\"problem\": \"What?\", \"answer\": \"\\\\frac{3}{4}\", \"solution\": \"Thus.\", \"level\": 3}";
    let problem = read("math500", Task::Math500, row).expect("a problem").remove(0);
    assert_eq!((problem.question.as_str(), &problem.ground_truth), ("What?", &json!("\\frac{3}{4}")));
    assert!(problem.prompt.turns[0].text().ends_with("\n\nWhat?"));
}

#[test]
fn a_row_that_is_no_problem_is_told_with_its_line() {
    let good = "{\"question\": \"a\", \"answer\": \"#### 1\"}\n";
    for (task, row, reason) in [
        (Task::Gsm8k, "{\"answer\": \"#### 1\"}", "the text \"question\" is missing; a row is {\"question\""),
        (Task::Gsm8k, "{\"question\": \"a\", \"answer\": 1}", "the text \"answer\" is missing; a row is {\"question\""),
        (
            Task::Gsm8k,
            "{\"question\": \"a\", \"answer\": \"1\"}",
            "the answer has no \"####\" before its number; end it",
        ),
        (
            Task::Gsm8k,
            "{\"question\": \"a\", \"answer\": \"#### inf\"}",
            "the answer ends in \"#### inf\", which is not a number; write it as #### 18",
        ),
        (Task::Math500, "{\"problem\": \"a\"}", "the text \"answer\" is missing; a row is {\"problem\""),
        (Task::Math500, "[1]", "not a JSON object; write one object per line"),
    ] {
        let first = if task == Task::Gsm8k { good } else { "{\"problem\": \"a\", \"answer\": \"1\"}\n" };
        let error = read("negative", task, &format!("{first}{row}\n")).expect_err(row);
        assert!(error.starts_with(&format!("rows.jsonl:2: {reason}")), "{error}");
    }
    let own = |truth: &str| {
        let turns = "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]";
        format!("{{\"messages\": {turns}, \"question\": \"a\", \"ground_truth\": {truth}}}\n")
    };
    assert_eq!(read("own", Task::Gsm8k, &own("18")).expect("a problem")[0].prefill, "");
    let error = read("own", Task::Gsm8k, &own("\"18\"")).expect_err("a text is no number");
    assert_eq!(error, "rows.jsonl:1: ground_truth is \"18\"; gsm8k's is a number or null");
}

#[test]
fn every_row_of_gsm8k_is_a_problem() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !folder.exists() {
        return eprintln!("SKIPPED: {} is absent, no problems to read", folder.display());
    }
    for (file, count) in [("gsm8k-test.jsonl", 1319), ("gsm8k-train.jsonl", 7473)] {
        let problems = read_problems(Task::Gsm8k, &folder.join(file)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(problems.len(), count);
        assert!(problems.iter().all(|p| p.ground_truth.is_f64()));
    }
}
