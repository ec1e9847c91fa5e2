//! Benchmarks of each operation at the sizes of a step of `weft bench --shape P` (2,048 tokens of width 512), beside
//! the machine's own rates: `Gitem/s` are GFLOP/s, and `GB/s` count every number read or written once. Run `cargo bench
//! -p weft-kernels`; set `WEFT_DEVICE=cuda` for a GPU, where each call is waited for, so that small operations mostly
//! measure the launch.

#![allow(missing_docs)]

use std::sync::LazyLock;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use weft_kernels::adamw::AdamW;
use weft_kernels::attention::{self, Qkv, Shape};
use weft_kernels::cuda::Gpu;
use weft_kernels::device::Device;
use weft_kernels::head_loss::{Head, HeadGrad};
use weft_kernels::lora_linear::{self, Lora, LoraGrad};
use weft_kernels::precision::Precision;
use weft_kernels::rope::{Rope, Rotation};
use weft_kernels::tensor::{Into, Tensor};
use weft_kernels::weight::{Dtype, Weight, to_bf16_bytes};
use weft_kernels::{embedding, linear, rms_norm, swiglu};

const TOKENS: usize = 2048;
const WIDTH: usize = 512;
const MLP: usize = 1536;
const HEADS: usize = 8;
const VOCAB: usize = 32_000;
const RANK: usize = 32;
/// Rows whose loss is computed: about half of three quarters of the tokens.
const MASKED: usize = 768;
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];
const LENGTHS: [usize; 3] = [128, 512, 2048];

fn main() {
    divan::main();
}

static DEVICE: LazyLock<Device> = LazyLock::new(|| match std::env::var("WEFT_DEVICE").as_deref() {
    Ok(name) if name.starts_with("cuda") => {
        Device::Cuda(Gpu::open(0, None).unwrap_or_else(|reason| panic!("{reason}")))
    }
    _ => Device::Cpu,
});

fn on_host(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

fn numbers(len: usize) -> Tensor {
    DEVICE.put(on_host(len))
}

/// Numbers in the format that matmuls read.
fn operands(len: usize, precision: Precision) -> Tensor {
    numbers(len).rounded(precision)
}

/// Runs work and returns once a GPU has finished it, too.
fn done<T>(work: impl FnOnce() -> T) -> T {
    let result = work();
    DEVICE.finish();
    result
}

/// A weight that is stored in the format of the matmuls.
fn weight(rows: usize, cols: usize, precision: Precision) -> Weight {
    let mut weight = match precision {
        Precision::F32 => Weight::from_f32(rows, cols, on_host(rows * cols)),
        Precision::Bf16 => Weight::from_bytes(rows, cols, Dtype::Bf16, &to_bf16_bytes(&on_host(rows * cols))),
    };
    weight.put_on(&DEVICE);
    weight
}

fn flop(m: usize, k: usize, n: usize) -> ItemsCount {
    ItemsCount::new(2 * m * k * n)
}

fn bytes(numbers: usize) -> BytesCount {
    BytesCount::new(4 * numbers)
}

/// Bytes of numbers in the format that matmuls read; on the CPU, they are f32 until a matmul rounds them.
fn operand_bytes(numbers: usize, precision: Precision) -> BytesCount {
    let is_bf16 = precision == Precision::Bf16 && !matches!(*DEVICE, Device::Cpu);
    BytesCount::new(if is_bf16 { 2 } else { 4 } * numbers)
}

mod machine {
    use super::*;

    #[divan::bench(args = PRECISIONS)]
    fn matmul_of_4096_rows(bencher: Bencher, precision: Precision) {
        let (rows, side) = (4096, 4096);
        let (x, w, mut y) =
            (operands(rows * side, precision), weight(side, side, precision), operands(rows * side, precision));
        bencher.counter(flop(rows, side, side)).bench_local(|| done(|| linear::forward(&mut y, &x, &w, precision)));
    }

    #[divan::bench]
    fn addition_in_memory(bencher: Bencher) {
        let (from, mut to) = (numbers(1 << 24), numbers(1 << 24));
        bencher.counter(bytes(3 << 24)).bench_local(|| done(|| to.add(&from)));
    }
}

/// The peak rate of one core's vectors: AVX512-BF16's dot products are faster than f32 multiply-adds on some processors
/// only.
#[cfg(target_arch = "x86_64")]
mod instructions {
    use std::arch::x86_64::{__m512bh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};

    use super::*;

    const ROUNDS: usize = 1 << 16;
    /// How many sums are independent of each other.
    const SUMS: usize = 16;

    #[target_feature(enable = "avx512f")]
    fn multiply_adds() -> f32 {
        let (a, b, mut sums) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(0.5), [_mm512_set1_ps(1.0); SUMS]);
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        sums.map(|sum| _mm512_reduce_add_ps(sum)).iter().sum()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot_products() -> f32 {
        // SAFETY: both types have 64 bytes without invalid patterns.
        let a: __m512bh = unsafe { std::mem::transmute(_mm512_set1_ps(black_box(0.5))) };
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, a);
            }
        }
        sums.map(|sum| _mm512_reduce_add_ps(sum)).iter().sum()
    }

    #[divan::bench]
    fn f32_multiply_add(bencher: Bencher) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            bencher.counter(ItemsCount::new(ROUNDS * SUMS * 32)).bench_local(|| unsafe { multiply_adds() });
        }
    }

    #[divan::bench]
    fn bf16_dot_matmul(bencher: Bencher) {
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the processor has the instructions.
            bencher.counter(ItemsCount::new(ROUNDS * SUMS * 64)).bench_local(|| unsafe { dot_products() });
        }
    }
}

#[divan::bench(args = PRECISIONS)]
fn linear_forward(bencher: Bencher, precision: Precision) {
    let w = weight(MLP, WIDTH, precision);
    let (x, mut y) = (operands(TOKENS * WIDTH, precision), operands(TOKENS * MLP, precision));
    bencher.counter(flop(TOKENS, WIDTH, MLP)).bench_local(|| done(|| linear::forward(&mut y, &x, &w, precision)));
}

#[divan::bench(args = PRECISIONS)]
fn linear_backward_input(bencher: Bencher, precision: Precision) {
    let (w, dy, mut dx) = (weight(MLP, WIDTH, precision), operands(TOKENS * MLP, precision), numbers(TOKENS * WIDTH));
    bencher
        .counter(flop(TOKENS, MLP, WIDTH))
        .bench_local(|| done(|| linear::backward_input(&mut dx, &dy, &w, Into::Set, precision)));
}

#[divan::bench(args = PRECISIONS)]
fn linear_backward_weight(bencher: Bencher, precision: Precision) {
    let (x, dy) = (operands(TOKENS * WIDTH, precision), operands(TOKENS * MLP, precision));
    let mut dw = numbers(MLP * WIDTH);
    bencher
        .counter(flop(MLP, TOKENS, WIDTH))
        .bench_local(|| done(|| linear::backward_weight(&mut dw, &dy, &x, TOKENS, precision)));
}

#[divan::bench(args = PRECISIONS)]
fn lora_forward(bencher: Bencher, precision: Precision) {
    let w = weight(WIDTH, WIDTH, precision);
    let [a, b] = [[RANK, WIDTH], [WIDTH, RANK]].map(|[rows, cols]| weight(rows, cols, Precision::F32));
    let (x, mut y) = (operands(TOKENS * WIDTH, precision), operands(TOKENS * WIDTH, precision));
    let lora = Lora { a: &a, b: &b, scale: 2.0, dropout: None, precision };
    bencher
        .counter(flop(TOKENS, WIDTH, WIDTH + 2 * RANK))
        .bench_local(|| done(|| lora_linear::forward(&mut y, &x, &w, &lora)));
}

#[divan::bench(args = PRECISIONS)]
fn lora_backward(bencher: Bencher, precision: Precision) {
    let w = weight(WIDTH, WIDTH, precision);
    let [a, b] = [[RANK, WIDTH], [WIDTH, RANK]].map(|[rows, cols]| weight(rows, cols, Precision::F32));
    let [x, dy] = [(); 2].map(|()| operands(TOKENS * WIDTH, precision));
    let [mut dx, mut da, mut db] = [TOKENS * WIDTH, RANK * WIDTH, WIDTH * RANK].map(numbers);
    let lora = Lora { a: &a, b: &b, scale: 2.0, dropout: None, precision };
    bencher.counter(flop(TOKENS, WIDTH, WIDTH + 5 * RANK)).bench_local(|| {
        let grad = LoraGrad { a: &mut da, b: &mut db };
        done(|| lora_linear::backward(Some((&mut dx, Into::Set)), grad, &dy, &x, &w, &lora));
    });
}

/// Queries, keys and values of the tokens, in sequences of `length`.
fn attention_of(length: usize, precision: Precision, run: impl FnOnce(Qkv, &Shape, ItemsCount)) {
    let sequences: Vec<_> = (0..TOKENS).step_by(length).map(|start| start..start + length).collect();
    let (sequences, head_dim) = (&sequences[..], WIDTH / HEADS);
    let shape =
        Shape { heads: HEADS, kv_heads: HEADS, head_dim, sequences, queries: sequences, visible: None, precision };
    let [q, k, v] = [(); 3].map(|()| operands(TOKENS * WIDTH, precision));
    run(Qkv { q: &q, k: &k, v: &v }, &shape, flop(TOKENS, length, 2 * WIDTH));
}

#[divan::bench(args = LENGTHS, consts = [false, true])]
fn attention_forward<const BF16: bool>(bencher: Bencher, length: usize) {
    let precision = PRECISIONS[usize::from(BF16)];
    attention_of(length, precision, |qkv, shape, flop| {
        let mut out = operands(TOKENS * WIDTH, precision);
        bencher.counter(flop).bench_local(|| done(|| attention::forward(&mut out, qkv, shape)));
    });
}

#[divan::bench(args = LENGTHS, consts = [false, true])]
fn attention_backward<const BF16: bool>(bencher: Bencher, length: usize) {
    let precision = PRECISIONS[usize::from(BF16)];
    attention_of(length, precision, |qkv, shape, _| {
        let mut out = operands(TOKENS * WIDTH, precision);
        let lse = attention::forward(&mut out, qkv, shape);
        let dout = operands(TOKENS * WIDTH, precision);
        bencher
            .counter(flop(TOKENS, length, 5 * WIDTH))
            .bench_local(|| done(|| attention::backward(&dout, &out, &lse, qkv, shape)));
    });
}

#[divan::bench(args = PRECISIONS)]
fn head_entropy(bencher: Bencher, precision: Precision) {
    let (w, x) = (weight(VOCAB, WIDTH, precision), operands(MASKED * WIDTH, precision));
    let head = Head { weight: &w, lora: None, precision };
    bencher.counter(flop(MASKED, WIDTH, VOCAB)).bench_local(|| head.entropy(black_box(&x)));
}

#[divan::bench(args = PRECISIONS)]
fn head_loss_and_gradient(bencher: Bencher, precision: Precision) {
    let (w, x, mut dx) =
        (weight(VOCAB, WIDTH, precision), operands(MASKED * WIDTH, precision), numbers(MASKED * WIDTH));
    let (targets, weights) = (vec![1; MASKED], vec![1.0; MASKED]);
    let head = Head { weight: &w, lora: None, precision };
    bencher
        .counter(flop(MASKED, WIDTH, 2 * VOCAB))
        .bench_local(|| done(|| head.loss(&x, &targets, &weights, &mut dx, HeadGrad::default())));
}

#[divan::bench]
fn rms_norm_forward(bencher: Bencher) {
    let (x, gain, mut y) = (numbers(TOKENS * WIDTH), weight(1, WIDTH, Precision::F32), numbers(TOKENS * WIDTH));
    bencher.counter(bytes(2 * x.len())).bench_local(|| done(|| rms_norm::forward(&mut y, &x, &gain, 1e-5)));
}

#[divan::bench]
fn rms_norm_backward(bencher: Bencher) {
    let [x, dy, mut dx] = [(); 3].map(|()| numbers(TOKENS * WIDTH));
    let gain = weight(1, WIDTH, Precision::F32);
    bencher
        .counter(bytes(4 * x.len()))
        .bench_local(|| done(|| rms_norm::backward(&mut dx, None, &dy, &x, &gain, 1e-5)));
}

/// The norm of each token's query heads in Qwen3: one gain for all of them.
const NORMED: [usize; 2] = [16, 128];

#[divan::bench(args = PRECISIONS)]
fn head_norm_forward(bencher: Bencher, precision: Precision) {
    let (len, gain) = (TOKENS * NORMED[0] * NORMED[1], weight(1, NORMED[1], Precision::F32));
    let (x, mut y) = (operands(len, precision), operands(len, precision));
    bencher
        .counter(operand_bytes(2 * len, precision))
        .bench_local(|| done(|| rms_norm::forward(&mut y, &x, &gain, 1e-6)));
}

#[divan::bench(args = PRECISIONS)]
fn head_norm_backward(bencher: Bencher, precision: Precision) {
    // The gradient overwrites its input, so every run needs its own.
    let (len, gain) = (TOKENS * NORMED[0] * NORMED[1], weight(1, NORMED[1], Precision::F32));
    let (x, mut dgain) = (operands(len, precision), numbers(NORMED[1]));
    bencher
        .counter(operand_bytes(3 * len, precision))
        .with_inputs(|| operands(len, precision))
        .bench_local_refs(|dy| done(|| rms_norm::backward_in_place(dy, Some(&mut dgain), &x, &gain, 1e-6)));
}

#[divan::bench]
fn rope(bencher: Bencher) {
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let rope = Rope::new(&DEVICE, &positions, WIDTH / HEADS, 5e5);
    let mut x = numbers(TOKENS * WIDTH);
    bencher.counter(bytes(2 * x.len())).bench_local(|| done(|| rope.apply(&mut x, HEADS, Rotation::Forward)));
}

#[divan::bench]
fn swiglu_forward(bencher: Bencher) {
    let [gate, up, mut h] = [(); 3].map(|()| numbers(TOKENS * MLP));
    bencher.counter(bytes(3 * gate.len())).bench_local(|| done(|| swiglu::forward(&mut h, &gate, &up, Precision::F32)));
}

#[divan::bench]
fn swiglu_backward(bencher: Bencher) {
    // Gradients overwrite the inputs, so every run needs its own inputs, or they decay into subnormal numbers.
    let dh = numbers(TOKENS * MLP);
    bencher
        .counter(bytes(5 * dh.len()))
        .with_inputs(|| [(); 2].map(|()| numbers(TOKENS * MLP)))
        .bench_local_refs(|[gate, up]| done(|| swiglu::backward(gate, up, &dh, Precision::F32)));
}

#[divan::bench]
fn embedding_forward(bencher: Bencher) {
    let (w, mut x) = (weight(VOCAB, WIDTH, Precision::F32), numbers(TOKENS * WIDTH));
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 13 % VOCAB as u32).collect();
    bencher.counter(bytes(2 * x.len())).bench_local(|| done(|| embedding::forward(&mut x, &ids, &w)));
}

#[divan::bench]
fn adamw(bencher: Bencher) {
    let adamw = AdamW { lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3 };
    let (len, mut w) = (MLP * WIDTH, weight(MLP, WIDTH, Precision::F32));
    let [grad, mut m, mut v] = [(); 3].map(|()| numbers(len));
    v.change_on_host(|v| v.iter_mut().for_each(|v| *v = v.abs()));
    bencher.counter(bytes(7 * len)).bench_local(|| done(|| adamw.update(&mut w, 0..len, [&mut m, &mut v], &grad, 1.0)));
}
