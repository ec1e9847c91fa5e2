//! Turns read back from the tokens of a prompt, for people to read; characters that several tokens make up.

mod scratch;

use std::fs;
use std::path::Path;

use weft::data::chat_template::TextModel;
use weft::data::turns::turns;
use weft::data::{Message, tokenizer};
use weft::report::entropy_map::shown_tokens;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

/// A tokenizer whose special tokens have other names, with a template.
fn with_template(folder: &Path, template: &str, names: &[(&str, &str)]) -> TextModel {
    tokenizer::train(folder, &["a b c".to_owned()], 300).expect("the tokenizer trains");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(folder.join(file)).expect("the file is there");
        let text = names.iter().fold(text, |text, (from, to)| text.replace(from, to));
        fs::write(folder.join(file), text).expect("the file is written");
    }
    fs::write(folder.join("chat_template.jinja"), template).expect("the template is written");
    TextModel::open(folder).unwrap_or_else(|e| panic!("{template}: {e}"))
}

const LLAMA: &str = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>\
                     {% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n";
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      <|im_start|>assistant\n";

#[test]
fn turns_are_read_back_from_either_form() {
    let chat = [
        message("system", "Be brief."),
        message("user", "user"),
        message("assistant", "two\n\nlines"),
        message("user", "system\nis the first word here"),
    ];
    let chatml = [("<|start_header_id|>", "<|im_start|>"), ("<|eot_id|>", "<|im_end|>")];
    for (name, template, names) in [("llama", LLAMA, &[][..]), ("chatml", CHATML, &chatml)] {
        let text = with_template(&scratch::folder(&format!("turns-{name}")), template, names);
        let ids = text.prompt_ids(&chat).expect("the template renders");
        assert_eq!(turns(&text, &ids), chat, "{name}");
        assert!(turns(&text, &[]).is_empty());
    }
    // A template without roles is shown as it is, special tokens included.
    let text = with_template(&scratch::folder("turns-plain"), "{{ messages[0].content }}<|eot_id|>", &[]);
    let ids = text.prompt_ids(&[message("user", "Hello")]).expect("the template renders");
    assert_eq!(turns(&text, &ids), [message("", "Hello<|eot_id|>")]);
}

#[test]
fn tokens_that_are_parts_of_a_character_show_it_whole() {
    let text = with_template(&scratch::folder("turns-parts"), LLAMA, &[]);
    let ids = text.encode("a\u{1f600}b").expect("it is text");
    let shown: Vec<(String, [usize; 2])> =
        shown_tokens(&text, &ids).into_iter().map(|token| (token.text, token.part)).collect();
    let expected: [(&str, [usize; 2]); 6] = [
        ("a", [1, 1]),
        ("\u{1f600}", [1, 4]),
        ("\u{1f600}", [2, 4]),
        ("\u{1f600}", [3, 4]),
        ("\u{1f600}", [4, 4]),
        ("b", [1, 1]),
    ];
    assert_eq!(shown, expected.map(|(text, part)| (text.to_owned(), part)));
    // Bytes that make up no character stay apart.
    let broken = shown_tokens(&text, &ids[1..3]);
    assert!(broken.iter().all(|token| token.part == [1, 1] && token.text == "\u{fffd}"), "{broken:?}");
}
