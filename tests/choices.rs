//! Choices by likelihood: the same bounds as the plain function gives for the same draws, in whatever order the choices
//! come and however they are batched; the margins of paired draws; and rows of HellaSwag, ARC and RAFT.

mod scratch;

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use weft::base::Base;
use weft::data::Example;
use weft::eval::any_task::AnyTask;
use weft::eval::choice::{Chosen, PairedBounds, examples, paired_bounds};
use weft::eval::generations::{Answering, answer};
use weft::eval::likelihood::{MonteCarlo, NllBound, nll_bounds};
use weft::eval::task_score::{TaskScore, wilson};
use weft::eval::{Problem, Task};
use weft::parallel::Solo;
use weft::progress::Progress;

fn base() -> Base {
    Base::open(Path::new("tiny-base")).expect("the embedded base opens")
}

fn few() -> MonteCarlo {
    MonteCarlo { mc_samples: 12, ..MonteCarlo::default() }
}

fn problem(task: Task, row: Value) -> Problem {
    AnyTask::from(task).problem(row.as_object().expect("a row")).expect("a problem of the task")
}

fn refused(task: Task, row: Value) -> String {
    AnyTask::from(task).problem(row.as_object().expect("a row")).expect_err("no problem of the task")
}

/// A question of ours in ARC's form.
fn arc(key: &str) -> Value {
    json!({
        "id": "weft-1",
        "question": "Which of these falls to the ground when it is let go?",
        "choices": { "text": ["a stone", "a thought", "the smoke of a fire that burns", "light"], "label": ["A", "B", "C", "D"] },
        "answerKey": key
    })
}

/// A description of ours in HellaSwag's form.
fn hellaswag(label: Value) -> Value {
    json!({
        "ind": 3, "activity_label": "Making tea", "ctx_a": "A woman fills a kettle.", "ctx_b": "the water",
        "ctx": "A woman fills a kettle. the water",
        "endings": ["boils after a while.", "[title] reads a [header] newspaper.", "is painted blue.", "sings."],
        "label": label
    })
}

/// The bound of one example that the plain function gives it at this index.
fn plain(base: &Base, example: &Example, index: usize, settings: MonteCarlo) -> NllBound {
    let before = vec![Example { prompt_ids: vec![5], answer_ids: vec![7] }; index];
    let all = [before, vec![example.clone()]].concat();
    nll_bounds(&base.model, &all, settings, &Progress::hidden()).expect("the settings are sound")[index]
}

fn paired(base: &Base, questions: &[(u64, Vec<Example>)], settings: MonteCarlo) -> Vec<PairedBounds> {
    paired_bounds(&base.model, questions, settings, &Progress::hidden()).expect("the settings are sound")
}

#[test]
fn each_choice_has_the_bound_of_the_plain_function_for_the_draws_of_its_question() {
    let base = base();
    let problems = [problem(Task::Arc, arc("A")), problem(Task::Hellaswag, hellaswag(json!("0")))];
    for raw in [false, true] {
        let mask = base.model.config.mask_token_id;
        let of = |problem: &Problem| examples(&base.text, problem, raw, mask).expect("there are tokens");
        let questions: Vec<(u64, Vec<Example>)> = (0..).zip(problems.iter().map(of)).collect();
        for (index, got) in paired(&base, &questions, few()).iter().enumerate() {
            for (choice, bound) in questions[index].1.iter().zip(&got.bounds) {
                assert_eq!(*bound, plain(&base, choice, index, few()));
            }
            let mut sorted: Vec<f64> = got.bounds.iter().map(|bound| bound.nll_bound).collect();
            sorted.sort_by(f64::total_cmp);
            assert_eq!(got.margin, sorted[1] - sorted[0]);
            assert!(got.margin_error >= 0.0 && got.margin_error.is_finite());
        }
    }
}

#[test]
fn choices_of_one_length_have_the_same_masks() {
    let base = base();
    // Two choices that differ in one token: under the same masks their estimates hardly differ, so that the margin is far
    // better known than the bounds.
    let prompt_ids = base.text.encode("Question: what is it?\nAnswer:").expect("it is text");
    let answer =
        |last: u32| Example { prompt_ids: prompt_ids.clone(), answer_ids: vec![40, 41, 42, 43, 44, 45, 46, last] };
    let settings = MonteCarlo { mc_samples: 64, ..MonteCarlo::default() };
    let [got] = &paired(&base, &[(0, vec![answer(47), answer(48)])], settings)[..] else { panic!("one question") };
    let unpaired = got.bounds[0].standard_error.hypot(got.bounds[1].standard_error);
    assert!(got.margin_error < 0.7 * unpaired, "{} against {unpaired}", got.margin_error);
    // The margin varies over seeds as its error says.
    let margin = |seed: u64| {
        let [got] = &paired(&base, &[(0, vec![answer(47), answer(48)])], MonteCarlo { seed, ..settings })[..] else {
            panic!("one question")
        };
        let signed = got.bounds[1].nll_bound - got.bounds[0].nll_bound;
        (signed, got.margin_error)
    };
    let runs: Vec<(f64, f64)> = (0..60).map(margin).collect();
    let mean = runs.iter().map(|run| run.0).sum::<f64>() / 60.0;
    let deviation = (runs.iter().map(|run| (run.0 - mean).powi(2)).sum::<f64>() / 59.0).sqrt();
    let told = (runs.iter().map(|run| run.1.powi(2)).sum::<f64>() / 60.0).sqrt();
    assert!((0.5..2.0).contains(&(told / deviation)), "told {told}, over seeds {deviation}");
}

#[test]
fn batches_change_no_score() {
    let base = base();
    let mask = base.model.config.mask_token_id;
    let problem = problem(Task::Arc, arc("A"));
    let questions = [(3, examples(&base.text, &problem, false, mask).expect("there are tokens"))];
    let all = paired(&base, &questions, few());
    for batch_tokens in [1, 90, 700] {
        assert_eq!(paired(&base, &questions, MonteCarlo { batch_tokens, ..few() }), all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn permuted_choices_have_permuted_bounds(
        order in Just(vec![0_usize, 1, 2, 3]).prop_shuffle(),
        lengths in prop::collection::vec(1_usize..7, 4),
        key in 0_u64..1000,
    ) {
        let base = base();
        let choice = |(i, len): (usize, &usize)| Example {
            prompt_ids: vec![5, 9, 30],
            answer_ids: (0..*len).map(|k| (20 + 13 * i + 7 * k) as u32).collect(),
        };
        let choices: Vec<Example> = lengths.iter().enumerate().map(choice).collect();
        let permuted: Vec<Example> = order.iter().map(|i| choices[*i].clone()).collect();
        let settings = MonteCarlo { mc_samples: 6, ..MonteCarlo::default() };
        let [own] = &paired(&base, &[(key, choices)], settings)[..] else { panic!("one question") };
        let [other] = &paired(&base, &[(key, permuted)], settings)[..] else { panic!("one question") };
        let expected: Vec<NllBound> = order.iter().map(|i| own.bounds[*i]).collect();
        prop_assert_eq!(&other.bounds, &expected);
        prop_assert_eq!((other.margin, other.margin_error), (own.margin, own.margin_error));
    }
}

#[test]
fn the_lowest_bound_is_chosen_and_per_byte_another_may_be() {
    let bound = |nll_bound| NllBound { nll_bound, standard_error: 0.1, answer_tokens: 1 };
    let of = PairedBounds { bounds: vec![bound(4.0), bound(9.0), bound(4.0)], margin: 0.0, margin_error: 0.1 };
    let chosen = Chosen { choices: ["no", "eleven bytes", "yes"].map(str::to_owned).to_vec(), of };
    assert_eq!((chosen.best(), chosen.best_per_byte()), (0, 1), "the first of equals; 9 nats over 12 bytes are fewest");
    assert!(!chosen.is_settled());
    assert_eq!(chosen.score(&json!(0)).correct, 1);
    assert_eq!(chosen.score(&json!(2)).correct, 0);
}

#[test]
fn rows_of_the_hub_become_questions() {
    let row = problem(Task::Hellaswag, hellaswag(json!("2")));
    assert_eq!(row.question, "Making tea: A woman fills a kettle. The water");
    assert_eq!(
        row.choices,
        // The space behind a mark at the start stays, as in lm-evaluation-harness.
        ["boils after a while.", " reads a newspaper.", "is painted blue.", "sings."]
    );
    assert_eq!(row.ground_truth, json!(2));
    assert!(refused(Task::Hellaswag, hellaswag(json!(""))).contains("--split validation"));
    assert!(refused(Task::Hellaswag, hellaswag(json!(4))).contains("no index of the 4 endings"));
    let row = problem(Task::Arc, arc("C"));
    assert_eq!(row.question, "Question: Which of these falls to the ground when it is let go?\nAnswer:");
    assert_eq!((row.choices.len(), row.ground_truth), (4, json!(2)));
    assert_eq!(refused(Task::Arc, arc("1")), "answerKey is \"1\", which is none of A, B, C, D");
    assert!(
        refused(Task::Raft, json!({ "Sentence": "x", "ID": 1, "Label": 2 }))
            .contains("take the data set's CSV or parquet file")
    );
    assert!(refused(Task::Raft, json!({ "Sentence": "x", "ID": 1, "Label": "Unlabeled" })).contains("train file"));
}

#[test]
fn raft_names_the_labels_of_the_whole_file_and_has_macro_f1() {
    let folder = scratch::folder("raft");
    let rows =
        "Sentence,ID,Label\n\"The court said no, again.\",0,overruled\nIt stands.,1,upheld\nIt falls.,2,overruled\n";
    std::fs::write(folder.join("train.csv"), rows).expect("the rows are written");
    let task = AnyTask::from(Task::Raft);
    let read = |file: &str| task.problems(&weft::data::sources::Source::at(&folder.join(file), "train"));
    let problems = read("train.csv").expect("rows of RAFT");
    assert_eq!(problems[1].choices, ["overruled", "upheld"]);
    // The numbers of labels have names in a parquet file of the library datasets, and none elsewhere.
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rows/raft.parquet");
    let named = task.problems(&weft::data::sources::Source::at(&rows, "train")).expect("rows of RAFT");
    assert_eq!(named[0].choices, ["not overruling", "overruling"]);
    assert_eq!(named.iter().map(|p| p.ground_truth.clone()).collect::<Vec<_>>(), [json!(0), json!(1), json!(1)]);
    let numbered = json!({ "Sentence": "It stands.", "ID": 0, "Label": 1 });
    assert!(
        refused(Task::Raft, numbered).starts_with("Label is 1, not a name; take the data set's CSV or parquet file")
    );
    let expected = "Which label fits? The labels are overruled, upheld.\n\nSentence: The court said no, again.\nLabel:";
    assert_eq!(problems[0].question, expected);
    assert_eq!(problems.iter().map(|p| p.ground_truth.clone()).collect::<Vec<_>>(), [json!(0), json!(1), json!(0)]);
    let base = base();
    let how = Answering { draws: few(), ..Answering::default() };
    let models = (&base.model, &base.text);
    let generations = answer(models, (&task, &problems), &how, (&Solo, &Progress::hidden())).expect("it answers");
    let score = TaskScore::of(&task, &generations);
    let names: Vec<&str> = score.others.iter().map(|metric| metric.name).collect();
    assert_eq!(names, ["acc_norm", "macro_f1"]);
    // The F1 of each label, counted plainly.
    let pairs: Vec<(usize, usize)> = generations
        .iter()
        .map(|g| (g.chosen.as_ref().expect("chosen").best(), g.ground_truth.as_u64().expect("an index") as usize))
        .collect();
    let f1 = |label: usize| {
        let count = |is: &dyn Fn(&(usize, usize)) -> bool| pairs.iter().filter(|pair| is(pair)).count() as f64;
        let both = count(&|pair| *pair == (label, label));
        2.0 * both / (count(&|pair| pair.0 == label) + count(&|pair| pair.1 == label))
    };
    assert!((score.others[1].value - (f1(0) + f1(1)) / 2.0).abs() < 1e-12);
    std::fs::write(folder.join("one.csv"), "Sentence,ID,Label\nIt stands.,1,upheld\n").expect("the rows are written");
    assert!(read("one.csv").expect_err("one label").to_string().contains("every label is \"upheld\""));
}

/// The values are those of the formula in Python.
#[test]
fn wilsons_interval() {
    for ((correct, total), [low, high]) in
        [((0, 10), [0.0, 0.277_532_8]), ((5, 10), [0.236_593_1, 0.763_406_9]), ((164, 164), [0.977_112_6, 1.0])]
    {
        let got = wilson(correct, total);
        assert!((got[0] - low).abs() < 1e-6 && (got[1] - high).abs() < 1e-6, "{got:?}");
    }
}
