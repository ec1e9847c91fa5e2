//! The bound of an answer's likelihood: against every mask there is, where it is exact, and as the command prints it.

mod scratch;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use weft::data::Example;
use weft::eval::likelihood::{MonteCarlo, NllBound, nll_bounds};
use weft::model::batch::Batch;
use weft::model::block::Transformer;
use weft::model::checkpoint;
use weft::progress::Progress;

/// Golden checkpoints of three layouts, the head scaled so that the context matters.
fn models() -> [Transformer; 3] {
    ["llada", "dream", "a2d-qwen3"].map(|family| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family);
        let mut model = checkpoint::load(&folder).expect("the golden checkpoint loads");
        let head = model.head.weight;
        model.params[head].weight.make_trainable().iter_mut().for_each(|x| *x *= 6.0);
        model
    })
}

fn example(prompt: &[u32], answer: &[u32]) -> Example {
    Example { prompt_ids: prompt.to_vec(), answer_ids: answer.to_vec() }
}

fn bounds(model: &Transformer, examples: &[Example], settings: MonteCarlo) -> Vec<NllBound> {
    nll_bounds(model, examples, settings, &Progress::hidden()).expect("the settings are sound")
}

/// Every mask of an answer: how many tokens it masks and what it estimates.
fn every_mask(model: &Transformer, Example { prompt_ids, answer_ids }: &Example) -> Vec<(usize, f64)> {
    let len = answer_ids.len();
    let estimate = |chosen: u32| {
        let masked: Vec<usize> = (0..len).filter(|i| chosen >> i & 1 == 1).collect();
        let mut ids = [prompt_ids.as_slice(), answer_ids].concat();
        let rows: Vec<usize> = masked.iter().map(|i| prompt_ids.len() + i).collect();
        rows.iter().for_each(|row| ids[*row] = model.config.mask_token_id);
        let clean: Vec<u32> = masked.iter().map(|i| answer_ids[*i]).collect();
        let nll: f32 = model.nll(&Batch::pack([ids.as_slice()]), &rows, &clean).iter().sum();
        (masked.len(), f64::from(nll) * len as f64 / masked.len() as f64)
    };
    (1..1 << len).map(estimate).collect()
}

/// The estimator's expectation: every number of masked tokens alike, and every choice of that many.
fn expectation(model: &Transformer, example: &Example) -> f64 {
    let (len, masks) = (example.answer_ids.len(), every_mask(model, example));
    let mean = |count: usize| {
        let of_count: Vec<f64> = masks.iter().filter(|m| m.0 == count).map(|m| m.1).collect();
        of_count.iter().sum::<f64>() / of_count.len() as f64
    };
    (1..=len).map(mean).sum::<f64>() / len as f64
}

#[test]
fn the_bound_is_the_mean_over_every_mask_and_its_error_what_it_says() {
    let examples = [example(&[3, 17, 80], &[9, 41, 77, 120, 157]), example(&[], &[55, 2, 157])];
    for model in models() {
        for example in examples.chunks(1) {
            let expected = expectation(&model, &example[0]);
            let many = bounds(&model, example, MonteCarlo { mc_samples: 20_000, ..MonteCarlo::default() })[0];
            let error = (many.nll_bound - expected) / many.standard_error;
            assert!(error.abs() < 4.0, "{many:?}, {expected} expected: {error} standard errors off");
            assert!(many.standard_error < 0.01 * expected, "the test can fail");
            // Few samples, again and again: right on average, and as far off as they say.
            let runs = 400;
            let few: Vec<NllBound> = (0..runs)
                .map(|seed| bounds(&model, example, MonteCarlo { mc_samples: 60, seed, ..MonteCarlo::default() })[0])
                .collect();
            let mean = few.iter().map(|b| b.nll_bound).sum::<f64>() / runs as f64;
            let variance = few.iter().map(|b| (b.nll_bound - mean).powi(2)).sum::<f64>() / (runs - 1) as f64;
            assert!((mean - expected).abs() < 4.0 * (variance / runs as f64).sqrt(), "{mean}, {expected} expected");
            let told = few.iter().map(|b| b.standard_error.powi(2)).sum::<f64>() / runs as f64;
            let ratio = (told / variance).sqrt();
            assert!((0.8..1.3).contains(&ratio), "the error told is {ratio} of the true one");
        }
    }
}

#[test]
fn every_number_of_masks_and_every_mask_comes_as_often() {
    let example = [example(&[3, 17, 80], &[9, 120, 157])];
    for model in models() {
        let masks = every_mask(&model, &example[0]);
        let run =
            |mc_samples, seed| bounds(&model, &example, MonteCarlo { mc_samples, seed, ..MonteCarlo::default() })[0];
        let runs = 600;
        let mut drawn = vec![0.0; masks.len()];
        for NllBound { nll_bound, standard_error, .. } in (0..runs).map(|seed| run(2, seed)) {
            // Of two samples the error is half the distance.
            for value in [nll_bound - standard_error, nll_bound + standard_error] {
                let apart = |mask: &usize| (masks[*mask].1 - value).abs();
                let nearest = (0..masks.len()).min_by(|a, b| apart(a).total_cmp(&apart(b))).expect("there are masks");
                assert!(apart(&nearest) < 1e-4, "{value} is no mask's");
                drawn[nearest] += 1.0;
            }
        }
        for ((count, _), times) in masks.iter().zip(drawn) {
            let share = if *count == 3 { 1.0 / 3.0 } else { 1.0 / 9.0 };
            let deviation = (2.0 * runs as f64 * share * (1.0 - share)).sqrt();
            let expected = 2.0 * runs as f64 * share;
            assert!((times - expected).abs() < 5.0 * deviation, "{count} masked: {times} times, {expected} expected");
        }
        // Three samples mask one token, two and three, and their error takes them in this order.
        for seed in 0..20 {
            let got = run(3, seed);
            let of = |count| masks.iter().filter(move |m| m.0 == count).map(|m| m.1);
            let choices = of(1).flat_map(|a| of(2).map(move |b| [a, b]));
            let told = choices.flat_map(|[a, b]| of(3).map(move |c| [a, b, c]));
            let is_it = |[a, b, c]: [f64; 3]| {
                let error = (((b - a).powi(2) + (c - b).powi(2)) / 12.0).sqrt();
                (got.nll_bound - (a + b + c) / 3.0).abs() < 1e-4 && (got.standard_error - error).abs() < 1e-4
            };
            assert!(told.into_iter().any(is_it), "{got:?}");
        }
    }
}

#[test]
fn one_token_takes_its_nll_and_a_predictor_without_context_the_sum_of_them() {
    for mut model in models() {
        let single = example(&[5, 9, 14], &[77]);
        let ids = [5, 9, 14, model.config.mask_token_id];
        let nll = model.nll(&Batch::pack([&ids[..]]), &[3], &[77])[0];
        let bound = bounds(&model, &[single], MonteCarlo::default())[0];
        let exact = NllBound { nll_bound: f64::from(nll), standard_error: 0.0, answer_tokens: 1 };
        assert_eq!(bound, exact);
        // A final norm of zeros leaves every token alike.
        let gain = model.final_norm;
        model.params[gain].weight.make_trainable().fill(0.0);
        let bound = bounds(&model, &[example(&[5], &[7, 8, 9, 10, 11, 12, 157])], MonteCarlo::default())[0];
        assert!((bound.nll_bound - 7.0 * 160f64.ln()).abs() < 1e-5 && bound.standard_error < 1e-6, "{bound:?}");
    }
}

#[test]
fn batches_and_other_examples_change_nothing() {
    let answer = |len: u32| (0..len).map(|i| (i * 37 + len) % 150).collect::<Vec<_>>();
    let examples: Vec<Example> = [4, 9, 1, 17, 6].iter().map(|len| example(&answer(20 - len), &answer(*len))).collect();
    for model in models() {
        let settings = MonteCarlo { mc_samples: 24, ..MonteCarlo::default() };
        let all = bounds(&model, &examples, settings);
        for batch_tokens in [1, 100, 700] {
            assert_eq!(bounds(&model, &examples, MonteCarlo { batch_tokens, ..settings }), all);
        }
        assert_eq!(bounds(&model, &examples[..3], settings), all[..3]);
        let other = bounds(&model, &examples, MonteCarlo { seed: 2, ..settings });
        assert!(other.iter().zip(&all).all(|(o, a)| o != a || a.answer_tokens == 1), "the seed names the draws");
        let repeated = bounds(&model, &[examples[1].clone(), examples[1].clone()], settings);
        assert_ne!(repeated[0], repeated[1], "an example's number names its draws");
    }
}

#[test]
fn too_few_samples_and_empty_answers_are_refused() {
    let [model, ..] = models();
    let refused = |example: Example, mc_samples| {
        nll_bounds(&model, &[example], MonteCarlo { mc_samples, ..MonteCarlo::default() }, &Progress::hidden())
            .expect_err("refused")
            .to_string()
    };
    assert_eq!(refused(example(&[1], &[2]), 1), "mc_samples 1 gives no standard error; give at least 2");
    assert_eq!(refused(example(&[1], &[]), 8), "example 0 has an empty answer; give it at least one token");
}

fn weft(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(args).stdin(Stdio::null()).output().expect("weft starts")
}

#[test]
fn the_command_prints_means_and_writes_a_row_for_each_line() {
    let folder = scratch::folder("likelihood");
    let rows = "{\"prompt\": \"What is 7 + 5?\", \"response\": \"12\"}\n\n\
                {\"question\": \"What is 2 + 2?\", \"answer\": \"The answer is 4.\"}\n\
                {\"prompt\": \"Beyond the limit\", \"response\": \"x\"}\n";
    fs::write(folder.join("rows.jsonl"), rows).expect("the rows are written");
    let args = ["likelihood", "--model", "tiny-base", "--data", "rows.jsonl", "--mc-samples", "16"];
    let output = weft(&folder, &[&args[..], &["--limit", "2", "--out", "bounds.jsonl"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let written = fs::read_to_string(folder.join("bounds.jsonl")).expect("the rows are written");
    let rows: Vec<Value> = written.lines().map(|l| serde_json::from_str(l).expect("a line is JSON")).collect();
    let number = |row: &Value, key: &str| row[key].as_f64().expect("a number");
    assert_eq!(rows.iter().map(|row| number(row, "line")).collect::<Vec<_>>(), [1.0, 3.0]);
    let sum = |key: &str| rows.iter().map(|row| number(row, key)).sum::<f64>();
    let (nats, tokens) = (sum("nll_bound"), sum("answer_tokens"));
    let error = rows.iter().map(|row| number(row, "standard_error").powi(2)).sum::<f64>().sqrt();
    assert!(nats > 0.0 && error > 0.0 && number(&rows[0], "answer_tokens") >= 2.0);
    assert_eq!(
        text,
        format!(
            "2 answers, {tokens} tokens, 16 masks each\nat most {:.4} +- {:.4} nats per answer\n\
             at most {:.4} +- {:.4} nats per token\nperplexity at most {:.4} per token\nbounds are in bounds.jsonl\n",
            nats / 2.0,
            error / 2.0,
            nats / tokens,
            error / tokens,
            (nats / tokens).exp()
        )
    );
    let refused = weft(&folder, &[&args[..5], &["--mc-samples", "1"]].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("error: mc_samples 1 gives no standard error"));
    let refused = weft(&folder, &[&args[..5], &["--limit", "0"]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("holds no answer to bound"));
}

#[test]
fn what_rows_hold_and_nothing_reads_is_told() {
    let folder = scratch::folder("likelihood-notes");
    let chat = |answer: &str| {
        format!(
            "{{\"id\": 1, \"messages\": [{{\"role\": \"user\", \"content\": \"7 + 5?\"}}, {{\"role\": \"assistant\", {answer}}}]}}\n"
        )
    };
    let untrained = chat("\"content\": \"11\", \"weight\": 0");
    let rows = [chat("\"content\": \"12\""), untrained.clone(), chat("\"content\": \"13<|eot_id|>\"")].concat();
    fs::write(folder.join("rows.jsonl"), &rows).expect("the rows are written");
    let args = ["likelihood", "--model", "tiny-base", "--data", "rows.jsonl", "--mc-samples", "4"];
    let output = weft(&folder, &args);
    let [shown, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    let skipped = "weight 0 or train false says that their answers are not trained on (the first in rows.jsonl:2)";
    let end = "turn of the assistant already ends with an end token, so no second one is added";
    let expected = format!("4 masks each\n  1 row skipped: {skipped}\n  columns not read: id\n  1 {end}\nat most ");
    assert!(shown.starts_with("2 answers, ") && shown.contains(&expected), "{shown}{told}");
    assert_eq!(
        told,
        format!("warning: 1 of the 3 rows of rows.jsonl is skipped, more than a tenth, for this reason: {skipped}\n")
    );
    let output = weft(&folder, &[&args[..], &["--json"]].concat());
    let object: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!((&object["notes"]["unread"]["id"], &object["notes"]["own_ends"]), (&3.into(), &1.into()), "{object}");
    // Where nothing is left, the reason is told; bad rows are reported all at once.
    fs::write(folder.join("rows.jsonl"), &untrained).expect("the row is written");
    let refused = String::from_utf8(weft(&folder, &args).stderr).expect("UTF-8");
    assert!(refused.contains("rows.jsonl holds no answer to bound (1 row skipped: weight 0"), "{refused}");
    fs::write(folder.join("rows.jsonl"), format!("{{\n{rows}[]\n")).expect("the rows are written");
    let refused = String::from_utf8(weft(&folder, &args).stderr).expect("UTF-8");
    let lines: Vec<&str> = refused.lines().collect();
    let fix = "fix them, or --on-bad-row skip skips and counts such rows";
    assert_eq!((lines[0], lines[3]), ("error: 2 rows of rows.jsonl can't be used:", fix), "{refused}");
    assert!(lines[1].starts_with("  rows.jsonl:1: ") && lines[2].starts_with("  rows.jsonl:5: "), "{refused}");
    let output = weft(&folder, &[&args[..], &["--on-bad-row", "skip", "--split", "test"]].concat());
    let [said, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert!(
        said.starts_with("2 answers, ") && said.contains("  1 row skipped: not a JSON object (the first in"),
        "{said}"
    );
    let told = told.strip_prefix("warning: --split has no effect: --data is a file\n").expect("the split is told");
    assert!(told.starts_with("warning: 3 of the 5 rows of rows.jsonl are skipped, more than a tenth, "), "{told}");
    // Results aren't written over.
    fs::write(folder.join("bounds.jsonl"), "mine").expect("it is written");
    let refused = weft(&folder, &[&args[..], &["--out", "bounds.jsonl"]].concat());
    let told = String::from_utf8(refused.stderr).expect("UTF-8");
    assert_eq!(told, "error: --out bounds.jsonl is there already; name another file, or remove it\n");
    assert_eq!(fs::read_to_string(folder.join("bounds.jsonl")).expect("it is there"), "mine");
}
