//! Sampling with block-causal attention, for models that were trained with it: block after block, and within a block as in
//! LLaDA's loop. A token sees its own block and those before it, so a finished block never changes again: its keys and values stay
//! in a cache, and the tokens are those that recomputing every row would give.
//!
//! Blocks are counted from the start of the prompt, as in training, so the first one may hold the prompt's end. The canvas
//! reaches to the end of its last block; tokens beyond the answer's length are cut off. Every prompt of a batch advances
//! by itself: none waits for another's block.

use std::ops::Range;

use weft_kernels::predict::{Guidance, Prediction, RowDraw, Rule};
use weft_kernels::tensor::Tensor;

use super::cache::Work;
use super::generate::{Output, Prompt, Sampling, Watch};
use super::remasking::{Remasking, confident, most_confident, num_transfer_tokens};
use crate::model::batch::{AttentionKind, Batch};
use crate::model::block::Transformer;
use crate::model::cached::{KeysValues, Part};
use crate::rng::{Draws, Stream};

/// An answer that is being generated.
struct Canvas {
    /// Prompt and answer, up to the end of a block.
    ids: Vec<u32>,
    /// Where the answer starts and ends.
    answer: Range<usize>,
    /// The block that is being denoised.
    block: Range<usize>,
    /// How many tokens are unmasked at each remaining step of the block.
    counts: Vec<usize>,
    /// The number of steps so far, which names their draws.
    steps: u64,
    /// The rows before this one have their last keys and values in the cache.
    stored: usize,
    is_done: bool,
    work: Work,
}

/// Answers the prompts of a batch, until each one is answered or unwanted. The settings must have the model's attention and
/// remasking.
///
/// # Source
/// BD3LM, arXiv 2503.09573, section 5: semi-autoregressive sampling with cached blocks.
pub(super) fn generate(model: &Transformer, prompts: &[Prompt], sampling: &Sampling, watch: Watch) -> Vec<Output> {
    let mut canvases: Vec<Canvas> = prompts.iter().map(|prompt| Canvas::new(prompt, sampling, model)).collect();
    let mut caches: [Option<KeysValues>; 2] = [None, None];
    loop {
        canvases.iter_mut().enumerate().for_each(|(i, canvas)| canvas.is_done |= watch.is_unwanted(i));
        if canvases.iter().all(|canvas| canvas.is_done) {
            break;
        }
        // 1. Predict the masked tokens of every canvas's block, and with guidance without the prompts too.
        let masked: Vec<Vec<usize>> = canvases.iter().map(|canvas| canvas.masked(model)).collect();
        let x = head_inputs(model, &mut canvases, &masked, &mut caches[0], None);
        let without_prompts = (sampling.cfg_scale > 0.0).then(|| {
            let mask = Some(model.config.mask_token_id);
            head_inputs(model, &mut canvases, &masked, &mut caches[1], mask)
        });
        canvases.iter_mut().filter(|canvas| !canvas.is_done).for_each(|canvas| canvas.stored = canvas.block.start);
        let guidance = without_prompts.as_ref().map(|x| Guidance { x, scale: sampling.cfg_scale as f32 });
        let draws = |canvas: &Canvas, prompt: &Prompt| {
            Draws::new(sampling.seed, Stream::Sampling, canvas.steps, prompt.example)
        };
        let of_canvas = |((canvas, prompt), at): ((&Canvas, &Prompt), &Vec<usize>)| -> Vec<RowDraw> {
            let key = draws(canvas, prompt).row_key();
            at.iter().map(|at| RowDraw { key, position: *at as u32 }).collect()
        };
        let row_draws: Vec<RowDraw> = canvases.iter().zip(prompts).zip(&masked).flat_map(of_canvas).collect();
        let forbidden = if sampling.forbid_eos { sampling.eos_token_ids.as_slice() } else { &[] };
        let excluded = Some(model.config.mask_token_id);
        let rule = Rule { excluded, noise: sampling.temperature, forbidden, ..Rule::GREEDY };
        let mut predictions = model.predict(&x, guidance, &row_draws, &rule).into_iter();
        // 2. Keep the most confident of each canvas, and go on to the next block where one is finished.
        for ((canvas, prompt), positions) in canvases.iter_mut().zip(prompts).zip(&masked) {
            let own: Vec<Prediction> = predictions.by_ref().take(positions.len()).collect();
            if !canvas.is_done {
                let draws = draws(canvas, prompt);
                canvas.keep(positions, &own, sampling, &draws);
                canvas.go_on(sampling, model);
            }
        }
        let shown: Vec<Vec<u32>> = canvases.iter().map(|canvas| canvas.ids[..canvas.answer.end].to_vec()).collect();
        (watch.after_step)(&shown);
    }
    let output = |canvas: Canvas| {
        let mut ids = canvas.ids;
        ids.truncate(canvas.answer.end);
        Output { ids, work: canvas.work }
    };
    canvases.into_iter().map(output).collect()
}

/// The head's inputs `[masked tokens of all canvases, D]`. Rows whose keys and values are in the cache aren't computed.
/// With `without_prompts`, that token stands in place of the prompts.
fn head_inputs(
    model: &Transformer,
    canvases: &mut [Canvas],
    masked: &[Vec<usize>],
    cache: &mut Option<KeysValues>,
    without_prompts: Option<u32>,
) -> Tensor {
    let ids = |canvas: &Canvas| {
        let mut ids = canvas.ids.clone();
        without_prompts.iter().for_each(|mask| ids[..canvas.answer.start].fill(*mask));
        ids
    };
    let ids: Vec<Vec<u32>> = canvases.iter().map(ids).collect();
    let block_length = canvases.first().map_or(1, Canvas::block_length);
    let kind = AttentionKind::BlockCausal { block_length };
    let batch = Batch::pack_as(kind, ids.iter().map(|ids| [ids.as_slice(); 2]));
    let (mut computed, mut predicted) = (vec![], vec![]);
    for ((canvas, sequence), masked) in canvases.iter_mut().zip(&batch.sequences).zip(masked) {
        let rows = canvas.rows(model.config.logits_shifted);
        canvas.work = canvas.work + Work { forwards: u64::from(!rows.is_empty()), rows: rows.len() as u64 };
        computed.extend(rows.map(|row| sequence.start + row));
        predicted.extend(masked.iter().map(|at| sequence.start + at));
    }
    let cache = cache.get_or_insert_with(|| KeysValues::new(model, &batch));
    model.predicting_inputs_cached(&batch, cache, Part { computed: &computed, predicted: &predicted })
}

impl Canvas {
    fn new(prompt: &Prompt, sampling: &Sampling, model: &Transformer) -> Self {
        let (start, block_length) = (prompt.ids.len(), sampling.block_length);
        let answer = start..start + sampling.gen_length;
        let mut ids = prompt.ids.to_vec();
        ids.resize(answer.end.next_multiple_of(block_length), model.config.mask_token_id);
        let first = start - start % block_length;
        let block = first..first + block_length;
        let mut canvas =
            Self { ids, answer, block, counts: vec![], steps: 0, stored: 0, is_done: false, work: Work::default() };
        canvas.count_steps(sampling, model);
        canvas
    }

    fn block_length(&self) -> usize {
        self.block.len()
    }

    /// The block's masked positions; none once the answer is done.
    fn masked(&self, model: &Transformer) -> Vec<usize> {
        let is_masked = |at: &usize| self.ids[*at] == model.config.mask_token_id;
        if self.is_done { vec![] } else { self.block.clone().filter(is_masked).collect() }
    }

    /// The rows that a step computes: the block, what isn't in the cache for good, and the row before a block that
    /// predicts its first token where logits are shifted.
    fn rows(&self, logits_shifted: bool) -> Range<usize> {
        let before = self.block.start.saturating_sub(usize::from(logits_shifted));
        if self.is_done { 0..0 } else { self.stored.min(before)..self.block.end }
    }

    /// Divides the steps of the whole answer among its tokens, or takes as many as the threshold needs.
    fn count_steps(&mut self, sampling: &Sampling, model: &Transformer) {
        let masked = self.masked(model).len();
        let steps = match sampling.confidence_threshold {
            Some(_) => masked.max(1),
            None => (masked * sampling.diffusion_steps).div_ceil(sampling.gen_length).clamp(1, masked.max(1)),
        };
        self.counts = num_transfer_tokens(masked, steps);
        self.counts.reverse();
    }

    fn keep(&mut self, positions: &[usize], predictions: &[Prediction], sampling: &Sampling, draws: &Draws) {
        let is_deferred = |p: &Prediction| sampling.defer_eos && sampling.eos_token_ids.contains(&p.token);
        let rated = |(at, p): (&usize, &Prediction)| match sampling.remasking {
            _ if is_deferred(p) => f64::NEG_INFINITY,
            Some(Remasking::Random) if p.confidence > f64::NEG_INFINITY => draws.unit_f64(*at as u64),
            _ => p.confidence,
        };
        let confidence: Vec<f64> = positions.iter().zip(predictions).map(rated).collect();
        let count = self.counts.pop().unwrap_or(positions.len());
        let kept = match sampling.confidence_threshold {
            Some(threshold) => confident(&confidence, threshold),
            None => most_confident(&confidence, count),
        };
        kept.into_iter().for_each(|kept| self.ids[positions[kept]] = predictions[kept].token);
        self.steps += 1;
    }

    /// Ends the answer or its block, if one is finished.
    fn go_on(&mut self, sampling: &Sampling, model: &Transformer) {
        if !self.masked(model).is_empty() {
            return;
        }
        let own = self.block.start.max(self.answer.start)..self.block.end;
        let ends = if sampling.whole_canvas { &[] } else { sampling.eos_token_ids.as_slice() };
        if let Some(end) = ends.first().filter(|_| self.ids[own].iter().any(|id| ends.contains(id))) {
            self.ids[self.block.end..].fill(*end);
            self.is_done = true;
        }
        self.block = self.block.end..self.block.end + self.block_length();
        self.is_done |= self.block.end > self.ids.len();
        self.count_steps(sampling, model);
    }
}
