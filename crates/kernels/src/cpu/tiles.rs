//! The innermost loops of matmuls in tiles: 16 rows of 16 words, each word a pair of bf16, which Intel's AMX multiplies in
//! one instruction. A model of that instruction in plain Rust computes the same bits on every processor; it is slow, and
//! stands in for the instruction where tests need it.

use crate::buffer::Scratch;
use crate::cpu::amx;
use crate::cpu::matrix::View;
use crate::cpu::microkernel::Output;
use crate::cpu::panels::{PANEL, PanelsPart};
use crate::precision::Layout;
use crate::tensor::Into;

/// The rows of a tile, and the words of its rows.
pub(crate) const TILE: usize = 16;
/// The rows of a block, which is two tiles high and two tiles wide.
pub(crate) const ROWS: usize = 2 * TILE;

/// The sums of a block, row by row.
pub(crate) type Sums = [[f32; PANEL]; ROWS];

/// How the words of an inner step are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A tile of each operand.
    Whole,
    /// Two tiles of each operand, the upper parts of the numbers and then the lower ones: upper by upper, upper by lower,
    /// lower by upper.
    Split,
}

impl Step {
    /// The words that a step takes from each row of the left operand.
    pub(crate) fn words(self) -> usize {
        match self {
            Self::Whole => TILE,
            Self::Split => 2 * TILE,
        }
    }
}

/// What multiplies tiles.
pub(crate) trait Unit {
    /// Overwrites `sums` with `steps` steps of 32 rows of the left operand by a panel.
    ///
    /// # Safety
    /// `left` is valid for reads of `ROWS` rows, `row_stride` words apart, and `panel` of `PANEL`-wide rows one after
    /// another, each of `steps * step.words()` words along the inner dimension.
    unsafe fn block(
        &self,
        left: *const f32,
        row_stride: usize,
        panel: *const f32,
        steps: usize,
        step: Step,
        sums: &mut Sums,
    );
}

/// `out = scale * a b` (or `+=`), with `a` in words of the same layout as `b`.
///
/// # Safety
/// `out` is valid for reads and writes of `a.rows()` rows of `b.cols()` numbers, which nothing else touches meanwhile.
pub(crate) unsafe fn multiply(out: Output, a: View, b: PanelsPart, scale: f32, into: Into) {
    match amx::Amx::configured() {
        // SAFETY: the caller's promise.
        Some(unit) => unsafe { multiply_on(&unit, out, a, b, scale, into) },
        // SAFETY: the caller's promise.
        None => unsafe { multiply_on(&Model, out, a, b, scale, into) },
    }
}

/// # Safety
/// That of [`multiply`].
unsafe fn multiply_on(unit: &impl Unit, out: Output, a: View, b: PanelsPart, scale: f32, into: Into) {
    let (inner, step) = (b.inner(), if b.layout() == Layout::Split { Step::Split } else { Step::Whole });
    assert!(a.cols() == inner && inner.is_multiple_of(step.words()), "whole steps of words");
    let mut copy = Scratch::new();
    let mut sums = [[0.0; PANEL]; ROWS];
    for first in (0..a.rows()).step_by(ROWS) {
        let rows = ROWS.min(a.rows() - first);
        let is_read_in_place = rows == ROWS && a.is_row_major();
        if !is_read_in_place {
            copy_rows(&mut copy, a, first..first + rows);
        }
        let (left, row_stride) = if is_read_in_place { (a.at(first), a.row_stride()) } else { (copy.as_ptr(), inner) };
        for p in 0..b.cols().div_ceil(PANEL) {
            // SAFETY: `left` has 32 rows of `inner` words, in the operand or in the copy; the panel has `inner` rows.
            unsafe { unit.block(left, row_stride, b.panel(p).as_ptr(), inner / step.words(), step, &mut sums) };
            let cols = PANEL.min(b.cols() - p * PANEL);
            for (i, sums) in sums[..rows].iter().enumerate() {
                let start = (first + i) * out.stride + p * PANEL;
                // SAFETY: these rows and columns lie within `out` by the caller's promise.
                let to = unsafe { std::slice::from_raw_parts_mut(out.start.add(start), cols) };
                match into {
                    Into::Set => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum * scale),
                    Into::Add => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum.mul_add(scale, *to)),
                }
            }
        }
    }
}

/// Copies rows into 32 contiguous ones; those that aren't there are zeros.
fn copy_rows(to: &mut Scratch, a: View, rows: std::ops::Range<usize>) {
    let inner = a.cols();
    to.clear();
    to.resize(ROWS * inner, 0.0);
    if a.is_row_major() {
        to.chunks_mut(inner.max(1)).zip(rows).for_each(|(to, row)| to.copy_from_slice(a.row(row)));
        return;
    }
    for first in (0..inner).step_by(TILE) {
        let words: [&[f32]; TILE] = std::array::from_fn(|k| &a.t().row(first + k)[rows.clone()]);
        for i in 0..rows.len() {
            let to = &mut to[i * inner + first..i * inner + first + TILE];
            to.iter_mut().zip(words).for_each(|(to, words)| *to = words[i]);
        }
    }
}

/// The tile instruction in plain Rust.
pub(crate) struct Model;

/// A tile of words or of sums.
type Tile = [[f32; TILE]; TILE];

impl Unit for Model {
    unsafe fn block(
        &self,
        left: *const f32,
        row_stride: usize,
        panel: *const f32,
        steps: usize,
        step: Step,
        sums: &mut Sums,
    ) {
        // SAFETY: the caller's promise bounds every row that is read.
        let tile = |start: *const f32, stride: usize| -> Tile {
            std::array::from_fn(|i| unsafe { *start.add(i * stride).cast::<[f32; TILE]>() })
        };
        let mut blocks = [[[[0.0; TILE]; TILE]; 2]; 2];
        for k in (0..steps * step.words()).step_by(step.words()) {
            let lefts = |part: usize| {
                [0, 1].map(|i| tile(left.wrapping_add(i * TILE * row_stride + k + part * TILE), row_stride))
            };
            let rights =
                |part: usize| [0, 1].map(|j| tile(panel.wrapping_add((k + part * TILE) * PANEL + j * TILE), PANEL));
            let parts: &[[usize; 2]] = if step == Step::Whole { &[[0, 0]] } else { &[[0, 0], [0, 1], [1, 0]] };
            for [a, b] in parts {
                let (a, b) = (lefts(*a), rights(*b));
                for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    tdpbf16ps(&mut blocks[i][j], &a[i], &b[j]);
                }
            }
        }
        for (i, row) in sums.iter_mut().enumerate() {
            let halves = &blocks[i / TILE];
            row[..TILE].copy_from_slice(&halves[0][i % TILE]);
            row[TILE..].copy_from_slice(&halves[1][i % TILE]);
        }
    }
}

/// `c += a b` as Intel documents TDPBF16PS: the first numbers of all pairs and the second ones are added up apart, each by
/// fused multiply-adds from 0; their sum is added to `c`. Denormal operands and results count as 0, and sums are rounded to
/// nearest, ties to even.
fn tdpbf16ps(c: &mut Tile, a: &Tile, b: &Tile) {
    for (c, a) in c.iter_mut().zip(a) {
        let mut sums = [[0.0f32; TILE]; 2];
        for (word, b) in a.iter().zip(b) {
            for (half, sums) in sums.iter_mut().enumerate() {
                let x = number(*word, half);
                sums.iter_mut().zip(b).for_each(|(sum, y)| *sum = flush(x.mul_add(number(*y, half), *sum)));
            }
        }
        for (n, c) in c.iter_mut().enumerate() {
            *c = flush(flush(*c) + flush(sums[0][n] + sums[1][n]));
        }
    }
}

/// A bf16 number of a word; a denormal counts as 0.
fn number(word: f32, half: usize) -> f32 {
    flush(f32::from_bits(if half == 0 { word.to_bits() << 16 } else { word.to_bits() & 0xffff_0000 }))
}

/// A denormal number as a zero of its sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// Whether a unit computes what the model does, within a few roundings. It guards against a virtual machine that offers the
/// instruction and gets it wrong.
pub(crate) fn agrees(unit: &impl Unit) -> bool {
    let close = |[x, y]: [f32; 2]| (x - y).abs() <= 1e-4 * y.abs().max(1.0);
    [Step::Whole, Step::Split].into_iter().all(|step| of_both(unit, step, 3).into_iter().all(close))
}

/// The sums of a block of ordinary numbers, zeros and denormals, as a unit and as the model compute them.
fn of_both(unit: &impl Unit, step: Step, steps: usize) -> Vec<[f32; 2]> {
    let words = steps * step.words();
    // Halves of words between 2^-3 and 2, of both signs; one in sixteen is a denormal or a zero.
    let half = |i: u32| {
        let bits = i.wrapping_mul(0x9e37_79b9) >> 7;
        if bits.is_multiple_of(16) { bits >> 8 & 0x807f } else { bits & 0x81ff | 0x3e00 }
    };
    let word = |i: usize| f32::from_bits(half(2 * i as u32) | half(2 * i as u32 + 1) << 16);
    let left: Vec<f32> = (0..ROWS * words).map(word).collect();
    let panel: Vec<f32> = (0..PANEL * words).map(|i| word(i + left.len())).collect();
    let mut sums = [[[0.0; PANEL]; ROWS]; 2];
    let [of_unit, of_model] = &mut sums;
    // SAFETY: both operands have whole steps.
    unsafe {
        unit.block(left.as_ptr(), words, panel.as_ptr(), steps, step, of_unit);
        Model.block(left.as_ptr(), words, panel.as_ptr(), steps, step, of_model);
    }
    of_unit.iter().flatten().zip(of_model.iter().flatten()).map(|(x, y)| [*x, *y]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_computes_the_models_bits() {
        let Some(unit) = amx::Amx::configured() else {
            eprintln!("SKIPPED: this processor has no AMX, or Linux gives no leave to use it");
            return;
        };
        for (step, steps) in [(Step::Whole, 1), (Step::Whole, 32), (Step::Split, 1), (Step::Split, 16)] {
            for (i, [got, expected]) in of_both(&unit, step, steps).into_iter().enumerate() {
                assert_eq!(got.to_bits(), expected.to_bits(), "{step:?} {steps} [{i}]: {got}, {expected}");
            }
        }
    }

    #[test]
    fn a_step_sums_the_halves_apart_and_flushes_denormals() {
        let word = |low: f32, high: f32| f32::from_bits(low.to_bits() >> 16 | high.to_bits() & 0xffff_0000);
        let mut a = [[0.0; TILE]; TILE];
        let mut b = a;
        // In one order 2^24 + 1 - 2^24 is 1, in the other 0: the lower halves hold 2^24 and -2^24, the upper halves 1.
        (a[0][0], a[0][1]) = (word(16_777_216.0, 1.0), word(-16_777_216.0, 0.0));
        (b[0][0], b[1][0]) = (word(1.0, 1.0), word(1.0, 1.0));
        // A denormal operand counts as 0, however large the other one is.
        (a[1][0], b[0][1]) = (word(1e-39, 0.0), word(3e38, 0.0));
        let mut c = [[0.0; TILE]; TILE];
        c[2][5] = 7.0;
        tdpbf16ps(&mut c, &a, &b);
        assert_eq!([c[0][0], c[1][1], c[2][5]], [1.0, 0.0, 7.0]);
    }
}
