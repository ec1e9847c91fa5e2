//! Replies in OpenAI's protocol: whole ones, and the chunks of a stream.

use serde_json::{Value, json};

use super::door::Endpoint;
use super::queue::{Answer, Event};
use super::refusal::Refusal;
use super::serving::{Serving, Taken};
use crate::report::visible::visible;

/// Turns the events of a request into its reply.
pub struct Reply {
    taken: Taken,
    answers: Vec<Option<Answer>>,
    has_begun: bool,
}

/// The events that a stream sends after a job's event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sent {
    /// The data of the stream's next events.
    pub data: Vec<String>,
    /// Whether these are the last ones.
    pub is_last: bool,
}

/// What ends a stream.
const DONE: &str = "[DONE]";

impl Reply {
    /// A reply to a request.
    pub fn new(taken: Taken) -> Self {
        let answers = vec![None; taken.choices];
        Self { taken, answers, has_begun: false }
    }

    /// Whether the reply is streamed.
    pub fn streams(&self) -> bool {
        self.taken.streams || self.taken.endpoint == Endpoint::Denoise
    }

    /// The whole reply, once the last choice is answered; an error is the reason for which a job isn't answered.
    pub fn whole(&mut self, event: Event) -> Option<Result<Value, Refusal>> {
        match event {
            Event::Failed(reason) => return Some(Err(reason)),
            Event::Done { index, answer, .. } => self.answers[index] = Some(answer),
            Event::Delta { .. } | Event::Step(_) => {}
        }
        let answers: Vec<&Answer> = self.answers.iter().flatten().collect();
        (answers.len() == self.answers.len()).then(|| {
            let choice = |(index, answer): (usize, &&Answer)| self.choice(index, &answer.text, Some(answer));
            let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
            let mut whole = self.object(false, choices);
            whole["usage"] = self.usage();
            Ok(whole)
        })
    }

    /// The chunks that an event adds to the stream.
    pub fn parts(&mut self, event: Event) -> Sent {
        let is_chat = self.taken.endpoint == Endpoint::Chat;
        let mut data: Vec<Value> = vec![];
        if !self.has_begun && is_chat {
            data.extend((0..self.taken.choices).map(|index| self.begin(index)));
        }
        self.has_begun = true;
        match event {
            Event::Step(step) => data.push(step),
            Event::Delta { .. } if self.taken.endpoint == Endpoint::Denoise => {}
            Event::Delta { index, text } => data.push(self.part(index, &text, None)),
            Event::Failed(refusal) => {
                data.push(refusal.to_json());
                return Sent { data: data.iter().map(Value::to_string).collect(), is_last: true };
            }
            Event::Done { index, rest, answer } => {
                if self.taken.endpoint == Endpoint::Denoise {
                    data.push(json!({ "event": "done", "text": visible(&answer.text), "finish_reason": finish_reason(&answer) }));
                } else {
                    if !rest.is_empty() {
                        data.push(self.part(index, &rest, None));
                    }
                    data.push(self.part(index, "", Some(&answer)));
                }
                self.answers[index] = Some(answer);
            }
        }
        let is_last = self.answers.iter().all(Option::is_some);
        if is_last && self.taken.includes_usage {
            let mut last = self.object(true, vec![]);
            last["usage"] = self.usage();
            data.push(last);
        }
        let done = is_last.then(|| DONE.to_owned());
        Sent { data: data.iter().map(Value::to_string).chain(done).collect(), is_last }
    }

    /// The first chunk of a chat's choice, which names the role.
    fn begin(&self, index: usize) -> Value {
        let delta = json!({ "role": "assistant", "content": "" });
        self.part_of(json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }))
    }

    fn part(&self, index: usize, text: &str, last: Option<&Answer>) -> Value {
        let reason = last.map(finish_reason);
        self.part_of(match (self.taken.endpoint, last) {
            (Endpoint::Completions, _) => self.choice(index, text, last),
            (_, None) => {
                json!({ "index": index, "delta": { "content": text }, "logprobs": null, "finish_reason": null })
            }
            (_, Some(_)) => json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason }),
        })
    }

    fn part_of(&self, choice: Value) -> Value {
        let mut part = self.object(true, vec![choice]);
        if self.taken.includes_usage {
            part["usage"] = Value::Null;
        }
        part
    }

    fn choice(&self, index: usize, text: &str, answer: Option<&Answer>) -> Value {
        let reason = answer.map(finish_reason);
        match self.taken.endpoint {
            Endpoint::Completions => json!({ "index": index, "text": text, "logprobs": null, "finish_reason": reason }),
            _ => {
                let message = json!({ "role": "assistant", "content": text, "refusal": null });
                json!({ "index": index, "message": message, "logprobs": null, "finish_reason": reason })
            }
        }
    }

    fn object(&self, is_part: bool, choices: Vec<Value>) -> Value {
        let Taken { endpoint, id, created, model, .. } = &self.taken;
        let object = match (endpoint, is_part) {
            (Endpoint::Completions, _) => "text_completion",
            (_, true) => "chat.completion.chunk",
            (_, false) => "chat.completion",
        };
        let version = concat!("weft-", env!("CARGO_PKG_VERSION"));
        json!({ "id": id, "object": object, "created": created, "model": model, "system_fingerprint": version, "choices": choices })
    }

    fn usage(&self) -> Value {
        let prompt = self.taken.prompt_tokens;
        let completion: usize = self.answers.iter().flatten().map(|answer| answer.tokens).sum();
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }
}

fn finish_reason(answer: &Answer) -> &'static str {
    if answer.is_ended { "stop" } else { "length" }
}

/// The list of models.
pub fn models(serving: &Serving) -> Value {
    let models: Vec<Value> = (0..serving.names.len()).map(|index| model(serving, index)).collect();
    json!({ "object": "list", "data": models })
}

/// One model.
pub fn model(serving: &Serving, index: usize) -> Value {
    let base = (index > 0).then(|| &serving.names[0]);
    json!({
        "id": serving.names[index], "object": "model", "created": serving.started, "owned_by": "weft", "parent": base,
        "max_model_len": serving.limits.length,
    })
}
