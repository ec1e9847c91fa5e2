//! Answers a task's problems and scores them, for `weft eval` and for a recipe's `[eval]` table: generates texts or
//! programs, or chooses among given answers.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::{Value, json};

use super::any_task::AnyTask;
use super::choice::{Chosen, choose};
use super::likelihood::MonteCarlo;
use super::sandbox::{Outcome, Sandbox, refusal};
use super::task_score::TaskScore;
use super::{Accuracy, Problem, Score, Task, accuracy};
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
    /// The generated text; for d1's tasks including end tokens and anything after them. For a choice, its text.
    pub generation: String,
    /// The ground truth of the task.
    pub ground_truth: Value,
    /// The score of the generation.
    pub score: Score,
    /// The work of generating it.
    pub work: Work,
    /// The bounds of the choices, if it was chosen.
    pub chosen: Option<Chosen>,
}

/// How problems are answered and scored.
#[derive(Clone, Debug, Default)]
pub struct Answering {
    /// The sampler's settings, for answers that are generated.
    pub sampling: Sampling,
    /// The draws of the bounds, for answers that are chosen.
    pub draws: MonteCarlo,
    /// Whether the prompts of choices are given to the model without its chat template.
    pub raw: bool,
    /// Where programs run; `None` doesn't run any.
    pub sandbox: Option<Sandbox>,
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

/// A base's scored answers to problems of a task, which are generated, or chosen among given ones by their likelihoods.
/// Batching doesn't change an answer.
///
/// # Errors
/// Sampling lengths that don't divide, or a chat template that fails; a task whose answers are programs, which only the
/// command runs.
pub fn evaluate(
    base: &Base,
    (task, problems): (Task, &[Problem]),
    sampling: &Sampling,
    progress: &Progress,
) -> Result<Vec<Generation>> {
    let how = Answering { sampling: sampling.clone(), ..Answering::default() };
    answer((&base.model, &base.text), (&task.into(), problems), &how, (&Solo, progress))
}

/// Answers and scores every problem, like [`evaluate`]. The ranks divide the problems, and each rank
/// returns all answers; programs run on the first rank's machine alone.
///
/// # Errors
/// Sampling lengths that don't divide, or a chat template that fails; programs without a place to run them.
pub fn answer(
    (model, text): (&Transformer, &TextModel),
    (task, problems): (&AnyTask, &[Problem]),
    how: &Answering,
    (ranks, progress): (&dyn Collective, &Progress),
) -> Result<Vec<Generation>> {
    if task.is_code() && how.sandbox.is_none() {
        return Err(refusal(task.name()));
    }
    if task.is_choice() {
        let chosen = choose((model, text), problems, (how.draws, how.raw), (ranks, progress))?;
        return Ok(problems.iter().zip(chosen).map(of_choice).collect());
    }
    let written = write((model, text), (task, problems), &how.sampling, (ranks, progress))?;
    let scores: Vec<Score> = match how.sandbox.as_ref().filter(|_| task.is_code()) {
        Some(sandbox) => run((task, problems), &written, (sandbox, ranks)),
        None => {
            let score = |(problem, (text, ..)): (&Problem, &Written)| {
                task.score(&problem.question, text, &problem.ground_truth)
            };
            problems.iter().zip(&written).map(score).collect()
        }
    };
    let scored = |((problem, (generation, forwards, rows)), score): ((&Problem, Written), Score)| {
        let Problem { question, ground_truth, .. } = problem.clone();
        Generation { question, generation, ground_truth, score, work: Work { forwards, rows }, chosen: None }
    };
    Ok(problems.iter().zip(written).zip(scores).map(scored).collect())
}

fn of_choice((problem, chosen): (&Problem, Chosen)) -> Generation {
    Generation {
        question: problem.question.clone(),
        generation: chosen.choices[chosen.best()].clone(),
        ground_truth: problem.ground_truth.clone(),
        score: chosen.score(&problem.ground_truth),
        work: Work::default(),
        chosen: Some(chosen),
    }
}

/// The scores of programs, which the first rank runs.
fn run(
    (task, problems): (&AnyTask, &[Problem]),
    written: &[Written],
    (sandbox, ranks): (&Sandbox, &dyn Collective),
) -> Vec<Score> {
    let outcomes: Vec<Value> = match ranks.is_first() {
        true => {
            let programs: Vec<_> =
                problems.iter().zip(written).map(|(p, w)| task.program(&w.0, &p.ground_truth)).collect();
            sandbox.run_all(&programs).into_iter().map(|outcome| told(&outcome)).collect()
        }
        false => vec![],
    };
    let bytes = ranks.bytes_of_first(&serde_json::to_vec(&outcomes).expect("texts are JSON"));
    let outcomes: Vec<Value> = serde_json::from_slice(&bytes).expect("the first rank wrote it");
    outcomes.into_iter().map(of_outcome).collect()
}

/// What a program's score says of it.
fn told(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Passed => PASSED.into(),
        Outcome::Failed(reason) => reason.as_str().into(),
    }
}

/// The outcome of a program whose tests passed.
const PASSED: &str = "passed";

/// The score of a program by what became of it.
pub(super) fn of_outcome(outcome: Value) -> Score {
    let correct = usize::from(outcome == PASSED);
    Score { extracted: outcome, correct, total: 1 }
}

/// The scores of programs that are stored.
pub(super) fn run_again(programs: &[super::code::Program], sandbox: &Sandbox) -> Vec<Score> {
    sandbox.run_all(programs).iter().map(|outcome| of_outcome(told(outcome))).collect()
}

/// Generates an answer to every problem.
fn write(
    (model, text): (&Transformer, &TextModel),
    (task, problems): (&AnyTask, &[Problem]),
    sampling: &Sampling,
    (ranks, progress): (&dyn Collective, &Progress),
) -> Result<Vec<Written>> {
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
            let ids = &output.ids[prompts[i].len()..];
            // d1 stores and scores all of the canvas.
            let answer = if task.kind().is_none() { text.decode_canvas(ids) } else { text.decode_answer(ids) };
            (answer, output.work.forwards, output.work.rows)
        };
        written.push(batch.iter().zip(outputs).map(text).collect());
        progress.add(batch.len() as u64);
    }
    progress.finish();
    // 2. Put all ranks' batches in order.
    let mut dealt = written_by_all(ranks, written);
    let in_order =
        (0..batches.len()).flat_map(|i| dealt[i % ranks.size()].pop_front().expect("a rank did its batches"));
    Ok(in_order.collect())
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

/// Writes the generations in d1's format, together with the task's score. A row of choices has their bounds besides, and a
/// row of a program its outcome.
///
/// # Errors
/// A file that can't be written.
pub fn save(path: &Path, task: &AnyTask, generations: &[Generation]) -> Result<()> {
    let row = |g: &Generation| {
        let mut row = json!({ "question": g.question, "generations": g.generation, "ground_truth": g.ground_truth });
        let fields = row.as_object_mut().expect("it is an object");
        if let Some(Chosen { choices, of }) = &g.chosen {
            let [bounds, errors] = [0, 1]
                .map(|part| -> Vec<f64> { of.bounds.iter().map(|b| [b.nll_bound, b.standard_error][part]).collect() });
            fields.extend([
                ("choices".to_owned(), json!(choices)),
                ("nll_bounds".to_owned(), json!(bounds)),
                ("standard_errors".to_owned(), json!(errors)),
                ("margin".to_owned(), json!({ "nats": of.margin, "standard_error": of.margin_error })),
            ]);
        }
        if task.is_code() {
            fields.insert("outcome".to_owned(), g.score.extracted.clone());
        }
        if task.kind().is_some() {
            fields.insert("correct".to_owned(), json!(g.score.correct));
        }
        row
    };
    let rows: Vec<Value> = generations.iter().map(row).collect();
    let metrics = TaskScore::of(task, generations).to_json();
    let text = serde_json::to_string_pretty(&json!({ "generations": rows, "metrics": metrics }));
    write_whole(path, text.expect("JSON values print").as_bytes())
}
