//! What ranks send each other in a step: bytes by formula, checked against what the ranks of real runs count as sent.

use serde::Serialize;
use weft_kernels::adamw::CHUNK;

use super::batches::Batches;
use crate::model::block::Transformer;
use crate::recipe::Recipe;

/// The bytes that a rank sends in a mean step, and how evenly tokens are spread over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Communication {
    /// The number of ranks.
    pub ranks: usize,
    /// Gradients sent to the ranks that sum them: `4 P (N - 1) / N` for `P` trained numbers on `N` ranks.
    pub gradient_bytes: f64,
    /// Updated numbers sent to all ranks: as many bytes as for gradients, or half as many for what the ranks hold in
    /// bf16.
    pub update_bytes: f64,
    /// What is gathered about answers (mostly entropies), sums of squares and losses.
    pub gathered_bytes: f64,
    /// Tokens of each step's most loaded rank divided by the mean: the other ranks wait for it.
    pub imbalance: f64,
}

/// Bytes gathered for each answer besides its entropies.
const HEADER: f64 = 64.0;

impl Communication {
    /// The communication of a recipe's steps on this number of ranks.
    pub(super) fn of(model: &Transformer, recipe: &Recipe, batches: &Batches, ranks: usize) -> Self {
        let len = |id: usize| model.params[id].weight.rows() * model.params[id].weight.cols();
        let trained = (0..model.params.len()).filter(|id| model.params[*id].trainable);
        let rounded: usize = trained.clone().filter(|id| model.is_split(*id, ranks)).map(len).sum();
        let chunks: usize = trained.clone().map(|id| len(id).div_ceil(CHUNK)).sum();
        let others = (ranks - 1) as f64 / ranks as f64;
        let trained = trained.map(len).sum::<usize>() as f64;
        // The answers of a mean step, over all ranks.
        let answers = (recipe.train.global_batch_size() * ranks) as f64;
        let [_, _, answer_tokens, _] = batches.mean;
        let per_token = if recipe.objective.kind.needs_entropy() { 8.0 } else { 0.0 };
        let losses = 8.0 * (recipe.train.grad_accum_steps * ranks) as f64;
        let gathered = HEADER * answers + per_token * answer_tokens * ranks as f64 + 8.0 * chunks as f64 + losses;
        Self {
            ranks,
            gradient_bytes: 4.0 * trained * others,
            update_bytes: (4.0 * trained - 2.0 * rounded as f64) * others,
            gathered_bytes: gathered * others,
            imbalance: batches.imbalance,
        }
    }

    /// All bytes together.
    pub fn sent_bytes(&self) -> f64 {
        self.gradient_bytes + self.update_bytes + self.gathered_bytes
    }
}
