//! The thread that computes: it takes batches from the queue, answers them, and sends events to the jobs' listeners.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use weft_kernels::cuda::Failure;

use super::follow::{Follow, first_stop};
use super::models::Models;
use super::queue::{Answer, Event, Job, abandoned};
use super::refusal::Refusal;
use super::serving::Serving;
use super::steps::Steps;
use crate::model::block::Transformer;
use crate::sampler::generate::{Prompt, Sampling, Watch, generate_watched};
use crate::sampler::remasking::Loop;

/// Answers batches until the queue is closed and empty. `failed` is called with the reason why a batch could not be answered.
pub fn run(models: &mut Models, serving: &Serving, mut failed: impl FnMut(&str)) {
    while let Some(batch) = serving.queue.batch(serving.limits.batch_size) {
        let began = Instant::now();
        let model = models.select(batch[0].model);
        // If one request triggers a bug, the server goes on for the others.
        let reason = match catch_unwind(AssertUnwindSafe(|| answer(model, serving, &batch))) {
            Ok(Ok(())) => None,
            Ok(Err(reason)) => Some(reason),
            Err(panic) => Some(reason_of(&*panic)),
        };
        if let Some(reason) = reason {
            failed(&reason);
            batch.iter().for_each(|job| (job.listener)(Event::Failed(Refusal::new(500, reason.as_str()))));
        }
        serving.queue.note(batch.len(), began.elapsed());
    }
}

/// The reason for which a batch panicked.
fn reason_of(panic: &(dyn Any + Send)) -> String {
    if let Some(Failure(reason)) = panic.downcast_ref::<Failure>() {
        return reason.to_string();
    }
    let text = panic.downcast_ref::<String>().map(String::as_str);
    format!("a bug in Weft: {}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason"))
}

/// A job that is being answered.
struct Running<'a> {
    job: &'a Job,
    serving: &'a Serving,
    follow: Follow,
    /// The number of the answer's tokens that `follow` has seen.
    followed: usize,
    is_done: bool,
    steps: Option<Steps<'a>>,
}

/// Answers a batch whose jobs share their model and settings.
fn answer(model: &Transformer, serving: &Serving, batch: &[Job]) -> Result<(), String> {
    let prompts: Vec<Prompt> = batch.iter().map(|job| Prompt { ids: &job.ids, example: job.example }).collect();
    let flags: Vec<AtomicBool> = batch.iter().map(|_| AtomicBool::new(false)).collect();
    let unwanted: Vec<&AtomicBool> = flags.iter().collect();
    let mut running: Vec<Running> = batch.iter().map(|job| Running::new(job, serving, model)).collect();
    let mut after_step = |canvases: &[Vec<u32>]| {
        for ((running, canvas), flag) in running.iter_mut().zip(canvases).zip(&flags) {
            running.step(canvas);
            flag.store(running.is_done, Ordering::Relaxed);
        }
    };
    let watch = Watch { after_step: &mut after_step, unwanted: &unwanted };
    let outputs = generate_watched(model, &prompts, &batch[0].sampling, watch).map_err(|e| e.to_string())?;
    for (running, output) in running.iter_mut().zip(outputs) {
        running.finish(&output.ids[running.job.ids.len()..]);
    }
    Ok(())
}

impl<'a> Running<'a> {
    fn new(job: &'a Job, serving: &'a Serving, model: &'a Transformer) -> Self {
        let steps = job.is_watched.then(|| Steps::new(model, &serving.text, job));
        if let Some(steps) = &steps {
            (job.listener)(Event::Step(steps.start()));
        }
        Self { job, serving, follow: Follow::new(job.stop.clone()), followed: 0, is_done: false, steps }
    }

    /// Sends what a step of the sampler added to the answer.
    fn step(&mut self, canvas: &[u32]) {
        self.is_done |= self.job.gone.load(Ordering::Relaxed);
        if self.is_done {
            return;
        }
        if self.serving.queue.is_abandoned() {
            self.is_done = true;
            return (self.job.listener)(Event::Failed(abandoned()));
        }
        if let Some(steps) = &mut self.steps {
            (self.job.listener)(Event::Step(steps.step(canvas)));
        }
        let answer = &canvas[self.job.ids.len()..];
        let mask = self.serving.mask_token_id();
        let found = answer.iter().position(|id| *id == mask).unwrap_or(answer.len());
        if found == answer.len() {
            return self.finish(answer);
        }
        let finished = finished_tokens(found, self.job.ids.len(), &self.job.sampling);
        if finished > self.followed {
            self.followed = finished;
            let text = self.follow.grow(&self.serving.text.decode_answer(&answer[..finished]));
            if !text.is_empty() {
                (self.job.listener)(Event::Delta { index: self.job.index, text });
            }
            if self.follow.is_stopped() {
                self.finish(&answer[..finished]);
            }
        }
    }

    /// Sends the whole answer, given its tokens, unless it has been sent already.
    fn finish(&mut self, answer: &[u32]) {
        if self.is_done {
            return;
        }
        self.is_done = true;
        let text = &self.serving.text;
        let (rest, whole) = self.follow.finish(&text.decode_answer(answer));
        let ends = text.end_token_ids();
        let end = answer.iter().position(|id| ends.contains(id));
        let is_ended = end.is_some() || self.follow.is_stopped();
        let tokens = match self.follow.is_stopped() {
            true => self.tokens_to_stop(answer),
            false => end.map_or(answer.len(), |end| end + 1),
        };
        if let Some(steps) = &self.steps {
            (self.job.listener)(Event::Step(steps.end(answer)));
        }
        let answer = Answer { text: whole, tokens, is_ended };
        (self.job.listener)(Event::Done { index: self.job.index, rest, answer });
    }

    /// The smallest number of the answer's tokens whose text contains a stop string.
    fn tokens_to_stop(&self, answer: &[u32]) -> usize {
        let (mut low, mut high) = (0, answer.len());
        while low < high {
            let middle = (low + high) / 2;
            let text = self.serving.text.decode_answer(&answer[..middle]);
            match first_stop(&text, &self.job.stop) {
                Some(_) => high = middle,
                None => low = middle + 1,
            }
        }
        low
    }
}

/// The number of an answer's first `found` tokens that lie in finished blocks; all of them if the sampler has no blocks.
fn finished_tokens(found: usize, prompt: usize, sampling: &Sampling) -> usize {
    let block = sampling.block_length.max(1);
    let in_blocks = sampling.remasking.is_some_and(|remasking| remasking.sampling_loop() == Loop::Llada);
    match (sampling.is_block_causal(), in_blocks) {
        (true, _) => ((prompt + found) / block * block).saturating_sub(prompt),
        (false, true) => found / block * block,
        (false, false) => found,
    }
}
