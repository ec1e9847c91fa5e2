//! Hints for the options and commands of other programs: what to write in Weft instead. The names of settings are those
//! of `settings::other_names`; this file adds those that only command lines have.

use std::path::Path;
use std::process::exit as exit_with;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command as Clap, CommandFactory};
use weft::recipe::Recipe;
use weft::settings::other_names::{Take, normal, why_not};
use weft::settings::{Place, own_place};

use super::Cli;

/// The exit status of a command line that can't be run.
const USAGE: i32 = 2;

/// Other programs' options, each with Weft's option for it, which is suggested if the command has that option.
const OPTIONS: &[(&str, &str)] = &[
    ("-m", "--model"),
    ("--ckpt", "--model"),
    ("--ckpt-path", "--model"),
    ("--checkpoint", "--model"),
    ("--base-model", "--model"),
    ("--model-path", "--model"),
    ("--model-name-or-path", "--model"),
    ("--pretrained", "--model"),
    ("--lora-modules", "--adapter"),
    ("--max-model-len", "--max-length"),
    ("--max-num-seqs", "--batch-size"),
    ("-p", "--prompt"),
    ("--query", "--prompt"),
    ("--question", "--prompt"),
    ("--input", "--prompt"),
    ("--instruction", "--prompt"),
    ("-f", "--data"),
    ("--file", "--data"),
    ("--prompt-file", "--data"),
    ("--prompts", "--data"),
    ("--input-file", "--data"),
    ("--dataset", "--data"),
    ("-n", "--gen-length"),
    ("-l", "--gen-length"),
    ("--length", "--gen-length"),
    ("--system-prompt", "--system"),
    ("--lora", "--adapter"),
    ("--lora-path", "--adapter"),
    ("--adapters", "--adapter"),
    ("--peft", "--adapter"),
    ("--stream", "--trace"),
    ("--visualize", "--trace"),
    ("-o", "--out"),
    ("--output", "--out"),
    ("--output-path", "--out"),
    ("--output-file", "--out"),
    ("--save-path", "--out"),
    ("--torch-dtype", "--precision"),
    ("-d", "--device"),
    ("--gpu", "--device"),
    ("--cuda", "--device"),
    ("-t", "--threads"),
    ("-j", "--threads"),
    ("--num-threads", "--threads"),
    ("--workers", "--threads"),
    ("--silent", "--quiet"),
    ("--disable-tqdm", "--quiet"),
    ("--num-examples", "--limit"),
    ("--num-samples", "--limit"),
    ("--mc-num", "--mc-samples"),
    ("--allow-code-execution", "--run-code"),
    ("--confirm-run-unsafe-code", "--run-code"),
    ("--resume-from-checkpoint", "--resume"),
    ("--continue", "--resume"),
];

/// Other programs' options, and a sentence that says what to do.
const SENTENCES: &[(&str, &str)] = &[
    ("--skip-special-tokens", "special tokens are printed only with --keep-special-tokens"),
    (
        "--dry-run",
        "weft plan RECIPE predicts memory and time, and weft data RECIPE shows the rows, before anything runs",
    ),
    ("--verbose", "everything is printed unless --quiet is given"),
    ("-v", "everything is printed unless --quiet is given; -V prints the version"),
    ("--do-sample", "--temperature above 0 samples"),
    ("--greedy", "answers are greedy unless --temperature is above 0"),
    ("--force", "no run is written over another; choose a new train.output or remove the folder"),
    ("--overwrite", "no run is written over another; choose a new train.output or remove the folder"),
    ("--export", "weft merge writes adapter and base as one checkpoint"),
];

/// Options of other commands, and other programs' names for them: what to write instead if the command has that option, and
/// the setting if it is given by `--set`.
const ELSEWHERE: [(&str, &str, Option<&str>); 12] = [
    ("-n", "--examples", None),
    ("--limit", "--examples", None),
    ("--num-examples", "--examples", None),
    ("--num-samples", "--examples", None),
    ("--limit", "--set", Some("eval.limit")),
    ("--task", "--set", Some("eval.task")),
    ("--model", "--set", Some("model.path")),
    ("-m", "--set", Some("model.path")),
    ("--adapter", "--set", Some("model.adapter")),
    ("--data", "--set", Some("data.train")),
    ("--out", "--set", Some("train.output")),
    ("-o", "--set", Some("train.output")),
];

/// Other programs' options for the batch size, which commands without a recipe choose by themselves.
const BATCHES: [&str; 4] = ["--batch-size", "--eval-batch-size", "--per-device-eval-batch-size", "-b"];
const BATCHED: &str = "leave it out: batches are formed by the tokens of their rows, and no result depends on them";
const NO_RECIPE: &str = "it takes no recipe, but options (--help lists them); a recipe's eval.task scores its held-out rows \
                         in weft train";
const AS_JSON: &str = "--data FILE --out FILE writes answers as JSONL";

/// Other programs' options for a recipe, whose path is a positional argument in Weft.
const RECIPE: [&str; 5] = ["--config", "-c", "--config-file", "--recipe", "--yaml"];

/// Other programs' names for commands.
const COMMANDS: &[(&str, &str)] = &[
    ("finetune", "train"),
    ("fine-tune", "train"),
    ("sft", "train"),
    ("lora", "train"),
    ("fit", "train"),
    ("run", "train"),
    ("chat", "generate"),
    ("infer", "generate"),
    ("inference", "generate"),
    ("predict", "generate"),
    ("sample", "generate"),
    ("ask", "generate"),
    ("server", "serve"),
    ("api", "serve"),
    ("webui", "serve"),
    ("playground", "serve"),
    ("evaluate", "eval"),
    ("test", "eval"),
    ("lm-eval", "eval"),
    ("perplexity", "likelihood"),
    ("export", "merge"),
    ("fuse", "merge"),
    ("merge-lora", "merge"),
    ("preprocess", "data"),
    ("tokenize", "data"),
    ("init", "recipe"),
    ("config", "recipe"),
    ("estimate", "plan"),
    ("dry-run", "plan"),
    ("benchmark", "bench"),
];

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
            let (_, own) = COMMANDS.iter().find(|(name, _)| *name == given.to_lowercase().replace('_', "-"))?;
            Some(format!("weft has no command {given}; write weft {own}"))
        }
        ErrorKind::UnknownArgument => {
            let given = named(ContextKind::InvalidArg)?;
            let is_command = |arg: &&String| weft.find_subcommand(arg.as_str()).is_some();
            let command = weft.find_subcommand(args.iter().skip(1).find(is_command)?)?;
            let fix = fix(given, value_of(given, args), command)?;
            Some(match given.starts_with('-') {
                true => format!("weft {} has no {given}; {fix}", command.get_name()),
                false => format!("weft {} takes no argument {given:?} by itself; {fix}", command.get_name()),
            })
        }
        _ => None,
    }
}

/// The value that was given to an option, if there is one.
fn value_of<'a>(option: &str, args: &'a [String]) -> Option<&'a str> {
    let place = args.iter().position(|arg| arg == option || arg.split('=').next() == Some(option))?;
    match args[place].split_once('=') {
        Some((_, value)) => Some(value),
        None => args.get(place + 1).map(String::as_str).filter(|next| !next.starts_with('-')),
    }
}

/// What to write in place of another program's option.
fn fix(given: &str, value: Option<&str>, command: &Clap) -> Option<String> {
    let name = if given.starts_with("--") { given.replace('_', "-").to_lowercase() } else { given.to_owned() };
    if !name.starts_with('-') {
        return positional(given, command);
    }
    if RECIPE.contains(&&*name) {
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
        return Some(written(option, value, command));
    }
    match ELSEWHERE.iter().find(|(known, own, _)| *known == name && has(command, own)) {
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
    let is_model = given == "tiny-base" || path.is_dir();
    match () {
        () if given.ends_with(".toml") && !has(command, "--set") => Some(NO_RECIPE.to_owned()),
        () if is_adapter && has(command, "--adapter") => Some(format!("write --adapter {}", quoted(given))),
        () if is_model && has(command, "--model") => Some(format!("write --model {}", quoted(given))),
        () if path.is_file() && has(command, "--data") => Some(format!("write --data {}", quoted(given))),
        () if has(command, "--prompt") => Some(format!("write --prompt {}", quoted(given))),
        () if has(command, "--data") => Some(format!("write --data {}", quoted(given))),
        () => None,
    }
}

/// What to write for an option that has the name of a setting, here or in another program.
fn as_setting(name: &str, value: Option<&str>, command: &Clap) -> Option<String> {
    let known = serde_json::to_value(Recipe::default()).expect("a recipe is JSON");
    let known = known.as_object().expect("a recipe is a table");
    let table = if has(command, "--gen-length") { "sampler" } else { "train" };
    let place = if name.starts_with("--") { own_place(&normal(name), table, known) } else { None };
    let option = place.as_ref().and_then(|place| option_of(place, command));
    match (option, place) {
        (Some(option), Some(Place { take: Take::Value(value), .. })) => {
            Some(written(&option, Some(value.trim_matches('"')), command))
        }
        (Some(option), Some(Place { take: Take::Other(what), .. })) => Some(format!("write {option} with {what}")),
        (Some(option), _) => Some(written(&option, value, command)),
        (None, Some(place)) if has(command, "--set") => {
            Some(format!("write --set {}", place.setting(value.unwrap_or("VALUE"))))
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
    match argument(command, option).is_some_and(takes_value) {
        true => format!("write {option} {}", value.map_or("VALUE".to_owned(), quoted)),
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
        for (name, own) in COMMANDS {
            assert!(weft.find_subcommand(own).is_some(), "{name} leads to {own}, which is no command");
            assert!(weft.find_subcommand(name).is_none(), "{name} is a command");
        }
    }
}
