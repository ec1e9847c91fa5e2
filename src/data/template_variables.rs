//! The variables of a chat template beside the messages, and which of them a template reads.

use std::collections::BTreeSet;

use minijinja::Environment;
use serde_json::{Map, Value};

/// The variables that every rendering sets itself.
const OWN: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];
/// A function of transformers that templates may call if it is there.
const FUNCTION: &str = "strftime_now";

/// Checks values that are to be handed to a template; the error begins with the name of the first wrong one.
pub(super) fn check(kwargs: &Map<String, Value>, (environment, name): (&Environment, &str)) -> Result<(), String> {
    for key in kwargs.keys() {
        if OWN.contains(&key.as_str()) {
            return Err(format!("{key} is set by Weft itself; remove it"));
        }
        let Ok(template) = environment.get_template(name) else {
            return Err(format!("{key} has no effect: the checkpoint has no chat template; remove it"));
        };
        let globals: BTreeSet<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
        let mut read: BTreeSet<String> = template.undeclared_variables(false).into_iter().collect();
        read.retain(|read| !globals.contains(read) && read != FUNCTION && !OWN.contains(&read.as_str()));
        if !read.contains(key) && !is_default_of(template.source(), key) {
            let read: Vec<String> = read.into_iter().collect();
            return Err(match read.is_empty() {
                true => format!("{key} is not read by the chat template, which reads no such variable"),
                false => format!("{key} is not read by the chat template; it reads {}", read.join(", ")),
            });
        }
    }
    Ok(())
}

/// Whether the template sets a variable by a default for itself, as in `{% set x = x | default(true) %}`. The engine's
/// analysis takes such a variable for the template's own.
fn is_default_of(source: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let statements = source.split("{%").skip(1).filter_map(|rest| rest.split("%}").next());
    let mut values = statements.filter_map(|statement| {
        let (target, value) = statement.trim_start_matches(['-', '+', ' ']).strip_prefix("set ")?.split_once('=')?;
        (target.trim() == name).then_some(value)
    });
    // Later ones may change what the first one made of something else.
    values.next().is_some_and(|first| first.split(|c: char| !is_word(c)).any(|word| word == name))
}
