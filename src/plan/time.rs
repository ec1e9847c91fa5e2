//! How long a step takes: its arithmetic at the machine's own matmul rate, divided by the fraction of that rate that
//! steps reach.

use weft_kernels::precision::Precision;

use super::batches::{Batches, views};
use crate::device::rate::gemm_gflops;
use crate::model::arithmetic::{MultiplyAdds, Work};
use crate::model::block::Transformer;
use crate::objective::Objective;

/// The fractions of the machine's rate that the matmuls of the layers and the head reach, and that attention reaches,
/// fitted to the steps of docs/performance.md and docs/memory.md. In bf16 and bf16x3 matmuls are faster, but the work
/// between them isn't. Nothing was measured in bf16x3, which counts as bf16.
fn efficiency(precision: Precision) -> [f64; 2] {
    match precision {
        Precision::F32 => [0.97, 0.58],
        Precision::Bf16 | Precision::Bf16x3 => [0.84, 0.43],
    }
}

/// The machine's matmul rates, in 10^9 operations per second, for training and for pass 1.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// The rate of matmuls in `model.precision`.
    pub training: f64,
    /// The rate of matmuls in `objective.entropy_precision`.
    pub entropy: f64,
}

impl Rates {
    /// Measures the rates, for about a second.
    pub fn measure(model: &Transformer) -> Self {
        let [precision, entropy] = [model.config.precision, model.config.entropy_precision];
        let secs = if precision == entropy { 1.0 } else { 0.5 };
        let training = gemm_gflops(precision, secs);
        Self { training, entropy: if precision == entropy { training } else { gemm_gflops(entropy, secs) } }
    }
}

/// Seconds of a mean step: `2 (P / e_P + A / e_A) / rate`, with P multiply-adds in matmuls and A in attention.
///
/// The matmuls of a forward and of a backward to the inputs cost two forwards, or three if the weights are trained;
/// attention's backward costs two of its forwards. Layers whose matmuls aren't saved compute them once more. Pass 1 is
/// one forward, in one of every `entropy_every` epochs.
pub fn step_seconds(model: &Transformer, batches: &Batches, objective: &Objective, rates: Rates) -> f64 {
    let [tokens, squares, answers, masked] = batches.mean;
    let a = MultiplyAdds::of(model, Work { tokens, squares, answers, masked });
    // A mask and its complement are two sequences, which together mask every answer token.
    let views = views(objective) as f64;
    let head_of_masked = if views > 1.0 { a.head_of_answers } else { a.head_of_masked };
    let is_full = model.params[model.blocks[0].down.weight].trainable;
    let passes = if is_full { 3.0 } else { 2.0 };
    let again =
        batches.largest_steps.first().and_then(|step| step.first()).map_or(0.0, |first| {
            model.first_saved_layer(first.tokens, first.masked) as f64 / model.blocks.len() as f64
        });
    let seconds = |matmuls: f64, attention: f64, precision: Precision, rate: f64| {
        let [of_matmuls, of_attention] = efficiency(precision);
        2e-9 * (matmuls / of_matmuls + attention / of_attention) / rate
    };
    let matmuls = (passes + again) * views * a.matrices + passes * head_of_masked;
    let pass_2 = seconds(matmuls, 3.0 * views * a.attention, model.config.precision, rates.training);
    if !objective.kind.needs_pass_1() {
        return pass_2;
    }
    let pass_1 = seconds(a.matrices + a.head_of_answers, a.attention, model.config.entropy_precision, rates.entropy);
    pass_2 + pass_1 / objective.entropy_every as f64
}
