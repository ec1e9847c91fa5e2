//! Generates answers to a task's problems and scores them, for `weft eval` and for a recipe's `[eval]` table.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::{Value, json};

use super::{Accuracy, Problem, Score, Task, accuracy, score};
use crate::base::Base;
use crate::data::Message;
use crate::data::chat_template::TextModel;
use crate::error::Result;
use crate::files::write_whole;
use crate::model::block::Transformer;
use crate::parallel::collective::{Collective, Solo};
use crate::progress::{Progress, Unit};
use crate::sampler::cache::Work;
use crate::sampler::generate::{Output, Prompt, Sampling, generate};

/// The largest number of tokens in a batch, prompts and answers together.
const BATCH_TOKENS: usize = 4096;

/// An answered problem.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The question.
    pub question: String,
    /// The generated text, including end tokens and anything after them.
    pub generation: String,
    /// The ground truth of the task.
    pub ground_truth: Value,
    /// The score of the generation.
    pub score: Score,
    /// The work of generating it.
    pub work: Work,
}

/// A base's answer to a single-turn question, up to the first end token.
///
/// # Errors
/// Sampling lengths that don't divide, or a chat template that fails.
pub fn ask(base: &Base, question: &str, sampling: &Sampling) -> Result<String> {
    let ids = base.text.prompt_ids(&[Message { role: "user".to_owned(), content: question.to_owned() }])?;
    let sampling = Sampling { eos_token_ids: base.text.end_token_ids(), ..sampling.clone() };
    let output = generate(&base.model, &[Prompt { ids: &ids, example: 0 }], &sampling)?.remove(0);
    Ok(base.text.decode_answer(&output.ids[ids.len()..]))
}

/// A base's scored answers to problems of a task. Batching doesn't change an answer.
///
/// # Errors
/// Sampling lengths that don't divide, or a chat template that fails.
pub fn evaluate(
    base: &Base,
    (task, problems): (Task, &[Problem]),
    sampling: &Sampling,
    progress: &Progress,
) -> Result<Vec<Generation>> {
    answer((&base.model, &base.text), (task, problems), sampling, (&Solo, progress))
}

/// Answers and scores every problem, like [`evaluate`]. The ranks divide the batches, and each rank
/// returns all answers.
///
/// # Errors
/// Sampling lengths that don't divide, or a chat template that fails.
pub fn answer(
    (model, text): (&Transformer, &TextModel),
    (task, problems): (Task, &[Problem]),
    sampling: &Sampling,
    (ranks, progress): (&dyn Collective, &Progress),
) -> Result<Vec<Generation>> {
    let sampling = Sampling { eos_token_ids: text.end_token_ids(), ..sampling.clone() };
    sampling.check()?;
    let prompts = prompt_ids(text, problems)?;
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    // 1. Generate this rank's batches.
    let all: Vec<usize> = (0..problems.len()).collect();
    let mut rest = &*all;
    let batch = |count: usize| {
        let batch;
        (batch, rest) = rest.split_at(count);
        batch
    };
    let batches: Vec<&[usize]> = batch_sizes(&lengths, sampling.gen_length).into_iter().map(batch).collect();
    let own: Vec<&[usize]> = batches.iter().copied().skip(ranks.rank()).step_by(ranks.size()).collect();
    progress.begin(Unit::Problems, Some(own.iter().map(|batch| batch.len() as u64).sum()));
    let mut written: Vec<Vec<Written>> = vec![];
    for batch in own {
        let asked: Vec<Prompt> = batch.iter().map(|&i| Prompt { ids: &prompts[i], example: i as u64 }).collect();
        let outputs = generate(model, &asked, &sampling)?;
        let text = |(&i, output): (&usize, Output)| {
            (text.decode_canvas(&output.ids[prompts[i].len()..]), output.work.forwards, output.work.rows)
        };
        written.push(batch.iter().zip(outputs).map(text).collect());
        progress.add(batch.len() as u64);
    }
    progress.finish();
    // 2. Put all ranks' batches in order and score them.
    let mut dealt = written_by_all(ranks, written);
    let in_order =
        (0..batches.len()).flat_map(|i| dealt[i % ranks.size()].pop_front().expect("a rank did its batches"));
    let scored = |(problem, (generation, forwards, rows)): (&Problem, Written)| {
        let Problem { question, ground_truth, .. } = problem.clone();
        let score = score(task, &question, &generation, &ground_truth);
        Generation { question, generation, ground_truth, score, work: Work { forwards, rows } }
    };
    Ok(problems.iter().zip(in_order).map(scored).collect())
}

/// A generation with the number of forwards and of rows that it took.
type Written = (String, u64, u64);

/// The batches of every rank.
fn written_by_all(ranks: &dyn Collective, own: Vec<Vec<Written>>) -> Vec<VecDeque<Vec<Written>>> {
    if ranks.size() == 1 {
        return vec![own.into()];
    }
    let bytes = serde_json::to_vec(&own).expect("texts are JSON");
    let of_rank = |bytes: Vec<u8>| serde_json::from_slice(&bytes).expect("every rank writes the same form");
    ranks.all_gather_bytes(&bytes).into_iter().map(of_rank).collect()
}

/// The tokens of each problem's prompt, the beginning of the answer included.
///
/// # Errors
/// A chat template that fails.
pub fn prompt_ids(text: &TextModel, problems: &[Problem]) -> Result<Vec<Vec<u32>>> {
    let prompt = |problem: &Problem| -> Result<Vec<u32>> {
        let mut ids = text.prompt_ids_of_turns(&problem.prompt.turns, problem.prompt.tools.as_ref())?;
        ids.extend(text.encode(&problem.prefill)?);
        Ok(ids)
    };
    problems.iter().map(prompt).collect()
}

/// Divides prompts of these lengths into batches; returns the batch sizes.
pub(crate) fn batch_sizes(prompts: &[usize], gen_length: usize) -> Vec<usize> {
    let (mut sizes, mut tokens) = (vec![], 0);
    for prompt in prompts {
        tokens += prompt + gen_length;
        match sizes.last_mut() {
            Some(size) if tokens <= BATCH_TOKENS => *size += 1,
            _ => {
                tokens = prompt + gen_length;
                sizes.push(1);
            }
        }
    }
    sizes
}

/// The accuracy of these generations.
pub fn accuracy_of(generations: &[Generation]) -> Accuracy {
    let scores: Vec<Score> = generations.iter().map(|g| g.score.clone()).collect();
    accuracy(&scores)
}

/// Writes the generations in d1's format, together with the accuracy.
///
/// # Errors
/// A file that can't be written.
pub fn save(path: &Path, task: Task, generations: &[Generation]) -> Result<()> {
    let Accuracy { accuracy, standard_error, correct, total } = accuracy_of(generations);
    let rows: Vec<Value> = generations
        .iter()
        .map(|g| json!({ "question": g.question, "generations": g.generation, "ground_truth": g.ground_truth }))
        .collect();
    let metrics = json!({
        "task": task,
        "problems": generations.len(),
        "accuracy": accuracy,
        "standard_error": standard_error,
        "correct": correct,
        "total": total,
    });
    let text = serde_json::to_string_pretty(&json!({ "generations": rows, "metrics": metrics }));
    write_whole(path, text.expect("JSON values print").as_bytes())
}
