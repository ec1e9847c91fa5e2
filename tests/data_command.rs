//! `weft data`: what it shows of examples, lengths and an epoch, for people and for machines.

mod scratch;

use std::fs;
use std::path::Path;
use std::process::Command;

use scratch::folder;
use serde_json::Value;

/// What is printed, after success.
fn weft(folder: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .current_dir(folder)
        .args(args)
        .env("WEFT_CACHE", folder.join("cache"))
        .output()
        .expect("weft starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// Two sources on the embedded base, one of them thinking.
fn recipe(folder: &Path) {
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("a.jsonl"), (0..8).map(row).collect::<String>()).expect("it is written");
    let thinking = "[{\"question\": \"1 + 1?\", \"thinking_trajectories\": [\"One.\\u001b[31m\"], \"attempt\": \"2\"}]";
    fs::write(folder.join("b.json"), thinking).expect("it is written");
    let recipe = "[data]\nheld_out = \"a.jsonl\"\nheld_out_rows = 2\n[[data.sources]]\npath = \"a.jsonl\"\nweight = 1.5\n\
                  [[data.sources]]\npath = \"b.json\"\nformat = \"s1k\"\n[train]\nepochs = 3\nmicro_batch_size = 4\n\
                  output = \"run\"\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
}

#[test]
fn the_examples_are_shown_as_they_are_tokenized() {
    let folder = folder("shown");
    recipe(&folder);
    let shown = weft(&folder, &["data", "recipe.toml", "--examples", "1"]);
    let (summary, examples) = shown.split_once("\n== ").expect("examples follow");
    let lines: Vec<&str> = summary.lines().collect();
    assert_eq!(lines[0], "a.jsonl: 8 examples, each 1.5 times in an epoch");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["tokens", "min", "median", "mean", "95", "%", "max"]);
    assert_eq!(lines[5], "  0 answers cut at 4096 tokens");
    assert!(summary.contains("\nb.json: 1 example, each once in an epoch\n"), "{summary}");
    assert!(summary.contains("\nheld out: a.jsonl [0:2]: 2 examples, "), "{summary}");
    assert!(summary.contains("\nan epoch: 13 examples, "), "8 rows 1.5 times and one: {summary}");
    assert!(summary.contains(" tokens, 4 steps of 4\nthe run:  12 steps, 3.00 epochs\n"), "{summary}");
    let [first, second] = examples.split("\n== ").collect::<Vec<_>>()[..] else { panic!("{examples}") };
    assert!(first.starts_with("a.jsonl, example 1 of 8\n-- prompt, "), "{first}");
    let template = "<|start_header_id|>user<|end_header_id|>\nWhat is 0 + 1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n";
    assert!(first.contains(template), "{first}");
    assert!(first.ends_with(" tokens\n1\n-- end token\n<|eot_id|>\n"), "{first}");
    let answer = "<reasoning>One.\\u{1b}[31m</reasoning>\n<answer>2</answer>\n-- end token\n<|eot_id|>\n";
    assert!(second.starts_with("b.json, example 1 of 1\n") && second.ends_with(answer), "{second}");
    assert!(!shown.contains('\x1b'), "no colours, and none of the rows' own, where there is no terminal");
    assert!(!folder.join("run").exists() && !folder.join("cache").exists(), "nothing is left behind");
}

#[test]
fn long_texts_lose_their_middle_and_cut_answers_their_end() {
    let folder = folder("long");
    recipe(&folder);
    let response = "1 2 3 4 5 6 7 8 9 ".repeat(100);
    fs::write(folder.join("a.jsonl"), format!("{{\"prompt\": \"Count\", \"response\": \"{response}.\"}}\n"))
        .expect("written");
    let args = ["data", "recipe.toml", "--set", "data.held_out_rows=1"];
    let shown = weft(&folder, &args);
    assert!(shown.contains("\n[... 701 characters; --full shows them ...]\n"), "{shown}");
    assert!(weft(&folder, &[&args[..], &["--full"]].concat()).contains(&response));
    let cut = weft(&folder, &[&args[..], &["--set", "data.max_seq_len=90"]].concat());
    assert!(cut.contains("\n  1 answer cut at 90 tokens\n") && cut.contains("\n-- cut: no end token\n"), "{cut}");
}

#[test]
fn machines_read_the_same_numbers() {
    let folder = folder("json");
    recipe(&folder);
    let json: Value = serde_json::from_str(&weft(&folder, &["data", "recipe.toml", "--json"])).expect("it is JSON");
    let [a, b] = json["sources"].as_array().expect("a list").as_slice() else { panic!("{json}") };
    assert_eq!(
        (&a["name"], &a["examples"], &a["weight"], &a["truncated"]),
        (&"a.jsonl".into(), &8.into(), &1.5.into(), &0.into())
    );
    assert_eq!((a["shown"].as_array().map(Vec::len), b["shown"].as_array().map(Vec::len)), (Some(3), Some(1)));
    assert_eq!((&a["shown"][2]["answer"], &a["shown"][2]["end"]), (&"3".into(), &"<|eot_id|>".into()));
    let number = |value: &Value| value.as_f64().expect("a number");
    for source in [a, b] {
        let [prompt, answer, total] = ["prompt_tokens", "answer_tokens", "total_tokens"].map(|key| &source[key]);
        assert!((number(&prompt["mean"]) + number(&answer["mean"]) - number(&total["mean"])).abs() < 1e-9);
        for lengths in [prompt, answer, total] {
            let ordered = ["min", "median", "p95", "max"].map(|key| number(&lengths[key]));
            assert!(ordered.is_sorted() && ordered[0] > 0.0, "{lengths}");
        }
    }
    let tokens = 12.0 * number(&a["total_tokens"]["mean"]) + number(&b["total_tokens"]["mean"]);
    assert!((number(&json["tokens_per_epoch"]) - tokens).abs() <= 0.5, "{json}");
    let counts = ["examples_per_epoch", "steps_per_epoch", "steps", "max_seq_len"].map(|key| json[key].as_u64());
    assert_eq!(counts, [Some(13), Some(4), Some(12), Some(4096)]);
    assert_eq!(json["held_out"][0]["examples"], 2);
    assert_ne!(a["key"], b["key"]);
}

#[test]
fn no_weights_have_to_be_there() {
    let folder = folder("weights");
    recipe(&folder);
    fs::create_dir(folder.join("base")).expect("the folder can be made");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
        fs::copy(base.join(file), folder.join("base").join(file)).expect("it is copied");
    }
    let own = weft(&folder, &["data", "recipe.toml", "--set", "model.path=base"]);
    assert_eq!(own, weft(&folder, &["data", "recipe.toml"]));
    let generated =
        ["data", "--set", "data.train_rows=5", "--set", "data.held_out_rows=3", "--set", "train.output=run"];
    let shown = weft(&folder, &generated);
    assert!(shown.contains("generated sudoku: 5 examples, each once in an epoch\n"), "the quick start's rows: {shown}");
    assert!(!folder.join("run").exists());
}

#[test]
fn what_is_hardly_meant_is_remarked() {
    let folder = folder("remarks");
    recipe(&folder);
    let json = |settings: &[&str]| -> Value {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>();
        let shown = weft(&folder, &[&["data", "recipe.toml", "--json"][..], &settings].concat());
        serde_json::from_str(&shown).expect("one object")
    };
    let shared = "2 held-out examples are trained on too (the first is a.jsonl:1, trained on as a.jsonl:1); the held-out loss \
                  says little about them";
    assert_eq!(json(&[])["remarks"], serde_json::json!([shared]));
    let apart = ["data.sources=[{path=\"a.jsonl\",rows=\"2:\"}]", "data.held_out_rows=2"];
    assert_eq!(json(&apart)["remarks"], serde_json::json!([]));
    let few = [
        "data.sources=[{path=\"a.jsonl\",format=\"prompt-response\"}]",
        "data.held_out='b.json'",
        "data.format='s1k'",
        "data.held_out_rows=100",
    ];
    let few = json(&few);
    assert_eq!(few["remarks"], serde_json::json!(["data.held_out_rows = 100, but there is only 1 row"]));
    let cut = json(&[apart[0], apart[1], "data.max_seq_len=25"]);
    let remark =
        "6 of 6 answers are cut and have no end token; a model that is trained on them doesn't stop (data.max_seq_len)";
    assert_eq!(cut["remarks"], serde_json::json!([remark]), "{cut}");
}

#[test]
fn what_nothing_reads_and_which_turns_are_trained_on_is_shown() {
    let folder = folder("unread");
    let turns = |i: usize| {
        format!(
            "[{{\"role\":\"user\",\"content\":\"{i}?\"}},{{\"role\":\"assistant\",\"content\":\"{i}\"}},\
             {{\"role\":\"user\",\"content\":\"and?\"}},{{\"role\":\"assistant\",\"content\":\"no\"}}]"
        )
    };
    let row = |i: usize| format!("{{\"messages\":{},\"id\":{i},\"score\":{}}}\n", turns(i), ["NaN", "null"][i % 2]);
    fs::write(folder.join("rows.jsonl"), (0..4).map(row).collect::<String>()).expect("it is written");
    let recipe = "[data]\ntrain = \"rows.jsonl\"\n[train]\noutput = \"run\"\nmax_steps = 1\nmicro_batch_size = 2\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
    let shown = weft(&folder, &["data", "recipe.toml"]);
    let unread = "columns not read: id, score (2 of 4 rows)\n";
    assert!(
        shown.contains(&format!("\n  {unread}  4 of 8 assistant turns are context only (data.train_on)\n")),
        "{shown}"
    );
    let all = ["--set", "data.train_on=all"];
    let shown = weft(&folder, &[&["data", "recipe.toml"][..], &all].concat());
    assert!(shown.starts_with("rows.jsonl: 8 examples, "), "{shown}");
    assert!(shown.contains(unread) && !shown.contains("context only"), "{shown}");
    let drawn = ["data", "recipe.toml", "--set", "data.train_on=drawn"];
    let shown = weft(&folder, &drawn);
    let chats = "rows.jsonl: 4 chats (8 answers, one drawn at each occurrence), each once in an epoch\n";
    assert!(shown.starts_with(chats) && shown.contains("\nan epoch: 4 examples, "), "{shown}");
    let shown: Value = serde_json::from_str(&weft(&folder, &[&drawn[..], &["--json"]].concat())).expect("one object");
    let source = &shown["sources"][0];
    assert_eq!(
        (&source["chats"], &source["examples"], &shown["examples_per_epoch"]),
        (&4.into(), &8.into(), &4.into())
    );
    let shown: Value = serde_json::from_str(&weft(&folder, &["data", "recipe.toml", "--json"])).expect("one object");
    assert_eq!(shown["sources"][0]["notes"]["unread"], serde_json::json!({ "id": 4, "score": 2 }));
    let trained = weft(&folder, &[&["train", "recipe.toml"][..], &all].concat());
    assert!(
        trained.contains("data       8 examples, ") && trained.contains(&format!("           {unread}")),
        "{trained}"
    );
}
