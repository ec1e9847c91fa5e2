//! The largest batch that bounds the choices of a recipe's tasks, for the plan of its memory.

use super::MicroBatch;
use crate::data::Example;
use crate::data::chat_template::TextModel;
use crate::error::Result;
use crate::eval::choice;
use crate::eval::likelihood::MonteCarlo;
use crate::experiment::Experiment;

/// The largest batch, as `likelihood` packs them; `None` if no task has choices.
///
/// # Errors
/// A chat template that fails on a problem.
pub(super) fn batch(experiment: &Experiment, text: &TextModel, mask_token_id: u32) -> Result<Option<MicroBatch>> {
    let (mut all, mut answers, mut longest) = (0, 0, 0);
    for problem in experiment.tasks.iter().filter(|posed| posed.task.is_choice()).flat_map(|posed| &posed.problems) {
        for Example { prompt_ids, answer_ids } in choice::examples(text, problem, false, mask_token_id)? {
            let len = prompt_ids.len() + answer_ids.len();
            (all, answers, longest) = (all + len, answers + answer_ids.len(), longest.max(len));
        }
    }
    let drawn = all.saturating_mul(experiment.recipe.eval.mc_samples);
    let tokens = MonteCarlo::default().batch_tokens.min(drawn).max(longest);
    let masked = (tokens * answers).div_ceil(all.max(1));
    Ok((all > 0).then(|| MicroBatch { tokens, longest, masked, ..MicroBatch::default() }))
}

/// The larger of two batches in each of its sizes.
pub(super) fn larger(a: MicroBatch, b: MicroBatch) -> MicroBatch {
    MicroBatch {
        tokens: a.tokens.max(b.tokens),
        longest: a.longest.max(b.longest),
        masked: a.masked.max(b.masked),
        ..a
    }
}
