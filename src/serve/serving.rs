//! The state of a server: the names of its models, limits and defaults. It turns requests into jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::door::Endpoint;
use super::fields::one_line;
use super::queue::{Closed, Event, Job, Queue};
use super::refusal::{Refusal, quoted};
use super::request::{self, Asked, Request, Text};
use crate::data::chat_template::TextModel;
use crate::data::prompt::Prompt;
use crate::data::typed_tokens::SpecialTokens;
use crate::error::Error;
use crate::eval::asked::Question;
use crate::model::block::Config;
use crate::sampler::generate::Sampling;
use crate::sampler::given::Given;
use crate::sampler::remasking::Remasking;

/// The longest answer whose steps are sent, in tokens: each step sends the entropies of all masked tokens.
const MOST_WATCHED: usize = 1024;
/// The bytes that a chat template may write beside a turn, roughly.
const MARKS: usize = 40;
/// The factor by which a tokenizer's normalisation may shorten a text.
const SHRINKS: usize = 3;

/// The state of a server.
pub struct Serving {
    /// The names of the models, the base's first.
    pub names: Vec<String>,
    /// The base's tokenizer and chat template.
    pub text: TextModel,
    /// Each model's sizes and constants. Adapters differ in their block lengths.
    pub configs: Vec<Config>,
    /// For each model, the sampler's settings for what a request leaves open.
    pub defaults: Vec<Given>,
    /// The limits.
    pub limits: Limits,
    /// The jobs that wait.
    pub queue: Queue,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// The longest prompt, in bytes, whose tokens may fit.
    most_text: usize,
    count: AtomicU64,
}

/// The limits of requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest number of answers in a batch.
    pub batch_size: usize,
    /// The largest number of waiting answers.
    pub queue: usize,
    /// The largest number of tokens in an answer.
    pub gen_length: usize,
    /// The largest number of tokens in a prompt and its answer together.
    pub length: usize,
}

/// The client that waits for a request's answer.
#[derive(Clone)]
pub struct Client {
    /// Called with every event.
    pub listener: Arc<dyn Fn(Event) + Send + Sync>,
    /// Becomes true once the client has left.
    pub gone: Arc<AtomicBool>,
}

/// A request that has been accepted.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The path that it was sent to.
    pub endpoint: Endpoint,
    /// The id of its answer.
    pub id: String,
    /// When it was accepted, in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// The number of choices in all.
    pub choices: usize,
    /// The number of choices for each prompt.
    pub n: usize,
    /// Whether the answer is streamed.
    pub streams: bool,
    /// Whether the stream ends with a chunk that has the numbers of tokens.
    pub includes_usage: bool,
    /// The tokens of the prompts.
    pub prompt_tokens: usize,
}

impl Serving {
    /// A server of models with these names and configurations.
    pub fn new(models: Vec<(String, Config)>, text: TextModel, defaults: Given, limits: Limits) -> Self {
        let (names, configs): (Vec<String>, Vec<Config>) = models.into_iter().unzip();
        // Which of the defaults apply to answers of other lengths depends on the model's own attention.
        let of = |config: &Config| Given { attention: defaults.sampling(config).attention, ..defaults.clone() };
        let defaults = configs.iter().map(of).collect();
        let (queue, count) = (Queue::new(limits.queue), AtomicU64::new(0));
        let most_text = limits.length.saturating_mul(SHRINKS * text.longest_token());
        Self { names, text, configs, defaults, limits, queue, started: now(), most_text, count }
    }

    /// Reads a request and adds its jobs to the queue.
    ///
    /// # Errors
    /// A request that can't be answered, with the reason.
    pub fn take(&self, endpoint: Endpoint, body: &[u8], client: &Client) -> Result<Taken, Refusal> {
        let request = request::read(endpoint, body)?;
        let model = self.model(&request.model)?;
        let sampling = self.sampling(model, &request.given)?;
        if endpoint == Endpoint::Denoise && sampling.gen_length > MOST_WATCHED {
            let message =
                format!("max_tokens {} is more than {MOST_WATCHED}, the most that are watched", sampling.gen_length);
            return Err(Refusal::of_field("max_tokens", format!("{message}; lower it")));
        }
        let prompts = self.prompts(&request.asked)?;
        for ids in &prompts {
            self.check_length(ids.len(), &sampling)?;
        }
        let Request { n, stop, streams, includes_usage, .. } = request;
        let choices = n * prompts.len();
        if choices > self.limits.queue {
            let message =
                format!("{choices} choices are more than the server's queue of {}; ask for fewer", self.limits.queue);
            return Err(Refusal::of_field("n", message));
        }
        let job = |choice: usize| Job {
            index: choice,
            ids: prompts[choice / n].clone(),
            example: (choice % n) as u64,
            model,
            sampling: sampling.clone(),
            stop: stop.clone(),
            is_watched: endpoint == Endpoint::Denoise,
            gone: client.gone.clone(),
            listener: client.listener.clone(),
        };
        let prompt_tokens = prompts.iter().map(|ids| ids.len()).sum();
        self.queue.push((0..choices).map(job).collect()).map_err(refusal_of)?;
        let kind = if endpoint == Endpoint::Completions { "cmpl" } else { "chatcmpl" };
        let id = format!("{kind}-{:x}{:06x}", self.started, self.count.fetch_add(1, Ordering::Relaxed));
        let model = self.names[model].clone();
        Ok(Taken { endpoint, id, created: now(), model, choices, n, streams, includes_usage, prompt_tokens })
    }

    /// The mask token, which all models share.
    pub fn mask_token_id(&self) -> u32 {
        self.configs[0].mask_token_id
    }

    fn model(&self, name: &str) -> Result<usize, Refusal> {
        self.names.iter().position(|own| own == name).ok_or_else(|| {
            let known = self.names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
            let message = format!("there is no model {}; there are {known}", quoted(name));
            Refusal { status: 404, ..Refusal::of_field("model", message) }.with_code("model_not_found")
        })
    }

    /// The settings of a request. A setting that the request gives and that has no effect is refused.
    fn sampling(&self, model: usize, given: &Given) -> Result<Sampling, Refusal> {
        let (config, defaults) = (&self.configs[model], &self.defaults[model]);
        let whole = given.or(defaults).sampling(config);
        let refuse = |message: String| {
            let param = message.split(' ').next().unwrap_or_default().to_owned();
            Refusal::of_field(&param, one_line(&message))
        };
        if whole.gen_length > self.limits.gen_length {
            let message = format!(
                "max_tokens {} is more than {}, the most that this server answers; lower it",
                whole.gen_length, self.limits.gen_length
            );
            return Err(Refusal::of_field("max_tokens", message));
        }
        given.check().and_then(|()| whole.check()).map_err(|e| refuse(e.to_string()))?;
        // Warnings of the server's own defaults were printed when it started.
        let idle = |given: &Given| {
            let sampling = given.sampling(config);
            sampling.remasking.map(|remasking| sampling.warnings(remasking)).unwrap_or_default()
        };
        let own = idle(defaults);
        match idle(&given.or(defaults)).into_iter().find(|warning| !own.contains(warning)) {
            Some(warning) => Err(refuse(format!("{warning}; leave it out"))),
            None => Ok(Sampling { eos_token_ids: self.text.end_token_ids(), seed: seed_of(&whole), ..whole }),
        }
    }

    fn prompts(&self, asked: &Asked) -> Result<Vec<Arc<[u32]>>, Refusal> {
        match asked {
            Asked::Chat(question) => Ok(vec![self.chat(question)?]),
            Asked::Texts(texts) => texts.iter().map(|text| self.text(text)).collect(),
        }
    }

    fn chat(&self, question: &Question) -> Result<Arc<[u32]>, Refusal> {
        let refuse = |message: String| Refusal::of_field("messages", message);
        let unread = self.text.unread(&question.turns, None);
        if !unread.is_empty() {
            let message = format!("the chat template does not read {}; leave it out", unread.join(", "));
            return Err(refuse(message));
        }
        let told = |e: Error| refuse(one_line(&e.to_string()));
        let bytes: usize = question.turns.iter().map(|turn| MARKS + turn.text().len()).sum();
        if bytes > self.most_text {
            // The chat template may drop some of it.
            let rendered = self.text.render_turns(&question.turns, None, true).map_err(told)?;
            self.check_bytes(rendered.map_or(bytes, |rendered| rendered.len()))?;
        }
        let prompt = self.text.prompt_of_turns(&question.turns, None).map_err(told)?;
        self.without_mask(prompt).map_err(refuse)
    }

    fn text(&self, text: &Text) -> Result<Arc<[u32]>, Refusal> {
        let refuse = |message: String| Refusal::of_field("prompt", message);
        let prompt = match text {
            Text::Text(text) => {
                self.check_bytes(text.len())?;
                self.text.prompt_of_text(text, SpecialTokens::Tokens)
            }
            Text::Ids(ids) => match ids.iter().find(|id| **id > self.text.last_id()) {
                Some(id) => {
                    return Err(refuse(format!("there is no token {id}; the last one is {}", self.text.last_id())));
                }
                None => Ok(Prompt { ids: ids.clone(), typed: vec![] }),
            },
        };
        self.without_mask(prompt.map_err(|e| refuse(one_line(&e.to_string())))?).map_err(refuse)
    }

    /// The tokens of a prompt. None of them may be a mask, which the sampler would take for a token to be predicted.
    fn without_mask(&self, prompt: Prompt) -> Result<Arc<[u32]>, String> {
        let mask = self.mask_token_id();
        match prompt.ids.contains(&mask) || prompt.typed.iter().any(|token| self.text.token_id(token) == Some(mask)) {
            true => Err(format!("the prompt contains the mask token {}; remove it", self.text.decode_canvas(&[mask]))),
            false => Ok(prompt.ids.into()),
        }
    }

    /// Refuses a text that is too long, whatever its tokens are: tokenizing takes some 250 bytes of memory for each byte.
    fn check_bytes(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes <= self.most_text {
            return Ok(());
        }
        let most = self.limits.length;
        let message = format!(
            "the prompt has {bytes} bytes, which no {most} tokens hold, and this server takes {most} with the answer; shorten \
             the prompt"
        );
        Err(Refusal::new(400, message).with_code("context_length_exceeded"))
    }

    fn check_length(&self, prompt: usize, sampling: &Sampling) -> Result<(), Refusal> {
        let (length, most) = (prompt + sampling.gen_length, self.limits.length);
        if length <= most {
            return Ok(());
        }
        let message = format!(
            "the prompt has {prompt} tokens and the answer {}, {length} together, but this server takes {most}; shorten the \
             prompt, or lower max_tokens",
            sampling.gen_length
        );
        Err(Refusal::new(400, message).with_code("context_length_exceeded"))
    }
}

/// The seed of an answer. Answers that draw nothing all get the default seed, so that they can share a batch.
fn seed_of(sampling: &Sampling) -> u64 {
    let keeps_by_draws = matches!(sampling.remasking, Some(Remasking::Random | Remasking::Origin));
    match sampling.temperature > 0.0 || sampling.alg_temp > 0.0 || keeps_by_draws {
        true => sampling.seed,
        false => Sampling::default().seed,
    }
}

fn refusal_of(closed: Closed) -> Refusal {
    match closed {
        Closed::Full(secs) => Refusal {
            retry_after: Some(secs),
            ..Refusal::new(429, format!("too many requests wait; try again in {secs} s")).with_code("queue_full")
        },
        Closed::Stopping => {
            Refusal { retry_after: Some(1), ..Refusal::new(503, "the server is shutting down; try again later") }
        }
    }
}

/// The seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
