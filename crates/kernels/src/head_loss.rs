//! The LM head with softmax statistics (a fused linear cross-entropy): negative log-likelihood, entropy, and the
//! gradient of a weighted sum of the negative log-likelihoods. Logits exist only for a chunk of rows at a time, never
//! as `[N, V]`.

use crate::cpu;
use crate::cuda;
use crate::lora_linear::{Dropout, Lora, LoraGrad};
use crate::precision::Precision;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// The head: its weight `[V, D]` and, where `target_modules` names it, its adapter.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// The weight `[V, D]`.
    pub weight: &'a Weight,
    /// The adapter, if the head has one.
    pub lora: Option<Lora<'a>>,
    /// Precision of the head's matmuls.
    pub precision: Precision,
}

/// Where the head's gradients are added; `None` for what is frozen.
#[derive(Default)]
pub struct HeadGrad<'a> {
    /// Gradient of the weight, `[V, D]`.
    pub weight: Option<&'a mut Tensor>,
    /// Gradients of the adapter.
    pub lora: Option<LoraGrad<'a>>,
}

impl Head<'_> {
    /// Calls `f(first row, logits [rows, V])` for each chunk of `x` `[N, D]`, in order. A meta device has no logits and
    /// never calls it.
    pub fn for_each_chunk(&self, x: &Tensor, mut f: impl FnMut(usize, &mut [f32])) {
        match x {
            Tensor::Host(x) => cpu::head_loss::for_each_chunk(self, x.into(), |first, logits| {
                if let Some(logits) = logits.numbers() {
                    f(first, logits);
                }
            }),
            Tensor::Gpu(x) => cuda::head_loss::for_each_chunk(self, x, f),
        }
    }

    /// Shannon entropy of each row's distribution, in nats: `H = ln Z - sum e_v (z_v - max) / Z`, never below 0.
    pub fn entropy(&self, x: &Tensor) -> Vec<f32> {
        match x {
            Tensor::Host(x) => cpu::head_loss::entropy(self, x.into()),
            Tensor::Gpu(x) => cuda::head_loss::entropy(self, x),
        }
    }

    /// Negative log-likelihood of each row's target, in nats.
    pub fn nll(&self, x: &Tensor, targets: &[u32]) -> Vec<f32> {
        match x {
            Tensor::Host(x) => cpu::head_loss::nll(self, x.into(), targets),
            Tensor::Gpu(x) => cuda::head_loss::nll(self, x, targets),
        }
    }

    /// Negative log-likelihood of each row's target, in nats, and the gradient of `sum over rows of weight * nll`:
    /// overwrites `dx` `[N, D]` and adds to `grad`.
    pub fn loss(&self, x: &Tensor, targets: &[u32], row_weights: &[f32], dx: &mut Tensor, grad: HeadGrad) -> Tensor {
        match (x, dx) {
            (Tensor::Host(x), Tensor::Host(dx)) => {
                let lora = grad.lora.map(|g| cpu::lora_linear::LoraGrad { a: g.a.host_mut(), b: g.b.host_mut() });
                let grad = cpu::head_loss::HeadGrad { weight: grad.weight.map(Tensor::host_mut), lora };
                cpu::head_loss::loss(self, x.into(), (targets, row_weights), dx.into(), grad).into()
            }
            (x, dx) => {
                let lora = grad.lora.map(|g| [g.a, g.b].map(Tensor::array_mut));
                let grad = (grad.weight.map(Tensor::array_mut), lora);
                Tensor::Gpu(cuda::head_loss::loss(self, x.array(), (targets, row_weights), dx.array_mut(), grad))
            }
        }
    }

    /// The adapter with the dropout keys of the rows from `first` on.
    pub(crate) fn lora_from(&self, first: usize) -> Option<Lora<'_>> {
        self.lora.map(|lora| Lora {
            dropout: lora.dropout.map(|d| Dropout { token_keys: d.token_keys.from(first), ..d }),
            ..lora
        })
    }
}
