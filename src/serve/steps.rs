//! The events that the playground gets for a canvas after every step: the tokens that the step found, the confidence of each,
//! and the entropy of every prediction. They are computed by evaluating the network once more on the canvas before the step.

use serde_json::{Value, json};

use super::queue::Job;
use crate::data::chat_template::TextModel;
use crate::model::batch::{AttentionKind, Batch};
use crate::model::block::Transformer;
use crate::report::entropy_map::{ShownToken, shown_tokens};
use crate::report::visible::visible;
use crate::sampler::remasking::Loop;

/// A canvas that is watched.
pub(super) struct Steps<'a> {
    model: &'a Transformer,
    text: &'a TextModel,
    job: &'a Job,
    /// The canvas before the step.
    before: Vec<u32>,
    count: usize,
}

/// A masked token's prediction.
struct Predicted {
    entropy: f64,
    /// The probability of the token that was found there, if one was.
    confidence: Option<f64>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(model: &'a Transformer, text: &'a TextModel, job: &'a Job) -> Self {
        let mut before = job.ids.to_vec();
        before.resize(job.ids.len() + job.sampling.gen_length, model.config.mask_token_id);
        Self { model, text, job, before, count: 0 }
    }

    /// The event before the first step.
    pub(super) fn start(&self) -> Value {
        let sampling = &self.job.sampling;
        json!({
            "event": "start",
            "prompt_tokens": self.job.ids.len(),
            "gen_length": sampling.gen_length,
            "block_length": sampling.block_length,
            "diffusion_steps": sampling.diffusion_steps,
            "remasking": sampling.remasking.map(|remasking| remasking.name()),
        })
    }

    /// The event of a step: `[position, text, confidence]` of each new token, and `[position, entropy]`, in nats, of each
    /// token that was masked before the step.
    pub(super) fn step(&mut self, canvas: &[u32]) -> Value {
        self.count += 1;
        let (mask, start) = (self.model.config.mask_token_id, self.job.ids.len());
        let masked: Vec<usize> = (start..canvas.len()).filter(|at| self.before[*at] == mask).collect();
        let predicted = self.predicted(&masked, canvas);
        let rounded = |x: f64| (x * 1e4).round() / 1e4;
        let (mut found, mut entropies, mut ends) = (vec![], vec![], vec![]);
        for (at, Predicted { entropy, confidence }) in masked.iter().zip(predicted) {
            entropies.push(json!([at - start, rounded(entropy)]));
            match confidence {
                Some(confidence) => found.push(json!([at - start, self.shown(canvas[*at]), rounded(confidence)])),
                None if canvas[*at] != mask => ends.push(at - start),
                None => {}
            }
        }
        self.before = canvas.to_vec();
        json!({ "event": "step", "step": self.count, "found": found, "filled": ends, "entropy": entropies })
    }

    /// The event at the end: the tokens of the whole answer, in which tokens that are parts of one character show that
    /// character.
    pub(super) fn end(&self, answer: &[u32]) -> Value {
        let shown = |ShownToken { text, part }: ShownToken| json!([visible(&text), part]);
        let ends = self.text.end_token_ids();
        let end = answer.iter().position(|id| ends.contains(id));
        let tokens: Vec<Value> = shown_tokens(self.text, answer).into_iter().map(shown).collect();
        json!({ "event": "tokens", "tokens": tokens, "end": end })
    }

    fn shown(&self, id: u32) -> String {
        visible(&self.text.decode_canvas(&[id])).into_owned()
    }

    /// The predictions of masked tokens before the step that led to `canvas`. A token after the end of the answer was filled in,
    /// not predicted, so it has no confidence.
    fn predicted(&self, masked: &[usize], canvas: &[u32]) -> Vec<Predicted> {
        let sampling = &self.job.sampling;
        let mask = self.model.config.mask_token_id;
        let (ids, kind) = match sampling.is_block_causal() {
            false => (self.before.clone(), AttentionKind::Bidirectional),
            true => {
                // The canvas of such a model reaches to the end of its last block.
                let mut ids = self.before.clone();
                ids.resize(ids.len().next_multiple_of(sampling.block_length), mask);
                (ids, AttentionKind::BlockCausal { block_length: sampling.block_length })
            }
        };
        let batch = Batch::pack_as(kind, [[ids.as_slice(); 2]]);
        let filled = self.filled(canvas);
        let vocab = self.model.params[self.model.head.weight].weight.rows();
        let mut predicted = Vec::with_capacity(masked.len());
        self.model.for_each_logits(&batch, masked, |first, logits| {
            for (at, row) in masked[first..].iter().zip(logits.chunks(vocab)) {
                let is_found = canvas[*at] != mask && filled.is_none_or(|filled| *at < filled);
                predicted.push(prediction(row, is_found.then_some(canvas[*at] as usize)));
            }
        });
        predicted
    }

    /// If the step ended the answer, the position from which end tokens fill the rest of it.
    fn filled(&self, canvas: &[u32]) -> Option<usize> {
        let sampling = &self.job.sampling;
        let mask = self.model.config.mask_token_id;
        let in_blocks = sampling.remasking.is_some_and(|remasking| remasking.sampling_loop() == Loop::Llada);
        let ends_early = sampling.is_block_causal() || in_blocks;
        if !ends_early || canvas.contains(&mask) || sampling.whole_canvas {
            return None;
        }
        let first = (self.job.ids.len()..canvas.len()).find(|at| self.before[*at] == mask)?;
        let origin = if sampling.is_block_causal() { 0 } else { self.job.ids.len() };
        Some(origin + (first - origin + 1).next_multiple_of(sampling.block_length))
    }
}

/// The entropy of a row of logits, in nats, and the probability of a token.
fn prediction(logits: &[f32], token: Option<usize>) -> Predicted {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let (mut sum, mut weighted) = (0.0, 0.0);
    for z in logits {
        let z = f64::from(*z) - max;
        let e = z.exp();
        sum += e;
        weighted += e * z;
    }
    let entropy = (sum.ln() - weighted / sum).max(0.0);
    Predicted { entropy, confidence: token.map(|token| (f64::from(logits[token]) - max).exp() / sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_and_confidences() {
        let Predicted { entropy, confidence } = prediction(&[3.0; 4], Some(2));
        assert!((entropy - 4f64.ln()).abs() < 1e-12 && confidence == Some(0.25));
        let Predicted { entropy, confidence } = prediction(&[0.0, 2f32.ln()], Some(1));
        let expected = -(1.0 / 3.0 * (1f64 / 3.0).ln() + 2.0 / 3.0 * (2f64 / 3.0).ln());
        assert!((entropy - expected).abs() < 1e-6 && (confidence.expect("it was found") - 2.0 / 3.0).abs() < 1e-6);
    }
}
