//! Rotary position embedding; forward and backward differ only in a sign.

use rayon::prelude::*;

/// Rotates every head of every token in place, with the sines multiplied by `sign`.
///
/// # Shapes
/// `x` `[N, heads * 2 * half]`, cosines and sines `[N, half]`.
pub fn apply(x: &mut [f32], [cos, sin]: [&[f32]; 2], (heads, half): (usize, usize), sign: f32) {
    x.par_chunks_mut(heads * 2 * half).enumerate().for_each(|(n, row)| {
        let (cos, sin) = (&cos[n * half..][..half], &sin[n * half..][..half]);
        for head in row.chunks_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b, s) = (low[i], high[i], sign * sin[i]);
                low[i] = a * cos[i] - b * s;
                high[i] = b * cos[i] + a * s;
            }
        }
    });
}
