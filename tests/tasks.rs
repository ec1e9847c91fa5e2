//! Tasks as their users meet them: short answers, task files and their errors, several tasks in one command, and a recipe that
//! is scored on two. Choices are in `choices.rs`, programs in `code_sandbox.rs`.

mod commands;
mod scratch;

use std::fs;
use std::path::Path;

use commands::{printed, refused, weft};
use scratch::folder;
use serde_json::{Value, json};
use weft::eval::Task;
use weft::eval::any_task::AnyTask;
use weft::eval::text_answer::{f1, last_number, normalized, short};

fn write(folder: &Path, file: &str, text: &str) {
    fs::write(folder.join(file), text).expect("the file is written");
}

fn read(folder: &Path, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join(file)).expect("the file is there")).expect("JSON")
}

/// The values are those of SQuAD's `evaluate-v1.1.py`.
#[test]
fn short_answers_are_compared_as_squad_compares_them() {
    assert_eq!(normalized(" The  Quick, (brown) FOX -- an  animal. "), "quick brown fox animal");
    assert_eq!(normalized("a.b's theatre"), "abs theatre");
    assert_eq!(normalized("The"), "");
    for (answer, truth, expected) in [
        ("the cat sat", "cat sat down", 0.8),
        ("cat cat", "the cat", 2.0 / 3.0),
        ("dog", "cat", 0.0),
        ("the", "a", 1.0),
        ("", "cat", 0.0),
        ("14 December 1972 UTC", "December 1972", 2.0 / 3.0),
    ] {
        assert!((f1(answer, truth) - expected).abs() < 1e-12, "{answer}: {}", f1(answer, truth));
    }
    assert_eq!(short("\n\n  Oslo. \nIt is in Norway."), "Oslo.");
    assert_eq!(short("I think <answer>\nOslo\n</answer>"), "Oslo");
    let task = AnyTask::from(Task::Naturalquestions);
    let score = |answer: &str| task.score("", answer, &json!(["the Oslo", "Christiania"])).correct;
    assert_eq!([score("oslo!"), score("Christiania\nonce"), score("Bergen"), score("")], [1, 1, 0, 0]);
    let row = json!({ "question": "who wrote this row", "answer": ["Weft", "the Weft project"] });
    let problem = task.problem(row.as_object().expect("a row")).expect("a problem");
    assert_eq!(problem.ground_truth, json!(["Weft", "the Weft project"]));
    let wrong = json!({ "question": "who", "answer": [] });
    let reason = task.problem(wrong.as_object().expect("a row")).expect_err("no answer");
    assert!(reason.starts_with("\"answer\" is no text and no list of texts"), "{reason}");
    assert_eq!(
        [last_number("so 1,234.50 of 3"), last_number("x"), last_number("-2, then -.5")],
        [Some(3.0), None, Some(-0.5)]
    );
    assert_eq!(last_number("It costs 1,234.50"), Some(1234.5));
}

/// A task file with this scoring, and the score of an answer to its row.
fn scored(folder: &Path, scoring: &str, answer: &str) -> usize {
    write(folder, "own.toml", &format!("[task]\nprompt = \"{{{{ q }}}}\"\n[scoring]\n{scoring}\n"));
    let task = AnyTask::parse(&folder.join("own.toml").display().to_string()).expect("a task");
    let row = json!({ "q": "How many?", "a": "The Twelve", "n": "1,200", "all": ["one", "two"], "i": 1 });
    let problem = task.problem(row.as_object().expect("a row")).expect("a problem");
    task.score(&problem.question, answer, &problem.ground_truth).correct
}

#[test]
fn each_kind_of_scoring_does_what_it_says() {
    let folder = folder("kinds");
    let exact = "kind = \"exact\"\nanswer = \"{{ a }}\"";
    assert_eq!([scored(&folder, exact, "twelve."), scored(&folder, exact, "eleven")], [1, 0]);
    let literal = "kind = \"exact\"\nanswer = \"{{ a }}\"\nnormalize = false";
    assert_eq!([scored(&folder, literal, "twelve."), scored(&folder, literal, " The Twelve ")], [0, 1]);
    let list = "kind = \"exact\"\nanswer = \"{{ all }}\"";
    assert_eq!([scored(&folder, list, "Two"), scored(&folder, list, "three")], [1, 0]);
    let number = "kind = \"number\"\nanswer = \"{{ n }}\"";
    assert_eq!([scored(&folder, number, "It is 3 or 1200."), scored(&folder, number, "1,200 or 3")], [1, 0]);
    let pattern = "kind = \"regex\"\npattern = \"is (\\\\w+)\"\nanswer = \"{{ all[0] }}\"";
    assert_eq!([scored(&folder, pattern, "it is One, is two"), scored(&folder, pattern, "one")], [1, 0]);
    let last = format!("{pattern}\ntake = \"last\"");
    assert_eq!([scored(&folder, &last, "it is two, is One"), scored(&folder, &last, "it is One, is two")], [1, 0]);
}

#[test]
fn the_right_choice_is_named_by_text_label_or_index() {
    let folder = folder("right");
    let row = json!({ "q": "?", "options": { "text": ["red", "blue"], "label": ["A", "B"] }, "key": "B", "word": "blue", "index": 1, "digit": "1" });
    for (more, right) in [
        ("choices = \"{{ options.text }}\"\nlabels = \"{{ options.label }}\"\nanswer = \"{{ key }}\"", Ok(1)),
        ("choices = \"{{ options.text }}\"\nanswer = \"{{ word }}\"", Ok(1)),
        ("choices = [\"red\", \"{{ word }}\", \"green\"]\nanswer = \"{{ index }}\"", Ok(1)),
        ("choices = [\"no\", \"yes\"]\nanswer = \"{{ index - 1 }}\"", Ok(0)),
        ("choices = [\"no\", \"yes\"]\nanswer = \"{{ digit }}\"", Ok(1)),
        ("choices = [\"1\", \"0\"]\nanswer = \"{{ digit }}\"", Ok(0)),
        (
            "choices = \"{{ options.text }}\"\nlabels = \"{{ options.label }}\"\nanswer = \"{{ digit }}\"",
            Err("scoring.answer gives \"1\", which is none of the labels (A, B)"),
        ),
        (
            "choices = [\"no\", \"yes\"]\nanswer = \"{{ word }}\"",
            Err("scoring.answer gives \"blue\", which is none of the choices (no, yes)"),
        ),
        ("choices = \"{{ word }}\"\nanswer = \"{{ index }}\"", Err("scoring.choices gives no list of texts")),
        (
            "choices = [\"no\", \"yes\"]\nanswer = \"{{ colour }}\"",
            Err("the row has no \"colour\", which scoring.answer reads; its keys are q, "),
        ),
    ] {
        write(
            &folder,
            "own.toml",
            &format!("[task]\nprompt = \"{{{{ q }}}}\"\n[scoring]\nkind = \"choice\"\n{more}\n"),
        );
        let task = AnyTask::parse(&folder.join("own.toml").display().to_string()).expect("a task");
        let problem = task.problem(row.as_object().expect("a row"));
        match right {
            Ok(index) => assert_eq!(problem.expect("a problem").ground_truth, json!(index), "{more}"),
            Err(reason) => assert!(problem.expect_err(more).starts_with(reason), "{more}"),
        }
    }
}

#[test]
fn a_task_file_is_refused_with_file_line_and_fix() {
    let folder = folder("refused");
    let eval = |text: &str| {
        write(&folder, "own.toml", text);
        let args = ["eval", "--model", "tiny-base", "--task", "own.toml", "--data", "rows.jsonl", "--out", "out.json"];
        let output = weft(&folder, &args);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).expect("UTF-8").trim_end().to_owned()
    };
    for (text, reason) in [
        (
            "[task]\npromt = \"x\"\n[scoring]\nkind = \"exact\"\nanswer = \"x\"",
            "own.toml: line 2: unknown key task.promt; the nearest known one is task.prompt\nown.toml: task.prompt is missing",
        ),
        (
            "[task]\nprompt = \"x\"\n\n[scoring]\nkind = \"fuzzy\"",
            "own.toml: line 5: scoring.kind = \"fuzzy\": the known values are exact, number, choice, regex, code",
        ),
        (
            "[task]\nprompt = \"x\"\n[scoring]\nkind = \"number\"\n# why\npattern = \"x\"",
            "own.toml: line 6: scoring.pattern has no effect with scoring.kind = \"number\"; leave it out\nown.toml: scoring.answer is missing",
        ),
        (
            "[task]\nprompt = \"{{ x\"\n[scoring]\nkind = \"exact\"\nanswer = \"x\"",
            "own.toml: line 2: task.prompt: the template doesn't parse: ",
        ),
        (
            "[task]\nprompt = \"x\"\n[scoring]\nkind = \"regex\"\nanswer = \"x\"\npattern = \"(\"",
            "own.toml: line 6: scoring.pattern can't be read: ",
        ),
        (
            "prompt = \"x\"\n[scoring]\nkind = \"exact\"\nanswer = \"x\"",
            "own.toml: line 1: prompt is outside of every table; set task.prompt",
        ),
        ("[task]\nprompt = x", "own.toml: line 2 is not TOML: "),
        (
            "[task]\nprompt = \"x\"\nwhatever = 1\n[scoring]\nkind = \"exact\"\nanswer = \"x\"",
            "own.toml: line 3: unknown key task.whatever; docs/tasks.md lists those that are known",
        ),
        ("[task]\nprompt = \"x\"", "own.toml: scoring.kind is missing; give exact, number, choice, regex or code"),
    ] {
        let error = eval(text);
        let several = error.starts_with("error: the task has ");
        assert!(several || error.lines().count() == 1, "{text}\n{error}");
        for reason in reason.lines() {
            let is_told = |line: &str| line.trim_start_matches("error: ").trim_start().starts_with(reason);
            assert!(error.lines().any(is_told), "{text}\n{error}");
        }
    }
    // A row that the file doesn't fit is named with its line.
    write(&folder, "rows.jsonl", "{\"q\": \"a\"}\n{\"question\": \"b\"}\n");
    let error = eval("[task]\nprompt = \"{{ q }}\"\n[scoring]\nkind = \"exact\"\nanswer = \"x\"");
    assert_eq!(error, "error: rows.jsonl:2: the row has no \"q\", which task.prompt reads; its keys are question");
    let error = refused(&folder, &["eval", "--model", "tiny-base", "--task", "absent.toml", "--out", "out.json"]);
    assert!(error.starts_with("error: cannot read absent.toml: No such file"), "{error}");
    let error = refused(&folder, &["eval", "--model", "tiny-base", "--task", "raft", "--out", "out.json"]);
    assert_eq!(error, "error: raft has no rows of its own; give its rows as --data FILE");
    let error = refused(
        &folder,
        &["eval", "--model", "tiny-base", "--task", "arc,raft,gsm8k", "--data", "a", "--data", "b", "--out", "o"],
    );
    assert_eq!(error, "error: there are 3 --task and 2 --data; give --data once for each task, in the same order");
}

const ARC: &str = "{\"id\": \"w1\", \"question\": \"What do bees make?\", \"choices\": {\"text\": [\"honey\", \"bread\", \"iron\"], \
                   \"label\": [\"1\", \"2\", \"3\"]}, \"answerKey\": \"1\"}\n\
                   {\"id\": \"w2\", \"question\": \"What is ice made of?\", \"choices\": {\"text\": [\"sand\", \"water\"], \
                   \"label\": [\"A\", \"B\"]}, \"answerKey\": \"B\"}\n";
const GSM8K: &str = "{\"question\": \"What is 1 + 2?\", \"answer\": \"1 + 2 = 3\\n#### 3\"}\n\
                     {\"question\": \"What is 2 + 2?\", \"answer\": \"2 + 2 = 4\\n#### 4\"}\n";

#[test]
fn several_tasks_are_scored_in_one_command() {
    let folder = folder("several");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/capitals.toml").display().to_string();
    write(&folder, "arc.jsonl", ARC);
    let tasks = ["eval", "--model", "tiny-base", "--gen-length", "32", "--diffusion-steps", "2", "--mc-samples", "8"];
    let both = format!("arc,{examples}");
    let args = [&tasks[..], &["--task", &both, "--data", "arc.jsonl", "--out", "out.json"]].concat();
    // One file would be that of every task.
    assert!(refused(&folder, &args).contains("arc.jsonl:1: the row has no \"country\", which task.prompt reads"));
    let args = [&tasks[..], &["--task", &examples, "--out", "own.json"]].concat();
    let text = printed(&folder, &args);
    assert!(text.starts_with("capitals on 4 problems: exact match "), "{text}");
    assert_eq!(read(&folder, "own.json")["generations"][2]["ground_truth"], json!(["Sucre", "La Paz"]));
    let copy = folder.join("mine.toml");
    fs::copy(&examples, &copy).expect("the example is copied");
    write(&folder, "capitals.jsonl", "{\"country\": \"Weftland\", \"capitals\": \"Wefton\"}\n");
    let args =
        [&tasks[..], &["--task", "arc", "--task", "mine.toml", "--data", "arc.jsonl", "--data", "capitals.jsonl"]]
            .concat();
    let text = printed(&folder, &[&args[..], &["--out", "out.json"]].concat());
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(" problem")).collect();
    assert!(lines[0].starts_with("arc on 2 problems: acc ") && lines[0].contains("; acc_norm "), "{text}");
    assert!(lines[1].starts_with("mine on 1 problem: exact match ") && lines[1].contains("; f1 "), "{text}");
    let saved = read(&folder, "out-arc.json");
    let row = &saved["generations"][0];
    assert_eq!(row["choices"], json!(["honey", "bread", "iron"]));
    assert_eq!(row["nll_bounds"].as_array().map(Vec::len), Some(3));
    assert!(saved["metrics"]["acc_norm"]["standard_error"].is_number() && saved["metrics"]["interval"][1].is_number());
    // The file scores the same again.
    let again = printed(&folder, &["score", "--task", "arc", "out-arc.json"]);
    let of_eval = lines[0].split_once(": ").map(|(_, score)| score);
    assert_eq!(again.trim_end().split_once("arc on 2 generations: ").map(|(_, score)| score), of_eval);
    let json = printed(&folder, &["score", "--task", "arc", "out-arc.json", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), saved["metrics"], "the same figures");
    let json = printed(&folder, &[&args[..], &["--out", "again.json", "--json"]].concat());
    let names: Vec<Value> =
        json.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["task"].clone()).collect();
    assert_eq!(names, [json!("arc"), json!("mine")]);
}

/// A recipe of two epochs that is scored on two tasks.
const RECIPE: &str = "[model]\nlora_rank = 2\n[data]\ntrain = \"gsm8k.jsonl\"\nheld_out = \"gsm8k.jsonl\"\n\
                      [train]\noutput = \"run\"\nepochs = 3\ncheckpoint_every = 2\n[sampler]\ngen_length = 32\ndiffusion_steps = 2\n\
                      [eval]\ntasks = [\"gsm8k\", { task = \"arc\", data = \"arc.jsonl\", limit = 1 }]\nmc_samples = 4\n";

fn scores(folder: &Path, run: &str) -> Vec<(u64, String, f64)> {
    let log = fs::read_to_string(folder.join(run).join("metrics.jsonl")).expect("the log is there");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let score = |line: Value| {
        assert!(line["task"].is_null() || line["standard_error"].is_number(), "{line}");
        Some((line["step"].as_u64()?, line["task"].as_str()?.to_owned(), line["accuracy"].as_f64()?))
    };
    lines.filter_map(score).collect()
}

#[test]
fn a_recipe_is_scored_on_two_tasks_after_each_epoch() {
    let folder = folder("recipe");
    write(&folder, "arc.jsonl", ARC);
    write(&folder, "gsm8k.jsonl", GSM8K);
    write(&folder, "recipe.toml", RECIPE);
    let output = weft(&folder, &["train", "recipe.toml"]);
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    for step in [0, 2, 4, 6] {
        let [gsm8k, arc] = ["gsm8k", "arc acc"].map(|task| format!("step {step}: {task} "));
        let is_told = |begin: &str| log.lines().any(|line| line.starts_with(begin) && line.contains(" % +- "));
        assert!(is_told(&gsm8k) && is_told(&arc), "{log}");
    }
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("gsm8k on the same 2 held-out problems:\n  base     0.0 %"), "{text}");
    assert!(text.contains("arc on the same 1 problem:\n  base     acc "), "{text}");
    let at: Vec<(u64, String)> = scores(&folder, "run").into_iter().map(|(step, task, _)| (step, task)).collect();
    let expected: Vec<(u64, String)> =
        [0, 2, 4, 6].iter().flat_map(|step| ["gsm8k", "arc"].map(|task| (*step, task.to_owned()))).collect();
    assert_eq!(at, expected);
    let results = read(&folder, "run/results.json");
    assert_eq!(results["task"], "gsm8k", "the first task stands for the run");
    assert_eq!(results["tasks"][1]["adapter"]["task"], "arc");
    assert!(results["tasks"][1]["base"]["acc_norm"]["value"].is_number());
    let report = fs::read_to_string(folder.join("run/report.html")).expect("the report is there");
    assert!(report.contains("Accuracy on the tasks") && report.contains("arc, adapter"));
    for file in ["base-generations-gsm8k.json", "adapter-generations-arc.json"] {
        assert!(folder.join("run").join(file).exists(), "{file}");
    }
    // A run that was killed after its last score takes all scores from its log: no answer is generated again.
    let log = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("the log is there");
    let generated = || {
        let files = ["base-generations-gsm8k.json", "adapter-generations-arc.json"];
        files.map(|file| fs::metadata(folder.join("run").join(file)).and_then(|m| m.modified()).expect(file))
    };
    let resumed = || {
        fs::remove_file(folder.join("run/results.json")).expect("it was there");
        printed(&folder, &["train", "recipe.toml", "--resume"]);
        assert_eq!(read(&folder, "run/results.json")["tasks"], results["tasks"]);
    };
    let first = generated();
    resumed();
    assert_eq!(generated(), first);
    assert_eq!(fs::read_to_string(folder.join("run/metrics.jsonl")).expect("the log is there"), log);
    // One that was killed between a checkpoint and the score of its step computes it.
    let without: Vec<&str> = log.lines().collect();
    let without = without[..without.len() - 2].iter().map(|line| format!("{line}\n")).collect::<String>();
    fs::write(folder.join("run/metrics.jsonl"), without).expect("the log can be written");
    resumed();
    assert!(generated()[1] > first[1] && generated()[0] == first[0], "the base's scores are known");
    assert_eq!(scores(&folder, "run").len(), expected.len());
    // A run that was stopped after its first epoch goes on to the same scores.
    let begun = ["train", "recipe.toml", "--set", "train.output=two"];
    printed(&folder, &[&begun[..], &["--set", "train.lr_schedule=constant", "--set", "train.epochs=1"]].concat());
    printed(&folder, &[&begun[..], &["--set", "train.lr_schedule=constant", "--resume"]].concat());
    printed(&folder, &["train", "recipe.toml", "--set", "train.output=whole", "--set", "train.lr_schedule=constant"]);
    let of = |run: &str| {
        let mut scores = scores(&folder, run);
        scores.dedup();
        scores
    };
    assert_eq!(of("two"), of("whole"));
    // The comparison finds the first task's problems.
    assert!(printed(&folder, &["compare", "two", "whole"]).contains("gsm8k"), "compare");
}

#[test]
fn tasks_of_a_recipe_are_checked_before_anything_runs() {
    let folder = folder("checked");
    write(&folder, "gsm8k.jsonl", GSM8K);
    write(&folder, "recipe.toml", RECIPE);
    let train = |settings: &[&str]| {
        let sets = settings.iter().flat_map(|setting| ["--set", setting]);
        refused(&folder, &["train", "recipe.toml"].into_iter().chain(sets).collect::<Vec<_>>())
    };
    for (settings, reason) in [
        (
            &["eval.task=arc"][..],
            "eval.task and eval.tasks are both set; name every task in eval.tasks, and leave out eval.task",
        ),
        (&["eval.tasks=[\"chess\"]"], "give a task's name, or { task = "),
        (&["eval.tasks=[{ task = \"arc\", rows = \"x\" }]"], "unknown key eval.tasks.rows"),
        (&["eval.tasks=[\"arc\", \"arc\"]"], "eval.tasks names \"arc\" twice; name it once"),
        (&["eval.mc_samples=1"], "eval.mc_samples = 1 gives no standard error; give at least 2"),
        (&["eval.tasks=[]", "eval.task=chess"], "the known values are sudoku, countdown, gsm8k, math500, hellaswag, "),
        (
            &["eval.tasks=[{ task = \"humaneval\", data = \"gsm8k.jsonl\" }]", "eval.mc_samples=128"],
            "add --run-code (in a recipe, eval.run_code = true)",
        ),
        (
            &["eval.each_epoch=false", "train.best_by=task"],
            "train.best_by = \"task\" needs the first task's score after each epoch",
        ),
        (&[], "cannot read arc.jsonl"),
    ] {
        let error = train(settings);
        assert!(error.contains(reason), "{settings:?}: {error}");
        assert!(!folder.join("run/metrics.jsonl").exists());
    }
}

#[test]
fn the_best_weights_are_those_of_the_first_task_where_it_decides() {
    let folder = folder("best");
    write(&folder, "gsm8k.jsonl", GSM8K);
    write(&folder, "arc.jsonl", ARC);
    write(&folder, "recipe.toml", RECIPE);
    let by = ["--set", "train.best_by=task", "--set", "train.keep_best=true", "--set", "train.patience=2"];
    let text = printed(&folder, &[&["train", "recipe.toml"][..], &by].concat());
    // No answer is right, so that the first epoch is the best, and two later ones end the run.
    assert!(text.contains("highest accuracy on the first task 0.0 % at step 2, saved in run/best-adapter"), "{text}");
    let results = read(&folder, "run/results.json");
    assert_eq!((&results["best"]["step"], &results["best"]["accuracy"]), (&json!(2), &json!(0.0)));
}
