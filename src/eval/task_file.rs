//! Tasks that a file describes (TOML): where their rows are, how a row becomes a prompt, and how answers are scored.
//! `any_task` uses them like Weft's own; `template` renders what a file says of a row.

mod errors;

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::asked::Question;
use super::{Problem, template, text_answer};
use crate::data::chat::Turn;
use crate::data::paths::Paths;
use crate::data::sources::{Fields, Source};
use crate::error::Result;
use crate::settings::{parse, recipe_file};

/// How answers are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The first line of the answer is one of the accepted texts, after normalisation.
    Exact,
    /// The last number of the answer is the right one.
    Number,
    /// The right one of given choices has the highest likelihood.
    Choice,
    /// What a pattern finds in the answer is one of the accepted texts.
    Regex,
    /// The answer is a program that passes tests.
    Code,
}

/// Which match of a pattern counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// The first one.
    #[default]
    First,
    /// The last one.
    Last,
}

/// One template, or a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "give a template in quotes, or a list of them in [ ]")]
enum Choices {
    One(String),
    Many(Vec<String>),
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct TaskFile {
    task: TaskTable,
    scoring: ScoringTable,
}

/// `[task]`: the rows and the prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct TaskTable {
    name: Option<String>,
    rows: Option<Paths>,
    split: Option<String>,
    system: Option<String>,
    prompt: Option<String>,
    prefill: Option<String>,
}

/// `[scoring]`: the truth, and how an answer is compared with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct ScoringTable {
    kind: Option<Kind>,
    answer: Option<String>,
    normalize: bool,
    choices: Option<Choices>,
    labels: Option<String>,
    pattern: Option<String>,
    take: Take,
    setup: Option<String>,
    tests: Option<String>,
}

impl Default for ScoringTable {
    fn default() -> Self {
        Self {
            kind: None,
            answer: None,
            normalize: true,
            choices: None,
            labels: None,
            pattern: None,
            take: Take::First,
            setup: None,
            tests: None,
        }
    }
}

/// A task of a file, ready to read rows and to score.
#[derive(Clone, Debug)]
pub struct OwnTask {
    /// Its name: what the file says, or the file's own.
    pub name: String,
    /// How its answers are scored.
    pub kind: Kind,
    /// The split of its rows, if they have splits.
    pub split: Option<String>,
    /// Whether texts are normalised before they are compared.
    pub(super) normalize: bool,
    path: PathBuf,
    file: TaskFile,
    pattern: Option<Regex>,
}

impl OwnTask {
    /// Reads a file.
    ///
    /// # Errors
    /// Every problem of the file at once, each with its line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = recipe_file::read(path)?;
        let parsed = parse::<TaskFile>(&text, path, &[], TaskFile::problems);
        let file = parsed.map_err(|error| errors::with_lines(error, &text))?;
        let compile = |pattern: &String| Regex::new(pattern).expect("the pattern was checked");
        let stem = path.file_stem().map_or_else(|| "task".into(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self {
            name: file.task.name.clone().unwrap_or(stem),
            kind: file.scoring.kind.expect("a kind was checked"),
            split: file.task.split.clone(),
            normalize: file.scoring.normalize,
            path: path.to_owned(),
            pattern: file.scoring.pattern.as_ref().map(compile),
            file,
        })
    }

    /// The rows that the file names. A relative path is taken from the file's folder if it exists there.
    pub fn rows(&self) -> Option<Source> {
        let beside = |path: &Path| {
            let beside = self.path.parent().unwrap_or(Path::new("")).join(path);
            if beside.exists() { beside } else { path.to_owned() }
        };
        let paths: Vec<PathBuf> = self.file.task.rows.as_ref()?.iter().map(beside).collect();
        let split = self.split.clone().unwrap_or_else(|| "test".to_owned());
        Some(Source { path: paths.into(), split: Some(split), ..Source::default() })
    }

    /// The problem of a row.
    ///
    /// # Errors
    /// What is wrong with the row, as one sentence.
    pub(super) fn problem(&self, row: &Fields) -> std::result::Result<Problem, String> {
        let TaskFile { task, scoring } = &self.file;
        let rendered = |named: &str, template: &Option<String>| {
            template.as_ref().map(|template| template::text(named, template, row)).transpose()
        };
        let question = rendered("task.prompt", &task.prompt)?.unwrap_or_default();
        let system = rendered("task.system", &task.system)?.map(|system| Turn::new("system", &system));
        let turns = system.into_iter().chain([Turn::new("user", &question)]).collect();
        let prefill = rendered("task.prefill", &task.prefill)?.unwrap_or_default();
        let answer = |scoring: &ScoringTable| {
            scoring.answer.as_ref().map_or(Ok(Value::Null), |answer| template::value("scoring.answer", answer, row))
        };
        let mut choices = vec![];
        let ground_truth = match self.kind {
            Kind::Exact | Kind::Regex => as_texts(&answer(scoring)?)?,
            Kind::Number => as_number(&answer(scoring)?)?,
            Kind::Choice => {
                choices = scoring.choices_of(row)?;
                json!(scoring.right(&answer(scoring)?, &choices, row)?)
            }
            Kind::Code => json!({
                "setup": rendered("scoring.setup", &scoring.setup)?,
                "tests": rendered("scoring.tests", &scoring.tests)?,
            }),
        };
        Ok(Problem { question, prompt: Question { turns, tools: None }, prefill, ground_truth, choices })
    }

    /// The answer in a generated text: what the pattern finds, or the first line with content.
    pub(super) fn find<'a>(&self, generation: &'a str) -> Option<&'a str> {
        let Some(pattern) = &self.pattern else { return Some(text_answer::short(generation)) };
        let mut matches = pattern.captures_iter(generation);
        let taken = match self.file.scoring.take {
            Take::First => matches.next(),
            Take::Last => matches.last(),
        }?;
        taken.get(1).or_else(|| taken.get(0)).map(|found| found.as_str().trim())
    }
}

impl ScoringTable {
    fn choices_of(&self, row: &Fields) -> std::result::Result<Vec<String>, String> {
        let found = match self.choices.as_ref() {
            Some(Choices::Many(list)) => {
                let texts = list.iter().map(|one| template::text("scoring.choices", one, row));
                Some(texts.collect::<std::result::Result<Vec<_>, _>>()?)
            }
            Some(Choices::One(one)) => list_of(&template::value("scoring.choices", one, row)?),
            None => None,
        };
        match found {
            Some(choices) if choices.len() > 1 => Ok(choices),
            Some(choices) => Err(format!("scoring.choices gives {} choices; give two or more", choices.len())),
            None => {
                Err("scoring.choices gives no list of texts; name a field that holds one, such as \"{{ choices }}\""
                    .to_owned())
            }
        }
    }

    /// The index of the right choice: the answer itself, or the place of the answer among labels or choices.
    fn right(&self, answer: &Value, choices: &[String], row: &Fields) -> std::result::Result<usize, String> {
        let labels = match &self.labels {
            Some(labels) => list_of(&template::value("scoring.labels", labels, row)?)
                .filter(|labels| labels.len() == choices.len())
                .ok_or("scoring.labels gives no list with a label for each choice")?,
            None => choices.to_vec(),
        };
        let by_text = || answer.as_str().and_then(|text| labels.iter().position(|label| label.trim() == text.trim()));
        // HellaSwag's labels are indices in quotes. Beside labels, such a text would be a label that is missing.
        let quoted = || answer.as_str().filter(|_| self.labels.is_none()).and_then(|text| text.trim().parse().ok());
        let found = answer.as_u64().map(|index| index as usize).or_else(by_text).or_else(quoted);
        found.filter(|index| *index < choices.len()).ok_or_else(|| {
            let named = if self.labels.is_some() { "labels" } else { "choices" };
            format!(
                "scoring.answer gives {answer:.60}, which is none of the {named} ({}), nor an index of one, counted from 0",
                labels.join(", ")
            )
        })
    }
}

/// A value as the texts that count as right.
fn as_texts(value: &Value) -> std::result::Result<Value, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    let texts: Option<Vec<String>> = match value {
        Value::Array(list) if !list.is_empty() => list.iter().map(text).collect(),
        one => text(one).map(|one| vec![one]),
    };
    texts
        .map(|texts| json!(texts))
        .ok_or_else(|| format!("scoring.answer gives {value:.60}, not a text or a list of texts"))
}

fn as_number(value: &Value) -> std::result::Result<Value, String> {
    let parsed = match value {
        Value::String(text) => text.trim().replace(',', "").parse::<f64>().ok().filter(|number| number.is_finite()),
        other => other.as_f64(),
    };
    parsed.map(|number| json!(number)).ok_or_else(|| format!("scoring.answer gives {value:.60}, not a number"))
}

fn list_of(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    value.as_array()?.iter().map(text).collect()
}

/// The keys of `[scoring]` that only some kinds read.
const OF_KINDS: [(&str, &[Kind]); 8] = [
    ("answer", &[Kind::Exact, Kind::Number, Kind::Choice, Kind::Regex]),
    ("normalize", &[Kind::Exact, Kind::Regex]),
    ("choices", &[Kind::Choice]),
    ("labels", &[Kind::Choice]),
    ("pattern", &[Kind::Regex]),
    ("take", &[Kind::Regex]),
    ("setup", &[Kind::Code]),
    ("tests", &[Kind::Code]),
];

impl TaskFile {
    /// What is wrong with the values, one sentence per problem.
    fn problems(&self) -> Vec<String> {
        let Self { task, scoring } = self;
        let mut problems = vec![];
        let mut refuse = |wrong: bool, sentence: String| problems.extend(wrong.then_some(sentence));
        let prompt = "task.prompt is missing; give the question's template, such as \"Question: {{ question }}\"";
        refuse(task.prompt.is_none(), prompt.to_owned());
        let name = task.name.as_deref().unwrap_or("own");
        let is_plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
        refuse(!is_plain, format!("task.name = {name:?} names files too; use letters, digits, - and _"));
        let kinds = "scoring.kind is missing; give exact, number, choice, regex or code";
        refuse(scoring.kind.is_none(), kinds.to_owned());
        let [own, default] =
            [scoring, &ScoringTable::default()].map(|s| serde_json::to_value(s).expect("a table is JSON"));
        if let Some(kind) = scoring.kind {
            let name = serde_json::to_value(kind).expect("a name is JSON");
            let name = name.as_str().unwrap_or_default();
            for (key, _) in OF_KINDS.iter().filter(|(key, kinds)| own[key] != default[key] && !kinds.contains(&kind)) {
                refuse(true, format!("scoring.{key} has no effect with scoring.kind = {name:?}; leave it out"));
            }
            let needed: &[&str] = match kind {
                Kind::Exact | Kind::Number => &["answer"],
                Kind::Choice => &["choices", "answer"],
                Kind::Regex => &["pattern", "answer"],
                Kind::Code => &["tests"],
            };
            for key in needed.iter().filter(|key| own[**key].is_null()) {
                refuse(
                    true,
                    format!(
                        "scoring.{key} is missing, and scoring.kind = {name:?} needs it; docs/tasks.md has an example"
                    ),
                );
            }
        }
        if let Some(Err(error)) = scoring.pattern.as_ref().map(|pattern| Regex::new(pattern)) {
            let told = error.to_string();
            let told = told.lines().last().unwrap_or_default().trim_start_matches("error: ");
            refuse(true, format!("scoring.pattern can't be read: {told}"));
        }
        let many = |choices: &Option<Choices>| match choices {
            Some(Choices::One(one)) => vec![one.clone()],
            Some(Choices::Many(many)) => many.clone(),
            None => vec![],
        };
        let templates = [
            ("task.system", task.system.iter().cloned().collect()),
            ("task.prompt", task.prompt.iter().cloned().collect()),
            ("task.prefill", task.prefill.iter().cloned().collect()),
            ("scoring.answer", scoring.answer.iter().cloned().collect()),
            ("scoring.choices", many(&scoring.choices)),
            ("scoring.labels", scoring.labels.iter().cloned().collect()),
            ("scoring.setup", scoring.setup.iter().cloned().collect()),
            ("scoring.tests", scoring.tests.iter().cloned().collect::<Vec<String>>()),
        ];
        for (key, text) in templates.iter().flat_map(|(key, texts)| texts.iter().map(move |text| (key, text))) {
            refuse(
                template::check(text).is_err(),
                format!("{key}: {}", template::check(text).err().unwrap_or_default()),
            );
        }
        problems
    }
}
