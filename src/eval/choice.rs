//! Chooses among given answers by the bounds of their likelihoods, with paired draws: what differs between two choices of a
//! question is the choices, not the masks. The bound itself is in `likelihood`.

use std::collections::VecDeque;

use serde_json::Value;

use super::likelihood::{MonteCarlo, NllBound, START, Sampled, check, keyed_bounds, standard_error};
use super::{Problem, Score};
use crate::data::Example;
use crate::data::chat_template::TextModel;
use crate::error::{Error, Result};
use crate::model::block::Transformer;
use crate::parallel::collective::Collective;
use crate::progress::Progress;
use crate::rng::{Draws, Stream};

/// The bounds of a question's choices.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedBounds {
    /// Each choice's bound, in the order of the choices.
    pub bounds: Vec<NllBound>,
    /// How far the lowest bound lies below the next one, in nats.
    pub margin: f64,
    /// The Monte Carlo standard error of that difference, in nats; the draws are paired, so that it is smaller than the
    /// bounds' own errors suggest.
    pub margin_error: f64,
}

impl PairedBounds {
    fn as_numbers(&self) -> Vec<f64> {
        let of = |bound: &NllBound| [bound.nll_bound, bound.standard_error, bound.answer_tokens as f64];
        self.bounds.iter().flat_map(of).chain([self.margin, self.margin_error]).collect()
    }

    fn from_numbers(choices: usize, numbers: &mut VecDeque<f64>) -> Self {
        let mut next = || numbers.pop_front().expect("a rank sent the numbers of its questions");
        let mut bound = || NllBound { nll_bound: next(), standard_error: next(), answer_tokens: next() as usize };
        let bounds = (0..choices).map(|_| bound()).collect();
        Self { bounds, margin: next(), margin_error: next() }
    }
}

/// A question's choices with their bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The choices.
    pub choices: Vec<String>,
    /// Their bounds.
    pub of: PairedBounds,
}

/// The margin, in standard errors, below which another seed may choose otherwise.
const SETTLED: f64 = 2.0;

impl Chosen {
    /// The choice of the lowest bound, the first one of several.
    pub fn best(&self) -> usize {
        lowest(self.of.bounds.iter().map(|bound| bound.nll_bound))
    }

    /// The choice of the lowest bound per byte of its text.
    ///
    /// # Source
    /// `acc_norm` of lm-evaluation-harness, there per character.
    pub fn best_per_byte(&self) -> usize {
        let per_byte = |(bound, choice): (&NllBound, &String)| bound.nll_bound / choice.len().max(1) as f64;
        lowest(self.of.bounds.iter().zip(&self.choices).map(per_byte))
    }

    /// Whether the best choice leads by more than two Monte Carlo standard errors.
    pub fn is_settled(&self) -> bool {
        self.of.margin > SETTLED * self.of.margin_error
    }

    /// The score of the choice of the lowest bound.
    pub fn score(&self, ground_truth: &Value) -> Score {
        let best = self.best();
        let is_correct = ground_truth.as_u64() == Some(best as u64);
        Score { extracted: self.choices[best].as_str().into(), correct: usize::from(is_correct), total: 1 }
    }
}

/// The index of the lowest number; the first one of several.
fn lowest(numbers: impl Iterator<Item = f64>) -> usize {
    let lower = |best: (usize, f64), next: (usize, f64)| if next.1 < best.1 { next } else { best };
    numbers.enumerate().reduce(lower).map_or(0, |(index, _)| index)
}

/// Bounds the choices of each question, which comes with the key of its draws. The choices of a question share every draw:
/// a sample's share of masked tokens, and the order in which it masks the positions of the answer. A choice of `L` tokens
/// masks those `l` of its positions that come first in this order, with `l` the share of `L`; so choices of one length
/// have the same masks, and each choice by itself is drawn as [`super::likelihood::nll_bounds`] draws it.
///
/// # Errors
/// Fewer than two samples; fewer than two choices; an empty choice.
pub fn paired_bounds(
    model: &Transformer,
    questions: &[(u64, Vec<Example>)],
    settings: MonteCarlo,
    progress: &Progress,
) -> Result<Vec<PairedBounds>> {
    check(settings.mc_samples, questions.iter().flat_map(|(_, choices)| choices))?;
    if let Some((key, _)) = questions.iter().find(|(_, choices)| choices.len() < 2) {
        return Err(Error::Usage(format!("question {key} has fewer than two choices; give it at least two")));
    }
    let keyed: Vec<(u64, &Example)> =
        questions.iter().flat_map(|(key, choices)| choices.iter().map(move |choice| (*key, choice))).collect();
    let mut sampled = keyed_bounds(model, &keyed, settings, progress).into_iter();
    let of_question = |(key, choices): &(u64, Vec<Example>)| {
        let own: Vec<Sampled> = sampled.by_ref().take(choices.len()).collect();
        paired(&own, first_wrapped(*key, settings))
    };
    Ok(questions.iter().map(of_question).collect())
}

/// The number of the sample with the fewest masked tokens: the samples' shares rise from a random start and wrap around.
fn first_wrapped(key: u64, MonteCarlo { mc_samples, seed, .. }: MonteCarlo) -> usize {
    let start = Draws::new(seed, Stream::Likelihood, START, key).unit_f64(0);
    ((1.0 - start) * mc_samples as f64).ceil() as usize % mc_samples
}

fn paired(choices: &[Sampled], first: usize) -> PairedBounds {
    let bound = |index: usize| choices[index].bound.nll_bound;
    let best = lowest((0..choices.len()).map(bound));
    let others: Vec<usize> = (0..choices.len()).filter(|index| *index != best).collect();
    let next = others[lowest(others.iter().map(|index| bound(*index)))];
    let differences = choices[next].estimates.iter().zip(&choices[best].estimates).map(|(next, best)| next - best);
    let mut differences: Vec<f64> = differences.collect();
    differences.rotate_left(first);
    PairedBounds {
        bounds: choices.iter().map(|sampled| sampled.bound).collect(),
        margin: bound(next) - bound(best),
        margin_error: standard_error(&differences),
    }
}

/// The choices of a problem as answers to its prompt. With a chat template, the prompt is rendered with it and a choice is
/// the beginning of the assistant's turn, without an end token. Without one, or where the prompt is `raw`, a choice
/// continues the prompt's text after a space.
///
/// # Errors
/// A chat template that fails; a choice without tokens; a text that holds the mask token.
///
/// # Source
/// `_encode_pair` of LLaDA's `eval_llada.py` for the raw form, and lm-evaluation-harness's `apply_chat_template`.
pub fn examples(text: &TextModel, problem: &Problem, raw: bool, mask_token_id: u32) -> Result<Vec<Example>> {
    let Problem { prompt, prefill, choices, .. } = problem;
    let examples: Vec<Example> = if raw || !text.has_template() {
        let turns: Vec<&str> = prompt.turns.iter().map(|turn| turn.text()).collect();
        let context = turns.join("\n\n") + prefill;
        choices.iter().map(|choice| continued(text, context.trim_end(), choice)).collect::<Result<_>>()?
    } else {
        let mut prompt_ids = text.prompt_ids_of_turns(&prompt.turns, prompt.tools.as_ref())?;
        prompt_ids.extend(text.encode(prefill)?);
        let example = |choice: &String| -> Result<Example> {
            Ok(Example { prompt_ids: prompt_ids.clone(), answer_ids: text.encode(choice)? })
        };
        choices.iter().map(example).collect::<Result<_>>()?
    };
    for (example, choice) in examples.iter().zip(choices) {
        let wrong = |what: &str| Error::Usage(format!("the choice {choice:.40?} of {:.40?} {what}", problem.question));
        if example.answer_ids.is_empty() {
            return Err(wrong("has no tokens; give it a text"));
        }
        if example.prompt_ids.iter().chain(&example.answer_ids).any(|id| *id == mask_token_id) {
            return Err(wrong("or its prompt contains the mask token; remove it"));
        }
    }
    Ok(examples)
}

/// A choice after a text that isn't rendered: the tokens of the whole beyond those of the context.
fn continued(text: &TextModel, context: &str, choice: &str) -> Result<Example> {
    let prompt_ids = text.encode(context)?;
    let separator = if context.is_empty() { "" } else { " " };
    let continuation = format!("{separator}{choice}");
    let whole = text.encode(&format!("{context}{continuation}"))?;
    let answer_ids = match whole.strip_prefix(prompt_ids.as_slice()) {
        Some(answer_ids) => answer_ids.to_vec(),
        // A token spans the border.
        None => text.encode(&continuation)?,
    };
    Ok(Example { prompt_ids, answer_ids })
}

/// Bounds the choices of every problem. The ranks divide the problems, and each rank returns all of them.
///
/// # Errors
/// The errors of [`examples`] and [`paired_bounds`].
pub(super) fn choose(
    (model, text): (&Transformer, &TextModel),
    problems: &[Problem],
    (settings, raw): (MonteCarlo, bool),
    (ranks, progress): (&dyn Collective, &Progress),
) -> Result<Vec<Chosen>> {
    let own = (0..).zip(problems).skip(ranks.rank()).step_by(ranks.size());
    let questions =
        own.map(|(key, problem): (u64, &Problem)| Ok((key, examples(text, problem, raw, model.config.mask_token_id)?)));
    let questions: Vec<(u64, Vec<Example>)> = questions.collect::<Result<_>>()?;
    let bounds = paired_bounds(model, &questions, settings, progress)?;
    let numbers: Vec<f64> = bounds.iter().flat_map(PairedBounds::as_numbers).collect();
    let mut dealt: Vec<VecDeque<f64>> = ranks.all_gather_f64(&numbers).into_iter().map(VecDeque::from).collect();
    let chosen = |(index, problem): (usize, &Problem)| Chosen {
        choices: problem.choices.clone(),
        of: PairedBounds::from_numbers(problem.choices.len(), &mut dealt[index % ranks.size()]),
    };
    Ok(problems.iter().enumerate().map(chosen).collect())
}
