//! The number format that a matmul's operands are rounded to, and their layout for the innermost loop: words of 32
//! bits, each of which holds one number or a pair. Sums are f32 in every format.

use std::sync::LazyLock;

use half::bf16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::buffer::Buffer;
use crate::cpu::amx;
use crate::cpu::exp::vectorised;
use crate::cpu::matrix::View;
use crate::slice::Slice;
use crate::weight::Dtype;

/// How many words a task of a layout writes.
const CHUNK: usize = 1 << 14;

/// The format of a matmul's operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Operands are used as they are; bf16 weights are widened to f32, which is exact.
    #[default]
    F32,
    /// Operands are rounded to bf16, to nearest, ties to even.
    Bf16,
    /// Each operand is the sum of two bf16 numbers, and a product that of three: nearly f32's accuracy by instructions for
    /// bf16, on CPUs that have them in tiles ([`Precision::is_fast`]).
    Bf16x3,
}

/// What a word of an operand holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Layout {
    /// An f32 number.
    #[default]
    Singles,
    /// One number, rounded to bf16, for processors without fast dot products of pairs.
    Rounded,
    /// Two bf16 numbers of neighbouring inner indices, the first one in the lower half.
    Pairs,
    /// The words of pairs, in a number that fills tiles; the last ones hold zeros.
    Tiles,
    /// Two bf16 numbers for each number, whose sum it nearly is. Of each 32 neighbouring inner indices, 16 words hold the
    /// pairs of the upper parts, and 16 more those of the lower parts. The last ones hold zeros.
    Split,
}

/// The inner indices that fill a tile with pairs.
const TILE: usize = 32;

impl Precision {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Bf16x3];

    /// The fastest layout on this processor.
    pub(crate) fn layout(self) -> Layout {
        match self {
            Self::F32 => Layout::Singles,
            Self::Bf16x3 => Layout::Split,
            Self::Bf16 if amx::is_usable() => Layout::Tiles,
            Self::Bf16 if *HAS_FAST_PAIRS => Layout::Pairs,
            Self::Bf16 => Layout::Rounded,
        }
    }

    /// The format that an operand is stored in when it is stored in the format that matmuls read.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 | Self::Bf16x3 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// Whether this processor computes matmuls in this format at least as fast as in f32.
    pub fn is_fast(self) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => self.layout() != Layout::Rounded,
            Self::Bf16x3 => amx::is_usable(),
        }
    }

    /// The fastest format on this processor whose results are about as accurate as f32's.
    pub fn fastest_accurate() -> Self {
        if Self::Bf16x3.is_fast() { Self::Bf16x3 } else { Self::F32 }
    }

    /// A short description of how this processor computes matmuls in this format.
    pub fn instructions(self) -> &'static str {
        match self.layout() {
            Layout::Singles => "f32 multiply-adds",
            Layout::Rounded => "f32 multiply-adds of rounded numbers",
            Layout::Pairs => "AVX512-BF16 dot products",
            Layout::Tiles => "AMX tiles",
            Layout::Split if amx::is_usable() => "AMX tiles of two parts a number",
            Layout::Split => "a slow model of AMX tiles",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16x3 => "bf16x3",
        })
    }
}

/// Whether the processor starts a dot product of pairs as often as a multiply-add. The feature bit doesn't tell: Intel's
/// processors set it too, but the instruction takes them four times as long.
static HAS_FAST_PAIRS: LazyLock<bool> = LazyLock::new(|| has_pairs() && is_amd());

/// Whether the processor has dot products of pairs, fast or not.
pub(crate) fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16") && pulp::x86::V4::try_new().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl Layout {
    /// How many inner indices a word holds.
    pub(crate) fn numbers_per_word(self) -> usize {
        match self {
            Self::Pairs | Self::Tiles => 2,
            Self::Singles | Self::Rounded | Self::Split => 1,
        }
    }

    /// How many words hold `numbers` inner indices.
    pub(crate) fn words(self, numbers: usize) -> usize {
        match self {
            Self::Tiles | Self::Split => numbers.next_multiple_of(TILE) / self.numbers_per_word(),
            _ => numbers.div_ceil(self.numbers_per_word()),
        }
    }

    /// The shape of the words of a left operand `[M, inner]`. An operand with contiguous columns keeps its columns
    /// contiguous.
    fn shape(self, a: View) -> [usize; 2] {
        let words = self.words(a.cols());
        if a.is_row_major() { [a.rows(), words] } else { [words, a.rows()] }
    }

    /// Writes one row of words.
    fn write_row(self, to: &mut [f32], a: View, row: usize) {
        let row_of = |k: usize| if k < a.cols() { a.t().row(k) } else { &[] };
        let (of_row, [first, second]) = match (a.is_row_major(), self) {
            (true, _) => (a.row(row), [&[][..]; 2]),
            (false, Self::Pairs | Self::Tiles) => (&[][..], [row_of(2 * row), row_of(2 * row + 1)]),
            (false, Self::Split) => {
                let k = row / TILE * TILE + 2 * (row % (TILE / 2));
                (&[][..], [row_of(k), row_of(k + 1)])
            }
            (false, _) => (row_of(row), [&[][..]; 2]),
        };
        let is_upper = row % TILE < TILE / 2;
        vectorised(
            #[inline(always)]
            || match (self, a.is_row_major()) {
                (Self::Singles, _) => to.copy_from_slice(of_row),
                (Self::Rounded, _) => to.iter_mut().zip(of_row).for_each(|(to, x)| *to = round(*x)),
                (Self::Pairs | Self::Tiles, true) => write_pairs(to, of_row),
                (Self::Pairs | Self::Tiles, false) => write_pairs_of(to, [first, second], |x| x),
                (Self::Split, true) => write_split(to, of_row),
                (Self::Split, false) if is_upper => write_pairs_of(to, [first, second], |x| x),
                (Self::Split, false) => write_pairs_of(to, [first, second], lower),
            },
        );
    }

    /// Writes a left operand's words to `spare`; returns the operand itself if a word is a number.
    pub(crate) fn of<'a>(self, a: View<'a>, spare: &'a mut Vec<f32>) -> View<'a> {
        if self == Self::Singles {
            return a;
        }
        let [rows, cols] = self.shape(a);
        spare.resize(rows * cols, 0.0);
        if !spare.is_empty() {
            spare.chunks_mut(cols).enumerate().for_each(|(row, to)| self.write_row(to, a, row));
        }
        as_operand(a, spare[..].into(), [rows, cols])
    }
}

/// A left operand in words, which many tasks read.
pub(crate) struct LaidOut<'a> {
    numbers: View<'a>,
    words: Option<(Buffer, [usize; 2])>,
}

impl<'a> LaidOut<'a> {
    /// Lays an operand out in words, on all threads.
    pub(crate) fn new(a: View<'a>, layout: Layout) -> Self {
        if layout == Layout::Singles {
            return Self { numbers: a, words: None };
        }
        let [rows, cols] = layout.shape(a);
        let mut words = Buffer::unset(a.meta(), rows * cols);
        if a.meta().is_some() {
            return Self { numbers: a, words: Some((words, [rows, cols])) };
        }
        let rows_per_task = (CHUNK / cols.max(1)).max(1);
        words.par_chunks_mut((rows_per_task * cols).max(1)).enumerate().for_each(|(task, to)| {
            let row = task * rows_per_task;
            to.chunks_mut(cols).enumerate().for_each(|(i, to)| layout.write_row(to, a, row + i));
        });
        Self { numbers: a, words: Some((words, [rows, cols])) }
    }

    /// The operand as words.
    pub(crate) fn view(&self) -> View<'_> {
        match &self.words {
            None => self.numbers,
            Some((words, shape)) => as_operand(self.numbers, words.into(), *shape),
        }
    }
}

/// Views words with the orientation of the operand that they were made from.
fn as_operand<'w>(a: View, words: Slice<'w>, [rows, cols]: [usize; 2]) -> View<'w> {
    let words = View::new(words, rows, cols);
    if a.is_row_major() { words } else { words.t() }
}

/// A number rounded to bf16.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    f32::from_bits(rounded_bits(x))
}

#[inline(always)]
fn rounded_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding up could turn a NaN into infinity.
    (if x.is_nan() { bits | 0x40_0000 } else { nearest }) & 0xffff_0000
}

/// Rounds a slice of numbers to bf16.
pub(crate) fn round_into(to: &mut [bf16], from: &[f32]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        let round = |x: &f32| bf16::from_bits((rounded_bits(*x) >> 16) as u16);
        vectorised(
            #[inline(always)]
            || to.iter_mut().zip(from).for_each(|(to, x)| *to = round(x)),
        );
    });
}

/// The word that holds two numbers.
#[inline(always)]
fn pair(x: f32, y: f32) -> f32 {
    f32::from_bits(rounded_bits(x) >> 16 | rounded_bits(y))
}

/// What rounding to bf16 leaves over; 0 where that isn't finite.
#[inline(always)]
fn lower(x: f32) -> f32 {
    let rest = x - round(x);
    if rest.is_finite() { rest } else { 0.0 }
}

/// Writes a row as words of pairs; an odd last number is paired with 0, and words that are left over are 0.
#[inline(always)]
pub(crate) fn write_pairs(to: &mut [f32], row: &[f32]) {
    let (pairs, rest) = row.as_chunks::<2>();
    to.iter_mut().zip(pairs).for_each(|(to, [x, y])| *to = pair(*x, *y));
    to[pairs.len()..].fill(0.0);
    to.iter_mut().skip(pairs.len()).zip(rest).for_each(|(to, x)| *to = pair(*x, 0.0));
}

/// Writes a row whose words hold what `of` makes of the numbers of two rows; a row that isn't there counts as zeros.
#[inline(always)]
fn write_pairs_of(to: &mut [f32], [first, second]: [&[f32]; 2], of: impl Fn(f32) -> f32) {
    match (first, second) {
        ([], _) => to.fill(0.0),
        (_, []) => to.iter_mut().zip(first).for_each(|(to, x)| *to = pair(of(*x), 0.0)),
        _ => to.iter_mut().zip(first).zip(second).for_each(|((to, x), y)| *to = pair(of(*x), of(*y))),
    }
}

/// Writes a row as words of upper and lower parts; words that are left over are 0.
#[inline(always)]
fn write_split(to: &mut [f32], row: &[f32]) {
    for (to, numbers) in to.chunks_mut(TILE).zip(row.chunks(TILE)) {
        let (upper, under) = to.split_at_mut(TILE / 2);
        write_pairs(upper, numbers);
        let mut rests = [0.0; TILE];
        rests.iter_mut().zip(numbers).for_each(|(rest, x)| *rest = lower(*x));
        write_pairs(under, &rests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_ties_to_even() {
        let odd = [0.0, -0.0, 1.0, -1.0, 1.003_906_2, 1.011_718_8, 3.4e38, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
        for x in odd.into_iter().chain((0..10_000).map(|i| (i as f32 - 5000.0) * 1.37e-3)) {
            assert_eq!(round(x), bf16::from_f32(x).to_f32(), "{x}");
        }
        assert!(round(f32::from_bits(0x7fff_ffff)).is_nan(), "a number gone wrong must stay visible");
    }

    #[test]
    fn a_layout_holds_every_number_once() {
        for (rows, cols) in [(1, 1), (3, 4), (2, 5), (17, 33)] {
            let numbers: Vec<f32> = (0..rows * cols).map(|i| (i % 200) as f32 - 7.0).collect();
            for a in [View::new(&numbers[..], rows, cols), View::new(&numbers[..], cols, rows).t()] {
                let at = |i: usize, k: usize| if a.is_row_major() { a.row(i)[k] } else { a.t().row(k)[i] };
                let mut spare = vec![];
                let (one, many) = (Layout::Pairs.of(a, &mut spare), LaidOut::new(a, Layout::Pairs));
                for words in [one, many.view()] {
                    assert_eq!(
                        (words.rows(), words.cols(), words.is_row_major()),
                        (rows, cols.div_ceil(2), a.is_row_major())
                    );
                    for (i, k) in (0..rows).flat_map(|i| (0..cols).map(move |k| (i, k))) {
                        let word =
                            if a.is_row_major() { words.row(i)[k / 2] } else { words.t().row(k / 2)[i] }.to_bits();
                        let half = if k % 2 == 0 { word << 16 } else { word & 0xffff_0000 };
                        assert_eq!(f32::from_bits(half), at(i, k), "[{i}, {k}] of [{rows}, {cols}]");
                    }
                }
            }
        }
    }
}
