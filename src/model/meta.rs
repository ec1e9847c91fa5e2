//! A model on the meta device: its shapes, dtypes and which parameters are trained, without storage. From it `plan`
//! predicts what a run will take before any weight is read.

use weft_kernels::device::Device;
use weft_kernels::weight::{Dtype, Weight};

use super::block::{Param, Transformer};

impl Transformer {
    /// The same model on the meta device, without its numbers.
    pub fn to_meta(&self) -> Self {
        let meta = |p: &Param| {
            let weight = Weight::meta_encoded(p.weight.rows(), p.weight.cols(), p.weight.encoding());
            Param { name: p.name.clone(), shape: p.shape.clone(), weight, trainable: p.trainable }
        };
        let (params, blocks) = (self.params.iter().map(meta).collect(), self.blocks.clone());
        Self { params, blocks, device: Device::Cpu, ..*self }
    }

    /// Moves the weights to a device, where the network computes from then on. They move one by one, in the dtype that
    /// they are stored in.
    pub fn put_on(&mut self, device: &Device) {
        self.params.iter_mut().for_each(|param| param.weight.put_on(device));
        self.device = device.clone();
    }

    /// Makes every weight of a model on the meta device trainable: f32, as its master copy would be.
    pub(crate) fn train_whole_meta(&mut self) {
        for param in &mut self.params {
            param.weight = Weight::meta(param.weight.rows(), param.weight.cols(), Dtype::F32);
            param.trainable = true;
        }
    }
}
