//! Every operation against a plain f64 oracle: its forward values against the oracle's, and its hand-written gradients
//! against central differences of the oracle, at odd shapes. A flipped sign anywhere fails here.

mod device;

use std::ops::Range;

use device::{device, is_cpu};
use half::bf16;
use weft_kernels::attention::{self, Qkv, Shape};
use weft_kernels::head_loss::{Head, HeadGrad};
use weft_kernels::lora_linear::{self, Dropout, Lora, LoraGrad};
use weft_kernels::philox::{philox, unit_f32};
use weft_kernels::precision::Precision;
use weft_kernels::rope::{Rope, Rotation};
use weft_kernels::tensor::{Into, Tensor};
use weft_kernels::weight::Weight;
use weft_kernels::{embedding, linear, rms_norm, swiglu};

/// The largest error of a gradient, relative to the tensor's largest element.
const TOLERANCE: f64 = 2e-4;

fn random(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| 2.0 * unit_f32(philox(seed, [i as u32, 0, 0, 0])[0]) - 1.0).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

fn assert_close(what: &str, got: &Tensor, expected: &[f64]) {
    assert_all_close(what, &got.to_host(), expected);
}

fn assert_all_close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3f64, |m, e| m.max(e.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*g) - e).abs() <= TOLERANCE * largest, "{what}[{i}]: got {g}, expected {e}");
    }
}

/// Compares an analytic gradient with central differences of `f` at `x`.
fn assert_gradient(what: &str, got: &Tensor, x: &[f32], f: impl Fn(&[f64]) -> f64) {
    let mut x = wide(x);
    let h = 1e-5;
    let expected: Vec<f64> = (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + h;
            let above = f(&x);
            x[i] = at - h;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * h)
        })
        .collect();
    assert!(expected.iter().any(|e| e.abs() > 1e-6), "{what}: the check sees no gradient");
    assert_close(what, got, &expected);
}

/// `x W^T` with `W` `[outputs, inputs]`.
fn linear64(x: &[f64], w: &[f64], inputs: usize) -> Vec<f64> {
    x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(move |w| x.iter().zip(w).map(|(a, b)| a * b).sum())).collect()
}

#[test]
fn linear_and_its_gradients() {
    let Some(on) = device() else { return };
    for (n, inputs, outputs) in [(1, 1, 1), (5, 7, 3), (131, 33, 257)] {
        let (x, w, dy) = (random(1, n * inputs), random(2, outputs * inputs), random(3, n * outputs));
        let weight = on.f32_weight(outputs, inputs, &w);
        let mut y = on.zeros(n * outputs);
        linear::forward(&mut y, &on.put(&x), &weight, Precision::F32);
        assert_close("y", &y, &linear64(&wide(&x), &wide(&w), inputs));
        if n > 100 {
            continue; // the forward pass covers the tiles; central differences of so many numbers take minutes
        }
        let (mut dx, mut dw, d) = (on.zeros(x.len()), on.zeros(w.len()), on.put(&dy));
        linear::backward_input(&mut dx, &d, &weight, Into::Add, Precision::F32);
        linear::backward_weight(&mut dw, &d, &on.put(&x), n, Precision::F32);
        assert_gradient("dx", &dx, &x, |x| dot(&linear64(x, &wide(&w), inputs), &dy));
        assert_gradient("dw", &dw, &w, |w| dot(&linear64(&wide(&x), w, inputs), &dy));
    }
}

#[test]
fn bf16_weights_are_read_as_stored() {
    let Some(on) = device() else { return };
    let (n, inputs, outputs) = (3, 9, 301);
    let stored: Vec<bf16> = random(1, outputs * inputs).into_iter().map(bf16::from_f32).collect();
    let wide_w: Vec<f64> = stored.iter().map(|w| w.to_f64()).collect();
    let weight = on.weight(Weight::from_bf16(outputs, inputs, stored));
    let (x, dy) = (random(2, n * inputs), random(3, n * outputs));
    let mut y = on.zeros(n * outputs);
    linear::forward(&mut y, &on.put(&x), &weight, Precision::F32);
    assert_close("y", &y, &linear64(&wide(&x), &wide_w, inputs));
    let mut dx = on.zeros(x.len());
    linear::backward_input(&mut dx, &on.put(&dy), &weight, Into::Add, Precision::F32);
    assert_gradient("dx", &dx, &x, |x| dot(&linear64(x, &wide_w, inputs), &dy));
}

#[test]
fn lora_linear_and_its_gradients() {
    let Some(on) = device() else { return };
    let (n, inputs, outputs, rank, scale) = (5, 9, 7, 3, 1.5);
    let [x, w, a, b, dy] =
        [n * inputs, outputs * inputs, rank * inputs, outputs * rank, n * outputs].map(|len| random(len as u64, len));
    let weight = on.f32_weight(outputs, inputs, &w);
    let (wa, wb) = (on.f32_weight(rank, inputs, &a), on.f32_weight(outputs, rank, &b));
    let keys: Vec<u64> = (0..n as u64).map(|i| i * 77 + 5).collect();
    let on_device = on.0.dropout_keys(keys.clone());
    for probability in [0.0, 0.4] {
        let dropout = (probability > 0.0).then_some(Dropout { probability, token_keys: on_device.from(0), module: 6 });
        let lora = Lora { a: &wa, b: &wb, scale, dropout, precision: Precision::F32 };
        let keep = |token: usize, i: usize| match probability {
            0.0 => 1.0,
            p => f64::from(unit_f32(philox(keys[token], [i as u32 / 4, 6, 0, 0])[i % 4]) >= p) / f64::from(1.0 - p),
        };
        let oracle = |x: &[f64], a: &[f64], b: &[f64]| -> Vec<f64> {
            let dropped: Vec<f64> = x.iter().enumerate().map(|(j, x)| x * keep(j / inputs, j % inputs)).collect();
            let low = linear64(&linear64(&dropped, a, inputs), b, rank);
            linear64(x, &wide(&w), inputs).iter().zip(low).map(|(y, l)| y + f64::from(scale) * l).collect()
        };
        let mut y = on.zeros(n * outputs);
        lora_linear::forward(&mut y, &on.put(&x), &weight, &lora);
        assert_close("y", &y, &oracle(&wide(&x), &wide(&a), &wide(&b)));
        let [mut dx, mut da, mut db] = [&x, &a, &b].map(|of| on.zeros(of.len()));
        let grad = LoraGrad { a: &mut da, b: &mut db };
        lora_linear::backward(Some((&mut dx, Into::Add)), grad, &on.put(&dy), &on.put(&x), &weight, &lora);
        assert_gradient("dx", &dx, &x, |x| dot(&oracle(x, &wide(&a), &wide(&b)), &dy));
        assert_gradient("da", &da, &a, |a| dot(&oracle(&wide(&x), a, &wide(&b)), &dy));
        assert_gradient("db", &db, &b, |b| dot(&oracle(&wide(&x), &wide(&a), b), &dy));
    }
}

#[test]
fn rms_norm_and_its_gradients() {
    let Some(on) = device() else { return };
    let (n, width, eps) = (67, 5, 1e-2);
    let (x, gain, dy) = (random(1, n * width), random(2, width), random(3, n * width));
    let oracle = |x: &[f64], gain: &[f64]| -> Vec<f64> {
        x.chunks(width)
            .flat_map(|x| {
                let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(eps)).sqrt();
                x.iter().zip(gain).map(move |(x, g)| x * scale * g)
            })
            .collect()
    };
    let (mut y, weight) = (on.zeros(x.len()), on.f32_weight(1, width, &gain));
    rms_norm::forward(&mut y, &on.put(&x), &weight, eps);
    assert_close("y", &y, &oracle(&wide(&x), &wide(&gain)));
    let (mut dx, mut dgain) = (on.zeros(x.len()), on.zeros(width));
    rms_norm::backward(&mut dx, Some(&mut dgain), &on.put(&dy), &on.put(&x), &weight, eps);
    assert_gradient("dx", &dx, &x, |x| dot(&oracle(x, &wide(&gain)), &dy));
    assert_gradient("dgain", &dgain, &gain, |gain| dot(&oracle(&wide(&x), gain), &dy));
}

#[test]
fn rope_and_its_gradient() {
    let Some(on) = device() else { return };
    let (heads, dim, theta) = (3, 6, 10_000.0);
    let positions = [0, 3, 1, 17];
    let (x, dy) = (random(1, 4 * heads * dim), random(2, 4 * heads * dim));
    let oracle = |x: &[f64]| -> Vec<f64> {
        let mut y = x.to_vec();
        for (head, row) in y.chunks_mut(dim).enumerate() {
            for i in 0..dim / 2 {
                let angle = f64::from(positions[head / heads]) * f64::powf(theta, -2.0 * i as f64 / dim as f64);
                let (a, b) = (row[i], row[i + dim / 2]);
                row[i] = a * angle.cos() - b * angle.sin();
                row[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
        y
    };
    let rope = Rope::new(&on.0, &positions, dim, theta);
    let mut y = on.put(&x);
    rope.apply(&mut y, heads, Rotation::Forward);
    assert_close("y", &y, &oracle(&wide(&x)));
    let mut dx = on.put(&dy);
    rope.apply(&mut dx, heads, Rotation::Inverse);
    assert_gradient("dx", &dx, &x, |x| dot(&oracle(x), &dy));
}

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

#[test]
fn a_row_of_a_matmul_has_the_same_bits_wherever_it_stands() {
    let Some(on) = device() else { return };
    let (n, inputs, outputs) = (61, 700, 300);
    // A GPU's library chooses another algorithm for another shape.
    if !is_cpu() {
        return;
    }
    let (x, weight) = (random(1, n * inputs), on.f32_weight(outputs, inputs, &random(2, inputs * outputs)));
    let mut all = on.zeros(n * outputs);
    linear::forward(&mut all, &on.put(&x), &weight, Precision::F32);
    let all = all.to_host();
    for row in 0..n {
        let mut alone = on.zeros(outputs);
        linear::forward(&mut alone, &on.put(&x[row * inputs..(row + 1) * inputs]), &weight, Precision::F32);
        assert_eq!(*alone.to_host(), all[row * outputs..(row + 1) * outputs], "row {row}");
    }
}

#[test]
fn swiglu_and_its_gradients() {
    let Some(on) = device() else { return };
    let (gate, up, dh) = (random(1, 37), random(2, 37), random(3, 37));
    let oracle =
        |g: &[f64], u: &[f64]| -> Vec<f64> { g.iter().zip(u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect() };
    let (mut h, mut dgate, mut dup) = (on.zeros(37), on.put(&gate), on.put(&up));
    swiglu::forward(&mut h, &dgate, &dup, Precision::F32);
    assert_close("h", &h, &oracle(&wide(&gate), &wide(&up)));
    swiglu::backward(&mut dgate, &mut dup, &on.put(&dh), Precision::F32);
    assert_gradient("dgate", &dgate, &gate, |g| dot(&oracle(g, &wide(&up)), &dh));
    assert_gradient("dup", &dup, &up, |u| dot(&oracle(&wide(&gate), u), &dh));
}

#[test]
fn embedding_and_its_gradient() {
    let Some(on) = device() else { return };
    let (ids, width) = ([4u32, 0, 4], 3);
    let (table, dx) = (random(1, 5 * width), random(2, 3 * width));
    let oracle =
        |e: &[f64]| -> Vec<f64> { ids.iter().flat_map(|&id| e[id as usize * width..][..width].to_vec()).collect() };
    let mut x = on.zeros(3 * width);
    embedding::forward(&mut x, &ids, &on.f32_weight(5, width, &table));
    assert_close("x", &x, &oracle(&wide(&table)));
    let mut dtable = on.zeros(table.len());
    embedding::backward(&mut dtable, &ids, &on.put(&dx));
    assert_gradient("dE", &dtable, &table, |e| dot(&oracle(e), &dx));
}

#[test]
fn head_loss_and_its_gradients() {
    let Some(on) = device() else { return };
    let (n, width, vocab) = (19, 5, 11);
    let (x, w) = (random(1, n * width), random(2, vocab * width));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % vocab as u32).collect();
    let row_weights = random(3, n);
    let (weight, on_x) = (on.f32_weight(vocab, width, &w), on.put(&x));
    let head = Head { weight: &weight, lora: None, precision: Precision::F32 };
    let log_probabilities = |x: &[f64], w: &[f64]| -> Vec<Vec<f64>> {
        let logits = linear64(x, w, width);
        logits
            .chunks(vocab)
            .map(|z| {
                let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
                z.iter().map(|z| z - lse).collect()
            })
            .collect()
    };
    let nll = |x: &[f64], w: &[f64]| -> Vec<f64> {
        log_probabilities(x, w).iter().zip(&targets).map(|(l, &t)| -l[t as usize]).collect()
    };
    let entropies: Vec<f64> =
        log_probabilities(&wide(&x), &wide(&w)).iter().map(|l| -l.iter().map(|l| l.exp() * l).sum::<f64>()).collect();
    assert_all_close("entropy", &head.entropy(&on_x), &entropies);
    assert_all_close("nll alone", &head.nll(&on_x, &targets), &nll(&wide(&x), &wide(&w)));
    let (mut dx, mut dw) = (on.zeros(x.len()), on.zeros(w.len()));
    let grad = HeadGrad { weight: Some(&mut dw), lora: None };
    let got = head.loss(&on_x, &targets, &row_weights, &mut dx, grad);
    assert_close("nll", &got, &nll(&wide(&x), &wide(&w)));
    assert_gradient("dx", &dx, &x, |x| dot(&nll(x, &wide(&w)), &row_weights));
    assert_gradient("dw", &dw, &w, |w| dot(&nll(&wide(&x), w), &row_weights));
}

#[test]
fn a_frozen_head_has_the_same_loss_and_input_gradient() {
    let Some(on) = device() else { return };
    // The vocabulary has a single block, fewer blocks than parts, or several blocks per part.
    for vocab in [1, 11, 700, 5000] {
        let (n, width) = (13, 3);
        let (x, w, row_weights) = (random(1, n * width), random(2, vocab * width), random(3, n));
        let targets: Vec<u32> = (0..n as u32).map(|i| i * 397 % vocab as u32).collect();
        let weight = on.f32_weight(vocab, width, &w.iter().map(|w| 8.0 * w).collect::<Vec<_>>());
        let head = Head { weight: &weight, lora: None, precision: Precision::F32 };
        let (mut dw, x) = (on.zeros(w.len()), on.put(&x));
        let [mut dx, mut dx_trained] = [(); 2].map(|()| on.zeros(x.len()));
        let nll = head.loss(&x, &targets, &row_weights, &mut dx, HeadGrad::default());
        let trained = HeadGrad { weight: Some(&mut dw), lora: None };
        let expected = head.loss(&x, &targets, &row_weights, &mut dx_trained, trained);
        assert_close("nll", &nll, &wide(&expected.to_host()));
        assert_close("dx", &dx, &wide(&dx_trained.to_host()));
    }
}

#[test]
fn a_frozen_head_that_is_certain_keeps_a_small_gradient_in_bf16() {
    let Some(on) = device() else { return };
    // The target's logit is 12 above the other's: p = 1 - 6e-6, which bf16 would round to 1.
    let (weight, mut dx) = (on.f32_weight(2, 1, &[12.0, 0.0]), on.zeros(1));
    let head = Head { weight: &weight, lora: None, precision: Precision::Bf16 };
    head.loss(&on.operands(&[1.0], Precision::Bf16), &[0], &[1.0], &mut dx, HeadGrad::default());
    let expected = -12.0 * (1.0 - 1.0 / (1.0 + (-12f64).exp()));
    let got = f64::from(dx.to_host()[0]);
    // A GPU rounds the gradient of the logits to bf16, but not the difference 1 - p that it comes from.
    assert!((got / expected - 1.0).abs() < if is_cpu() { 1e-5 } else { 4e-3 }, "{got} instead of {expected}");
}

#[test]
fn thread_count_changes_no_bit() {
    let Some(on) = device() else { return };
    let (n, width, vocab) = (300, 65, 1000);
    let (x, weight) = (on.put(&random(1, n * width)), on.f32_weight(vocab, width, &random(2, vocab * width)));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
        pool.install(|| {
            let (mut dx, mut dw) = (on.zeros(n * width), on.zeros(vocab * width));
            let grad = HeadGrad { weight: Some(&mut dw), lora: None };
            let nll = Head { weight: &weight, lora: None, precision: Precision::F32 }.loss(
                &x,
                &vec![1; n],
                &vec![0.5; n],
                &mut dx,
                grad,
            );
            [nll, dx, dw].map(|x| x.to_host().into_owned())
        })
    };
    assert!(run(1) == run(2) && run(1) == run(4));
}
