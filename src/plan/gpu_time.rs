//! How long a step takes on a GPU, as a prediction: each launch of a rehearsed step takes as long as the slowest of
//! three: its arithmetic at the GPU's matmul rate, its bytes at the GPU's bandwidth, and the start of a kernel. Kernels
//! that reach neither rate take longer; `weft bench --profile` measures which ones do.

use weft_kernels::adamw::{AdamW, chunk_sums};
use weft_kernels::cuda::{Gpu, Launches, Work as LaunchWork};
use weft_kernels::device::Device;
use weft_kernels::precision::Precision;
use weft_kernels::weight::{Dtype, Weight};

use super::batches::{Batches, MicroBatch, views};
use super::memory::{Stored, Work};
use super::rehearsal::Rehearsal;
use crate::device::rate::{bandwidth_gb_per_second, gemm_gflops};
use crate::model::batch::AttentionKind;
use crate::model::block::Transformer;
use crate::objective::Objective;

/// Seconds from the start of a kernel to the start of the next one, however little it does.
const LAUNCH_SECONDS: f64 = 3e-6;

/// A GPU as described by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuModel {
    /// The GPU's name on the command line.
    pub name: &'static str,
    /// The GPU's memory in GB.
    pub memory_gb: f64,
    /// Rates of dense bf16 matmuls with f32 sums, and of f32 arithmetic without tensor cores, in 10^12 operations per
    /// second.
    pub tflops: [f64; 2],
    /// The memory's bandwidth in 10^9 bytes per second.
    pub bandwidth: f64,
}

/// NVIDIA GPUs for which a run can be planned by name.
///
/// # Source
/// NVIDIA's published data sheets; rates without sparsity.
pub const GPU_MODELS: [GpuModel; 10] = [
    GpuModel { name: "a100-40gb", memory_gb: 40.0, tflops: [312.0, 19.5], bandwidth: 1555.0 },
    GpuModel { name: "a100-80gb", memory_gb: 80.0, tflops: [312.0, 19.5], bandwidth: 2039.0 },
    GpuModel { name: "h100-pcie", memory_gb: 80.0, tflops: [756.0, 51.0], bandwidth: 2000.0 },
    GpuModel { name: "h100-sxm", memory_gb: 80.0, tflops: [989.0, 67.0], bandwidth: 3350.0 },
    GpuModel { name: "h200", memory_gb: 141.0, tflops: [989.0, 67.0], bandwidth: 4800.0 },
    GpuModel { name: "b200", memory_gb: 180.0, tflops: [2250.0, 75.0], bandwidth: 7700.0 },
    GpuModel { name: "l40s", memory_gb: 48.0, tflops: [362.0, 91.6], bandwidth: 864.0 },
    GpuModel { name: "rtx-3090", memory_gb: 24.0, tflops: [71.0, 35.6], bandwidth: 936.0 },
    GpuModel { name: "rtx-4090", memory_gb: 24.0, tflops: [165.2, 82.6], bandwidth: 1008.0 },
    GpuModel { name: "rtx-5090", memory_gb: 32.0, tflops: [209.5, 104.8], bandwidth: 1792.0 },
];

/// The highest rates that a GPU reaches, per second.
#[derive(Clone, Copy, Debug)]
pub struct GpuRates {
    /// Operations in bf16 matmuls.
    pub bf16: f64,
    /// Operations in f32 matmuls.
    pub f32: f64,
    /// Bytes read or written.
    pub bytes: f64,
}

impl From<GpuModel> for GpuRates {
    fn from(gpu: GpuModel) -> Self {
        let [bf16, f32] = gpu.tflops.map(|tflops| tflops * 1e12);
        Self { bf16, f32, bytes: gpu.bandwidth * 1e9 }
    }
}

impl GpuRates {
    /// Measures the rates of the process's GPU, for about a second.
    pub fn measure() -> Self {
        let [bf16, f32] = [Precision::Bf16, Precision::F32].map(|precision| gemm_gflops(precision, 0.4) * 1e9);
        Self { bf16, f32, bytes: bandwidth_gb_per_second() * 1e9 }
    }

    /// A lower bound on the seconds that a launch takes.
    pub fn bound_seconds(&self, work: &LaunchWork) -> f64 {
        let rate = if work.is_bf16 { self.bf16 } else { self.f32 };
        (work.operations as f64 / rate).max(work.bytes as f64 / self.bytes).max(LAUNCH_SECONDS)
    }

    fn of_launches(&self, launches: &[Launches]) -> f64 {
        launches.iter().map(|l| l.count as f64 * self.bound_seconds(&l.work)).sum()
    }
}

/// The predicted seconds of a mean step on one GPU, for a model whose trained parameters are marked.
pub fn step_seconds(model: &Transformer, batches: &Batches, objective: &Objective, rates: GpuRates) -> f64 {
    let micro_batches = batches.largest_steps.first().map_or(0, Vec::len).max(1);
    let [tokens, squares, answers, masked] = batches.mean;
    let of_each = |total: f64| (total / micro_batches as f64).ceil() as usize;
    let mean = MicroBatch {
        tokens: of_each(tokens),
        longest: (squares / tokens.max(1.0)).ceil() as usize,
        squares: squares / micro_batches as f64,
        answers: of_each(answers),
        masked: of_each(masked),
    };
    let steps = [vec![mean; micro_batches]];
    let seconds = |needs_entropy: bool| {
        let (gpu, mut counted) = counting(model);
        let attention_kind = AttentionKind::of(objective);
        let work = Work {
            needs_entropy,
            views: views(objective),
            attention_kind,
            ..Work::of_steps(model, Stored::Mapped, &steps)
        };
        gpu.start_counting();
        Rehearsal::new(&work, &counted).train();
        update(&mut counted);
        rates.of_launches(&gpu.stop_counting())
    };
    let without = seconds(false);
    if !objective.kind.needs_pass_1() {
        return without;
    }
    without + (seconds(true) - without) / objective.entropy_every as f64
}

/// The model on the meta GPU, with its trained parameters in f32.
fn counting(model: &Transformer) -> (std::sync::Arc<Gpu>, Transformer) {
    let gpu = Gpu::meta();
    let mut model = model.to_meta();
    for param in model.params.iter_mut().filter(|param| param.trainable) {
        param.weight = Weight::meta(param.weight.rows(), param.weight.cols(), Dtype::F32);
    }
    model.put_on(&Device::Cuda(gpu.clone()));
    (gpu, model)
}

/// Rehearses the gradient norm and AdamW.
fn update(model: &mut Transformer) {
    let gradients = model.zero_gradients();
    chunk_sums(&gradients.iter().flatten().collect::<Vec<_>>());
    let adamw = AdamW { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    let device = model.device.clone();
    for (param, gradient) in model.params.iter_mut().zip(&gradients) {
        let Some(gradient) = gradient else { continue };
        let [mut m, mut v] = [(); 2].map(|()| device.unset(gradient.len()));
        adamw.update(&mut param.weight, 0..gradient.len(), [&mut m, &mut v], gradient, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::meta_of;
    use crate::model::lora::{LoraConfig, attach_meta};
    use crate::model::new_config::{LLADA_8B, new_llada};
    use crate::objective::Kind;

    /// The predicted LoRA step of LLaDA-8B takes no less than its matmuls at the peak rate, and less than twice as
    /// long.
    #[test]
    fn a_step_of_llada_8b_is_bound_by_its_matmuls() {
        let mut model = meta_of(&new_llada(LLADA_8B).expect("LLaDA-8B's sizes"));
        let targets = ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec();
        attach_meta(&mut model, &LoraConfig::new(128, 256.0, 0.0, targets, false)).expect("it has such layers");
        (model.config.precision, model.config.entropy_precision) = (Precision::Bf16, Precision::Bf16);
        model.config.activation_bytes = usize::MAX;
        let batch = MicroBatch { tokens: 4096, longest: 4096, answers: 3072, masked: 1536, ..MicroBatch::default() };
        let mean = [4096.0, 4096.0 * 4096.0, 3072.0, 1536.0];
        let batches = Batches { steps: 1, largest_steps: vec![vec![batch]], mean, imbalance: 1.0 };
        let h100: GpuRates = GPU_MODELS[3].into();
        let of = |kind: Kind, entropy_every: u64| {
            let objective = Objective { kind, entropy_every, ..Objective::default() };
            step_seconds(&model, &batches, &objective, h100)
        };
        // The layers' matmuls hold 7 billion weights; they run once forward and once backward to the inputs.
        let matmuls = 2.0 * 2.0 * 4096.0 * 6.98e9 / h100.bf16;
        let [sft, weft, reused] = [of(Kind::Sft, 1), of(Kind::Weft, 1), of(Kind::Weft, 10)];
        assert!((matmuls..2.0 * matmuls).contains(&sft), "{sft} s of SFT, {matmuls} s of matmuls");
        assert!((1.4..1.7).contains(&(weft / sft)), "{weft} s of WeFT, {sft} s of SFT");
        assert!((reused - sft - 0.1 * (weft - sft)).abs() < 1e-9, "{reused} s with entropies of every tenth epoch");
    }
}
