//! What chat templates are rendered in: transformers' settings of Jinja, Python's methods, and a budget for templates that
//! would take forever or fill the memory. No template can name a file.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, StringInput, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter, filters};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::guarded::guarded;

/// Instructions a template may spend, or 64 bytes of text for each; a template of hundreds of turns needs some ten thousand
/// beside its texts.
const FUEL: u64 = 4_000_000;

/// The stack of a rendering. A template can put a list into another for each ten instructions, and the engine compares and
/// frees such lists by recursion. Only what is used of it takes memory.
const STACK_BYTES: usize = 1 << 28;
/// How long a rendering may take, in pauses of a tenth of a second: comparing lists that name each other takes no fuel. A
/// stopped process counts as one pause.
const MAX_PAUSES: usize = 100;

/// How deep a list may lie within others to be printed; messages with tools lie some ten deep.
const MAX_DEPTH: usize = 100;

/// An environment without templates.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the default ones"));
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(|state, value, method, args| {
        match (method, value.as_str()) {
            ("join", _) => pay_for_items(state, args.first())?,
            ("format", Some(format)) => pay_for_format(state, format, args)?,
            _ => {}
        }
        unknown_method_callback(state, value, method, args)
    });
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        pay_for_text(state, value)?;
        escape_formatter(out, state, value)
    });
    environment.add_filter("string", |state: &mut State, value: &Value| {
        pay_for_text(state, value)?;
        filters::string(state, value)
    });
    environment.add_filter("join", join);
    // It is for whoever writes a template, and its text isn't bounded.
    environment.remove_filter("pprint");
    environment.add_filter("tojson", |state: &mut State, value: &Value| -> Result<String, Error> {
        pay_for_text(state, value)?;
        Ok(serde_json::to_value(value).map(|json| python_json(&json)).unwrap_or_default())
    });
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

/// A rendering: the environment, the template's name and its variables.
type Job = (Arc<Environment<'static>>, &'static str, Value);
/// What comes of it; `None` where there is no template of that name.
type Rendered = Result<Option<String>, String>;

/// The thread that renders for another one.
struct Renderer {
    jobs: SyncSender<Job>,
    results: Receiver<Rendered>,
}

thread_local! {
    /// This thread's renderer: starting one for each row would take longer than the rendering.
    static RENDERER: RefCell<Option<Renderer>> = const { RefCell::new(None) };
}

impl Renderer {
    fn start() -> Result<Self, String> {
        let (jobs, waiting) = mpsc::sync_channel::<Job>(1);
        let (sender, results) = mpsc::sync_channel(1);
        let work = move || {
            for (environment, name, variables) in waiting {
                let rendered = guarded(|| match environment.get_template(name) {
                    Ok(template) => match template.render(variables) {
                        Ok(text) => Ok(Some(text)),
                        Err(e) => Err(e.detail().map_or_else(|| e.to_string(), str::to_owned)),
                    },
                    Err(_) => Ok(None),
                });
                // Nobody waits for what took too long.
                if sender.send(rendered).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES).spawn(work);
        thread.map_err(|e| format!("no thread can be started for it ({e})"))?;
        Ok(Self { jobs, results })
    }

    /// The result, where it comes in time.
    fn render(&self, job: Job) -> Option<Rendered> {
        self.jobs.send(job).ok()?;
        for _ in 0..MAX_PAUSES {
            match self.results.recv_timeout(Duration::from_millis(100)) {
                Ok(rendered) => return Some(rendered),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        None
    }
}

/// Renders a template on a thread beside this one; `None` where there is none of that name. A rendering without an end goes
/// on behind the error until the process ends, since the engine can't be stopped.
///
/// # Errors
/// What the template raises, or that it takes too long.
pub(super) fn render(environment: &Arc<Environment<'static>>, name: &'static str, variables: Value) -> Rendered {
    let renderer = RENDERER.take().map_or_else(Renderer::start, Ok)?;
    let rendered = renderer.render((environment.clone(), name, variables));
    match rendered {
        Some(rendered) => {
            RENDERER.set(Some(renderer));
            rendered
        }
        // The thread may be at it still: the next rendering gets another.
        None => Err(format!("it takes more than {} seconds", MAX_PAUSES / 10)),
    }
}

fn join(
    state: &mut State,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<Value, Error> {
    pay_for_items(state, Some(value))?;
    filters::join(state, value, joiner, attribute, options)
}

/// Spends the fuel of a list's or map's text before it is written. The engine takes it afterwards, but a list may name a
/// long text, or another list, any number of times.
fn pay_for_text(state: &State, value: &Value) -> Result<(), Error> {
    if value.as_object().is_none() {
        return Ok(());
    }
    check_depth(state, value, MAX_DEPTH)?;
    match write!(Payer(state), "{value}") {
        Ok(()) => Ok(()),
        // Once it runs out, the fuel stays so.
        Err(_) => state.consume_fuel(0),
    }
}

/// Refuses lists and maps within each other without end: their text is made by recursion, and a namespace can hold itself.
fn check_depth(state: &State, value: &Value, left: usize) -> Result<(), Error> {
    state.consume_fuel(1)?;
    let Some(object) = value.as_object() else { return Ok(()) };
    if left == 0 {
        let reason = format!("lists within each other more than {MAX_DEPTH} deep have no text");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    let check = |item: &Value| check_depth(state, item, left - 1);
    match value.kind() {
        ValueKind::Map => object
            .try_iter_pairs()
            .into_iter()
            .flatten()
            .try_for_each(|(key, value)| check(&key).and_then(|()| check(&value))),
        _ => object.try_iter().into_iter().flatten().try_for_each(|item| check(&item)),
    }
}

/// The same of a list's items, which are joined.
fn pay_for_items(state: &State, list: Option<&Value>) -> Result<(), Error> {
    let items = list.filter(|list| list.as_str().is_none()).and_then(|list| list.try_iter().ok());
    for item in items.into_iter().flatten() {
        state.consume_fuel(1 + item.as_str().map_or(0, str::len) as u64 / 64)?;
        pay_for_text(state, &item)?;
    }
    Ok(())
}

/// The same of what `str.format` makes: every number in the format may be a width, every brace name any argument.
fn pay_for_format(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    for digits in numbers {
        state.consume_fuel(1 + digits.parse::<u64>().map_or(FUEL, |width| width / 64))?;
    }
    for _ in format.matches('{') {
        for arg in args {
            state.consume_fuel(1 + arg.as_str().map_or(0, str::len) as u64 / 64)?;
            pay_for_text(state, arg)?;
        }
    }
    Ok(())
}

/// Takes fuel for a text instead of writing it.
struct Payer<'a, 'b, 'c>(&'a State<'b, 'c>);

impl Write for Payer<'_, '_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.consume_fuel(1 + text.len() as u64 / 64).map_err(|_| fmt::Error)
    }
}

/// JSON as Python's `json.dumps` writes it: a space after commas and colons.
fn python_json(value: &Json) -> String {
    match value {
        Json::Array(items) => format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Json::Object(fields) => {
            let field =
                |(key, value): (&String, &Json)| format!("{}: {}", Json::from(key.as_str()), python_json(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
