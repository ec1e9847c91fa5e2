//! Parses the body of a request, as a pure function of its bytes. Every field either has an effect, or is refused, or asks for
//! what happens anyway.

use std::sync::Arc;

use serde_json::Value;

use super::door::Endpoint;
use super::fields::{Fields, one_line, short, wrong};
use super::refusal::Refusal;
use crate::eval::asked::{Question, turns_of_text};
use crate::sampler::cache::Caching;
use crate::sampler::generate::Attention;
use crate::sampler::given::Given;
use crate::sampler::remasking::Remasking;

/// The largest number of choices in a request, and of prompts.
pub const MOST_CHOICES: usize = 128;
/// The largest number of stop strings, as in OpenAI's protocol.
const MOST_STOPS: usize = 4;
/// The longest stop string, in bytes: waiting requests are in memory with theirs.
const LONGEST_STOP: usize = 1000;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// A parsed request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The name of the model.
    pub model: String,
    /// What is to be answered: a chat or texts.
    pub asked: Asked,
    /// The number of choices for each prompt.
    pub n: usize,
    /// The texts that end an answer.
    pub stop: Arc<[String]>,
    /// Whether the answer is streamed.
    pub streams: bool,
    /// Whether the stream ends with a chunk that has the numbers of tokens.
    pub includes_usage: bool,
    /// The sampler's settings.
    pub given: Given,
}

/// The prompts of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// A chat.
    Chat(Question),
    /// Texts to be continued.
    Texts(Vec<Text>),
}

/// A text to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// Given as text.
    Text(String),
    /// Given as token ids.
    Ids(Vec<u32>),
}

/// A field of OpenAI's protocol that has no effect here: its name, a test for the values that ask for what happens anyway, and
/// the reason for which other values are refused.
type Idle = (&'static str, fn(&Value) -> bool, &'static str);

const IDLE: &[Idle] = &[
    ("user", |value| value.is_string(), "it is a text"),
    ("safety_identifier", |value| value.is_string(), "it is a text"),
    ("prompt_cache_key", |value| value.is_string(), "it is a text"),
    ("presence_penalty", is_zero, "the sampler has no penalties, so only 0 is taken"),
    ("frequency_penalty", is_zero, "the sampler has no penalties, so only 0 is taken"),
    ("repetition_penalty", |value| value.as_f64() == Some(1.0), "the sampler has no penalties, so only 1 is taken"),
    ("min_p", is_zero, "the sampler has no min_p, so only 0 is taken"),
    ("logit_bias", is_empty, "the sampler has no biases; leave it out"),
    ("logprobs", |value| value == &Value::Bool(false), NO_LOGPROBS),
    ("top_logprobs", is_zero, NO_LOGPROBS),
    ("tools", is_empty, "answers aren't read for calls of tools; leave it out"),
    ("tool_choice", |value| value == "none" || value == "auto", "answers aren't read for calls of tools; leave it out"),
    ("parallel_tool_calls", Value::is_boolean, "answers aren't read for calls of tools; leave it out"),
    ("functions", is_empty, "answers aren't read for calls of functions; leave it out"),
    ("function_call", |value| value == "none" || value == "auto", "answers aren't read for calls; leave it out"),
    (
        "response_format",
        |value| value["type"] == "text",
        "the sampler knows no grammar, so only {\"type\": \"text\"} is taken",
    ),
    ("store", |value| value == &Value::Bool(false), "nothing is stored; leave it out"),
    ("metadata", is_empty, "nothing is stored; leave it out"),
    ("service_tier", |value| value == "auto" || value == "default", "there is one tier; leave it out"),
    ("modalities", |value| value == &Value::from(vec!["text"]), "answers are texts, so only [\"text\"] is taken"),
    ("best_of", |value| value == 1, "answers have no scores to choose by, so only 1 is taken"),
    ("echo", |value| value == &Value::Bool(false), "the prompt is not repeated; leave it out"),
    ("suffix", |value| value == "", "texts are not filled in; use weft generate --infill"),
];

const NO_LOGPROBS: &str = "a diffusion model has no probability of each token given those before it; leave it out, or look at \
                           the playground's confidences";

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// Reads a request's body.
///
/// # Errors
/// What is wrong with it, as one sentence.
pub fn read(endpoint: Endpoint, body: &[u8]) -> Result<Request, Refusal> {
    let mut fields = Fields::read(body)?;
    let Some(model) = fields.text("model")? else {
        return Err(Refusal::of_field("model", "model is missing; /v1/models lists the names"));
    };
    let asked = match endpoint {
        Endpoint::Completions => Asked::Texts(prompts(fields.take("prompt"))?),
        Endpoint::Chat | Endpoint::Denoise => Asked::Chat(chat(fields.take("messages"))?),
    };
    let n = fields.whole("n")?.unwrap_or(1);
    let prompts = if let Asked::Texts(texts) = &asked { texts.len() } else { 1 };
    let most = if endpoint == Endpoint::Denoise { 1 } else { MOST_CHOICES as u64 };
    if n == 0 || n > most || n as usize * prompts > MOST_CHOICES {
        let message = format!("n is {n} for {prompts} prompts; give at least 1 and at most {most} choices in all");
        return Err(Refusal::of_field("n", message));
    }
    let stop = stops(fields.take("stop"))?.into();
    let streams = fields.flag("stream")?.unwrap_or(false);
    let includes_usage = includes_usage(fields.take("stream_options"), streams)?;
    let given = given(&mut fields)?;
    for (name, is_harmless, why) in IDLE {
        if let Some(value) = fields.take(name).filter(|value| !is_harmless(value)) {
            return Err(Refusal::of_field(name, format!("{name} is {}: {why}", short(&value))));
        }
    }
    fields.finish("")?;
    Ok(Request { model, asked, n: n as usize, stop, streams, includes_usage, given })
}

/// The sampler's settings, under the sampler's own names or OpenAI's.
fn given(fields: &mut Fields) -> Result<Given, Refusal> {
    let length = |number: Option<u64>| number.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let lengths = [fields.whole("max_completion_tokens")?, fields.whole("max_tokens")?, fields.whole("gen_length")?];
    let mut different = lengths.into_iter().flatten().collect::<Vec<_>>();
    different.dedup();
    if let [a, b, ..] = different[..] {
        let message = format!("max_completion_tokens, max_tokens and gen_length say {a} and {b}; give one of them");
        return Err(Refusal::of_field("max_tokens", message));
    }
    Ok(Given {
        gen_length: length(different.first().copied()),
        block_length: length(fields.whole("block_length")?),
        attention: fields.named("attention", Attention::parse)?,
        diffusion_steps: length(fields.whole("diffusion_steps")?),
        confidence_threshold: fields.number("confidence_threshold")?,
        cache: fields.named("cache", Caching::parse)?,
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: length(fields.whole("top_k")?),
        alg_temp: fields.number("alg_temp")?,
        cfg_scale: fields.number("cfg_scale")?,
        remasking: fields.named("remasking", Remasking::parse)?,
        whole_canvas: fields.flag("whole_canvas")?,
        forbid_eos: fields.flag("forbid_eos")?,
        defer_eos: fields.flag("defer_eos")?,
        seed: fields.whole("seed")?,
    })
}

fn includes_usage(options: Option<Value>, streams: bool) -> Result<bool, Refusal> {
    let Some(options) = options else { return Ok(false) };
    if !streams {
        return Err(Refusal::of_field(
            "stream_options",
            "stream_options has no effect without \"stream\": true; leave it out",
        ));
    }
    let mut options = Fields::of(options, "stream_options")?;
    let includes_usage = options.flag("include_usage")?.unwrap_or(false);
    if options.flag("include_obfuscation")? == Some(true) {
        return Err(Refusal::of_field(
            "stream_options",
            "include_obfuscation is true: streams aren't padded; leave it out",
        ));
    }
    options.finish(" in stream_options")?;
    Ok(includes_usage)
}

fn stops(value: Option<Value>) -> Result<Vec<String>, Refusal> {
    let wanted = "a string, or a list of at most 4, none of them empty";
    let stops: Vec<Value> = match value {
        None => vec![],
        Some(Value::Array(stops)) => stops,
        Some(stop) => vec![stop],
    };
    if stops.len() > MOST_STOPS {
        return Err(Refusal::of_field("stop", format!("stop has {} strings; give {wanted}", stops.len())));
    }
    let stop = |value: Value| match value {
        Value::String(stop) if stop.len() > LONGEST_STOP => {
            let message = format!("stop has a string of {} bytes; give at most {LONGEST_STOP}", stop.len());
            Err(Refusal::of_field("stop", message))
        }
        Value::String(stop) if !stop.is_empty() => Ok(stop),
        other => Err(wrong("stop", &other, wanted)),
    };
    stops.into_iter().map(stop).collect()
}

/// The prompts of a completion.
fn prompts(value: Option<Value>) -> Result<Vec<Text>, Refusal> {
    let wanted = "a text, a list of texts, a list of tokens, or a list of such lists, none of them empty";
    let texts = match value {
        None => return Err(Refusal::of_field("prompt", format!("prompt is missing; give {wanted}"))),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => vec![Value::Array(items)],
        Some(Value::Array(items)) => items,
        Some(text) => vec![text],
    };
    if texts.is_empty() || texts.len() > MOST_CHOICES {
        let message = format!("prompt has {} texts; give 1 to {MOST_CHOICES} of them", texts.len());
        return Err(Refusal::of_field("prompt", message));
    }
    let text = |value: Value| match value {
        Value::String(text) if !text.trim().is_empty() => Ok(Text::Text(text)),
        Value::Array(ids) if !ids.is_empty() => {
            let id = |id: &Value| {
                id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong("prompt", id, wanted))
            };
            Ok(Text::Ids(ids.iter().map(id).collect::<Result<_, _>>()?))
        }
        other => Err(wrong("prompt", &other, wanted)),
    };
    texts.into_iter().map(text).collect()
}

/// The turns of a chat.
fn chat(value: Option<Value>) -> Result<Question, Refusal> {
    let refuse = |message: String| Refusal::of_field("messages", message);
    let form = "give a list of turns, such as [{\"role\": \"user\", \"content\": \"...\"}]";
    let messages = match value {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(other) => return Err(refuse(format!("messages is {}; {form}", short(&other)))),
        None => return Err(refuse(format!("messages is missing; {form}"))),
    };
    for (i, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str);
        if !role.is_some_and(|role| ROLES.contains(&role)) {
            let role = message.get("role").map_or("missing".to_owned(), short);
            return Err(refuse(format!("messages[{i}].role is {role}; give one of {}", ROLES.join(", "))));
        }
        let parts = message.get("content").and_then(Value::as_array).into_iter().flatten();
        let is_text = |part: &Value| part.get("type").is_none_or(|kind| kind == "text") && part["text"].is_string();
        if let Some(part) = parts.into_iter().find(|part| !is_text(part)) {
            let kind = short(&part["type"]);
            return Err(refuse(format!("messages[{i}].content has a part of type {kind}; the model reads text only")));
        }
    }
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        return Err(refuse("the last turn is the assistant's; end with the user's turn".to_owned()));
    }
    let text = Value::Array(messages).to_string();
    let (question, _) = turns_of_text(&text).map_err(|e| refuse(one_line(&e.to_string())))?;
    match question.turns.iter().any(|turn| !turn.text().trim().is_empty()) {
        true => Ok(question),
        false => Err(refuse("messages hold no text; ask something".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(more: Value) -> Result<Request, Refusal> {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "a" }] });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        read(Endpoint::Chat, body.to_string().as_bytes())
    }

    #[test]
    fn what_has_an_effect_is_read() {
        let request = chat(json!({
            "max_completion_tokens": 24, "max_tokens": 24, "temperature": 0.5, "seed": 7, "stop": ["a", "b"], "n": 2,
            "stream": true, "stream_options": { "include_usage": true }, "diffusion_steps": 12, "block_length": 8,
            "remasking": "random",
        }));
        let request = request.expect("it is read");
        assert_eq!((request.n, request.streams, request.includes_usage), (2, true, true));
        assert_eq!(&*request.stop, ["a".to_owned(), "b".to_owned()]);
        let given = Given {
            gen_length: Some(24),
            temperature: Some(0.5),
            seed: Some(7),
            diffusion_steps: Some(12),
            block_length: Some(8),
            remasking: Some(Remasking::Random),
            ..Given::default()
        };
        assert_eq!(request.given, given);
        let texts = |prompt: Value| {
            read(Endpoint::Completions, json!({ "model": "m", "prompt": prompt }).to_string().as_bytes())
        };
        let asked = |prompt| texts(prompt).map(|request| request.asked);
        let text = |text: &str| Text::Text(text.to_owned());
        assert_eq!(asked(json!("a")), Ok(Asked::Texts(vec![text("a")])));
        assert_eq!(asked(json!(["a", "b"])), Ok(Asked::Texts(vec![text("a"), text("b")])));
        assert_eq!(asked(json!([1, 2])), Ok(Asked::Texts(vec![Text::Ids(vec![1, 2])])));
        assert_eq!(asked(json!([[1], [2]])), Ok(Asked::Texts(vec![Text::Ids(vec![1]), Text::Ids(vec![2])])));
    }

    #[test]
    fn what_asks_for_the_usual_is_taken() {
        let usual = json!({
            "user": "u", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": false, "tools": [],
            "tool_choice": "none", "response_format": { "type": "text" }, "store": false, "metadata": {}, "stop": null,
            "max_tokens": null, "audio": null, "modalities": ["text"], "service_tier": "auto",
        });
        assert_eq!(chat(usual), chat(json!({})));
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for (more, param) in [
            (json!({ "presence_penalty": 0.1 }), "presence_penalty"),
            (json!({ "logprobs": true }), "logprobs"),
            (json!({ "tools": [{}] }), "tools"),
            (json!({ "response_format": { "type": "json_object" } }), "response_format"),
            (json!({ "n": 0 }), "n"),
            (json!({ "n": 129 }), "n"),
            (json!({ "n": 1.5 }), "n"),
            (json!({ "max_tokens": -1 }), "max_tokens"),
            (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_tokens"),
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "stop": "" }), "stop"),
            (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop"),
            (json!({ "stop": "a".repeat(1001) }), "stop"),
            (json!({ "stream_options": {} }), "stream_options"),
            (json!({ "remasking": "none" }), "remasking"),
            (json!({ "seed": -1 }), "seed"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": [{ "role": "poet", "content": "a" }] }), "messages"),
            (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "messages"),
            (json!({ "messages": [{ "role": "user", "content": " " }] }), "messages"),
            (
                json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] }),
                "messages",
            ),
            (json!({ "max_token": 8 }), "max_token"),
        ] {
            let refusal = chat(more.clone()).expect_err("it is refused");
            assert_eq!((refusal.status, refusal.param.as_deref()), (400, Some(param)), "{more}: {}", refusal.message);
            assert!(!refusal.message.contains('\n'), "{more}: {}", refusal.message);
        }
        let told = chat(json!({ "max_token": 8 })).expect_err("it is refused").message;
        assert_eq!(told, "unknown field \"max_token\"; the nearest known one is max_tokens");
        // What a client sent is quoted in part, however long it is.
        let long = "k".repeat(1 << 18);
        let twice = format!("{{\"{long}\": 1, \"{long}\": 1}}");
        for refusal in [chat(json!({ &long: 1 })), read(Endpoint::Chat, twice.as_bytes())] {
            let refusal = refusal.expect_err("it is refused");
            assert!(refusal.to_json().to_string().len() < 1000, "{refusal:?}");
        }
        for body in [
            &b"{"[..],
            b"",
            b"{\"model\": \"a\", \"model\": \"b\"}",
            b"[]",
            b"\xff",
            b"{\"model\": \"\\ud800\"}",
            b"null",
        ] {
            assert_eq!(read(Endpoint::Chat, body).expect_err("it is refused").status, 400);
        }
    }
}
