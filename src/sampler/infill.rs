//! Infilling: the masks of a given text are filled in place, by the loop of either family. Answers behind a prompt are
//! `generate`'s.

use std::sync::mpsc::Sender;

use super::generate::{Canvases, Output, Prompt, Sampling};
use super::remasking::Loop;
use super::{dream, llada};
use crate::error::{Error, Result};
use crate::model::block::Transformer;

/// Fills the masks of one text in place. Neighbouring masks may depend on what stands behind them as well as before them.
/// In LLaDA's loop the span from the first mask to the last one is denoised in blocks of `block_length` positions, and
/// `diffusion_steps` are divided among the blocks; `gen_length` has no effect. An end token in the span doesn't end it.
///
/// # Errors
/// A text without masks; guidance; scales that make no sense, as reported by [`Sampling::check`].
pub fn infill(
    model: &Transformer,
    text: Prompt,
    sampling: &Sampling,
    steps: Option<Sender<Vec<Vec<u32>>>>,
) -> Result<Output> {
    let sampling = sampling.for_model(&model.config);
    if sampling.is_block_causal() {
        return Err(Error::Usage(
            "filling masks in place needs a model that sees what stands behind them, and attention block-causal \
                    doesn't; leave out infilling, or set attention bidirectional"
                .to_owned(),
        ));
    }
    let is_mask = |id: &u32| *id == model.config.mask_token_id;
    let ends = [text.ids.iter().position(is_mask), text.ids.iter().rposition(is_mask)];
    let [Some(first), Some(last)] = ends else {
        return Err(Error::Usage("the text holds no mask token to fill".to_owned()));
    };
    if sampling.cfg_scale > 0.0 {
        return Err(Error::Usage(format!(
            "cfg_scale {} needs a prompt, and a text to fill has none; leave it out",
            sampling.cfg_scale
        )));
    }
    // The lengths of an answer don't matter here, and have to divide only there.
    let has_sense = Sampling { gen_length: sampling.block_length, ..sampling.clone() };
    has_sense.check()?;
    let prompts = [text];
    let mut canvases = Canvases::new(model, &prompts, &sampling);
    (canvases.sequences, canvases.starts) = (vec![text.ids.to_vec()], vec![first]);
    (canvases.block, canvases.steps) = (0..last + 1 - first, steps);
    match sampling.remasking.expect("a default was chosen") {
        remasking if remasking.sampling_loop() == Loop::Llada => llada::infill(&mut canvases, &sampling, remasking),
        remasking => dream::denoise(&mut canvases, &sampling, remasking),
    }
    let work = canvases.networks[0].work[0];
    Ok(Output { ids: canvases.sequences.remove(0), work })
}
