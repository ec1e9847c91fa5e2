//! The jobs that wait for the engine: a bounded queue, from which jobs with the same model and settings are taken together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::refusal::Refusal;
use crate::eval::generations::batch_sizes;
use crate::sampler::generate::Sampling;

/// One choice to be answered.
pub struct Job {
    /// Its index among the choices of its request.
    pub index: usize,
    /// The tokens of the prompt.
    pub ids: Arc<[u32]>,
    /// The number that, together with the seed, selects the random draws.
    pub example: u64,
    /// The index of the model.
    pub model: usize,
    /// The sampler's settings.
    pub sampling: Sampling,
    /// The texts that end the answer.
    pub stop: Arc<[String]>,
    /// Whether the listener gets an event for every step, with the entropies of the tokens.
    pub is_watched: bool,
    /// Becomes true once nobody waits for the answer any more.
    pub gone: Arc<AtomicBool>,
    /// Called with every event.
    pub listener: Arc<dyn Fn(Event) + Send + Sync>,
}

/// What happens to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The state of a watched job's canvas.
    Step(Value),
    /// The choice's text has grown.
    Delta {
        /// The choice.
        index: usize,
        /// What is new.
        text: String,
    },
    /// The choice is answered.
    Done {
        /// The choice.
        index: usize,
        /// What is new since the last delta.
        rest: String,
        /// The answer.
        answer: Answer,
    },
    /// The job isn't answered, for this reason.
    Failed(Refusal),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// The number of its tokens, including the one that ends it.
    pub tokens: usize,
    /// Whether an end token or a stop string ended it, rather than its length.
    pub is_ended: bool,
}

/// The reason for which jobs aren't accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The queue is full; a client may try again after this many seconds.
    Full(u64),
    /// The server is being stopped.
    Stopping,
}

/// The jobs that wait.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    is_closed: AtomicBool,
    is_abandoned: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// The mean time that a job of the last batch took.
    secs_per_job: f64,
}

impl Queue {
    /// An empty queue that holds up to `capacity` jobs.
    pub fn new(capacity: usize) -> Self {
        let [is_closed, is_abandoned] = [false; 2].map(AtomicBool::new);
        Self { state: Mutex::default(), changed: Condvar::new(), capacity, is_closed, is_abandoned }
    }

    /// The largest number of jobs that can wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds all jobs of a request, or none of them.
    ///
    /// # Errors
    /// A queue without room for them, or one that is closed.
    pub fn push(&self, jobs: Vec<Job>) -> Result<(), Closed> {
        let mut state = self.lock();
        if self.is_closed() {
            return Err(Closed::Stopping);
        }
        state.waiting.retain(|job| !job.gone.load(Ordering::Relaxed));
        if state.waiting.len() + jobs.len() > self.capacity {
            let secs = state.secs_per_job * state.waiting.len() as f64;
            return Err(Closed::Full((secs.ceil() as u64).clamp(1, 60)));
        }
        state.waiting.extend(jobs);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for jobs, and takes the first one with up to `most - 1` others that can be answered together with it. Returns
    /// `None` once the queue is closed and empty.
    pub fn batch(&self, most: usize) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            state.waiting.retain(|job| !job.gone.load(Ordering::Relaxed));
            if !state.waiting.is_empty() {
                return Some(take(&mut state.waiting, most));
            }
            if self.is_closed() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records how long a batch took.
    pub fn note(&self, jobs: usize, took: Duration) {
        self.lock().secs_per_job = took.as_secs_f64() / jobs.max(1) as f64;
    }

    /// Closes the queue: it accepts no more jobs, but the waiting ones are still answered.
    pub fn close(&self) {
        // This is set under the lock, so that `batch` can't miss it between checking and waiting.
        let _state = self.lock();
        self.is_closed.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Gives up what hasn't been answered: the waiting jobs fail now, and the running ones after the current step.
    pub fn abandon(&self) {
        self.close();
        self.is_abandoned.store(true, Ordering::Relaxed);
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.iter().for_each(|job| (job.listener)(Event::Failed(abandoned())));
        self.changed.notify_all();
    }

    /// Whether what hasn't been answered is given up.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// Whether the server is being stopped.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The refusal of a job that the server gives up.
pub(super) fn abandoned() -> Refusal {
    Refusal {
        retry_after: Some(1),
        ..Refusal::new(503, "the server was stopped before the answer was finished; ask again")
    }
}

/// Takes the first job, and as many of the later ones with the same model and settings as fit into a batch.
fn take(waiting: &mut VecDeque<Job>, most: usize) -> Vec<Job> {
    let mut batch: Vec<Job> = waiting.pop_front().into_iter().collect();
    let mut at = 0;
    while at < waiting.len() && batch.len() < most {
        let (first, next) = (&batch[0], &waiting[at]);
        let alike = (first.model, &first.sampling) == (next.model, &next.sampling);
        let lengths: Vec<usize> = batch.iter().chain([next]).map(|job| job.ids.len()).collect();
        let fits = batch_sizes(&lengths, first.sampling.gen_length).len() == 1;
        match alike && fits && !first.is_watched && !next.is_watched {
            true => batch.extend(waiting.remove(at)),
            false => at += 1,
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(example: u64, model: usize, gen_length: usize, is_watched: bool) -> Job {
        Job {
            index: 0,
            ids: [1, 2].into(),
            example,
            model,
            sampling: Sampling { gen_length, ..Sampling::default() },
            stop: [].into(),
            is_watched,
            gone: Arc::default(),
            listener: Arc::new(|_| {}),
        }
    }

    fn examples(batch: Option<Vec<Job>>) -> Vec<u64> {
        batch.into_iter().flatten().map(|job| job.example).collect()
    }

    #[test]
    fn alike_jobs_are_taken_together_and_in_order() {
        let queue = Queue::new(8);
        let jobs = vec![
            job(0, 0, 32, false),
            job(1, 1, 32, false),
            job(2, 0, 32, false),
            job(3, 0, 64, false),
            job(4, 0, 32, true),
        ];
        queue.push(jobs).expect("there is room");
        queue.push(vec![job(5, 0, 32, false), job(6, 0, 32, false)]).expect("there is room");
        assert_eq!(examples(queue.batch(3)), [0, 2, 5]);
        assert_eq!(examples(queue.batch(3)), [1]);
        assert_eq!(examples(queue.batch(3)), [3]);
        assert_eq!(examples(queue.batch(3)), [4], "a watched job is alone");
        assert_eq!(examples(queue.batch(3)), [6]);
    }

    #[test]
    fn it_is_bounded_and_ends() {
        let queue = Queue::new(2);
        queue.push(vec![job(0, 0, 32, false)]).expect("there is room");
        queue.note(1, Duration::from_secs(3));
        assert_eq!(queue.push(vec![job(1, 0, 32, false), job(2, 0, 32, false)]), Err(Closed::Full(3)), "all or none");
        queue.push(vec![job(3, 0, 64, false)]).expect("there is room");
        assert_eq!(queue.push(vec![job(4, 0, 32, false)]), Err(Closed::Full(6)));
        let left = queue.batch(1).expect("there is a job");
        queue.close();
        assert_eq!(queue.push(left), Err(Closed::Stopping));
        assert_eq!(examples(queue.batch(1)), [3], "what waits is still answered");
        assert!(queue.batch(1).is_none());
    }

    #[test]
    fn clients_that_left_lose_their_place() {
        let queue = Queue::new(1);
        let left = job(0, 0, 32, false);
        let gone = left.gone.clone();
        queue.push(vec![left]).expect("there is room");
        gone.store(true, Ordering::Relaxed);
        queue.push(vec![job(1, 0, 32, false)]).expect("there is room again");
        assert_eq!(examples(queue.batch(4)), [1]);
    }
}
