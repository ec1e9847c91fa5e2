//! The pages: what came from data or model stays text, every curve is there, and a resumed run tells its whole story.
//! That they render and answer the pointer is `scripts/pages.py`'s.

mod fixtures;
mod scratch;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"double\" 'single' \u{2028}--> ]]> </title></pre>";
/// What a file's name can hold of it.
const HOSTILE_NAME: &str = "<img src=x onerror=alert(1)> & \"double\" 'single' \u{2028}-->";

const RECIPE: &str = r#"
[model]
lora_rank = 2
[data]
train = "rows.jsonl"
held_out = "rows.jsonl"
held_out_rows = 2
[train]
output = "run"
max_steps = 4
eval_every = 2
checkpoint_every = 1
[sampler]
gen_length = 8
block_length = 8
diffusion_steps = 2
[eval]
samples = 1
"#;

fn folder(name: &str) -> PathBuf {
    let folder = scratch::folder(name);
    let turn = |role: &str| serde_json::json!({ "role": role, "content": HOSTILE });
    let row = serde_json::json!({ "messages": [turn("user"), turn("assistant")] });
    std::fs::write(folder.join("rows.jsonl"), format!("{row}\n").repeat(8)).expect("rows can be written");
    std::fs::write(folder.join("recipe.toml"), RECIPE).expect("the recipe can be written");
    folder
}

/// A text as HTML holds it.
fn as_html(text: &str) -> String {
    [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&#39;")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Data is in a page as text alone: its tags, scripts and attributes are the page's own.
fn assert_data_is_text(page: &str, num_scripts: usize) {
    assert_eq!(page.matches("<script").count(), num_scripts, "the page's own");
    assert_eq!(page.matches("</script").count(), num_scripts);
    for script in page.split("<script").skip(1).filter_map(|rest| rest.split("</script>").next()) {
        assert!(!script.contains("alert") && !script.contains('\u{2028}'), "no data is in a script: {script}");
    }
    let own = ["title", "pre", "style"];
    for (tag, count) in own.map(|tag| (tag, page.matches(&format!("<{tag}")).count())) {
        assert_eq!(page.matches(&format!("</{tag}>")).count(), count, "{tag}");
    }
    assert!(!page.contains("<img") && !page.contains("--> ]]>") && !page.contains("'single'"));
}

fn weft(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).args(arguments).output().expect("the program starts")
}

fn read(folder: &Path, file: &str) -> String {
    std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn a_runs_page_has_its_curves_and_answers_as_text() {
    let folder = folder("report-run");
    let output = weft(&folder, &["train", "recipe.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = read(&folder, "run/report.html");
    assert_data_is_text(&page, 1);
    assert!(page.contains(&as_html(HOSTILE)), "the row's answer is shown");
    assert!(page.contains("<title>run: weft on tiny-base</title>"), "runs have titles of their own");
    assert_eq!(page.matches("<svg").count(), 9);
    for fact in
        ["training examples</dt><dd>8, 0 of them cut", "machine</dt><dd>", "device</dt><dd>", "lowest held-out loss"]
    {
        assert!(page.contains(fact), "{fact} is missing");
    }
    assert!(page.contains("<h4>user</h4>") && !page.contains("start_header_id"), "the prompt is shown in turns");
    for part in [
        "Held-out loss",
        "unweighted",
        "weighted",
        "Gradient norm",
        "Masked share",
        "Entropy of the answer",
        "kind = &quot;weft&quot;",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    let first: Value = serde_json::from_str(read(&folder, "run/metrics.jsonl").lines().nth(1).expect("a step"))
        .expect("a line is JSON");
    let quantiles = first["entropy_quantiles"].as_array().expect("weft has entropies");
    let quantiles: Vec<f64> = quantiles.iter().map(|q| q.as_f64().expect("a number")).collect();
    assert!(quantiles.is_sorted() && quantiles.len() == 5 && quantiles[4] > quantiles[0], "{quantiles:?}");
}

#[test]
fn what_is_left_out_of_the_rows_is_told() {
    let folder = folder("report-rows");
    let row = |answer: &str| format!("{}\n", serde_json::json!({ "prompt": "1 + 1?", "response": answer }));
    let rows = [row("2"), "{\"id\": \"<i>\"}\n".to_owned(), row("2"), row(&"two ".repeat(60)), row(" ")].concat();
    std::fs::write(folder.join("rows.jsonl"), rows).expect("rows can be written");
    std::fs::write(folder.join("held-out.jsonl"), [row("2"), row("")].concat()).expect("rows can be written");
    let settings = ["data.held_out=held-out.jsonl", "data.on_bad_row=skip", "data.max_seq_len=64", "train.max_steps=2"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let output = weft(&folder, &[&["train", "recipe.toml"], &settings[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let (page, card) = (read(&folder, "run/report.html"), read(&folder, "run/adapter/README.md"));
    for (of_source, skipped) in [
        ("", "1 of 5 rows skipped: the answer is empty (the first in rows.jsonl:5)"),
        ("", "1 of 5 rows skipped: the keys [\"id\"] match no known format (the first in rows.jsonl:2)"),
        ("held out: ", "1 of 2 rows skipped: the answer is empty (the first in held-out.jsonl:2)"),
        ("", "1 answer cut at 64 tokens (in rows.jsonl:4)"),
    ] {
        assert!(page.contains(&format!("<li>{}", as_html(&format!("{of_source}{skipped}")))), "{skipped}: {page}");
        assert!(card.contains(&format!("\n  - {skipped}")), "{skipped}: {card}");
    }
    assert!(shown.contains("1 row skipped: the answer is empty (the first in rows.jsonl:5)"), "{shown}");
    let cells = |cells: [&str; 6]| {
        let names =
            ["", " data-name=\"used for\"", " data-name=\"rows\"", " data-name=\"skipped\"", " data-name=\"gives\""];
        let names = names.into_iter().chain([" data-name=\"answers cut\""]);
        names.zip(cells).map(|(name, cell)| format!("<td{name}>{cell}</td>")).collect::<String>()
    };
    assert!(page.contains(&cells(["rows.<wbr>jsonl", "training", "5", "2", "3 examples", "1"])), "{page}");
    assert!(
        page.contains(&cells(["held-out.<wbr>jsonl [0:2]", "held-out evaluation", "2", "1", "1 example", "0"])),
        "{page}"
    );
    assert!(
        card.contains("- rows.jsonl: 3 examples\n") && card.contains("- held-out.jsonl [0:2]: 1 example, held out\n")
    );
}

#[test]
fn a_step_in_which_nothing_was_masked_is_a_gap() {
    let folder = folder("report-gaps");
    let row = serde_json::json!({ "prompt": "1 + 1?", "response": "2" });
    std::fs::write(folder.join("rows.jsonl"), format!("{row}\n").repeat(8)).expect("rows can be written");
    let settings = ["objective.kind=sft", "train.max_steps=16", "train.micro_batch_size=1", "train.epochs=2"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let output = weft(&folder, &[&["train", "recipe.toml"], &settings[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> = read(&folder, "run/metrics.jsonl").lines().flat_map(serde_json::from_str).collect();
    let unmasked = lines.iter().filter(|line| line["masked_share"] == 0.0).count();
    let masked = lines.iter().filter(|line| line["masked_share"].as_f64() > Some(0.0)).count();
    assert!(unmasked > 1 && unmasked + masked == 16, "{unmasked} of {}", unmasked + masked);
    let page = read(&folder, "run/report.html");
    assert!(page.contains(&format!(" In {unmasked} steps nothing was masked: they have no loss")), "{page}");
    for curve in ["<title>loss: ", "<title>nll: ", "<title>gradient norm: "] {
        assert_eq!(page.matches(curve).count(), masked, "{curve}");
    }
    assert_eq!(page.matches("<title>masked share: ").count(), 16, "other curves have every step");
}

#[test]
fn names_of_files_and_models_are_text() {
    let folder = folder("report-names");
    let rows = format!("{HOSTILE_NAME}.jsonl");
    std::fs::rename(folder.join("rows.jsonl"), folder.join(&rows)).expect("it is renamed");
    let model = fixtures::LLADA.with_text(HOSTILE_NAME, &fixtures::LLADA.path());
    let (rows, output, model) =
        (Value::from(rows), Value::from(HOSTILE_NAME), Value::from(model.display().to_string()));
    let recipe = RECIPE.replace("\"rows.jsonl\"", &rows.to_string()).replace("\"run\"", &output.to_string());
    let recipe = recipe.replace("[model]", &format!("[model]\npath = {model}"));
    std::fs::write(folder.join("recipe.toml"), recipe).expect("the recipe can be written");
    let output = weft(&folder, &["train", "recipe.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = read(&folder, &format!("{HOSTILE_NAME}/report.html"));
    assert_data_is_text(&page, 1);
    assert!(page.matches(&as_html(HOSTILE_NAME)).count() >= 3, "the model's name, the folder's and the recipe");
    let output = weft(&folder, &["inspect", "recipe.toml", "--examples", "1", "--out", "rows.html"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = read(&folder, "rows.html");
    assert_data_is_text(&page, 2);
    assert!(page.contains(&as_html(HOSTILE_NAME)), "the model's name");
}

#[test]
fn sft_has_no_entropies_to_show() {
    let folder = folder("report-sft");
    assert!(weft(&folder, &["train", "recipe.toml", "--set", "objective.kind=sft"]).status.success());
    let page = read(&folder, "run/report.html");
    assert_eq!(page.matches("<svg").count(), 7);
    assert!(!page.contains("Entropy of the answer"));
}

#[test]
fn a_resumed_runs_events_are_those_of_its_metrics() {
    let folder = folder("report-resume");
    assert!(weft(&folder, &["train", "recipe.toml"]).status.success());
    let events = || std::fs::read(folder.join("run/events.out.tfevents.weft")).expect("there are events");
    let whole = events();
    let losses = whole.windows(13).filter(|w| w == b"\x0a\x0bcurves/loss").count();
    assert_eq!(losses, 4, "one of each step");
    // As after a crash: the last checkpoint is gone, the files tell of a step more.
    std::fs::remove_dir_all(folder.join("run/checkpoints/step-00000004")).expect("it was kept");
    assert!(weft(&folder, &["train", "recipe.toml", "--resume"]).status.success());
    let resumed = events();
    assert_eq!(resumed.windows(13).filter(|w| w == b"\x0a\x0bcurves/loss").count(), 4, "none twice");
    let lines = read(&folder, "run/metrics.jsonl").lines().count();
    assert_eq!(lines, 4 + 3, "four steps, three evaluations");
}

#[test]
fn a_text_is_inspected() {
    let folder = folder("report-inspect");
    std::fs::write(folder.join("answer.txt"), format!("{HOSTILE}\n")).expect("the text can be written");
    let inspect = ["inspect", "--model", "tiny-base", "--text", "answer.txt"];
    assert!(weft(&folder, &inspect).status.success());
    let page = read(&folder, "entropy.html");
    assert_data_is_text(&page, 2);
    for token in ["data-token=\"&lt;", "data-token=\"&quot;", "data-token=\"&#39;"] {
        assert!(page.contains(token), "{token} is missing");
    }
    let values = |key: &str| -> Vec<f64> {
        let begin = format!(" {key}=\"");
        let parts = page.split(&begin).skip(1);
        parts.map(|part| part.split('"').next().expect("it ends").parse().expect("a number")).collect()
    };
    let (entropies, r) = (values("data-h"), values("data-r"));
    let beta: Vec<f64> = entropies.iter().map(|h| h.sqrt()).collect();
    let mean = beta.iter().sum::<f64>() / beta.len() as f64;
    assert!(beta.len() > 10);
    assert!(beta.iter().zip(&r).all(|(beta, r)| (beta / mean - r).abs() < 1e-3), "r is beta over its mean");
    // Rows of a recipe.
    let output = weft(&folder, &["inspect", "recipe.toml", "--examples", "2", "--out", "rows.html"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = read(&folder, "rows.html");
    assert_data_is_text(&page, 2);
    assert!(page.contains(&as_html(HOSTILE)), "the prompt is shown");
    assert_eq!(page.matches("<h2>Text").count(), 2);
    std::fs::write(folder.join("empty.txt"), "\n").expect("the text can be written");
    let output = weft(&folder, &["inspect", "--model", "tiny-base", "--text", "empty.txt"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("empty.txt holds no text"));
}
