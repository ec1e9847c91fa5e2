//! Hints for the options and commands of other programs: what to write in Weft instead. The names of settings are those
//! of `settings::other_names`; `tables` adds those that only command lines have.

mod tables;

use std::error::Error as _;
use std::path::Path;
use std::process::exit as exit_with;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command as Clap, CommandFactory};
use serde_json::{Map, Value};
use weft::recipe::Recipe;
use weft::reproduce::study::ReproduceTable;
use weft::settings::other_names::{Take, normal, why_not};
use weft::settings::{Place, nearest, own_place};

use super::Cli;
use tables::{AS_JSON, BATCHED, BATCHES, COMMANDS, ELSEWHERE, NO_COMMANDS, NO_RECIPE, OPTIONS, RECIPES, SENTENCES};

/// The exit status of a command line that can't be run.
const USAGE: i32 = 2;

/// Prints a hint if the name belongs to another program, else clap's error, and ends the process.
pub fn exit(error: &clap::Error) -> ! {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    match hint(error, &args) {
        Some(hint) => {
            tell!("error: {hint}");
            exit_with(USAGE)
        }
        None => error.exit(),
    }
}

/// What to do about an option or a command that another program has.
fn hint(error: &clap::Error, args: &[String]) -> Option<String> {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => Some(name.as_str()),
        _ => None,
    };
    let weft = Cli::command();
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let given = named(ContextKind::InvalidSubcommand)?;
            let of = |names: &[(&str, &'static str)]| {
                let normal = given.to_lowercase().replace('_', "-");
                names.iter().find(|(name, _)| *name == normal).map(|(_, what)| *what)
            };
            let own = of(COMMANDS).map(|own| format!("write weft {own}"));
            let fix = own.or_else(|| of(NO_COMMANDS).map(str::to_owned))?;
            Some(format!("weft has no command {given}; {fix}"))
        }
        ErrorKind::MissingRequiredArgument => {
            let Some(ContextValue::Strings(lacking)) = error.get(ContextKind::InvalidArg) else { return None };
            let command = command_of(args, &weft)?.get_name().to_owned();
            let them = if lacking.len() == 1 { "it" } else { "them" };
            let lacking: Vec<String> = lacking.iter().map(|usage| usage.replace(['<', '>'], "")).collect();
            Some(format!("weft {command} needs {}; weft {command} --help describes {them}", lacking.join(" and ")))
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let (option, value) = (named(ContextKind::InvalidArg)?, named(ContextKind::InvalidValue)?);
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) if !values.is_empty() => Some(values.join(" or ")),
                _ => None,
            };
            let reason = known
                .map(|known| format!("give {known}"))
                .or_else(|| Some(in_plain_words(&error.source()?.to_string())))?;
            (!value.is_empty())
                .then(|| format!("{} {}: {reason}", option.split(' ').next().unwrap_or(option), quoted(value)))
        }
        ErrorKind::UnknownArgument => {
            let given = named(ContextKind::InvalidArg)?;
            let command = command_of(args, &weft)?;
            if let Some(told) = negative(given, args, command) {
                return Some(told);
            }
            let split = after_set(given, args, command).or_else(|| as_hydra(given, command));
            let fix = split.or_else(|| fix(given, value_of(given, args), (args, command)));
            let fix = fix.unwrap_or_else(|| nearest_option(given, value_of(given, args), command));
            Some(match given.starts_with('-') {
                true => format!("weft {} has no {given}; {fix}", command.get_name()),
                false => format!("weft {} takes no argument {given:?} by itself; {fix}", command.get_name()),
            })
        }
        _ => None,
    }
}

/// The command that the arguments name.
fn command_of<'a>(args: &[String], weft: &'a Clap) -> Option<&'a Clap> {
    args.iter().skip(1).find_map(|arg| weft.find_subcommand(arg.as_str()))
}

/// The value that was given to an option, if there is one.
fn value_of<'a>(option: &str, args: &'a [String]) -> Option<&'a str> {
    let place = args.iter().position(|arg| arg == option || arg.split('=').next() == Some(option))?;
    match args[place].split_once('=') {
        Some((_, value)) => Some(value),
        None => args.get(place + 1).map(String::as_str).filter(|next| !next.starts_with('-')),
    }
}

/// A parser's message about the value of an option, in plain words.
fn in_plain_words(reason: &str) -> String {
    match reason {
        "invalid digit found in string" | "cannot parse integer from empty string" => "give a whole number, 0 or above",
        "invalid float literal" | "cannot parse float from empty string" => "give a number",
        "number too large to fit in target type" => "give a smaller number",
        other => other,
    }
    .to_owned()
}

/// The error for a negative number after an option, which clap takes for an option of its own.
fn negative(given: &str, args: &[String], command: &Clap) -> Option<String> {
    let is_number = |arg: &&String| arg.starts_with('-') && arg.parse::<f64>().is_ok();
    let place = args.iter().position(|arg| is_number(&arg) && arg.starts_with(given))?;
    let option = args.get(place.checked_sub(1)?).filter(|option| has(command, option))?;
    Some(format!("{option} {}: give a number of 0 or above", args[place]))
}

/// What to write for a setting that was split: `--set train.lr 1e-3`, perhaps with `=` by itself.
fn after_set(given: &str, args: &[String], command: &Clap) -> Option<String> {
    let place = args.iter().position(|arg| arg == "--set").filter(|_| has(command, "--set"))?;
    let name = args.get(place + 1).filter(|name| !name.contains('='))?;
    let words: Vec<&str> =
        args[place + 2..].iter().map(String::as_str).take_while(|arg| !arg.starts_with("--")).collect();
    let value = words.iter().copied().find(|word| !matches!(*word, "=" | ""))?.trim_start_matches('=');
    words.contains(&given).then(|| format!("write --set {}", quoted(&format!("{name}={value}"))))
}

/// What to write for a setting as Hydra takes it: `train.lr=1e-3`, `++train.lr=1e-3`.
fn as_hydra(given: &str, command: &Clap) -> Option<String> {
    let (name, value) = given.trim_start_matches(['+', '~']).split_once('=').filter(|_| !given.starts_with('-'))?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c));
    is_name.then(|| as_setting(&format!("--{name}"), Some(value), command)).flatten()
}

/// What to do about an option that isn't known: the nearest option or setting, if there is one.
fn nearest_option(given: &str, value: Option<&str>, command: &Clap) -> String {
    let name = given.trim_start_matches('-').split('=').next().unwrap_or_default();
    let of_command = command.get_arguments().filter_map(clap::Arg::get_long);
    let distances = of_command.map(|long| (strsim::damerau_levenshtein(long, name), long));
    if let Some((_, long)) = distances.min().filter(|(distance, _)| *distance <= name.len() / 4) {
        return written(&format!("--{long}"), value, command);
    }
    let place = nearest(&normal(name), &recipe_keys(command)).filter(|_| has(command, "--set"));
    match place {
        Some(place) => format!("write --set {}", quoted(&format!("{place}={}", value.unwrap_or("VALUE")))),
        None => format!("weft {} --help lists its options", command.get_name()),
    }
}

/// Every key of a command's recipe by its table.
fn recipe_keys(command: &Clap) -> Map<String, Value> {
    let mut tables = match serde_json::to_value(Recipe::default()) {
        Ok(Value::Object(tables)) => tables,
        other => unreachable!("a recipe is a table: {other:?}"),
    };
    if command.get_name() == "reproduce" {
        let comparison = serde_json::to_value(ReproduceTable::default()).expect("a table is JSON");
        tables.insert("reproduce".to_owned(), comparison);
    }
    tables
}

/// What to write in place of another program's option.
fn fix(given: &str, value: Option<&str>, (args, command): (&[String], &Clap)) -> Option<String> {
    let name = if given.starts_with("--") { given.replace('_', "-").to_lowercase() } else { given.to_owned() };
    if !name.starts_with('-') {
        return positional(given, command);
    }
    if command.get_name() == "inspect" && args.iter().any(|arg| arg == "--model") && name == "--on-bad-row" {
        return Some("leave it out: it skips and counts the rows that can't be used".to_owned());
    }
    if name == "--objective" && has(command, "--set") {
        return Some(format!("write --set objective.kind={}", value.unwrap_or("VALUE").to_lowercase()));
    }
    if command.get_name() == "recipe" && ["--out", "-o", "--output"].contains(&&*name) {
        return Some(format!("write weft recipe > {}", value.map_or("my.toml".to_owned(), quoted)));
    }
    if RECIPES.contains(&&*name) {
        let recipe = value.map_or("my.toml".to_owned(), quoted);
        let path = || format!("give the recipe's path alone: weft {} {recipe}", command.get_name());
        return Some(if has(command, "--set") { path() } else { NO_RECIPE.to_owned() });
    }
    if let Some((_, sentence)) = SENTENCES.iter().find(|(known, _)| *known == name) {
        return Some((*sentence).to_owned());
    }
    if BATCHES.contains(&&*name) && !has(command, "--set") {
        return Some(BATCHED.to_owned());
    }
    if name == "--json" && has(command, "--gen-length") {
        return Some(AS_JSON.to_owned());
    }
    if let Some(number) = value.filter(|value| ["--gpu", "--cuda"].contains(&&*name) && value.parse::<usize>().is_ok())
    {
        return Some(format!("write --device cuda:{number}"));
    }
    let option = OPTIONS.iter().find(|(known, own)| *known == name && has(command, own));
    if let Some((_, option)) = option {
        let file = value.filter(|value| *option == "--prompt" && Path::new(value).is_file());
        return Some(file.map_or_else(|| written(option, value, command), |file| asked_file(file, command)));
    }
    match ELSEWHERE.iter().find(|(known, own, _)| *known == name && has(command, own)) {
        Some((_, _, Some(key @ "data.train")))
            if !args.iter().any(|arg| Path::new(arg).is_file() && arg.ends_with(".toml")) =>
        {
            let setting = quoted(&format!("{key}={}", value.unwrap_or("FILE")));
            Some(format!("write --set {setting} after the path of a recipe, such as one of weft recipe > my.toml"))
        }
        Some((_, _, Some(key))) => {
            Some(format!("write --set {}", quoted(&format!("{key}={}", value.unwrap_or("VALUE")))))
        }
        Some((_, option, None)) => Some(written(option, value, command)),
        None => as_setting(&name, value, command),
    }
}

/// What to write in place of an argument without an option's name.
fn positional(given: &str, command: &Clap) -> Option<String> {
    let path = Path::new(given);
    let is_adapter = path.join("adapter_config.json").is_file();
    let of_run = path.join("adapter").join("adapter_config.json").is_file();
    let is_model = given == "tiny-base" || path.is_dir();
    match () {
        () if command.get_name() == "recipe" => Some(format!("write weft recipe > {}", quoted(given))),
        () if given.ends_with(".toml") && !has(command, "--set") => Some(NO_RECIPE.to_owned()),
        () if is_adapter && has(command, "--adapter") => Some(format!("write --adapter {}", quoted(given))),
        () if of_run && has(command, "--adapter") => {
            Some(format!("write --adapter {}", quoted(&path.join("adapter").display().to_string())))
        }
        () if is_model && has(command, "--model") => Some(format!("write --model {}", quoted(given))),
        () if path.is_file() && has(command, "--data") => Some(asked_file(given, command)),
        () if has(command, "--prompt") => Some(format!("write --prompt {}", quoted(given))),
        () if has(command, "--data") => Some(format!("write --data {}", quoted(given))),
        () => None,
    }
}

/// What to write for a file of prompts. `weft generate` answers rows into a file, and takes a text from standard input.
fn asked_file(file: &str, command: &Clap) -> String {
    let is_text = !["jsonl", "json", "csv", "tsv", "parquet", "gz", "zst"].iter().any(|end| file.ends_with(end));
    match has(command, "--prompt") && is_text {
        true => format!("give its text on standard input: < {}", quoted(file)),
        false => written("--data", Some(file), command),
    }
}

/// What to write for an option that has the name of a setting, here or in another program, perhaps with its table's name.
fn as_setting(name: &str, value: Option<&str>, command: &Clap) -> Option<String> {
    let known = &recipe_keys(command);
    let table = if has(command, "--gen-length") { "sampler" } else { "train" };
    let place = match normal(name).split_once('.') {
        _ if !name.starts_with("--") => None,
        Some((table, key)) if known.get(table).is_some_and(|keys| keys.get(key).is_some()) => {
            Some(Place { keys: vec![format!("{table}.{key}")], take: Take::Same })
        }
        Some((table, key)) => own_place(key, table, known),
        None => own_place(&normal(name), table, known),
    };
    let option = place.as_ref().and_then(|place| option_of(place, command));
    match (option, place) {
        (Some(option), Some(Place { take: Take::Value(value), .. })) => {
            Some(written(&option, Some(value.trim_matches('"')), command))
        }
        (Some(option), Some(Place { take: Take::Other(what), .. })) => Some(format!("write {option} with {what}")),
        (Some(option), _) => Some(written(&option, value, command)),
        (None, Some(place)) if has(command, "--set") => {
            Some(format!("write --set {}", place.setting(&quoted(value.unwrap_or("VALUE")))))
        }
        _ => why_not(name).map(|why| format!("leave it out: {why}")),
    }
}

/// An option of the command that sets what this key of a recipe sets.
fn option_of(place: &Place, command: &Clap) -> Option<String> {
    let [place] = &place.keys[..] else { return None };
    let option = match place.as_str() {
        "model.path" => "--model".to_owned(),
        "data.train" | "data.held_out" => "--data".to_owned(),
        "train.output" => "--out".to_owned(),
        "eval.task" | "eval.tasks" => "--task".to_owned(),
        other => format!("--{}", other.split_once('.')?.1.replace('_', "-")),
    };
    has(command, &option).then_some(option)
}

/// An option with the value that was given to another option.
fn written(option: &str, value: Option<&str>, command: &Clap) -> String {
    let takes_value = |arg: clap::Arg| arg.get_action().takes_values();
    // weft generate answers rows into a file.
    let out = if option == "--data" && has(command, "--prompt") { " --out answers.jsonl" } else { "" };
    match argument(command, option).is_some_and(takes_value) {
        true => format!("write {option} {}{out}", value.map_or("VALUE".to_owned(), quoted)),
        false => format!("write {option}"),
    }
}

/// A value as a shell reads it back.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !value.is_empty() && value.chars().all(is_plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', "'\\''")),
    }
}

fn has(command: &Clap, option: &str) -> bool {
    argument(command, option).is_some()
}

/// An option of the command, or one that every command has.
fn argument(command: &Clap, option: &str) -> Option<clap::Arg> {
    let long = option.trim_start_matches('-');
    let is_it = |arg: &&clap::Arg| arg.get_long() == Some(long);
    let global = Cli::command().get_arguments().find(is_it).cloned();
    command.get_arguments().find(is_it).cloned().or(global)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_leads_to_one_that_a_command_has() {
        let weft = Cli::command();
        for (name, option) in OPTIONS {
            assert!(
                weft.get_subcommands().any(|command| has(command, option)),
                "{name} leads to {option}, which is none"
            );
        }
        for (name, _) in NO_COMMANDS {
            assert!(weft.find_subcommand(name).is_none(), "{name} is a command");
            assert!(COMMANDS.iter().all(|(known, _)| known != name), "{name} has two hints");
        }
        for (name, own) in COMMANDS {
            assert!(weft.find_subcommand(own).is_some(), "{name} leads to {own}, which is no command");
            assert!(weft.find_subcommand(name).is_none(), "{name} is a command");
        }
    }
}
