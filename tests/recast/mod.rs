//! Checkpoints in other number formats than they were made in.

#![allow(dead_code)]

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::fixtures::read;

/// Every number of a safetensors file in another dtype; f16 of numbers that f32 has rounded to f16 before.
pub fn recast(path: &Path, dtype: Dtype) {
    let tensors = read(&fs::read(path).expect("it is there"));
    let bytes = |x: f32| match dtype {
        Dtype::F16 => half(x).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let all: Vec<_> = tensors.iter().map(|(n, (s, x))| (n, s, x.iter().flat_map(|x| bytes(*x)).collect())).collect();
    let views = all.iter().map(|(name, shape, bytes): &(_, &Vec<usize>, Vec<u8>)| {
        (name.as_str(), TensorView::new(dtype, shape.to_vec(), bytes).expect("whole"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("names are unique")).expect("it is written");
}

/// The f16 number below: the fraction's lower bits are cut, and what is too small is 0.
fn half(x: f32) -> u16 {
    let (sign, exponent, fraction) = (x.to_bits() >> 31, x.to_bits() >> 23 & 0xff, x.to_bits() >> 13 & 0x3ff);
    match exponent {
        0..=112 => (sign << 15) as u16,
        _ => (sign << 15 | (exponent - 112) << 10 | fraction) as u16,
    }
}

/// The number that [`half`] keeps of one.
pub fn halved(x: f32) -> f32 {
    if x.abs() < 2f32.powi(-14) { 0.0 } else { f32::from_bits(x.to_bits() & !0x1fff) }
}
