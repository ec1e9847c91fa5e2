//! Attention against a plain f64 oracle, and its gradients against central differences of the oracle.

mod device;
mod differences;

use std::ops::Range;

use device::device;
use differences::{assert_close, assert_gradient, dot, random, wide};
use weft_kernels::attention::{self, Qkv, Shape, Visible};
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
            visible: None,
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
    let all = Shape {
        heads,
        kv_heads,
        head_dim: dim,
        sequences: &sequences,
        queries: &sequences,
        visible: None,
        precision: Precision::F32,
    };
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

/// What rows of block diffusion see, in sequences of a noisy and a clean half: rows of one half that lie in one block see
/// each other, noisy rows see earlier clean blocks, and clean rows see earlier clean blocks.
fn block_diffusion(sequences: &[Range<usize>], block_length: usize) -> Vec<Visible> {
    let of_sequence = |s: &Range<usize>| {
        let (start, len) = (s.start, s.len() / 2);
        let of_row = move |row: usize| {
            let (half, block) = (row / len, row % len / block_length * block_length);
            let end = (block + block_length).min(len);
            match half {
                0 => Visible::new(start + block..start + end, start + len..start + len + block),
                _ => Visible::new(start..start, start + len..start + len + end),
            }
        };
        (0..2 * len).map(of_row).collect::<Vec<_>>()
    };
    sequences.iter().flat_map(of_sequence).collect()
}

/// Attention by its definition, with what each query sees as a list of keys.
fn attention_of_some64(
    [q, k, v]: [&[f64]; 3],
    (heads, kv_heads, dim): (usize, usize, usize),
    visible: &[Visible],
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for (query, head) in (0..visible.len()).flat_map(|n| (0..heads).map(move |h| (n, h))) {
        let at = |n: usize| n * kv_heads * dim + head * kv_heads / heads * dim;
        let o = query * heads * dim + head * dim;
        let keys = visible[query].ranges.iter().flat_map(|[start, end]| *start as usize..*end as usize);
        let weight =
            |key: usize| ((0..dim).map(|i| q[o + i] * k[at(key) + i]).sum::<f64>() / (dim as f64).sqrt()).exp();
        let weights: Vec<(usize, f64)> = keys.map(|key| (key, weight(key))).collect();
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        for (key, weight) in weights {
            (0..dim).for_each(|i| out[o + i] += weight / total * v[at(key) + i]);
        }
    }
    out
}

#[test]
fn a_query_attends_to_what_it_sees() {
    let Some(on) = device() else { return };
    let small = [(1, 1, 3, vec![0..4, 4..4, 4..16], 2), (2, 1, 5, vec![0..14, 14..20], 3), (2, 2, 4, vec![0..12], 1)];
    // Several tiles of queries and of keys.
    let large = [(2, 1, 8, vec![0..404, 404..460], 4), (1, 1, 8, vec![0..700], 32), (1, 1, 40, vec![0..514], 300)];
    for (heads, kv_heads, head_dim, sequences, block_length) in small.into_iter().chain(large) {
        let n = sequences.last().expect("a sequence").end;
        let visible = block_diffusion(&sequences, block_length);
        let (sequences, sizes) = (sequences.as_slice(), (heads, kv_heads, head_dim));
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let [q, k, v, dout] = [width, kv_width, kv_width, width].map(|width| random(width as u64 + 3, n * width));
        let [q64, k64, v64] = [&q, &k, &v].map(|x| wide(x));
        let [on_q, on_k, on_v, on_dout] = [&q, &k, &v, &dout].map(|x| on.put(x));
        let (qkv, precision) = (Qkv { q: &on_q, k: &on_k, v: &on_v }, Precision::F32);
        let visible_all = Some(visible.as_slice());
        let shape = Shape { heads, kv_heads, head_dim, sequences, queries: sequences, visible: visible_all, precision };
        let mut out = on.zeros(q.len());
        let lse = attention::forward(&mut out, qkv, &shape);
        assert_close("out", &out, &attention_of_some64([&q64, &k64, &v64], sizes, &visible));
        let grad = attention::backward(&on_dout, &out, &lse, qkv, &shape);
        let of = |q: &[f64], k: &[f64], v: &[f64]| dot(&attention_of_some64([q, k, v], sizes, &visible), &dout);
        if n < 30 {
            assert_gradient("dq", &grad.q, &q, |q| of(q, &k64, &v64));
            assert_gradient("dk", &grad.k, &k, |k| of(&q64, k, &v64));
            assert_gradient("dv", &grad.v, &v, |v| of(&q64, &k64, v));
            continue;
        }
        let [dq, dk, dv] = gradients_of_some64([&q64, &k64, &v64], &wide(&dout), sizes, &visible);
        assert_close("dq", &grad.q, &dq);
        assert_close("dk", &grad.k, &dk);
        assert_close("dv", &grad.v, &dv);
    }
}

/// The gradients of [`attention_of_some64`] by the chain rule, pair by pair.
fn gradients_of_some64(
    [q, k, v]: [&[f64]; 3],
    dout: &[f64],
    (heads, kv_heads, dim): (usize, usize, usize),
    visible: &[Visible],
) -> [Vec<f64>; 3] {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let (root, dot) = ((dim as f64).sqrt(), |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>());
    for (query, head) in (0..visible.len()).flat_map(|n| (0..heads).map(move |h| (n, h))) {
        let at = |n: usize| n * kv_heads * dim + head * kv_heads / heads * dim;
        let o = query * heads * dim + head * dim;
        let keys: Vec<usize> =
            visible[query].ranges.iter().flat_map(|[start, end]| *start as usize..*end as usize).collect();
        let exps: Vec<f64> = keys.iter().map(|n| (dot(&q[o..o + dim], &k[at(*n)..][..dim]) / root).exp()).collect();
        let total: f64 = exps.iter().sum();
        let dp: Vec<f64> = keys.iter().map(|n| dot(&dout[o..o + dim], &v[at(*n)..][..dim])).collect();
        let mean: f64 = exps.iter().zip(&dp).map(|(e, d)| e / total * d).sum();
        for ((n, e), d) in keys.iter().zip(&exps).zip(&dp) {
            let (p, ds) = (e / total, e / total * (d - mean) / root);
            for i in 0..dim {
                dq[o + i] += ds * k[at(*n) + i];
                dk[at(*n) + i] += ds * q[o + i];
                dv[at(*n) + i] += p * dout[o + i];
            }
        }
    }
    [dq, dk, dv]
}

#[test]
fn some_queries_that_see_some_keys_are_those_of_all_at_their_rows() {
    let Some(on) = device() else { return };
    let (heads, kv_heads, head_dim, sequences) = (2, 1, 8, [0..14, 14..174]);
    let (n, width, kv_width) = (174, heads * head_dim, kv_heads * head_dim);
    let visible = block_diffusion(&sequences, 4);
    let (q, k, v) = (random(1, n * width), random(2, n * kv_width), random(3, n * kv_width));
    // Rows within a sequence may stand in any order.
    let rows = [2, 13, 3, 20, 61, 62, 140, 90];
    let queries = [0..3, 3..8];
    let at = |x: &[f32]| rows.iter().flat_map(|r| x[r * width..(r + 1) * width].to_vec()).collect::<Vec<_>>();
    let dsome = random(4, rows.len() * width);
    let mut dout = vec![0.0; q.len()];
    for (row, d) in rows.iter().zip(dsome.chunks(width)) {
        dout[row * width..(row + 1) * width].copy_from_slice(d);
    }
    let precision = Precision::F32;
    let all = Shape {
        heads,
        kv_heads,
        head_dim,
        sequences: &sequences,
        queries: &sequences,
        visible: Some(&visible),
        precision,
    };
    let [on_q, on_k, on_v, on_dout, on_dsome, q_some] = [&q, &k, &v, &dout, &dsome, &at(&q)].map(|x| on.put(x));
    let (qkv, mut out) = (Qkv { q: &on_q, k: &on_k, v: &on_v }, on.zeros(q.len()));
    let lse = attention::forward(&mut out, qkv, &all);
    let grad = attention::backward(&on_dout, &out, &lse, qkv, &all);
    let visible_some: Vec<Visible> = rows.iter().map(|row| visible[*row]).collect();
    let some = Shape { queries: &queries, visible: Some(&visible_some), ..all };
    let (qkv_some, mut out_some) = (Qkv { q: &q_some, ..qkv }, on.zeros(dsome.len()));
    let lse_some = attention::forward(&mut out_some, qkv_some, &some);
    assert_close("out", &out_some, &wide(&at(&out.to_host())));
    let grad_some = attention::backward(&on_dsome, &out_some, &lse_some, qkv_some, &some);
    assert_close("dq", &grad_some.q, &wide(&at(&grad.q.to_host())));
    assert_close("dk", &grad_some.k, &wide(&grad.k.to_host()));
    assert_close("dv", &grad_some.v, &wide(&grad.v.to_host()));
}

#[test]
fn seeing_everything_is_seeing_the_whole_sequence() {
    let Some(on) = device() else { return };
    let (heads, kv_heads, head_dim, sequences) = (2, 1, 8, [0..9, 9..140]);
    let (n, precision) = (140, Precision::F32);
    let visible: Vec<Visible> =
        sequences.iter().flat_map(|s| s.clone().map(|_| Visible::new(s.start..s.end, s.end..s.end))).collect();
    let (q, k, v) = (random(1, n * 16), random(2, n * 8), random(3, n * 8));
    let [q, k, v] = [q, k, v].map(|x| on.put(&x));
    let qkv = Qkv { q: &q, k: &k, v: &v };
    let whole =
        Shape { heads, kv_heads, head_dim, sequences: &sequences, queries: &sequences, visible: None, precision };
    let [mut out, mut out_of_some] = [(); 2].map(|()| on.zeros(n * 16));
    let lse = attention::forward(&mut out, qkv, &whole);
    attention::forward(&mut out_of_some, qkv, &Shape { visible: Some(&visible), ..whole });
    assert_eq!(out.to_host(), out_of_some.to_host());
    let dout = on.put(&random(4, n * 16));
    let [a, b] = [None, Some(&visible[..])]
        .map(|visible| attention::backward(&dout, &out, &lse, qkv, &Shape { visible, ..whole }));
    for (a, b) in [(a.q, b.q), (a.k, b.k), (a.v, b.v)] {
        assert_eq!(a.to_host(), b.to_host());
    }
}
