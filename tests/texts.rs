//! `format = "text"`: plain texts, packed into sequences for continued pretraining.

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use scratch::folder;
use serde_json::{Value, json};
use weft::data::chat_template::TextModel;
use weft::data::formats::Form;
use weft::data::sources::Source;
use weft::data::token_cache::TokenCache;
use weft::data::{Dataset, Reading, load, load_mixed, numbered, place, tokenizer};
use weft::model::settings::Trainable;
use weft::objective::Kind;
use weft::recipe::Recipe;

fn text_model(folder: &Path) -> TextModel {
    tokenizer::train(&folder.join("text"), &["one two three".to_owned()], 300).expect("the tokenizer trains");
    TextModel::open(&folder.join("text")).expect("the tokenizer opens")
}

fn reading(text: &TextModel, max_seq_len: usize) -> Reading<'_> {
    Reading { text, mask_token_id: text.token_id(tokenizer::MASK).expect("it has one"), max_seq_len, cache: None }
}

fn jsonl(folder: &Path, texts: &[&str]) -> Source {
    let lines: Vec<String> = texts.iter().map(|text| json!({ "text": text, "id": 3 }).to_string()).collect();
    fs::write(folder.join("rows.jsonl"), lines.join("\n")).expect("the rows are written");
    Source::at(&folder.join("rows.jsonl"), "train")
}

/// The texts one after another, each with an end token behind it.
fn stream(text: &TextModel, texts: &[&str]) -> Vec<u32> {
    let ids = |one: &&str| [text.encode(one).expect("it encodes"), vec![text.eos_token_id()]].concat();
    texts.iter().flat_map(ids).collect()
}

fn sequences(dataset: &Dataset) -> Vec<Vec<u32>> {
    assert!(dataset.examples.iter().all(|example| example.prompt_ids.is_empty()), "there is no prompt");
    dataset.examples.iter().map(|example| example.answer_ids.clone()).collect()
}

/// The error of reading a source, its folder taken away.
fn refused(source: &Source, text: &TextModel) -> String {
    let path = source.path.to_path();
    let folder = if path.is_dir() { path.as_path() } else { path.parent().expect("a folder") };
    let error = load(source, &reading(text, 100)).expect_err("it is refused").to_string();
    error.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn texts_are_packed_and_nothing_is_lost() {
    let folder = folder("packed");
    let text = text_model(&folder);
    let texts = ["a b", "0123456789 0123456789 0123456789", " \n", "", "\n c\u{1f600}", "last"];
    let source = jsonl(&folder, &texts);
    let written = [texts[0], texts[1], texts[4], texts[5]];
    let expected = stream(&text, &written);
    for max_seq_len in [2, 7, 16, expected.len(), expected.len() + 1] {
        let dataset = load(&source, &reading(&text, max_seq_len)).expect("the texts are read");
        let chunks: Vec<Vec<u32>> = expected.chunks(max_seq_len).map(<[u32]>::to_vec).collect();
        assert_eq!(sequences(&dataset), chunks, "{max_seq_len}");
        assert_eq!((dataset.documents, dataset.truncated, dataset.passed_over), (4, 0, 2));
        // A sequence begins in the text that holds its first token.
        let lens: Vec<usize> = written.iter().map(|one| stream(&text, &[one]).len()).collect();
        let holds = |at: usize| (0..4).find(|i| at < lens[..=*i].iter().sum::<usize>()).expect("one of them") as u32;
        let starts: Vec<u32> = (0..chunks.len()).map(|i| holds(i * max_seq_len)).collect();
        assert_eq!(dataset.starts, starts, "{max_seq_len}");
    }
    let mixed = load_mixed(std::slice::from_ref(&source), &reading(&text, 7)).expect("the texts are read");
    let [part] = &mixed.parts[..] else { panic!("one source") };
    assert_eq!((part.documents, part.examples), (4, expected.len().div_ceil(7)));
    let last = place(&source, part.row_of(part.examples - 1)).expect("the file is as it was");
    assert!(last.ends_with("rows.jsonl:6"), "{last}");
    assert!(place(&source, part.row_of(1)).expect("the file is as it was").ends_with("rows.jsonl:2"));
    assert_eq!(mixed.tokens_per_epoch(), expected.len() as f64);
    // Where answers are bounded, each text is one.
    let rows = numbered(&source, &reading(&text, usize::MAX)).expect("the texts are read");
    let rows: Vec<_> = rows.into_iter().map(|(line, example)| (line, example.answer_ids)).collect();
    let own = |line: usize| (line, stream(&text, &[texts[line - 1]]));
    assert_eq!(rows, [1, 2, 5, 6].map(own));
}

#[test]
fn text_files_are_texts() {
    let folder = folder("files");
    let text = text_model(&folder);
    let texts = folder.join("texts");
    fs::create_dir(&texts).expect("it is made");
    for (name, content) in [("b.txt", "two\r\n"), ("a.TXT", "\u{feff}one"), ("c.txt", "three")] {
        fs::write(texts.join(name), content).expect("it is written");
    }
    let read = |source: &Source| sequences(&load(source, &reading(&text, 1000)).expect("the texts are read")).concat();
    let all = ["one", "two\r\n", "three"];
    assert_eq!(read(&Source::at(&texts.join("b.txt"), "train")), stream(&text, &all[1..2]));
    for split in ["train", "test"] {
        assert_eq!(read(&Source::at(&texts, split)), stream(&text, &all));
    }
    let sliced = |slice: &str| {
        let rows = Some(serde_json::from_value(json!(slice)).expect("a slice"));
        read(&Source { rows, format: Some(Form::Text), ..Source::at(&texts, "train") })
    };
    assert_eq!([sliced(":34%"), sliced("34%:")].concat(), stream(&text, &all));
    assert_eq!(sliced(":2"), stream(&text, &all[..2]));
    // Files that are named as splits are splits.
    fs::write(texts.join("train.txt"), "four").expect("it is written");
    assert_eq!(read(&Source::at(&texts, "train")), stream(&text, &["four"]));
    assert!(refused(&Source::at(&texts, "test"), &text).contains("set the split"), "none is taken for another");
    fs::remove_file(texts.join("train.txt")).expect("it was there");
    fs::write(texts.join("more.jsonl"), "{\"text\": \"five\"}").expect("it is written");
    assert!(refused(&Source::at(&texts, "train"), &text).contains("set the split"), "none is left out");
    fs::write(folder.join("train.jsonl"), "{\"text\": \"rows\"}").expect("it is written");
    fs::write(folder.join("train.txt"), "a note").expect("it is written");
    assert_eq!(read(&Source::at(&folder, "train")), stream(&text, &["rows"]), "as before texts were read");
}

#[test]
fn what_is_no_text_is_told() {
    let folder = folder("wrong");
    let text = text_model(&folder);
    let told = |lines: &[&str], format: Option<Form>| {
        fs::write(folder.join("rows.jsonl"), lines.join("\n")).expect("it is written");
        refused(&Source { format, ..Source::at(&folder.join("rows.jsonl"), "train") }, &text)
    };
    let (good, chat) = ("{\"text\": \"a\"}", "{\"prompt\": \"a\", \"response\": \"b\"}");
    let mask = "{\"text\": \"a<|mdm_mask|>\"}";
    assert_eq!(told(&[good, mask], None), "rows.jsonl:2: the text contains the model's mask token; remove it");
    let mixed =
        "of this row and the first one, one is a plain text and the other a conversation; give them as two sources";
    assert_eq!(told(&[good, good, chat], None), format!("rows.jsonl:3: {mixed}"));
    assert_eq!(told(&[chat, good], None), format!("rows.jsonl:2: {mixed}"));
    let missing = "rows.jsonl:2: the key \"text\" is missing; a row needs \"text\"";
    assert_eq!(told(&[good, chat], Some(Form::Text)), missing);
    assert_eq!(told(&[good, "{\"text\": 3}"], None), "rows.jsonl:2: text is 3, not a string");
    assert_eq!(
        told(&["{\"text\": \" \"}", "{\"text\": \"\"}"], None),
        "rows.jsonl: all its 2 texts are empty; give some text"
    );
    fs::write(folder.join("a.txt"), b"ab\xff").expect("it is written");
    let error = refused(&Source::at(&folder.join("a.txt"), "train"), &text);
    assert!(error.ends_with("byte 3 is no UTF-8; convert the file to UTF-8"), "{error}");
    fs::write(folder.join("a.txt"), vec![b'a'; weft::data::sources::MAX_LINE_BYTES + 1]).expect("it is written");
    let error = refused(&Source::at(&folder.join("a.txt"), "train"), &text);
    assert!(error.contains("longer than 64 MiB, the most that is read as one text; split it into files"), "{error}");
}

#[test]
fn packed_texts_come_from_the_cache_as_they_were() {
    let folder = folder("cached");
    let text = text_model(&folder);
    let source = jsonl(&folder, &["a b", "0123456789 0123456789", "", "c"]);
    let cached = || Reading { cache: Some(TokenCache::new(&folder.join("tokens"), 1)), ..reading(&text, 5) };
    let fresh = load(&source, &reading(&text, 5)).expect("it is read");
    assert_eq!(load(&source, &cached()).expect("it is read"), fresh);
    let files = || fs::read_dir(folder.join("tokens")).expect("it is there").flatten().collect::<Vec<_>>();
    let [file] = &files()[..] else { panic!("one file") };
    let whole = fs::read(file.path()).expect("it is there");
    assert_eq!(load(&source, &cached()).expect("it is read"), fresh);
    assert_eq!(files().len(), 1, "a hit");
    // A text in which a sequence begins, and which isn't there.
    let mut forged = whole[..whole.len() - 16].to_vec();
    let last = forged.len() - 4;
    forged[last..].copy_from_slice(&9_u32.to_le_bytes());
    forged.extend(twox_hash::XxHash3_128::oneshot(&forged).to_le_bytes());
    fs::write(file.path(), &forged).expect("it is written");
    assert_eq!(load(&source, &cached()).expect("it is read"), fresh);
    assert_eq!(fs::read(file.path()).expect("it is there"), whole, "it is written anew");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_texts_are_their_sequences(texts in prop::collection::vec("\\PC{0,30}", 1..8), max_seq_len in 2_usize..40) {
        let folder = folder("any");
        let text = text_model(&folder);
        let written: Vec<&str> = texts.iter().map(String::as_str).filter(|one| !one.trim().is_empty()).collect();
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        prop_assume!(!written.is_empty());
        let dataset = load(&jsonl(&folder, &all), &reading(&text, max_seq_len)).expect("the texts are read");
        let sequences = sequences(&dataset);
        prop_assert_eq!(sequences.concat(), stream(&text, &written));
        prop_assert!(sequences[..sequences.len() - 1].iter().all(|sequence| sequence.len() == max_seq_len));
    }
}

/// What weft prints, after success.
fn weft(folder: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .current_dir(folder)
        .args(args)
        .env("WEFT_CACHE", "")
        .output()
        .expect("weft starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// Twelve texts as files and a recipe of all weights of the embedded base.
fn recipe(name: &str) -> PathBuf {
    let folder = folder(name);
    fs::create_dir(folder.join("texts")).expect("it is made");
    for i in 0..12 {
        let text = format!("{i} + 1 = {}. ", i + 1).repeat(i + 1);
        fs::write(folder.join(format!("texts/{i:02}.txt")), text).expect("it is written");
    }
    let recipe = "[model]\ntrainable = \"full\"\n[data]\ntrain = \"texts\"\ntrain_rows = \"2:\"\nheld_out = \"texts\"\n\
                  held_out_rows = \":2\"\nmax_seq_len = 32\n[objective]\nkind = \"sft\"\n[train]\noutput = \"run\"\n\
                  micro_batch_size = 2\nlr = 1e-3\nmax_steps = 4\neval_every = 2\ncheckpoint_every = 2\n";
    fs::write(folder.join("recipe.toml"), recipe).expect("it is written");
    folder
}

#[test]
fn data_tells_texts_sequences_and_tokens() {
    let folder = recipe("told");
    let json: Value = serde_json::from_str(&weft(&folder, &["data", "recipe.toml", "--json"])).expect("it is JSON");
    let source = &json["sources"][0];
    let tokens = json["tokens_per_epoch"].as_u64().expect("a number");
    let sequences = tokens.div_ceil(32);
    let counts = ["documents", "truncated", "passed_over", "examples"].map(|key| source[key].as_u64());
    assert_eq!(counts, [Some(10), Some(0), Some(0), Some(sequences)]);
    assert_eq!((&json["held_out"][0]["documents"], &json["remarks"]), (&2.into(), &json!([])));
    assert_eq!((&source["total_tokens"]["max"], &source["prompt_tokens"]["max"]), (&32.into(), &0.into()));
    let shown = weft(&folder, &["data", "recipe.toml", "--examples", "1"]);
    for part in [
        &format!("texts [2:]: 10 texts in {sequences} sequences, each once in an epoch\n"),
        "  nothing cut: texts are packed into sequences of 32 tokens\n",
        "held out: texts test [0:2]: 2 texts in 1 sequence",
        &format!("an epoch: {sequences} examples, {tokens} tokens, "),
        "\n-- text, 32 tokens\n2 + 1 = 3. 2 + 1 = 3. 2 + 1 = 3. <|eot_id|>3 + 1",
    ] {
        assert!(shown.contains(part), "{shown}\nlacks {part}");
    }
    for absent in ["prompt", "-- cut", "answers cut"] {
        assert!(!shown.contains(absent), "{shown}\nhas {absent}");
    }
    let padded = ["data", "recipe.toml", "--set", "data.padding=eos"];
    for format in [vec![], vec!["--set", "data.format=text"]] {
        let args = [&padded[..], &format].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_weft")).current_dir(&folder).args(args).output();
        let output = output.expect("weft starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("data.padding = \"eos\" pads answers; texts are packed"), "{errors}");
    }
}

#[test]
fn every_objective_trains_on_texts_and_resumes() {
    let folder = recipe("trained");
    for kind in ["sft", "weft", "cart", "token_weight"] {
        let (kind_key, whole) = (format!("objective.kind={kind}"), format!("train.output=whole-{kind}"));
        let of_kind = ["train", "recipe.toml", "--set", &kind_key, "--set", &whole];
        let printed = weft(&folder, &of_kind);
        assert!(printed.contains("data       10 texts, "), "{printed}");
        assert!(printed.contains("held out   2 texts in 1 sequence"), "{printed}");
        assert!(printed.contains("--raw --prompt"), "{printed}");
        let metrics = fs::read_to_string(folder.join(format!("whole-{kind}/metrics.jsonl"))).expect("it is there");
        let losses: Vec<f64> = metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("it is JSON"))
            .filter_map(|line| line["loss"].as_f64())
            .collect();
        assert!(losses.len() >= 4 && losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{kind}: {losses:?}");
    }
    let weights = |run: &str| fs::read(folder.join(run).join("checkpoint/model.safetensors")).expect("it is there");
    let whole = weights("whole-sft");
    for gone in ["checkpoint", "checkpoints/step-00000004"] {
        fs::remove_dir_all(folder.join("whole-sft").join(gone)).expect("it was there");
    }
    weft(&folder, &["train", "recipe.toml", "--resume", "--set", "train.output=whole-sft"]);
    assert!(weights("whole-sft") == whole, "a resumed run ends with the same bits");
    assert!(weights("whole-cart") != whole, "weights tell runs apart");
    weft(&folder, &["plan", "recipe.toml", "--json"]);
    weft(&folder, &["inspect", "recipe.toml", "--examples", "1"]);
    weft(&folder, &["train", "recipe.toml", "--set", "train.output=samples", "--set", "eval.samples=1"]);
    let bound = weft(&folder, &["likelihood", "--model", "tiny-base", "--data", "texts/00.txt", "--mc-samples", "2"]);
    assert!(bound.starts_with("1 answer, "), "{bound}");
}

#[test]
fn the_recipe_resolves() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/continued-pretraining.toml");
    let Recipe { model, data, objective, .. } = Recipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((model.trainable, data.format, objective.kind), (Trainable::Full, Some(Form::Text), Kind::Sft));
    let [source] = &data.training()[..] else { panic!("one source") };
    let [held_out] = &data.held_out()[..] else { panic!("one source") };
    assert_eq!((source.format, held_out.format), (Some(Form::Text), Some(Form::Text)));
}
