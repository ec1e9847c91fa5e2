//! Rows that can't be used: skipped and counted if the recipe says so, and all reported at once if it doesn't.

use serde_json::{Value, json};

use super::program::{Case, pairs, recipe, refused, set, shows, trains, turn};

pub const CASES: &[Case] = &[("D8", chats_that_end_with_the_user), ("D9", long_prompts_and_answers)];

fn chats_that_end_with_the_user() {
    let mut rows = pairs(40);
    rows[7] = json!({ "messages": [turn("user", "Hi."), turn("assistant", "Hello."), turn("user", "And?")] });
    rows[9] = json!({ "messages": [turn("user", "Hi."), turn("assistant", "")] });
    let folder = recipe("unusable", &rows);
    refused(&folder, &["data", "recipe.toml"], &["rows.jsonl:8: ", "rows.jsonl:10: ", "data.on_bad_row"]);
    let skip = set(&["data.on_bad_row=skip"]);
    shows(&folder, &skip, &["rows.jsonl: 38 examples", "rows.jsonl:8"]);
    trains(&folder, &skip);
}

fn long_prompts_and_answers() {
    let mut rows = pairs(40);
    rows[3] = json!({ "prompt": "Count. ".repeat(200), "response": "1" });
    rows[5] = json!({ "prompt": "Count.", "response": "1 + ".repeat(200) });
    let folder = recipe("long", &rows);
    let short = "data.max_seq_len=64";
    refused(
        &folder,
        &[&["data", "recipe.toml"][..], &set(&[short])].concat(),
        &["rows.jsonl:4: ", "data.on_long_prompt"],
    );
    let skip_prompts = set(&[short, "data.on_long_prompt=skip"]);
    shows(&folder, &skip_prompts, &["rows.jsonl: 39 examples", "1 answer cut at 64 tokens"]);
    let skip_both = [&skip_prompts[..], &set(&["data.on_long_answer=skip"])].concat();
    shows(&folder, &skip_both, &["rows.jsonl: 38 examples"]);
    let whole: Vec<Value> = pairs(2);
    shows(&recipe("whole", &whole), &[], &["rows.jsonl: 2 examples"]);
}
