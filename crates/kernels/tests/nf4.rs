//! Linear layers of weights in NF4: forward, and backward to the input, against the same layers of dequantised weights.
//! On a GPU, what the kernel dequantises is the CPU's bit for bit.

mod device;
mod differences;

use device::{device, is_cpu};
use differences::{assert_close, random};
use weft_kernels::linear;
use weft_kernels::lora_linear::{self, Lora, LoraGrad};
use weft_kernels::nf4::{Nf4, Original};
use weft_kernels::precision::Precision;
use weft_kernels::tensor::{Into, Tensor};
use weft_kernels::weight::{Dtype, Weight, to_bf16_bytes};

const ORIGINALS: [Original; 3] = [Original::F32, Original::Bf16, Original::F16];
/// Rows that end within a block, whole blocks, and an odd number of numbers.
const SHAPES: [[usize; 2]; 4] = [[7, 9], [33, 64], [70, 130], [10, 1100]];

fn quantized([rows, cols]: [usize; 2], original: Original, is_nested: bool) -> Weight {
    let numbers: Vec<f32> = random(7, rows * cols).iter().map(|x| x * x * x * 0.01).collect();
    let read = |at: usize, to: &mut [f32]| to.copy_from_slice(&numbers[at..at + to.len()]);
    Weight::from_nf4(rows, cols, Nf4::quantize(rows * cols, read, original, is_nested))
}

/// The same weight in its dequantised format.
fn plain(weight: &Weight) -> Weight {
    let numbers = weight.to_f32().into_owned();
    match weight.dtype() {
        Dtype::F32 => Weight::from_f32(weight.rows(), weight.cols(), numbers),
        Dtype::Bf16 => Weight::from_bytes(weight.rows(), weight.cols(), Dtype::Bf16, &to_bf16_bytes(&numbers)),
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.to_host().iter().map(|x| x.to_bits()).collect()
}

fn each(mut f: impl FnMut(&Weight, Precision)) {
    for shape in SHAPES {
        for original in ORIGINALS {
            for is_nested in [false, true] {
                for precision in [Precision::F32, Precision::Bf16] {
                    f(&quantized(shape, original, is_nested), precision);
                }
            }
        }
    }
}

#[test]
fn a_layer_computes_what_it_computes_of_dequantised_weights() {
    let Some(on) = device() else { return };
    each(|weight, precision| {
        let plain = on.weight(plain(weight));
        let weight = on.weight(weight.clone());
        assert!(weight.is_quantized() && weight.to_f32() == plain.to_f32(), "bit for bit, on any device");
        let (n, inputs, outputs) = (5, weight.cols(), weight.rows());
        let [x, dy] = [n * inputs, n * outputs].map(|len| on.put(&random(len as u64, len)));
        let both = [&weight, &plain].map(|weight| {
            let (mut y, mut dx) = (on.zeros(n * outputs), on.zeros(n * inputs));
            linear::forward(&mut y, &x, weight, precision);
            linear::backward_input(&mut dx, &dy, weight, Into::Add, precision);
            (bits(&y), bits(&dx))
        });
        assert!(both[0] == both[1], "{weight:?} in {precision}");
    });
}

/// The scratch matrices of a GPU are used by turns, whatever order and size the weights have.
#[test]
fn layers_in_turn_with_adapters_do_not_disturb_each_other() {
    let Some(on) = device() else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        let (n, width, rank) = (6, 192, 3);
        let shapes = [[320, width], [width, 320], [64, width], [width, 64]];
        let weights = shapes.map(|shape| quantized(shape, Original::Bf16, true));
        let run = |weights: &[Weight]| {
            let mut results: Vec<Vec<u32>> = vec![];
            let mut x = on.put(&random(3, n * width));
            for weight in weights {
                let [a, b] = [[rank, weight.cols()], [weight.rows(), rank]]
                    .map(|[rows, cols]| on.f32_weight(rows, cols, &random(rows as u64, rows * cols)));
                let lora = Lora { a: &a, b: &b, scale: 0.5, dropout: None, precision };
                let mut y = on.zeros(n * weight.rows());
                lora_linear::forward(&mut y, &x, weight, &lora);
                let [mut dx, mut da, mut db] =
                    [x.len(), rank * weight.cols(), rank * weight.rows()].map(|len| on.zeros(len));
                let grad = LoraGrad { a: &mut da, b: &mut db };
                lora_linear::backward(Some((&mut dx, Into::Set)), grad, &y, &x, weight, &lora);
                results.extend([&y, &dx, &da, &db].map(bits));
                x = y;
            }
            results
        };
        let own = run(&weights.each_ref().map(|weight| on.weight(weight.clone())));
        let expected = run(&weights.each_ref().map(|weight| on.weight(plain(weight))));
        assert!(own == expected, "{precision}");
    }
}

#[test]
fn a_gpu_computes_what_the_cpu_computes() {
    let Some(on) = device() else { return };
    if is_cpu() {
        return;
    }
    each(|weight, precision| {
        let (n, inputs) = (4, weight.cols());
        let x = random(11, n * inputs);
        let mut expected = weft_kernels::device::Device::Cpu.zeros(n * weight.rows());
        linear::forward(&mut expected, &weft_kernels::device::Device::Cpu.put(x.clone()), weight, precision);
        let mut y = on.zeros(expected.len());
        linear::forward(&mut y, &on.put(&x), &on.weight(weight.clone()), precision);
        let expected: Vec<f64> = expected.to_host().iter().map(|x| f64::from(*x)).collect();
        assert_close("y", &y, &expected);
    });
}
