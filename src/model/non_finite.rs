//! Where a pass's numbers first stop being finite. Only after that has happened, a separate forward and the gradients
//! are searched for the place.

use weft_kernels::precision::Precision;

use super::batch::Batch;
use super::block::{Block, Gradients, Linear, ParamId, Transformer};
use super::layer::Mode;

impl Transformer {
    /// The first part of a forward whose output isn't finite, with the first such weight of that part if there is one;
    /// `None` if every row has a proper distribution. A number that isn't finite spoils everything after it, so the
    /// first place is the origin.
    pub fn first_non_finite(&self, batch: &Batch, rows: &[usize], precision: Precision) -> Option<String> {
        let predicting = self.predicting(batch, rows);
        let (all, wanted) = (self.all_rows(batch), self.some_rows(batch, &predicting));
        let mut x = self.embed(batch);
        if !is_finite(&x.to_host()) {
            return Some(self.place("the token embedding", &[self.embedding]));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            x = self.layer_output(block, &x, self.span(index, &all, &wanted, precision));
            if !is_finite(&x.to_host()) {
                return Some(self.place(&format!("layer {index}"), &params_backwards(block)));
            }
        }
        let normed = self.norm(&x, self.final_norm, precision);
        if !is_finite(&normed.to_host()) {
            return Some(self.place("the norm before the head", &[self.final_norm]));
        }
        let head = self.head(Mode { dropout_keys: wanted.dropout_keys.as_ref(), precision });
        // A token of probability 0 is no fault: the entropy is finite unless the row is no distribution.
        let is_whole = is_finite(&head.entropy(&normed));
        (!is_whole).then(|| self.place("the head", &of_linear(&self.head)))
    }

    /// The first parameter whose gradient isn't finite, in the order of the backward from the head down: later
    /// gradients inherit it from there.
    pub fn first_non_finite_gradient(&self, grads: &Gradients) -> Option<&str> {
        let blocks = self.blocks.iter().rev().flat_map(params_backwards);
        let mut order =
            of_linear(&self.head).into_iter().chain([self.final_norm]).chain(blocks).chain([self.embedding]);
        let is_wrong = |id: &ParamId| grads[*id].as_ref().is_some_and(|grad| !is_finite(&grad.to_host()));
        order.find(is_wrong).map(|id| self.params[id].name.as_str())
    }

    fn place(&self, part: &str, params: &[ParamId]) -> String {
        let is_wrong = |id: &&ParamId| !is_finite(&self.params[**id].weight.to_f32());
        match params.iter().find(is_wrong) {
            Some(id) => format!("from {part} on (its weight {} isn't finite)", self.params[*id].name),
            None => format!("from {part} on"),
        }
    }
}

/// A layer's parameters in the order in which the backward reaches them.
fn params_backwards(block: &Block) -> Vec<ParamId> {
    let [q, k, v] = &block.qkv;
    let [gate, up] = &block.gate_up;
    let mut order = [&block.down, gate, up].into_iter().flat_map(of_linear).collect::<Vec<_>>();
    order.push(block.ff_norm);
    order.extend(of_linear(&block.attn_out));
    order.extend(block.qk_norm.into_iter().flatten());
    order.extend([k, v, q].into_iter().flat_map(of_linear));
    order.push(block.attn_norm);
    order
}

fn of_linear(linear: &Linear) -> Vec<ParamId> {
    let adapter = linear.lora.into_iter().flat_map(|[a, b]| [b, a]);
    adapter.chain(linear.bias).chain([linear.weight]).collect()
}

fn is_finite(numbers: &[f32]) -> bool {
    numbers.iter().all(|x| x.is_finite())
}
