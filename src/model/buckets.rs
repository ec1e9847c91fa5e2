//! Parameters in groups whose gradients backward finishes together: what travels between ranks at a time. And which of
//! them are read rounded, so that only who updates them needs more.

use weft_kernels::precision::Precision;

use super::block::{Block, Linear, ParamId, Transformer};

impl Transformer {
    /// Whether every weight is trained, and not an adapter's alone.
    pub fn is_trained_whole(&self) -> bool {
        self.params.iter().all(|p| p.trainable)
    }

    /// What is trained, in groups whose gradients travel together: the head, then each layer, the last one first, then
    /// the embedding, as backward finishes them; adapters alone are one group.
    pub fn buckets(&self) -> Vec<Vec<ParamId>> {
        let trained = |ids: Vec<ParamId>| ids.into_iter().filter(|id| self.params[*id].trainable).collect::<Vec<_>>();
        let of_linear = |l: &Linear| [l.weight].into_iter().chain(l.bias).chain(l.lora.into_iter().flatten());
        let of_block = |b: &Block| -> Vec<ParamId> {
            let linears = b.qkv.iter().chain([&b.attn_out]).chain(&b.gate_up).chain([&b.down]);
            [b.attn_norm, b.ff_norm].into_iter().chain(linears.flat_map(of_linear)).collect()
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

    /// Whether so many ranks each have a trained parameter in bf16, and only their part of it in f32: a linear layer's weight,
    /// unless it is the embedding too, where neither pass of a step computes in another precision. Nothing but matmuls in
    /// bf16 read it then, and rounded it gives the same bits.
    pub fn is_split(&self, id: ParamId, ranks: usize) -> bool {
        let rounds = [self.config.precision, self.config.entropy_precision] == [Precision::Bf16; 2];
        let is_matrix = id != self.embedding && self.linears().any(|layer| layer.weight == id);
        ranks > 1 && rounds && is_matrix && self.params[id].trainable
    }

    /// The bucket of a layer where every weight is trained; that of the head is 0, that of the embedding the last.
    pub(super) fn bucket_of_layer(&self, index: usize) -> usize {
        self.blocks.len() - index
    }
}
