//! What a run takes of a GPU's memory. The run's own operations are executed on the meta GPU, so no formula has to
//! follow the code and none can differ from it.

use weft_kernels::cuda::{Gpu, WORKSPACE};
use weft_kernels::device::Device;
use weft_kernels::tensor::Tensor;
use weft_kernels::weight::{Dtype, Weight};

use super::memory::{Part, Work};
use super::rehearsal::Rehearsal;
use crate::model::block::Param;

/// The parts at the run's largest moment: what is held from beginning to end, and the rest.
pub(super) fn parts(work: &Work) -> Vec<Part> {
    let gpu = Gpu::meta();
    let device = Device::Cuda(gpu.clone());
    let mut model = work.model.to_meta();
    // Trained parameters are f32, or bf16 if each rank holds only its part in f32.
    let is_split = |id: &usize| work.model.is_split(*id, work.ranks);
    for (id, param) in model.params.iter_mut().enumerate().filter(|(_, p)| p.trainable) {
        let dtype = if is_split(&id) { Dtype::Bf16 } else { Dtype::F32 };
        param.weight = Weight::meta(param.weight.rows(), param.weight.cols(), dtype);
    }
    model.params.iter_mut().filter(|p| !p.is_adapters()).for_each(|p| p.weight.put_on(&device));
    let len = |p: &Param| p.weight.rows() * p.weight.cols();
    let split: usize = (0..model.params.len()).filter(is_split).map(|id| len(&model.params[id])).sum();
    let _masters = device.unset(split.div_ceil(work.ranks));
    let weights = gpu.used_bytes();
    model.put_on(&device);
    let adapter = gpu.used_bytes() - weights;
    let trained: usize = model.params.iter().filter(|p| p.trainable).map(len).sum();
    let moments = [(); 2].map(|()| device.unset(trained.div_ceil(work.ranks)));
    let held = gpu.used_bytes();
    let mut rehearsal = Rehearsal::new(work, &model);
    rehearsal.evaluate();
    rehearsal.train();
    let gradients = if work.steps.is_empty() { 0 } else { size_of::<f32>() * trained };
    let [moment, _] = moments.each_ref().map(Tensor::len);
    let rest = (gpu.most_used_bytes() - held).saturating_sub(gradients);
    let parts = [
        ("weights", weights),
        ("adapter", adapter),
        ("optimizer moments", 2 * size_of::<f32>() * moment),
        ("gradients", gradients),
        ("activations and logits", rest),
        ("workspace of matmuls", WORKSPACE),
    ];
    parts.map(|(name, bytes)| Part { name, bytes }).to_vec()
}

#[cfg(test)]
mod tests {
    use weft_kernels::precision::Precision;

    use super::*;
    use crate::model::checkpoint::meta_of;
    use crate::model::lora::{LoraConfig, attach_meta};
    use crate::model::new_config::LLADA_8B;
    use crate::model::new_config::new_llada;
    use crate::model::quantize::Quantization;
    use crate::plan::{MicroBatch, Stored};

    /// LLaDA-8B with adapters of rank 128 on queries, keys and values, and 4,096 tokens in bf16, planned without a GPU.
    #[test]
    fn an_adapter_of_llada_8b_is_trained_in_less_than_40_gb() {
        let mut model = meta_of(&new_llada(LLADA_8B).expect("LLaDA-8B's sizes"));
        let targets = ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec();
        attach_meta(&mut model, &LoraConfig::new(128, 256.0, 0.0, targets, false)).expect("it has such layers");
        (model.config.precision, model.config.entropy_precision) = (Precision::Bf16, Precision::Bf16);
        let batch = MicroBatch { tokens: 4096, longest: 512, answers: 3072, masked: 1536, ..MicroBatch::default() };
        let steps = vec![vec![batch]];
        let gb = |activation_bytes: usize| {
            model.config.activation_bytes = activation_bytes;
            let work = Work { needs_entropy: true, ..Work::of_steps(&model, Stored::Mapped, &steps) };
            parts(&work).iter().map(|part| part.bytes as f64 / 1e9).sum::<f64>()
        };
        let [all_again, nothing_again] = [0, usize::MAX].map(gb);
        // The weights alone take 16.0 GB.
        assert!((18.0..22.0).contains(&all_again), "{all_again} GB with every layer computed again");
        assert!((28.0..40.0).contains(&nothing_again), "{nothing_again} GB with nothing computed again");
    }

    /// LLaDA-8B in 4 bits, with every layer recomputed.
    #[test]
    fn an_adapter_of_llada_8b_in_4_bits_is_trained_in_less_than_12_gb() {
        let mut model = meta_of(&new_llada(LLADA_8B).expect("LLaDA-8B's sizes"));
        model.quantize(Quantization { double_quant: true });
        let targets = ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec();
        attach_meta(&mut model, &LoraConfig::new(128, 256.0, 0.0, targets, false)).expect("it has such layers");
        (model.config.precision, model.config.entropy_precision) = (Precision::Bf16, Precision::Bf16);
        let batch = MicroBatch { tokens: 4096, longest: 512, answers: 3072, masked: 1536, ..MicroBatch::default() };
        let steps = vec![vec![batch]];
        let work = Work { needs_entropy: true, ..Work::of_steps(&model, Stored::Mapped, &steps) };
        let parts = parts(&work);
        let gb = parts.iter().map(|part| part.bytes as f64 / 1e9).sum::<f64>();
        assert!((8.0..12.0).contains(&gb), "{gb} GB");
        // 7 billion numbers of 4.13 bits, and the embedding and the head in bf16.
        assert!((5.6..5.8).contains(&(parts[0].bytes as f64 / 1e9)), "{} bytes of weights", parts[0].bytes);
        // On a CPU, with 512 tokens.
        let batch = MicroBatch { tokens: 512, longest: 512, answers: 384, masked: 192, ..MicroBatch::default() };
        let steps = vec![vec![batch]];
        let work = Work { needs_entropy: true, ..Work::of_steps(&model, Stored::Mapped, &steps) };
        let gb = work.parts().iter().map(|part| part.bytes as f64 / 1e9).sum::<f64>();
        assert!((5.0..8.0).contains(&gb), "{gb} GB on a CPU");
    }
}
