//! HellaSwag, ARC and RAFT: reads their rows as questions with choices. The choices are scored in `choice`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::Problem;
use super::asked::Question;
use crate::data::chat::Turn;
use crate::data::parquet_file::class_names;
use crate::data::sources::{Fields, Row};

/// The column of RAFT's rows that holds the label, and those that aren't part of the text.
const LABEL: &str = "Label";
const NO_TEXT: [&str; 3] = ["ID", LABEL, ""];
/// RAFT's label of test rows.
const UNLABELED: &str = "Unlabeled";

/// A problem of one user turn with choices; the truth is the right choice's index.
pub(super) fn posed(question: String, choices: Vec<String>, right: usize) -> Problem {
    let prompt = Question { turns: vec![Turn::new("user", &question)], tools: None };
    Problem { question, prompt, prefill: String::new(), ground_truth: json!(right), choices }
}

/// A row of HellaSwag: `{"activity_label", "ctx_a", "ctx_b", "endings", "label"}`.
///
/// # Errors
/// What is missing, as one sentence.
///
/// # Source
/// Zellers et al., arXiv 1905.07830; the texts are put together as in lm-evaluation-harness.
pub fn hellaswag(row: &Fields) -> Result<Problem, String> {
    let form = "a row is {\"activity_label\", \"ctx_a\", \"ctx_b\", \"endings\": [...], \"label\": \"3\"}";
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    let needed = |key: &str| text(key).ok_or_else(|| format!("the text {key:?} is missing; {form}"));
    let activity = needed("activity_label")?;
    let context = match (text("ctx_a"), text("ctx_b")) {
        (Some(a), Some(b)) => format!("{a} {}", capitalized(b)),
        _ => needed("ctx")?.to_owned(),
    };
    let endings = texts(row.get("endings")).ok_or_else(|| format!("the list \"endings\" is missing; {form}"))?;
    let label = match row.get("label") {
        Some(Value::String(text)) if text.is_empty() => {
            return Err(
                "label is empty, as in the split test; score the split validation (--split validation)".to_owned()
            );
        }
        Some(Value::String(text)) => text.parse().ok(),
        Some(other) => other.as_u64(),
        None => return Err(format!("the key \"label\" is missing; {form}")),
    };
    let right = label
        .map(|label| label as usize)
        .filter(|right| *right < endings.len())
        .ok_or_else(|| format!("label is {}, which is no index of the {} endings", row["label"], endings.len()))?;
    let endings = endings.iter().map(|ending| cleaned(ending)).collect();
    Ok(posed(cleaned(&format!("{activity}: {context}")), endings, right))
}

/// A text as Python's `capitalize` writes it.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// A text without WikiHow's marks, as lm-evaluation-harness cleans HellaSwag's.
fn cleaned(text: &str) -> String {
    static MARK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").expect("the pattern is valid"));
    MARK.replace_all(&text.trim().replace(" [title]", ". "), "").replace("  ", " ")
}

/// A row of ARC: `{"question", "choices": {"text": [...], "label": [...]}, "answerKey"}`.
///
/// # Errors
/// What is missing, as one sentence.
///
/// # Source
/// Clark et al., arXiv 1803.05457; the prompt is that of lm-evaluation-harness.
pub fn arc(row: &Fields) -> Result<Problem, String> {
    let form = "a row is {\"question\", \"choices\": {\"text\": [...], \"label\": [\"A\", ...]}, \"answerKey\": \"A\"}";
    let text =
        |key: &str| row.get(key).and_then(Value::as_str).ok_or_else(|| format!("the text {key:?} is missing; {form}"));
    let question = text("question")?;
    let of = |key: &str| texts(row.get("choices").and_then(|choices| choices.get(key)));
    let (Some(choices), Some(labels)) = (of("text"), of("label")) else {
        return Err(format!("\"choices\" holds no lists \"text\" and \"label\"; {form}"));
    };
    if choices.len() != labels.len() {
        return Err(format!("there are {} choices and {} labels; give each choice one", choices.len(), labels.len()));
    }
    let key = text("answerKey")?;
    let right = labels.iter().position(|label| label == key);
    let right = right.ok_or_else(|| format!("answerKey is {key:?}, which is none of {}", labels.join(", ")))?;
    Ok(posed(format!("Question: {question}\nAnswer:"), choices, right))
}

/// A row of RAFT, whose label is a text under `Label` and whose other columns but `ID` are the text to label. The choices
/// are those of the whole file, which [`with_labels`] adds.
///
/// # Errors
/// What is missing, as one sentence.
///
/// # Source
/// Alex et al., arXiv 2109.14076; the instruction is in our words.
pub fn raft(row: &Fields) -> Result<Problem, String> {
    let form = "a row is {\"Sentence\": \"...\", \"ID\": 0, \"Label\": \"overruling\"}, with any columns of text";
    let label = match row.get(LABEL) {
        Some(Value::String(label)) if label.trim() == UNLABELED || label.trim().is_empty() => {
            return Err(
                "Label is Unlabeled, as in RAFT's test files; score the train file, whose labels are known".to_owned()
            );
        }
        Some(Value::String(label)) => label.trim(),
        Some(other) => {
            return Err(format!(
                "Label is {other}, not a name; take the data set's CSV or parquet file, or a task file (docs/tasks.md) with \
                 choices = [...] and answer = \"{{{{ Label - 1 }}}}\""
            ));
        }
        None => return Err(format!("the key \"Label\" is missing; {form}")),
    };
    let is_text = |key: &&String| !NO_TEXT.contains(&key.as_str());
    let line = |key: &String| match &row[key] {
        Value::String(text) => Some(format!("{key}: {}\n", text.trim())),
        Value::Null => None,
        other => Some(format!("{key}: {other}\n")),
    };
    let lines: String = row.keys().filter(is_text).filter_map(line).collect();
    if lines.is_empty() {
        return Err(format!("the row has nothing but its label; {form}"));
    }
    let mut problem = posed(format!("{lines}Label:"), vec![], 0);
    problem.ground_truth = label.into();
    Ok(problem)
}

/// The names of RAFT's labels in parquet files, which have the labels' numbers in the rows and their names beside them.
#[derive(Default)]
pub(super) struct LabelNames(BTreeMap<PathBuf, Vec<String>>);

impl LabelNames {
    /// Replaces the number of a row's label by its name, if the row's file has one.
    pub(super) fn name(&mut self, row: &mut Row) {
        let file = row.file().to_owned();
        let is_parquet = file.extension().is_some_and(|extension| extension == "parquet");
        let Some(number) = row.fields.get(LABEL).and_then(Value::as_u64).filter(|_| is_parquet) else { return };
        let names = self.0.entry(file).or_insert_with_key(|file| class_names(file, LABEL));
        if let Some(name) = usize::try_from(number).ok().and_then(|number| names.get(number)) {
            row.fields.insert(LABEL.to_owned(), name.as_str().into());
        }
    }
}

/// Gives RAFT's problems their choices, the labels of all of them in alphabetical order, and names them in each prompt.
/// Problems that have choices of their own stay.
///
/// # Errors
/// Fewer than two labels.
pub(super) fn with_labels(problems: Vec<Problem>) -> Result<Vec<Problem>, String> {
    let labels: BTreeSet<&str> = problems.iter().filter_map(|problem| problem.ground_truth.as_str()).collect();
    let labels: Vec<String> = labels.into_iter().map(str::to_owned).collect();
    let labelled = |problem: Problem| match problem
        .ground_truth
        .as_str()
        .and_then(|own| labels.iter().position(|l| l == own))
    {
        None => Ok(problem),
        Some(_) if labels.len() < 2 => Err(format!(
            "every label is {:?}, and one label is no choice; give rows of every label, or a task file (docs/tasks.md) that \
             lists the choices",
            labels[0]
        )),
        Some(right) => {
            let question = format!("Which label fits? The labels are {}.\n\n{}", labels.join(", "), problem.question);
            Ok(posed(question, labels.clone(), right))
        }
    };
    problems.into_iter().map(labelled).collect()
}

/// A list of texts.
pub(super) fn texts(value: Option<&Value>) -> Option<Vec<String>> {
    let list = value?.as_array()?;
    list.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}
