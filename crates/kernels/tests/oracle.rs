//! Operations against a plain f64 oracle: its forward values against the oracle's, and its hand-written gradients
//! against central differences of the oracle, at odd shapes. A flipped sign anywhere fails here.
//! Attention and the norm have files of their own.

mod device;
mod differences;

use device::{device, is_cpu};
use differences::{assert_all_close, assert_close, assert_gradient, dot, random, wide};
use half::bf16;
use weft_kernels::head_loss::{Head, HeadGrad};
use weft_kernels::lora_linear::{self, Dropout, Lora, LoraGrad};
use weft_kernels::philox::{philox, unit_f32};
use weft_kernels::precision::Precision;
use weft_kernels::rope::{Rope, Rotation};
use weft_kernels::tensor::Into;
use weft_kernels::weight::Weight;
use weft_kernels::{embedding, linear, swiglu};

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
