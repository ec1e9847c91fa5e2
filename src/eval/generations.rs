//! Generating answers to a task's problems and scoring them: the run behind `weft eval` and a recipe's `eval` table.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{Accuracy, Problem, Score, Task, accuracy, score};
use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::model::block::Transformer;
use crate::sampler::cache::Work;
use crate::sampler::generate::{Prompt, Sampling, generate};

/// Most tokens of a batch, prompts and answers together.
const BATCH_TOKENS: usize = 4096;

/// An answered problem.
#[derive(Clone, Debug)]
pub struct Generation {
    /// What was asked.
    pub question: String,
    /// What the model wrote, end tokens and what follows them included.
    pub generation: String,
    /// The task's truth.
    pub ground_truth: Value,
    /// What the scorer made of it.
    pub score: Score,
    /// What it took to generate.
    pub work: Work,
}

/// Answers and scores every problem. Problems are batched; each gets what it would get alone.
///
/// # Errors
/// Sampling lengths that don't divide, or a chat template that fails.
pub fn answer(
    (model, text): (&Transformer, &TextModel),
    (task, problems): (Task, &[Problem]),
    sampling: &Sampling,
    bar: &ProgressBar,
) -> Result<Vec<Generation>> {
    let sampling = Sampling { eos_token_ids: text.end_token_ids(), ..sampling.clone() };
    sampling.check().map_err(Error::Usage)?;
    let prompts = prompt_ids(text, problems)?;
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    bar.set_length(problems.len() as u64);
    let style =
        ProgressStyle::with_template("{bar:24} {pos}/{len} problems  {eta} left").expect("the template is valid");
    bar.set_style(style);
    let mut generations = Vec::with_capacity(problems.len());
    for count in batch_sizes(&lengths, sampling.gen_length) {
        let first = generations.len();
        let batch: Vec<Prompt> =
            (first..first + count).map(|i| Prompt { ids: &prompts[i], example: i as u64 }).collect();
        let outputs = generate(model, &batch, &sampling).map_err(Error::Usage)?;
        for (i, output) in (first..).zip(outputs) {
            let Problem { question, ground_truth, .. } = problems[i].clone();
            let generation = text.decode_canvas(&output.ids[prompts[i].len()..]);
            let score = score(task, &question, &generation, &ground_truth);
            generations.push(Generation { question, generation, ground_truth, score, work: output.work });
        }
        bar.set_position(generations.len() as u64);
    }
    bar.finish_and_clear();
    Ok(generations)
}

/// The tokens that the model is asked with.
///
/// # Errors
/// A chat template that fails.
pub fn prompt_ids(text: &TextModel, problems: &[Problem]) -> Result<Vec<Vec<u32>>> {
    let prompt = |problem: &Problem| -> Result<Vec<u32>> {
        let mut ids = text.prompt_ids(&problem.prompt)?;
        ids.extend(text.encode(&problem.prefill)?);
        Ok(ids)
    };
    problems.iter().map(prompt).collect()
}

/// How many prompts of such lengths are answered at a time.
pub fn batch_sizes(prompts: &[usize], gen_length: usize) -> Vec<usize> {
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

/// The accuracy of some generations.
pub fn accuracy_of(generations: &[Generation]) -> Accuracy {
    let scores: Vec<Score> = generations.iter().map(|g| g.score.clone()).collect();
    accuracy(&scores)
}

/// Writes the generations as d1 does, with the accuracy beside them.
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
