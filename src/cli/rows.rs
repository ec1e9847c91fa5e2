//! What `weft data`, `plan` and `train` all report of a recipe's rows: warnings, counts, and the objects of `--json`.

use serde_json::{Value, json};
use weft::counted::{counted, verb};
use weft::data::notes::{Notes, Skipped, in_order};
use weft::data::shared_rows::SharedRows;
use weft::data::{Dataset, Mixed, Part};
use weft::experiment::Experiment;
use weft::model::config::ModelConfig;
use weft::model::positions::Beyond;
use weft::recipe::{Recipe, RunSize};
use weft::report::table::Table;

/// The indentation of the lines in which `weft train` describes the rows.
pub const INDENT: &str = "           ";

/// How much of the rows lies beyond the positions that the model was trained for.
pub fn beyond(config: &ModelConfig, rows: [Option<&Mixed>; 2]) -> Option<Beyond> {
    let examples = rows.into_iter().flatten().flat_map(|mixed| &mixed.dataset.examples);
    Beyond::of(config, examples.map(|e| e.prompt_ids.len() + e.answer_ids.len()))
}

/// Warns of sources of which more than a tenth is skipped, of rows beyond the model's positions, and of rows that are
/// trained on and held out.
pub fn warn(config: &ModelConfig, rows: [Option<&Mixed>; 2], shared: Option<SharedRows>) {
    let skipped = rows.into_iter().flatten().flat_map(Mixed::warnings);
    let beyond = beyond(config, rows).and_then(|beyond| beyond.warning(config));
    let warnings = skipped.chain(beyond).chain(shared.map(|shared| shared.to_string()));
    warnings.for_each(|warning| tell!("warning: {warning}"));
}

/// Warns of settings that have no effect in a run of this size.
pub fn warn_of_run(recipe: &Recipe, run: RunSize) {
    let fewer = fewer_than_wanted(recipe, (run.train, run.held_out));
    recipe.warnings_of_run(&run).into_iter().chain(fewer).for_each(|warning| tell!("warning: {warning}"));
}

/// Warnings of settings that ask for more rows than there are. Generated rows always reach the requested number.
pub fn fewer_than_wanted(recipe: &Recipe, (train, held_out): (&Mixed, Option<&Mixed>)) -> Vec<String> {
    let data = &recipe.data;
    let asked = [("train_rows", data.train_rows, Some(train)), ("held_out_rows", data.held_out_rows, held_out)];
    let mut fewer = vec![];
    for (key, rows, mixed) in asked.into_iter().filter(|_| data.generate.is_none()) {
        let Some((wanted, mixed)) = rows.and_then(|rows| rows.as_first()).zip(mixed) else { continue };
        // Rows that are held out of the training rows count as training rows here.
        let is_part = data.held_out.as_ref().is_some_and(|held_out| held_out.files().is_none());
        let part = held_out.filter(|_| is_part).map_or(&[][..], |held_out| &held_out.parts);
        let there: usize = mixed.parts.iter().chain(part).map(|part| part.notes.rows).sum();
        if there < wanted {
            let are = verb(there, ["is", "are"]);
            fewer.push(format!("data.{key} = {wanted}, but there {are} only {}", counted(there, "row")));
        }
    }
    fewer
}

/// Prints what a run trains on and holds out.
pub fn say_of(experiment: &Experiment) {
    let Mixed { dataset: Dataset { examples, truncated, documents, .. }, mixture, parts } = &experiment.train;
    let tokens: usize = examples.iter().map(|e| e.prompt_ids.len() + e.answer_ids.len()).sum();
    let (count, longest) = (examples.len(), experiment.recipe.data.max_seq_len.0);
    match parts.iter().all(|part| part.documents > 0) {
        true => {
            let (documents, sequences) = (counted(*documents, "text"), counted(count, "sequence"));
            sentence!(
                INDENT.len(),
                "data       {documents}, {tokens} tokens, packed into {sequences} of at most {longest}"
            )
        }
        false => {
            let (examples, cut) = (counted(count, "example"), counted(*truncated, "answer"));
            sentence!(INDENT.len(), "data       {examples}, {tokens} tokens; {cut} cut at {longest} tokens")
        }
    }
    for part in parts {
        if parts.len() > 1 || part.num_chats().is_some() {
            sentence!(
                INDENT.len(),
                "{INDENT}{}: {}, each {} in an epoch",
                part.name,
                part.how_many(),
                part.how_often()
            );
        }
        part.notes.lines().iter().for_each(|line| sentence!(INDENT.len(), "{INDENT}{line}"));
    }
    if parts.len() > 1 {
        sentence!(INDENT.len(), "{INDENT}an epoch has {}", counted(mixture.epoch_len(count), "example"));
    }
    if let Some(Mixed { dataset, parts, .. }) = &experiment.held_out {
        let count = dataset.examples.len();
        match dataset.documents {
            0 => {
                let (examples, cut) = (counted(count, "example"), counted(dataset.truncated, "answer"));
                sentence!(INDENT.len(), "held out   {examples}; {cut} cut")
            }
            documents => {
                let (texts, sequences) = (counted(documents, "text"), counted(count, "sequence"));
                sentence!(INDENT.len(), "held out   {texts} in {sequences}")
            }
        }
        parts.iter().flat_map(|part| part.notes.lines()).for_each(|line| sentence!(INDENT.len(), "{INDENT}{line}"));
    }
}

/// The lines about the rows of a command that has options instead of a recipe.
pub fn lines_of_options(notes: &Notes) -> Vec<String> {
    let of_option =
        |line: String| line.replace("data.special_tokens", "--special-tokens").replace(" (data.train_on)", "");
    notes.lines().into_iter().map(of_option).collect()
}

/// The counts of a run's rows for its report, with one source per row.
pub fn table(train: &Mixed, held_out: Option<&Mixed>) -> Table {
    let head = ["", "used", "rows", "skipped", "gives", "answers cut"].map(str::to_owned).to_vec();
    let row = |(part, used): (&Part, &str)| {
        let [rows, skipped, cut] = [part.notes.rows, part.notes.num_skipped(), part.truncated].map(|n| n.to_string());
        vec![part.name.clone(), used.to_owned(), rows, skipped, part.how_many(), cut]
    };
    let held_out = held_out.iter().flat_map(|mixed| &mixed.parts).map(|part| row((part, "held out")));
    let rows = train.parts.iter().map(|part| row((part, "training"))).chain(held_out);
    Table { title: "rows".to_owned(), rows: [head].into_iter().chain(rows).collect(), note: String::new() }
}

/// What a run leaves out of a source: skipped rows and answers, with the reasons, and the ends of answers that are cut at the
/// given number of tokens.
pub fn left_out(part: &Part, max_seq_len: usize) -> Vec<String> {
    let Notes { rows, skipped, skipped_answers, first_cut, cut_rows, .. } = &part.notes;
    let because = |what: String, reason: &str, first: &str| format!("{what} skipped: {reason} (the first in {first})");
    let of_rows = in_order(skipped).into_iter().map(|(reason, Skipped { count, first })| {
        because(format!("{count} of {}", counted(*rows, "row")), reason, first)
    });
    let of_answers = in_order(skipped_answers)
        .into_iter()
        .map(|(reason, Skipped { count, first })| because(counted(*count, "answer"), reason, first));
    let cut = (part.truncated > 0 && part.documents == 0).then(|| {
        let more = if *cut_rows > first_cut.len() { ", ..." } else { "" };
        let answers = counted(part.truncated, "answer");
        format!("{answers} cut at {max_seq_len} tokens (in {}{more})", first_cut.join(", "))
    });
    of_rows.chain(of_answers).chain(cut).collect()
}

/// The rows as one JSON object: the counts of each source that is trained on and held out.
pub fn as_json(train: &Mixed, held_out: Option<&Mixed>) -> Value {
    let of = |mixed: &Mixed| mixed.parts.iter().map(of_part).collect::<Value>();
    json!({ "train": of(train), "held_out": held_out.map(of) })
}

/// The counts of a source.
pub fn of_part(part: &Part) -> Value {
    json!({
        "name": part.name, "weight": part.weight, "key": part.key, "examples": part.examples,
        "chats": part.num_chats(), "truncated": part.truncated, "passed_over": part.passed_over,
        "documents": part.documents, "notes": part.notes,
    })
}
