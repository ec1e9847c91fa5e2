//! Texts as hostile files: tokenizers, chat templates, recipes, kept tokens and training states. Each ends soon, in one
//! sentence or in what it says.

mod fixtures;
mod scratch;
mod small_state;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fixtures::LLADA;
use scratch::folder;
use serde_json::{Value, json};
use weft::data::Message;
use weft::data::chat_template::TextModel;
use weft::error::Result;
use weft::recipe::Recipe;
use weft::train::resolved::Resolved;
use weft::train::{Trainer, checkpoint};

/// An error with its folder as DIR.
fn told<T>(result: Result<T>, folder: &Path) -> String {
    result.err().expect("it is refused").to_string().replace(&folder.display().to_string(), "DIR")
}

/// A folder with a small tokenizer, and its tokenizer.json.
fn text_folder(name: &str) -> (PathBuf, Value) {
    let folder = LLADA.with_text(name, &LLADA.path());
    let json = fs::read(folder.join("tokenizer.json")).expect("it is there");
    (folder, serde_json::from_slice(&json).expect("it is JSON"))
}

#[test]
fn tokenizers_that_lie_are_errors() {
    let (folder, whole) = text_folder("tokenizer");
    let open = |text: &str| {
        fs::write(folder.join("tokenizer.json"), text).expect("it is written");
        TextModel::open(&folder)
    };
    let damaged = "DIR/tokenizer.json is damaged or in another format: ";
    for text in ["", "{}", "3", &"[".repeat(100_000), &"{\"model\":".repeat(100_000), "{\"version\": \"1.0\"}"] {
        assert!(told(open(text), &folder).starts_with(damaged), "{text:.20}");
    }
    let changed = |pointer: &str, value: Value| {
        let mut json = whole.clone();
        *json.pointer_mut(pointer).expect("the part is there") = value;
        json.to_string()
    };
    for (pointer, value) in [
        ("/model/merges", json!(["x1 y1"])),
        ("/model/merges", json!([["a", "nothing"]])),
        ("/model/merges", json!(["a b c d"])),
        ("/model/vocab", json!({ "a": -1 })),
        ("/model/vocab", json!({ "a": 1_u64 << 32 })),
        ("/model/type", json!("Unknown")),
        ("/model/unk_token", json!(3)),
        (
            "/pre_tokenizer",
            json!({ "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false }),
        ),
        ("/normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" })),
        ("/added_tokens", json!([{ "id": 3 }])),
    ] {
        let error = told(open(&changed(pointer, value.clone())), &folder);
        assert!(error.starts_with(damaged), "{pointer} {value}: {error}");
    }
    let text = open(&changed("/model/vocab/a", json!(u32::MAX))).expect("ids may have gaps");
    assert_eq!(text.last_id(), u32::MAX);
    assert_eq!(text.decode_canvas(&[u32::MAX, 1 << 31]), "a");
}

#[test]
fn a_tokenizer_neither_cuts_nor_pads() {
    let (folder, mut json) = text_folder("padding");
    let plain = TextModel::open(&folder).and_then(|text| text.encode("some words")).expect("it encodes");
    let of_side = |key: &str, value: Value| {
        let mut part = json!({ "direction": "Right", "strategy": "LongestFirst", "stride": 0, "max_length": 3 });
        part[key] = value;
        part
    };
    for truncation in
        [of_side("max_length", json!(3)), of_side("stride", json!(1_u64 << 40)), of_side("max_length", json!(0))]
    {
        json["truncation"] = truncation;
        json["padding"] = json!({
            "strategy": { "Fixed": 1_u64 << 60 }, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "x",
        });
        fs::write(folder.join("tokenizer.json"), json.to_string()).expect("it is written");
        let ids = TextModel::open(&folder).and_then(|text| text.encode("some words")).expect("it encodes");
        assert_eq!(ids, plain, "transformers asks the tokenizer for neither");
    }
}

#[test]
fn a_pattern_that_backtracks_ends() {
    let (folder, mut json) = text_folder("backtracking");
    let split =
        json!({ "type": "Split", "pattern": { "Regex": "(a+)+(?!a)b" }, "behavior": "Isolated", "invert": false });
    json["pre_tokenizer"] = split;
    fs::write(folder.join("tokenizer.json"), json.to_string()).expect("it is written");
    let text = TextModel::open(&folder).expect("the pattern is one");
    let started = Instant::now();
    // The engine gives up on the pattern after a million steps, and the text stays in one piece.
    text.encode(&"a".repeat(4000)).expect("it encodes");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// Renders a template; it has to end within a minute, which it does within a second where nothing else computes.
fn render(template: &str) -> Result<Option<String>> {
    let (folder, _) = text_folder("template");
    fs::write(folder.join("chat_template.jinja"), template).expect("it is written");
    fs::write(folder.join("secret.txt"), "secret").expect("it is written");
    let message = |content: &str| Message { role: "user".to_owned(), content: content.to_owned() };
    let started = Instant::now();
    let rendered = TextModel::open(&folder).and_then(|text| text.render(&[message("one"), message("two")], true));
    assert!(started.elapsed() < Duration::from_secs(60), "{template}: {:?}", started.elapsed());
    rendered
}

#[test]
fn templates_without_end_are_ended() {
    let doubled = |of: &str| format!("{{% set ns = namespace(x={of}) %}}{{% for i in range(60) %}}");
    let text = "('x' * 1000000)";
    let lists = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    for template in [
        "{% for i in range(10**9) %}{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
            .to_owned(),
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}".to_owned(),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".to_owned(),
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}".to_owned(),
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}".to_owned(),
        "{{ 'x' * 10**12 }}".to_owned(),
        "{{ 'x' * 2**62 }}".to_owned(),
        "{{ ['x'] * 10**12 }}".to_owned(),
        "{{ (['x'] * 10**12) | join }}".to_owned(),
        "{{ (['x'] * 10**12) | tojson }}".to_owned(),
        "{{ (['x'] * 10**12) | string }}".to_owned(),
        "{{ (['x'] * 10**12) | length }}{{ (['x'] * 10**12) | list }}".to_owned(),
        doubled("'x'") + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        doubled("'x'") + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        doubled("'x'") + "{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
        doubled("'x'") + "{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
        format!("{{{{ {text}.replace('x', {text}) }}}}"),
        format!("{{{{ ''.join([{text}] * 100000) }}}}"),
        format!("{{{{ {text}.join(range(99999)) }}}}"),
        format!("{{{{ ([{text}] * 100000) | join }}}}"),
        format!("{{{{ [{text}] * 100000 }}}}"),
        format!("{{{{ ([{text}] * 100000) | tojson }}}}"),
        format!("{{{{ ([{text}] * 100000) | string }}}}"),
        format!("{lists}{{{{ ns.x }}}}"),
        format!("{lists}{{{{ ns.x | tojson }}}}"),
        format!("{lists}{{{{ ns.x | string }}}}"),
        format!("{lists}{{{{ ns.x | join }}}}"),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = {'a': [ns]} %}{{ ns.x | tojson }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{{ 'x' | center(10**12) }}".to_owned(),
        "{{ 'x\nx' | indent(10**12) }}".to_owned(),
        "{{ '%1000000000000d' | format(1) }}".to_owned(),
        "{{ '{:1000000000000}'.format(1) }}".to_owned(),
        "{{ '{:99999999999999999999999}'.format(1) }}".to_owned(),
        format!("{{{{ ('{{0}}' * 100000).format({text}) }}}}"),
        format!("{{{{ '{{}}'.format([{text}] * 100000) }}}}"),
        "{{ 'x'.ljust(10**12) }}".to_owned(),
        "{{ '7'.zfill(10**12) }}".to_owned(),
        "{{ '%1000000000000d' % 1 }}".to_owned(),
        format!("{{{{ ('%s' * 100000) | format({text}) }}}}"),
        format!("{{{{ '%s' % [{text}] * 100000 }}}}"),
        format!("{{{{ '%s' % ([{text}] * 100000) }}}}"),
        format!("{{% set deep = [{text}] * 100000 %}}{{{{ deep | indent }}}}"),
        format!("{lists}{{{{ ns.x | tojson(indent=2) }}}}"),
        format!("{lists}{{{{ ns.x | title }}}}"),
        format!("{lists}{{{{ raise_exception(ns.x) }}}}"),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ raise_exception(ns) }}".to_owned(),
        "{{ (['x'] * 1000000) | tojson(indent='x' * 1000000) }}".to_owned(),
    ] {
        let error = render(&template).err().unwrap_or_else(|| panic!("{template} has an end")).to_string();
        assert!(error.contains("chat_template.jinja: the chat template rejects the messages: "), "{template}: {error}");
        assert!(!error.contains('\n') && error.len() < 1000, "{error}");
    }
}

#[test]
fn lists_that_lie_deep_in_each_other_are_compared_and_freed() {
    let deeper = |name: &str, times: usize| {
        let set = format!("{{% set ns.{name} = [ns.{name}] %}}");
        format!("{{% for i in range(100) %}}{{% for j in range({}) %}}{set}{{% endfor %}}{{% endfor %}}", times / 100)
    };
    let start = "{% set ns = namespace(x=1, y=1) %}";
    for (template, expected) in [
        (format!("{start}{}done", deeper("x", 400_000)), "done"),
        (format!("{start}{}{}{{{{ ns.x == ns.y }}}}", deeper("x", 150_000), deeper("y", 150_000)), "True"),
        (format!("{start}{}{}{{{{ ns.x < ns.y }}}}", deeper("x", 150_000), deeper("y", 150_000)), "False"),
        (format!("{start}{}{{{{ (ns.x ~ 'a') | length }}}}", deeper("x", 90_000)), "180002"),
        (format!("{{% set x = 1 %}}{}done", "{%set x=[x]%}".repeat(80_000)), "done"),
    ] {
        let rendered = render(&template).expect("it has an end").expect("there is a template");
        assert_eq!(rendered, expected, "{template:.200}");
    }
    let long = render(&"x".repeat((1 << 20) + 1)).expect_err("it is too long").to_string();
    assert!(long.contains("the chat template has more than 1048576 bytes"), "{long}");
}

#[test]
fn templates_that_compare_without_end_are_given_up() {
    let template = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                    {% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}";
    let error = render(template).expect_err("it has no end").to_string();
    assert!(error.contains("the chat template rejects the messages: it takes more than 10 seconds"), "{error}");
}

#[test]
fn templates_name_no_file() {
    for template in [
        "{% include 'secret.txt' %}",
        "{% include './chat_template.jinja' %}",
        "{% import '/etc/passwd' as x %}",
        "{% from 'secret.txt' import x %}",
        "{% extends 'secret.txt' %}",
    ] {
        let error = render(template).expect_err("there is nothing to include").to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
        assert!(!error.contains("root:"), "{error}");
    }
    let formats =
        [format!("{{{{ {} }}}}", "'' % (".repeat(100_000)), format!("{{{{ {} }}}}", "'%' % x(".repeat(100_000))];
    for template in formats {
        render(&template).expect_err("it doesn't parse");
    }
    let nested = ["{% if x %}".repeat(100_000), format!("{{{{ {}", "(".repeat(100_000)), "{{ [".repeat(100_000)];
    for template in nested {
        let error = render(&template).expect_err("it doesn't parse").to_string();
        assert!(error.contains("the chat template doesn't parse: "), "{error:.200}");
    }
}

#[test]
fn what_is_paid_for_is_rendered_as_before() {
    let rendered = |template: &str| render(template).expect("it renders").expect("there is a template");
    assert_eq!(
        rendered("{{ ['a', 'b'] }} {{ ['a', 1] | join('-') }} {{ '-'.join(['a', 'b']) }}"),
        "['a', 'b'] a-1 a-b"
    );
    assert_eq!(rendered("{{ messages | map(attribute='content') | join(', ') }}"), "one, two");
    assert_eq!(rendered("{{ messages | join(', ', attribute='content') }}"), "one, two");
    assert_eq!(rendered("{{ messages[0] | tojson }}"), "{\"role\": \"user\", \"content\": \"one\"}");
    assert_eq!(rendered("{{ [1, none] | string }}{{ 'ab' | join('-') }}"), "[1, None]a-b");
}

#[test]
fn recipes_that_lie_are_errors() {
    let read = |text: &str| Recipe::parse(text, Path::new("recipe.toml"), &[]).map_err(|e| e.to_string());
    let deep = |open: &str, close: &str| format!("[data]\ntrain = {}{}", open.repeat(50_000), close.repeat(50_000));
    for text in [
        deep("[", "]"),
        deep("[", ""),
        deep("{a = ", "}"),
        format!("[{}]", "a.".repeat(100_000)),
        format!("{}a = 1", "a.".repeat(100_000)),
        "[train]\nlr = 1\nlr = 2".to_owned(),
        "[train]\n[train]".to_owned(),
        "[train]\nseed = 99999999999999999999999999".to_owned(),
        "[train]\nepochs = 0x".to_owned(),
        "\u{0}".to_owned(),
    ] {
        let error = read(&text).expect_err("it is refused");
        assert!(error.starts_with("recipe.toml: line ") && error.contains(" is not TOML: "), "{error:.200}");
        assert!(!error.contains('\n'), "{error:.200}");
    }
    for (text, expected) in [
        ("[train]\nseed = -1", "train.seed = -1: "),
        ("[train]\nlr = 1e999", "line 2 is not TOML: "),
        ("[train]\nlr = inf", "train.lr = inf: give a finite number"),
        ("[train]\nlr = nan", "train.lr = NaN: give a finite number"),
        ("[train]\nlr = -1e308", "train.lr = -1"),
        ("[train]\nepochs = 1979-05-27T07:32:00Z", "train.epochs = "),
        ("train = 3", "train is a table"),
        ("[[train]]\nlr = 1", "train is a table"),
        ("[data]\ntrain = [[[[1]]]]", "data.train = "),
        ("[model]\nlora_targets = [[\"a\"]]", "model.lora_targets = "),
    ] {
        let error = read(text).expect_err("it is refused");
        // Several problems are a list.
        let names_file = error.starts_with("recipe.toml: ") || error.contains("\n  recipe.toml: ");
        assert!(names_file && error.contains(expected), "{error}");
    }
    let most = i64::MAX;
    let largest = format!(
        "[model]\nlora_rank = {most}\n[data]\ntrain = \"a.jsonl\"\nmax_seq_len = {most}\n[train]\nepochs = {most}\nmicro_batch_size = {most}\n\
         grad_accum_steps = {most}\nwarmup_steps = {most}\nactivation_memory_gb = 1e300\n[sampler]\ngen_length = {most}"
    );
    read(&largest).expect("numbers that only cost time are no error of the file");
}

fn trainer() -> Trainer {
    small_state::trainer(LLADA.load(), 2, 4)
}

#[test]
fn training_states_that_lie_are_errors() {
    let folder = folder("state");
    let recipe = Resolved::from(json!({}));
    let mut own = trainer();
    for _ in 0..3 {
        own.step().expect("the step works");
    }
    checkpoint::save(&folder, &own, &recipe).expect("it is saved");
    let path = folder.join("checkpoints/step-00000003/state.json");
    // Whoever writes a state can leave out its checksums.
    fs::remove_file(path.with_file_name("checksums")).expect("it is there");
    let whole: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
    let load = |text: &str| {
        fs::write(&path, text).expect("it is written");
        let mut trainer = trainer();
        checkpoint::load_newest(&folder, &mut trainer, &recipe).map(|_| trainer)
    };
    let mut resumed = load(&whole.to_string()).expect("it is whole");
    assert_eq!(resumed.step().expect("it goes on").loss, own.step().expect("it goes on").loss);
    let half = usize::MAX / 2 + 1;
    let none = "don't belong to the run";
    for (field, value, expected) in [
        ("step", json!(9), "its step 9 lies past the run's last, 8"),
        ("step", json!(u64::MAX), "its step 18446744073709551615 lies past the run's last, 8"),
        ("step", json!(-1), "invalid value: integer `-1`"),
        ("entropies", json!([[0, 0, half], [1, 0, half]]), none),
        ("entropies", json!([[0, 0, 2], [1, 0, 4]]), none),
        ("entropies", json!([[2, 0, 3]]), none),
        ("entropies", json!([[u64::MAX, 0, 3]]), none),
        ("entropies", json!([[0, 2, 3], [1, 0, 3]]), none),
        ("entropies", json!([[0, u64::MAX, 3]]), none),
        ("entropies", json!([[0, 0, 3]]), "expected [3], got [6]"),
    ] {
        let mut state = whole.clone();
        state[field] = value.clone();
        let error = told(load(&state.to_string()), &folder);
        assert!(error.contains(expected), "{field} {value}: {error}");
    }
    // Found by fuzzing: a state without entropies kept those of the trainer, of an epoch yet to come.
    let mut earlier = whole.clone();
    (earlier["step"], earlier["entropies"]) = (json!(0), json!([]));
    fs::write(&path, earlier.to_string()).expect("it is written");
    checkpoint::load_newest(&folder, &mut own, &recipe).expect("it is whole");
    own.step().expect("it goes on from the beginning");
    for text in ["", "{}", "[", &"[".repeat(100_000)] {
        assert!(told(load(text), &folder).contains("state.json is damaged or in another format: "), "{text:.20}");
    }
}
