//! A linear layer with a low-rank adapter, `y = x W^T + s (drop(x) A^T) B^T`: forward and every gradient.
//! Dropout is drawn per (token, module, feature), so it doesn't depend on batch or threads.

use crate::cpu;
use crate::cuda;
use crate::precision::Precision;
use crate::tensor::{Into, Tensor};
use crate::weight::Weight;

/// Dropout keys on a device, one for each row of a batch. They are uploaded once for all adapters that read them.
#[derive(Debug)]
pub enum DropoutKeys {
    /// In the machine's memory.
    Host(Vec<u64>),
    /// In a GPU's memory.
    Gpu(cuda::Keys),
}

impl DropoutKeys {
    /// The keys of row `first` and the rows after it.
    pub fn from(&self, first: usize) -> TokenKeys<'_> {
        TokenKeys { all: self, first }
    }
}

/// The keys of the rows from a given row on.
#[derive(Clone, Copy, Debug)]
pub struct TokenKeys<'a> {
    all: &'a DropoutKeys,
    first: usize,
}

impl<'a> TokenKeys<'a> {
    /// The keys without those of the first `rows` rows.
    pub(crate) fn from(self, rows: usize) -> Self {
        Self { first: self.first + rows, ..self }
    }

    /// The keys of the first `rows` rows, in the machine's memory.
    pub(crate) fn host(&self, rows: usize) -> &'a [u64] {
        match self.all {
            DropoutKeys::Host(keys) => &keys[self.first..self.first + rows],
            DropoutKeys::Gpu(_) => panic!("the tensors of one operation lie on one device"),
        }
    }

    /// The address of the keys of the first `rows` rows, in a GPU's memory.
    pub(crate) fn gpu(&self, rows: usize) -> u64 {
        match self.all {
            DropoutKeys::Gpu(keys) => keys.at(self.first, rows),
            DropoutKeys::Host(_) => panic!("the tensors of one operation lie on one device"),
        }
    }
}

/// The adapter dropout of one module in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Probability that a feature is dropped, in `[0, 1)`.
    pub probability: f32,
    /// One key for each row of the input.
    pub token_keys: TokenKeys<'a>,
    /// The index of the module within the model.
    pub module: u32,
}

/// The adapter of one module.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// `lora_a` `[R, in]`.
    pub a: &'a Weight,
    /// `lora_b` `[out, R]`.
    pub b: &'a Weight,
    /// `lora_alpha / R`, or `lora_alpha / sqrt(R)` with rsLoRA.
    pub scale: f32,
    /// Dropout of the adapter's input; `None` outside training and in the entropy pass.
    pub dropout: Option<Dropout<'a>>,
    /// Precision of every matmul of the layer, including the one with its weight.
    pub precision: Precision,
}

/// Where the gradients of the adapter are added.
pub struct LoraGrad<'a> {
    /// Gradient of `lora_a`, `[R, in]`.
    pub a: &'a mut Tensor,
    /// Gradient of `lora_b`, `[out, R]`.
    pub b: &'a mut Tensor,
}

/// `y = x W^T + s (drop(x) A^T) B^T`.
///
/// # Shapes
/// `y` `[N, out]`, `x` `[N, in]`, `weight` `[out, in]`.
pub fn forward(y: &mut Tensor, x: &Tensor, weight: &Weight, lora: &Lora) {
    match (y, x) {
        (Tensor::Host(y), Tensor::Host(x)) => cpu::lora_linear::forward(y.into(), x.into(), weight, lora),
        (y, x) => cuda::lora_linear::forward(y.array_mut(), x.array(), weight, lora, None),
    }
}

/// Like [`forward`], with a tensor added: `y = before + x W^T + s (drop(x) A^T) B^T`.
pub fn forward_onto(y: &mut Tensor, x: &Tensor, weight: &Weight, lora: &Lora, before: &Tensor) {
    match y {
        Tensor::Host(_) => {
            forward(y, x, weight, lora);
            y.add(before);
        }
        Tensor::Gpu(y) => cuda::lora_linear::forward(y, x.array(), weight, lora, Some(before.array())),
    }
}

/// Computes `dx = dy W + s drop'((dy B) A)` (or `+=`) where `dx` is wanted, and adds the gradients of A and B to
/// `grad`.
pub fn backward(
    dx: Option<(&mut Tensor, Into)>,
    grad: LoraGrad,
    dy: &Tensor,
    x: &Tensor,
    weight: &Weight,
    lora: &Lora,
) {
    match dy {
        Tensor::Host(dy) => {
            let grad = cpu::lora_linear::LoraGrad { a: grad.a.host_mut(), b: grad.b.host_mut() };
            let dx = dx.map(|(dx, into)| (dx.host_mut().into(), into));
            cpu::lora_linear::backward(dx, grad, dy.into(), x.host().into(), weight, lora);
        }
        Tensor::Gpu(dy) => {
            let dx = dx.map(|(dx, into)| (dx.array_mut(), into));
            cuda::lora_linear::backward(dx, [grad.a, grad.b].map(Tensor::array_mut), dy, x.array(), weight, lora);
        }
    }
}

/// The weight that computes the same without an adapter, `W + s B A`; it is computed on the CPU.
///
/// # Shapes
/// `[out, in]`.
pub fn merged(weight: &Weight, lora: &Lora) -> Vec<f32> {
    cpu::lora_linear::merged(weight, lora)
}
