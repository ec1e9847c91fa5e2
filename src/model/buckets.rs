//! Parameters in groups whose gradients backward finishes together, the unit that ranks exchange; and which parameters
//! are only ever read as bf16, so that only the rank that updates them needs f32.

use weft_kernels::precision::Precision;

use super::block::{Block, Linear, ParamId, Transformer};

impl Transformer {
    /// Whether every weight is trained, rather than only an adapter.
    pub(crate) fn is_trained_whole(&self) -> bool {
        self.params.iter().all(|p| p.trainable)
    }

    /// The trainable parameters in groups whose gradients travel together, in the order in which backward finishes
    /// them: the head, the layers from the last to the first, the embedding. Adapters are a single group.
    pub(crate) fn buckets(&self) -> Vec<Vec<ParamId>> {
        let trained = |ids: Vec<ParamId>| ids.into_iter().filter(|id| self.params[*id].trainable).collect::<Vec<_>>();
        let of_linear = |l: &Linear| [l.weight].into_iter().chain(l.bias).chain(l.lora.into_iter().flatten());
        let of_block = |b: &Block| -> Vec<ParamId> {
            let linears = b.qkv.iter().chain([&b.attn_out]).chain(&b.gate_up).chain([&b.down]);
            let norms = [b.attn_norm, b.ff_norm].into_iter().chain(b.qk_norm.into_iter().flatten());
            norms.chain(linears.flat_map(of_linear)).collect()
        };
        let is_tied = self.has_tied_head();
        let head = of_linear(&self.head).filter(|id| !is_tied || *id != self.embedding).chain([self.final_norm]);
        let groups = std::iter::once(head.collect()).chain(self.blocks.iter().rev().map(of_block));
        let groups: Vec<Vec<ParamId>> = groups.chain([vec![self.embedding]]).map(trained).collect();
        match self.is_trained_whole() {
            true => groups,
            false => vec![groups.concat()],
        }
    }

    /// Whether each of `ranks` ranks holds a trained parameter in bf16 and only its own part of it in f32. This applies
    /// to a linear layer's weight that isn't the embedding too, if both passes of a step compute in bf16: then only
    /// matmuls in bf16 read it, and the rounded weight gives the same bits.
    pub(crate) fn is_split(&self, id: ParamId, ranks: usize) -> bool {
        let rounds = [self.config.precision, self.config.entropy_precision] == [Precision::Bf16; 2];
        let is_matrix = id != self.embedding && self.linears().any(|layer| layer.weight == id);
        ranks > 1 && rounds && is_matrix && self.params[id].trainable
    }

    /// The bucket of a layer where every weight is trained; the head's bucket is 0, and the embedding's is the last.
    pub(super) fn bucket_of_layer(&self, index: usize) -> usize {
        self.blocks.len() - index
    }
}
