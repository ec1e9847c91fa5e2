//! Recomputes a reference file made by PyTorch and reports how far off every quantity is: logits, entropies, rates,
//! masks, nll, losses, gradients, and sampled tokens. The file contains its own draws, so nothing here is random.

mod lift;
mod tensors;
mod tolerances;

use std::path::Path;

use serde::{Deserialize, Serialize};
use weft_kernels::precision::Precision;

use crate::counted::counted;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::model::batch::{AttentionKind, Batch, Targets};
use crate::model::block::Transformer;
use crate::noising::entropy::{AnswerEntropy, Reference, Transform};
use crate::objective::{Blocks, DrawnAnswer, Kind, NoisedAnswer, Normalizer, Objective, Weighting};
use crate::sampler::generate::{Prompt, Sampling, generate};
use crate::sampler::remasking::{Remasking, T_END};
use tensors::{Tensors, share_differing};
pub use tolerances::Tolerances;

/// How well one quantity agrees.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The quantity's name in the reference file.
    pub name: String,
    /// How many numbers were compared.
    pub count: usize,
    /// The largest difference, divided by the largest magnitude of the reference; for masks and tokens, the share of
    /// places that differ.
    pub error: f64,
}

/// The objectives that a reference may contain, with the transform and reference of their relative uncertainties.
const OBJECTIVES: [(&str, Kind, Transform, Reference); 6] = [
    ("sft", Kind::Sft, Transform::Sqrt, Reference::Sequence),
    ("weft_sqrt", Kind::Weft, Transform::Sqrt, Reference::Sequence),
    ("weft_raw", Kind::Weft, Transform::Identity, Reference::Sequence),
    ("weft_cbrt", Kind::Weft, Transform::Cbrt, Reference::Sequence),
    ("weft_log", Kind::Weft, Transform::Log1p, Reference::Sequence),
    ("weft_batch_ref", Kind::Weft, Transform::Sqrt, Reference::Batch),
];

/// The four losses: name, weighting and divisor.
const LOSSES: [(&str, Weighting, Normalizer); 4] = [
    ("loss_token", Weighting::Inverse, Normalizer::Answer),
    ("loss_sequence", Weighting::Inverse, Normalizer::Sequence),
    ("loss_masked", Weighting::Inverse, Normalizer::Masked),
    ("loss_elbo", Weighting::Elbo, Normalizer::Answer),
];

/// The settings of a sampling case, in LLaDA's words or in Dream's.
#[derive(Deserialize)]
#[serde(untagged)]
enum SamplingCase {
    Llada {
        gen_length: usize,
        block_length: usize,
        steps: usize,
        cfg_scale: f64,
        temperature: f64,
        remasking: Remasking,
    },
    Dream {
        max_length: usize,
        steps: usize,
        temperature: f64,
        alg: Remasking,
        alg_temp: f64,
        eps: f32,
    },
}

impl SamplingCase {
    fn settings(&self, prompt_length: usize) -> std::result::Result<Sampling, String> {
        let sampling = match *self {
            Self::Llada { gen_length, block_length, steps, cfg_scale, temperature, remasking } => Sampling {
                gen_length,
                block_length,
                diffusion_steps: steps,
                temperature,
                cfg_scale,
                remasking: Some(remasking),
                predicts_mask: true,
                ..Sampling::default()
            },
            Self::Dream { eps, .. } if eps != T_END => {
                return Err(format!("eps is {eps}; only {T_END} can be compared"));
            }
            Self::Dream { max_length, steps, temperature, alg, alg_temp, .. } => Sampling {
                gen_length: max_length.saturating_sub(prompt_length),
                diffusion_steps: steps,
                temperature,
                alg_temp,
                remasking: Some(alg),
                ..Sampling::default()
            },
        };
        match sampling.temperature > 0.0 || sampling.alg_temp > 0.0 || sampling.remasking == Some(Remasking::Origin) {
            true => Err("its tokens are drawn; only greedy cases can be compared".to_owned()),
            false => Ok(sampling),
        }
    }
}

/// The batch of a reference file.
struct Case<'a> {
    model: &'a Transformer,
    ids: Vec<u32>,
    starts: Vec<usize>,
    length: usize,
    kind: AttentionKind,
}

/// Recomputes every quantity in a reference file. Every gradient in the file must belong to a trainable parameter.
///
/// In f32 and bf16x3 the rates come from the entropies that the model computes here. In bf16 they come from the reference's
/// entropies: a rounded entropy could flip the mask of a token, and then all later quantities would belong to another
/// batch.
///
/// # Errors
/// A file that is missing, damaged, or not about this model.
pub fn check(model: &Transformer, path: &Path) -> Result<Vec<Row>> {
    check_blocks(model, path, (None, None))
}

/// Like [`check`], in blocks of a length. Values that aren't given are taken from the file: a file with a `block_length` is
/// one of block diffusion.
///
/// # Errors
/// Those of [`check`]; blocks that the file isn't about.
pub fn check_blocks(
    model: &Transformer,
    path: &Path,
    (blocks, block_length): (Option<Blocks>, Option<usize>),
) -> Result<Vec<Row>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let tensors = Tensors::open(path, &bytes)?;
    let kind = attention_kind(&tensors, blocks, block_length)?;
    let case = Case { kind, ..Case::read(model, &tensors)? };
    let mut rows = vec![];
    let answers: Vec<usize> = (0..case.ids.len()).filter(|n| case.is_answer(*n)).collect();
    if tensors.has("logits_clean") {
        rows.push(tensors.compare("logits_clean", &case.logits(&case.ids))?);
    }
    let all_masked = case.noised(|_| true);
    if tensors.has("logits_answer_masked") {
        rows.push(tensors.compare("logits_answer_masked", &case.logits(&all_masked))?);
    }
    let batch = case.batch(&all_masked);
    if tensors.has("attention") {
        rows.push(tensors.compare_masks("attention", &batch.attention_mask(0))?);
    }
    let entropy = case.spread(&answers, &model.entropy(&batch, &case.rows(&answers)));
    rows.push(tensors.compare("entropy", &entropy)?);
    let entropy = match model.config.precision {
        Precision::F32 | Precision::Bf16x3 => entropy,
        Precision::Bf16 => tensors.numbers("entropy", entropy.len())?,
    };
    for (name, kind, transform, reference) in OBJECTIVES {
        if tensors.has(&format!("{name}.t_i")) {
            let objective = Objective { kind, transform, reference, ..Objective::default() };
            rows.extend(case.objective(&format!("{name}."), objective, &entropy, &tensors)?);
        }
    }
    rows.extend(lift::check(&case, &tensors)?);
    if tensors.has("masked") {
        let objective = Objective { kind: Kind::Sft, ..Objective::default() };
        rows.extend(case.objective("", objective, &entropy, &tensors)?);
    }
    Ok(rows)
}

/// The attention of a reference file, which must match the one asked for.
fn attention_kind(tensors: &Tensors, blocks: Option<Blocks>, block_length: Option<usize>) -> Result<AttentionKind> {
    let of_file = match tensors.has("block_length") {
        true => tensors.integers("block_length")?.first().map(|length| *length as usize),
        false => None,
    };
    let blocks = blocks.unwrap_or(if of_file.or(block_length).is_some() { Blocks::Bd3lm } else { Blocks::None });
    match (blocks, block_length.or(of_file)) {
        (Blocks::Blockwise, _) => Err(Error::Usage(
            "--blocks blockwise has no references of its own: a drawn block is an answer behind a longer prompt; leave it \
             out"
                .to_owned(),
        )),
        (Blocks::None, _) => match (block_length, of_file) {
            (None, None) => Ok(AttentionKind::Bidirectional),
            (Some(length), _) => Err(Error::Usage(format!("--block-length {length} needs --blocks bd3lm"))),
            (None, Some(length)) => {
                Err(tensors.wrong(format!("its reference was computed in blocks of {}; give --blocks bd3lm", counted(length, "token"))))
            }
        },
        (Blocks::Bd3lm, None) => Err(Error::Usage("--blocks bd3lm needs --block-length N".to_owned())),
        (Blocks::Bd3lm, Some(0)) => Err(tensors.wrong("blocks of 0 tokens; give --block-length 1 or more".to_owned())),
        (Blocks::Bd3lm, Some(length)) => match of_file.filter(|own| *own != length) {
            Some(own) => Err(tensors.wrong(format!(
                "its reference was computed in blocks of {}, not {length}; give --block-length {own} or another reference",
                counted(own, "token")
            ))),
            None => Ok(AttentionKind::BlockDiffusion { block_length: length }),
        },
    }
}

/// Generates each case of a sampling file greedily and compares the tokens.
///
/// # Errors
/// A file that is missing or damaged, or a case whose settings don't fit.
pub fn check_sampling(model: &Transformer, path: &Path, cases: &Path) -> Result<Vec<Row>> {
    let text = read_text(cases)?;
    let format = |reason: String| Error::Format { path: cases.to_owned(), reason };
    let settings: Vec<SamplingCase> = serde_json::from_str(&text).map_err(|e| format(e.to_string()))?;
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let tensors = Tensors::open(path, &bytes)?;
    let mut rows = vec![];
    for (i, case) in settings.iter().enumerate() {
        let prompt = tensors.integers(&format!("{i}.prompt"))?;
        let sampling = case.settings(prompt.len()).map_err(|e| format(format!("case {i}: {e}")))?;
        tensors.check_ids(&prompt, model)?;
        let name = format!("{i}.output");
        let expected = tensors.integers(&name)?;
        let output = generate(model, &[Prompt { ids: &prompt, example: 0 }], &sampling);
        let got = output.map_err(|e| format(format!("case {i}: {e}")))?.remove(0).ids;
        rows.push(Row { error: share_differing(&got, &expected), count: expected.len(), name });
    }
    Ok(rows)
}

impl Case<'_> {
    fn read<'m>(model: &'m Transformer, tensors: &Tensors) -> Result<Case<'m>> {
        let ids = tensors.integers("input_ids")?;
        let starts: Vec<usize> = tensors.integers("prompt_lengths")?.iter().map(|s| *s as usize).collect();
        tensors.check_ids(&ids, model)?;
        let length = ids.len() / starts.len().max(1);
        if length == 0 || length * starts.len() != ids.len() || starts.iter().any(|s| *s > length) {
            return Err(tensors.wrong(format!("{} ids and prompt lengths {starts:?} do not fit", ids.len())));
        }
        Ok(Case { model, ids, starts, length, kind: AttentionKind::Bidirectional })
    }

    /// The batch of noised ids.
    fn batch(&self, noised: &[u32]) -> Batch {
        let halves = noised.chunks(self.length).zip(self.ids.chunks(self.length));
        Batch::pack_as(self.kind, halves.map(|(noised, clean)| [noised, clean]))
    }

    /// The batch's rows of some tokens.
    fn rows(&self, tokens: &[usize]) -> Vec<usize> {
        let halves = if let AttentionKind::BlockDiffusion { .. } = self.kind { 2 } else { 1 };
        tokens.iter().map(|n| n / self.length * halves * self.length + n % self.length).collect()
    }

    fn is_answer(&self, n: usize) -> bool {
        n % self.length >= self.starts[n / self.length]
    }

    /// The ids, with the mask token at the answer tokens for which `masked` is true.
    fn noised(&self, masked: impl Fn(usize) -> bool) -> Vec<u32> {
        let mask = self.model.config.mask_token_id;
        self.ids.iter().enumerate().map(|(n, id)| if self.is_answer(n) && masked(n) { mask } else { *id }).collect()
    }

    fn logits(&self, ids: &[u32]) -> Vec<f32> {
        let tokens: Vec<usize> = (0..ids.len()).collect();
        let mut all = vec![];
        self.model.for_each_logits(&self.batch(ids), &self.rows(&tokens), |_, chunk| all.extend_from_slice(chunk));
        all
    }

    /// The values of some tokens as `[B, L]`, with 0 elsewhere.
    fn spread(&self, tokens: &[usize], values: &[f32]) -> Vec<f32> {
        let mut all = vec![0.0; self.ids.len()];
        tokens.iter().zip(values).for_each(|(n, value)| all[*n] = *value);
        all
    }

    /// The answer's part of each row of `[B, L]`.
    fn answers<'x>(&self, x: &'x [f32]) -> Vec<&'x [f32]> {
        x.chunks(self.length).zip(&self.starts).map(|(row, start)| &row[*start..]).collect()
    }

    /// The quantities of an objective that noises by entropies and draws.
    fn objective(&self, prefix: &str, objective: Objective, entropy: &[f32], tensors: &Tensors) -> Result<Vec<Row>> {
        let (t, u) = (tensors.numbers("t", self.starts.len())?, tensors.numbers("u", self.ids.len())?);
        let draws = self.answers(entropy).into_iter().zip(self.answers(&u)).zip(t.iter().zip(&self.starts));
        let drawn = draws.map(|((token_entropy, u), (t, start))| DrawnAnswer {
            prompt_len: *start,
            entropy: AnswerEntropy { token_entropy, num_supervised: token_entropy.len() },
            t: f64::from(*t),
            u,
        });
        let noised = objective.noise(&drawn.collect::<Vec<_>>());
        self.quantities(prefix, objective, &noised, tensors)
    }

    /// The quantities of an objective with its noised answers, whose names begin with `prefix`. For LIFT, and without a
    /// prefix, the file may hold any subset of them.
    fn quantities(
        &self,
        prefix: &str,
        objective: Objective,
        noised: &[NoisedAnswer],
        tensors: &Tensors,
    ) -> Result<Vec<Row>> {
        let answer_tokens: Vec<usize> = (0..self.ids.len()).filter(|n| self.is_answer(*n)).collect();
        let p_mask: Vec<f32> = noised.iter().flat_map(|a| a.p_mask.clone()).collect();
        let masked: Vec<bool> = noised.iter().flat_map(|a| a.masked.clone()).collect();
        let tokens: Vec<usize> = answer_tokens.iter().zip(&masked).filter(|(_, m)| **m).map(|(n, _)| *n).collect();
        let name = |quantity: &str| format!("{prefix}{quantity}");
        let may_lack = prefix.is_empty() || objective.kind == Kind::Lift;
        let is_wanted = |quantity: &str| !may_lack || tensors.has(&name(quantity));
        let mut result = vec![];
        if is_wanted("t_i") {
            result.push(tensors.compare(&name("t_i"), &self.spread(&answer_tokens, &p_mask))?);
        }
        let mut masks = vec![0u8; self.ids.len()];
        tokens.iter().for_each(|n| masks[*n] = 1);
        result.push(tensors.compare_masks(&name("masked"), &masks)?);
        // The gradient is that of the loss over all answer tokens; the other losses weight the same nll differently.
        let batch = self.batch(&self.noised(|n| masks[n] != 0));
        let ids: Vec<u32> = tokens.iter().map(|n| self.ids[*n]).collect();
        let weights_of = |weighting, normalizer| -> Vec<f32> {
            let all = Objective { weighting, normalizer: Some(normalizer), ..objective }.loss_weights(noised);
            all.into_iter().flatten().zip(&masked).filter(|(_, m)| **m).map(|(w, _)| w).collect()
        };
        let weights = weights_of(Weighting::Inverse, Normalizer::Answer);
        let mut grads = self.model.zero_gradients();
        let targets = Targets { rows: &self.rows(&tokens), ids: &ids, weights: &weights };
        let nll = self.model.loss_and_gradients(&batch, targets, &mut grads).nll;
        result.push(tensors.compare(&name("nll"), &self.spread(&tokens, &nll))?);
        for (loss, weighting, normalizer) in LOSSES.into_iter().filter(|(loss, ..)| is_wanted(loss)) {
            let weights = weights_of(weighting, normalizer);
            let value: f64 = weights.iter().zip(&nll).map(|(w, n)| f64::from(*w) * f64::from(*n)).sum();
            result.push(tensors.compare(&name(loss), &[value as f32])?);
        }
        for (param, grad) in self.model.params.iter().zip(&grads) {
            let name = name(&format!("grad.{}", param.name));
            if let Some(grad) = grad.as_ref().filter(|_| tensors.has(&name)) {
                result.push(tensors.compare(&name, &grad.to_host())?);
            }
        }
        if is_wanted("grad_norm") {
            let norm = crate::train::optimizer::gradient_norm(&grads);
            result.push(tensors.compare(&name("grad_norm"), &[norm as f32])?);
        }
        self.no_gradient_left(&name("grad."), tensors)?;
        Ok(result)
    }

    /// Refuses a reference with the gradient of a parameter that the model doesn't train, which would go unchecked.
    fn no_gradient_left(&self, prefix: &str, tensors: &Tensors) -> Result<()> {
        let is_trained = |p: &str| self.model.params.iter().any(|param| param.trainable && param.name == p);
        let names = tensors.file.names().into_iter().filter_map(|n| n.strip_prefix(prefix));
        match names.into_iter().find(|p| !is_trained(p)) {
            Some(param) => Err(tensors.wrong(format!("it holds a gradient of {param}, which the model doesn't train"))),
            None => Ok(()),
        }
    }
}
