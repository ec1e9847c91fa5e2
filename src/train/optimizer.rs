//! AdamW over the model's trainable parameters, with the gradient's norm clipped. The update of one tensor is
//! `weft_kernels::adamw`.

use weft_kernels::adamw::{AdamW, sum_of_squares};

use crate::model::block::{Gradients, Param, Transformer};
use crate::recipe::TrainTable;

/// First and second moments of each parameter, empty for a frozen one.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// First moments.
    pub m: Vec<Vec<f32>>,
    /// Second moments.
    pub v: Vec<Vec<f32>>,
}

impl Optimizer {
    /// Moments of zero.
    pub fn new(model: &Transformer) -> Self {
        let trained = |p: &Param| if p.trainable { p.weight.rows() * p.weight.cols() } else { 0 };
        let zeros: Vec<Vec<f32>> = model.params.iter().map(|p| vec![0.0; trained(p)]).collect();
        Self { m: zeros.clone(), v: zeros }
    }

    /// One update at a step counted from 0, the gradient scaled down to `max_grad_norm` where its norm is larger.
    pub fn update(
        &mut self,
        model: &mut Transformer,
        grads: &Gradients,
        grad_norm: f64,
        (step, lr): (u64, f64),
        settings: &TrainTable,
    ) {
        let limit = settings.max_grad_norm;
        let grad_scale = if limit > 0.0 && grad_norm > limit { (limit / grad_norm) as f32 } else { 1.0 };
        for (i, param) in model.params.iter_mut().enumerate() {
            let Some(grad) = &grads[i] else { continue };
            let adamw = AdamW {
                lr: lr as f32,
                beta1: settings.adam_beta1 as f32,
                beta2: settings.adam_beta2 as f32,
                eps: settings.adam_eps as f32,
                // Decay would pull the gains of norms towards 0.
                weight_decay: if param.shape.len() == 1 { 0.0 } else { settings.weight_decay as f32 },
                step: step + 1,
            };
            adamw.update(param.weight.make_trainable(), &mut self.m[i], &mut self.v[i], grad, grad_scale);
        }
    }
}

/// Makes every weight of a model trainable: each gets its f32 master copy, which is what is updated and computed with.
pub fn train_everything(model: &mut Transformer) {
    for param in &mut model.params {
        param.weight.make_trainable();
        param.trainable = true;
    }
}

/// The norm of all gradients together.
pub fn gradient_norm(grads: &Gradients) -> f64 {
    grads.iter().flatten().map(|g| sum_of_squares(g)).sum::<f64>().sqrt()
}
