//! From numbers to NF4. Codes equal bitsandbytes' bit for bit; see [`Nf4::quantize`] for the scales.

use std::sync::Arc;

use rayon::prelude::*;

use super::{BLOCK, Bytes, CODEBOOK, NESTED_BLOCK, Nf4, Original, Scales, dynamic_map};
use crate::cpu::exp::vectorised;

/// How many numbers a task quantises: whole blocks, whose f32 form fits in the L2 cache.
const CHUNK: usize = 1024 * BLOCK;

impl Nf4 {
    /// Quantises `len` numbers, which `read(start, to)` copies piece by piece.
    ///
    /// A code is the nearest of the codebook to `x * (1 / absmax)`, and of two equally near ones the smaller, as
    /// bitsandbytes chooses. Nested scales are rounded to the nearest of their map; bitsandbytes on a CPU takes the
    /// neighbour for some numbers near the middle of two, and sums the mean in another order.
    pub fn quantize(len: usize, read: impl Fn(usize, &mut [f32]) + Sync, original: Original, is_nested: bool) -> Self {
        let mut codes = vec![0u8; len.div_ceil(2)];
        let mut absmax = vec![0.0f32; len.div_ceil(BLOCK)];
        let tasks = codes.par_chunks_mut(CHUNK / 2).zip(absmax.par_chunks_mut(CHUNK / BLOCK)).enumerate();
        tasks.for_each_init(Vec::new, |numbers, (task, (codes, absmax))| {
            let start = task * CHUNK;
            numbers.resize(CHUNK.min(len - start), 0.0);
            read(start, numbers);
            vectorised(
                #[inline(always)]
                || {
                    for ((numbers, codes), absmax) in numbers.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(absmax)
                    {
                        *absmax = quantize_block(numbers, codes);
                    }
                },
            );
        });
        let scales = if is_nested { nested(&absmax) } else { Scales::Plain(Bytes::of_f32(&absmax)) };
        Self { len, codes: codes.into(), scales, original }
    }
}

/// Writes a block's codes and returns its largest magnitude; NaN if the block has one.
#[inline(always)]
fn quantize_block(numbers: &[f32], codes: &mut [u8]) -> f32 {
    let mut scaled = [0.0f32; BLOCK];
    scaled[..numbers.len()].copy_from_slice(numbers);
    let (mut absmax, mut is_nan) = (0.0f32, false);
    for x in &scaled {
        absmax = absmax.max(x.abs());
        is_nan |= x.is_nan();
    }
    let inverse = 1.0 / absmax;
    scaled.iter_mut().for_each(|x| *x = (*x * inverse).clamp(-1.0, 1.0));
    let mut nearest = [0u32; BLOCK];
    let mut distance = scaled.map(|x| (x - CODEBOOK[0]).abs());
    for (code, number) in CODEBOOK.iter().enumerate().skip(1) {
        for ((nearest, distance), x) in nearest.iter_mut().zip(&mut distance).zip(&scaled) {
            let d = (x - number).abs();
            let is_nearer = d < *distance;
            *nearest = if is_nearer { code as u32 } else { *nearest };
            *distance = if is_nearer { d } else { *distance };
        }
    }
    // The place after an odd last number holds code 0.
    nearest[numbers.len()..].fill(0);
    for (byte, pair) in codes.iter_mut().zip(nearest.as_chunks::<2>().0) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    if is_nan { f32::NAN } else { absmax }
}

/// Quantises scales: less their mean, in blocks of 256, each by its largest magnitude.
fn nested(absmax: &[f32]) -> Scales {
    let map = dynamic_map();
    let mean = absmax.iter().map(|x| f64::from(*x)).sum::<f64>() / absmax.len().max(1) as f64;
    let offset = mean as f32;
    let (mut codes, mut largest) = (vec![0u8; absmax.len()], vec![]);
    for (scales, codes) in absmax.chunks(NESTED_BLOCK).zip(codes.chunks_mut(NESTED_BLOCK)) {
        let most = scales.iter().fold(0.0f32, |most, x| most.max((x - offset).abs()));
        let inverse = 1.0 / most;
        for (code, x) in codes.iter_mut().zip(scales) {
            *code = nearest(&map, ((x - offset) * inverse).clamp(-1.0, 1.0));
        }
        largest.push(most);
    }
    Scales::Nested { codes: codes.into(), absmax: Bytes::of_f32(&largest), offset, map: Arc::new(map) }
}

/// The index of the number of an ascending map that is nearest to `x`.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    let above = map.partition_point(|number| *number < x).min(255);
    let below = above.saturating_sub(1);
    let is_below = (x - map[below]).abs() <= (x - map[above]).abs();
    (if is_below { below } else { above }) as u8
}
