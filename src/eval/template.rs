//! Templates of task files: Jinja, as lm-evaluation-harness writes its prompts, over the fields of a row.

use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value as Rendered};
use serde_json::Value;

use crate::data::sources::Fields;

/// The number of instructions that a template may execute.
const FUEL: u64 = 1_000_000;

fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
}

/// Checks that a template parses.
///
/// # Errors
/// What is wrong with it, with its line.
pub(super) fn check(template: &str) -> Result<(), String> {
    environment().template_from_str(template).map(|_| ()).map_err(|error| {
        let line = error.line().map(|line| format!(" (its line {line})")).unwrap_or_default();
        format!("the template doesn't parse: {}{line}", reason(&error))
    })
}

/// The text of a template for a row.
///
/// # Errors
/// A field that the row doesn't have, and other failures, as one sentence. `named` is the template's key.
pub(super) fn text(named: &str, template: &str, row: &Fields) -> Result<String, String> {
    let context = Rendered::from(Serde(row.clone()));
    let rendered = environment().template_from_str(template).and_then(|template| template.render(context));
    rendered.map_err(|error| failure(named, template, row, &error))
}

/// The value of a template for a row: that of its expression if it is nothing but one, such as a list, else its text.
///
/// # Errors
/// The errors of [`text`].
pub(super) fn value(named: &str, template: &str, row: &Fields) -> Result<Value, String> {
    let inner = template.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
    let Some(expression) = inner.filter(|inner| !inner.contains("}}")) else {
        return text(named, template, row).map(Value::from);
    };
    let environment = environment();
    let evaluated = environment
        .compile_expression(expression.trim().trim_matches('-'))
        .and_then(|compiled| compiled.eval(Rendered::from(Serde(row.clone()))));
    match evaluated {
        Ok(found) if found.is_undefined() => {
            Err(failure(named, template, row, &Error::from(ErrorKind::UndefinedError)))
        }
        Ok(found) => serde_json::to_value(found).map_err(|e| format!("{named} = {template:?} fails: {e}")),
        Err(error) => Err(failure(named, template, row, &error)),
    }
}

/// What is wrong: the fields that the row lacks, or else the engine's reason.
fn failure(named: &str, template: &str, row: &Fields, error: &Error) -> String {
    let read = environment().template_from_str(template).map(|template| template.undeclared_variables(false));
    let mut lacking: Vec<String> = read.into_iter().flatten().filter(|name| !row.contains_key(name)).collect();
    lacking.sort();
    let keys = row.keys().cloned().collect::<Vec<_>>().join(", ");
    match lacking.first() {
        Some(name) => format!("the row has no {name:?}, which {named} reads; its keys are {keys}"),
        None => format!("{named} fails on the row: {}; its keys are {keys}", reason(error)),
    }
}

fn reason(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}
