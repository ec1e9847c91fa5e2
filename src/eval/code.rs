//! HumanEval and MBPP: reads their rows, finds the program in an answer, and puts it together with the row's tests. The
//! program is run in `sandbox`.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::asked::Question;
use super::{Problem, multiple_choice::texts};
use crate::data::chat::Turn;
use crate::data::sources::Fields;

/// A row of HumanEval: `{"prompt", "test", "entry_point"}`.
///
/// # Errors
/// What is missing, as one sentence.
///
/// # Source
/// Chen et al., arXiv 2107.03374; the instruction is in our words.
pub fn humaneval(row: &Fields) -> Result<Problem, String> {
    let form =
        "a row is {\"prompt\": \"def f(x):\\n ...\", \"test\": \"def check(candidate): ...\", \"entry_point\": \"f\"}";
    let text =
        |key: &str| row.get(key).and_then(Value::as_str).ok_or_else(|| format!("the text {key:?} is missing; {form}"));
    let [prompt, test, entry_point] = [text("prompt")?, text("test")?, text("entry_point")?];
    let content = format!(
        "Complete this Python function. Answer with the whole function in one fenced code block.\n\n```python\n{}\n```",
        prompt.trim_end()
    );
    let tests = format!("{test}\n\ncheck({entry_point})\n");
    Ok(posed(prompt, &content, json!({ "prompt": prompt, "entry_point": entry_point, "tests": tests })))
}

/// A row of MBPP: `{"text", "test_list", "test_setup_code"}`, or of its sanitized part: `{"prompt", "test_list",
/// "test_imports"}`.
///
/// # Errors
/// What is missing, as one sentence.
///
/// # Source
/// Austin et al., arXiv 2108.07732, whose prompts name the tests too; the instruction is in our words.
pub fn mbpp(row: &Fields) -> Result<Problem, String> {
    let form = "a row is {\"text\": \"Write a function to ...\", \"test_list\": [\"assert ...\"]}";
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    let task =
        text("text").or_else(|| text("prompt")).ok_or_else(|| format!("the text \"text\" is missing; {form}"))?;
    let tests = texts(row.get("test_list")).filter(|tests| !tests.is_empty());
    let tests = tests.ok_or_else(|| format!("the list \"test_list\" is missing; {form}"))?;
    let imports = texts(row.get("test_imports")).unwrap_or_default();
    let setup = [imports, text("test_setup_code").map(str::to_owned).into_iter().collect()].concat().join("\n");
    let shown = tests.join("\n");
    let content = format!(
        "{}\n\nAnswer with Python code in one fenced code block. It must pass these tests:\n\n{shown}",
        task.trim()
    );
    Ok(posed(task, &content, json!({ "setup": setup, "tests": shown })))
}

fn posed(question: &str, content: &str, ground_truth: Value) -> Problem {
    let prompt = Question { turns: vec![Turn::new("user", content)], tools: None };
    Problem { question: question.to_owned(), prompt, prefill: String::new(), ground_truth, choices: vec![] }
}

/// Checks the truth of a task of code: an object with `tests`, and perhaps `setup`, `prompt` and `entry_point`.
pub(super) fn check(ground_truth: &Value) -> Result<(), String> {
    match ground_truth.get("tests").and_then(Value::as_str) {
        Some(_) => Ok(()),
        None => {
            Err(format!("ground_truth is {:.40}; give an object with the text \"tests\"", ground_truth.to_string()))
        }
    }
}

/// A program in two parts: what the answer contributes, and the tests that follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The answer's code, with what stands before it.
    pub solution: String,
    /// The tests, which raise an exception unless they pass.
    pub tests: String,
}

/// The program of an answer. If the truth names an entry point, the prompt that declares it comes first: an answer that
/// defines it again replaces it, and one that doesn't is the function's body.
pub fn program(generation: &str, ground_truth: &Value) -> Program {
    let text = |key: &str| ground_truth.get(key).and_then(Value::as_str).unwrap_or_default();
    let [prompt, entry_point, setup] = ["prompt", "entry_point", "setup"].map(text);
    let code = extracted(generation, entry_point);
    let solution = match entry_point.is_empty() {
        true => format!("{setup}\n{code}\n"),
        false if defines(&code, entry_point) => format!("{prompt}\n{}pass\n\n{code}\n", indentation(prompt)),
        false => format!("{prompt}\n{}\n", indented(&code)),
    };
    Program { solution, tests: text("tests").to_owned() }
}

/// The code in an answer: the first fenced block that defines the entry point, else the first fenced block, else the
/// answer, up to a fence that closes it. A block that isn't closed ends with the answer.
pub fn extracted(generation: &str, entry_point: &str) -> String {
    static FENCED: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?s)```[^\n`]*\n(.*?)(?:\n[ \t]*```|```|$)").expect("the pattern is valid"));
    let blocks: Vec<&str> =
        FENCED.captures_iter(generation).filter_map(|block| block.get(1)).map(|block| block.as_str()).collect();
    let is_named = |block: &&&str| !entry_point.is_empty() && defines(block, entry_point);
    let before = generation.split("```").next().unwrap_or_default().trim_matches('\n').trim_end();
    // A single fence closes what precedes it, unless the entry point comes after it.
    let parts: Vec<&str> = generation.split("```").collect();
    let names_no_language = |after: &str| after.lines().next().unwrap_or_default().trim().is_empty();
    let is_closing = !before.is_empty() && parts.len() == 2 && names_no_language(parts[1]);
    let closes = is_closing && blocks.iter().all(|block| block.trim().is_empty() || !entry_point.is_empty());
    match blocks.iter().find(is_named).or(blocks.first().filter(|_| !closes)) {
        Some(block) => (*block).to_owned(),
        None => before.to_owned(),
    }
}

/// Whether code defines a function or a name at its top level.
fn defines(code: &str, name: &str) -> bool {
    let is_it = |rest: &str| rest.trim_start().strip_prefix(name).is_some_and(|rest| !rest.starts_with(is_word));
    code.lines().any(|line| {
        let starts = ["def ", "async def ", "class "].iter().filter_map(|start| line.strip_prefix(start));
        starts.chain([line].into_iter().filter(|line| !line.starts_with(' ') && line.contains('='))).any(is_it)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The indentation of a function's body, by the last line of the prompt that declares it.
fn indentation(prompt: &str) -> &str {
    let last = prompt.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    match &last[..last.len() - last.trim_start().len()] {
        "" => "    ",
        own => own,
    }
}

/// Code as a function's body. An answer that goes on in the middle of a line may have lost the indentation of its first
/// line, or of all.
fn indented(code: &str) -> String {
    let is_in = |line: &&str| line.starts_with([' ', '\t']);
    let mut lines = code.lines().filter(|line| !line.trim().is_empty());
    let Some(first) = lines.next() else { return "    pass".to_owned() };
    if is_in(&first) {
        return code.to_owned();
    }
    let first_alone =
        !first.trim_end().ends_with(':') && lines.clone().next().is_some() && lines.all(|line| is_in(&line));
    if first_alone {
        return format!("    {}", code.trim_start());
    }
    let line = |line: &str| if line.trim().is_empty() { String::new() } else { format!("    {line}") };
    code.lines().map(line).collect::<Vec<_>>().join("\n")
}
