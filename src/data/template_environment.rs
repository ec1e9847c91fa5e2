//! The environment that renders chat templates: transformers' settings of Jinja, Python's methods, and a budget that
//! stops templates which would run forever or fill the memory. No template can read a file.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::clock::Clock;
use super::guarded::guarded;
use super::{python_methods, python_text, template_filters};

/// The number of instructions a template may execute, where 64 bytes of text count as one; a template with hundreds of
/// turns needs some ten thousand beside its texts.
const FUEL: u64 = 4_000_000;

/// The stack size of a rendering. A template can nest one more list every ten instructions, and the engine compares and
/// frees nested lists recursively. Only the used part of the stack takes memory.
const STACK_BYTES: usize = 1 << 28;
/// How long a rendering may take, in waits of a tenth of a second: comparing lists that contain each other takes no
/// fuel. Time during which the process is stopped counts as one wait.
const MAX_PAUSES: usize = 100;

/// The deepest nesting of a list that can be printed; messages with tools nest some ten levels deep.
const MAX_DEPTH: usize = 100;

/// An environment without templates and without a clock.
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
        match python_methods::call(state, value, method, args) {
            Some(result) => result,
            None => unknown_method_callback(state, value, method, args),
        }
    });
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        pay_for_text(state, value)?;
        match matches!(state.auto_escape(), AutoEscape::None) && python_text::is_other(value) {
            true => out.write_str(&python_text::text(value)).map_err(Error::from),
            false => escape_formatter(out, state, value),
        }
    });
    // `pprint` is for authors of templates, and the length of its text isn't bounded.
    environment.remove_filter("pprint");
    template_filters::add(&mut environment);
    environment
}

/// Sets the time that `strftime_now` writes. If it is an error, only a template that asks for the time fails with it.
pub(super) fn set_clock(environment: &mut Environment<'static>, clock: Result<Clock, String>) {
    environment.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        let text = clock.clone().and_then(|clock| clock.strftime(format));
        text.map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
    });
}

/// A rendering: the environment, the template's name and its variables.
type Job = (Arc<Environment<'static>>, &'static str, Value);
/// The rendered text; `None` if there is no template of that name.
type Rendered = Result<Option<String>, String>;

/// A thread that renders for another one.
struct Renderer {
    jobs: SyncSender<Job>,
    results: Receiver<Rendered>,
}

thread_local! {
    /// This thread's renderer, kept because starting one for each row would take longer than the rendering.
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
                // Nobody waits for a result that took too long.
                if sender.send(rendered).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES).spawn(work);
        thread.map_err(|e| format!("no thread can be started for it ({e})"))?;
        Ok(Self { jobs, results })
    }

    /// The result, if it arrives in time.
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

/// Renders a template on a separate thread; `None` if there is none of that name. After a timeout the rendering
/// continues until the process ends, because the engine can't be stopped.
///
/// # Errors
/// An error that the template raises, or that it takes too long.
pub(super) fn render(environment: &Arc<Environment<'static>>, name: &'static str, variables: Value) -> Rendered {
    let renderer = RENDERER.take().map_or_else(Renderer::start, Ok)?;
    let rendered = renderer.render((environment.clone(), name, variables));
    match rendered {
        Some(rendered) => {
            RENDERER.set(Some(renderer));
            rendered
        }
        // The thread may still be busy, so the next rendering gets another one.
        None => Err(format!("it takes more than {} seconds", MAX_PAUSES / 10)),
    }
}

/// Spends the fuel for the text of a list or map before the text is written. The engine would charge it afterwards, but
/// a list may contain a long text, or another list, any number of times.
pub(super) fn pay_for_text(state: &State, value: &Value) -> Result<(), Error> {
    if value.as_object().is_none() {
        return Ok(());
    }
    check_depth(state, value, MAX_DEPTH)?;
    match write!(Payer(state), "{value}") {
        Ok(()) => Ok(()),
        // Once the fuel has run out, every further use of it fails too.
        Err(_) => state.consume_fuel(0),
    }
}

/// Refuses lists and maps that are nested too deep: their text is made by recursion, and a namespace can contain
/// itself.
fn check_depth(state: &State, value: &Value, left: usize) -> Result<(), Error> {
    state.consume_fuel(1)?;
    let Some(object) = value.as_object() else { return Ok(()) };
    if left == 0 {
        let reason = format!("lists nested more than {MAX_DEPTH} deep can't be rendered");
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

/// Spends the fuel for the text of a list's items, which are joined.
pub(super) fn pay_for_items(state: &State, list: Option<&Value>) -> Result<(), Error> {
    let items = list.filter(|list| list.as_str().is_none()).and_then(|list| list.try_iter().ok());
    for item in items.into_iter().flatten() {
        state.consume_fuel(1 + item.as_str().map_or(0, str::len) as u64 / 64)?;
        pay_for_text(state, &item)?;
    }
    Ok(())
}

/// Spends the fuel for what `str.format` may write: every number in the format may be a width, every brace may stand
/// for any argument.
pub(super) fn pay_for_format(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
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
