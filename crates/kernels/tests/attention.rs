//! Attention against a plain f64 oracle, and its gradients against central differences of the oracle.

mod device;
mod differences;

use std::ops::Range;

use device::device;
use differences::{assert_close, assert_gradient, dot, random, wide};
use weft_kernels::attention::{self, Qkv, Shape};
use weft_kernels::precision::Precision;

fn attention64(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    (heads, kv_heads, dim): (usize, usize, usize),
    sequences: &[Range<usize>],
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for sequence in sequences {
        for (query, head) in sequence.clone().flat_map(|n| (0..heads).map(move |h| (n, h))) {
            let kv = head * kv_heads / heads;
            let at = |n: usize| n * kv_heads * dim + kv * dim;
            let o = query * heads * dim + head * dim;
            let weights: Vec<f64> = sequence
                .clone()
                .map(|key| ((0..dim).map(|i| q[o + i] * k[at(key) + i]).sum::<f64>() / (dim as f64).sqrt()).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            for (weight, key) in weights.iter().zip(sequence.clone()) {
                (0..dim).for_each(|i| out[o + i] += weight / total * v[at(key) + i]);
            }
        }
    }
    out
}

#[test]
fn attention_and_its_gradients() {
    let Some(on) = device() else { return };
    for (heads, kv_heads, dim, sequences) in
        [(1, 1, 3, vec![0..1, 1..1, 1..6]), (4, 2, 5, vec![0..7, 7..10]), (3, 1, 2, vec![0..133, 133..134])]
    {
        let n = sequences.last().expect("a sequence").end;
        let shape = Shape {
            heads,
            kv_heads,
            head_dim: dim,
            sequences: &sequences,
            queries: &sequences,
            precision: Precision::F32,
        };
        let sizes = (heads, kv_heads, dim);
        let (q, k, v) = (random(1, n * heads * dim), random(2, n * kv_heads * dim), random(3, n * kv_heads * dim));
        let dout = random(4, q.len());
        let [on_q, on_k, on_v, on_dout] = [&q, &k, &v, &dout].map(|x| on.put(x));
        let qkv = Qkv { q: &on_q, k: &on_k, v: &on_v };
        let mut out = on.zeros(q.len());
        let lse = attention::forward(&mut out, qkv, &shape);
        assert_close("out", &out, &attention64(&wide(&q), &wide(&k), &wide(&v), sizes, &sequences));
        if n > 100 {
            continue; // the forward pass covers several query blocks
        }
        let grad = attention::backward(&on_dout, &out, &lse, qkv, &shape);
        let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
        if n > heads * 6 || heads > 1 {
            assert_gradient("dq", &grad.q, &q, |q| dot(&attention64(q, &k64, &v64, sizes, &sequences), &dout));
        }
        assert_gradient("dk", &grad.k, &k, |k| dot(&attention64(&q64, k, &v64, sizes, &sequences), &dout));
        assert_gradient("dv", &grad.v, &v, |v| dot(&attention64(&q64, &k64, v, sizes, &sequences), &dout));
    }
}

#[test]
fn attention_of_some_queries_is_that_of_all_at_their_rows() {
    let Some(on) = device() else { return };
    let (heads, kv_heads, dim, sequences) = (4, 2, 5, [0..7, 7..10, 10..30]);
    let (n, width, kv_width) = (30, heads * dim, kv_heads * dim);
    let (q, k, v) = (random(1, n * width), random(2, n * kv_width), random(3, n * kv_width));
    let rows = [2, 3, 6, 11, 12, 29];
    let queries = [0..3, 3..3, 3..6];
    let at = |x: &[f32]| rows.iter().flat_map(|r| x[r * width..(r + 1) * width].to_vec()).collect::<Vec<_>>();
    let dsome = random(4, rows.len() * width);
    let mut dout = vec![0.0; q.len()];
    for (row, d) in rows.iter().zip(dsome.chunks(width)) {
        dout[row * width..(row + 1) * width].copy_from_slice(d);
    }
    let all =
        Shape { heads, kv_heads, head_dim: dim, sequences: &sequences, queries: &sequences, precision: Precision::F32 };
    let [on_q, on_k, on_v, on_dout, on_dsome, q_some] = [&q, &k, &v, &dout, &dsome, &at(&q)].map(|x| on.put(x));
    let (qkv, mut out) = (Qkv { q: &on_q, k: &on_k, v: &on_v }, on.zeros(q.len()));
    let lse = attention::forward(&mut out, qkv, &all);
    let grad = attention::backward(&on_dout, &out, &lse, qkv, &all);
    let some = Shape { queries: &queries, ..all };
    let (qkv_some, mut out_some) = (Qkv { q: &q_some, ..qkv }, on.zeros(dsome.len()));
    let lse_some = attention::forward(&mut out_some, qkv_some, &some);
    assert_eq!(*out_some.to_host(), at(&out.to_host()));
    let grad_some = attention::backward(&on_dsome, &out_some, &lse_some, qkv_some, &some);
    assert_eq!(*grad_some.q.to_host(), *at(&grad.q.to_host()));
    for (name, some, all) in [("dk", &grad_some.k, &grad.k), ("dv", &grad_some.v, &grad.v)] {
        assert_close(name, some, &wide(&all.to_host()));
    }
}
