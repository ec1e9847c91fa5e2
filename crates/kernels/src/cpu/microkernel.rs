//! The innermost loops of every matmul: a strip of rows times a panel of columns, with the sums in registers. Operands
//! are words, each of which holds a number or a pair of bf16; only the innermost instruction knows which. A sum adds
//! its terms in order, whatever else is computed beside it, so an element has the same bits wherever it stands, in any
//! tile and with any vector width.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::buffer::Scratch;
use crate::cpu::matrix::View;
use crate::cpu::panels::{PANEL, Panels, PanelsPart};
use crate::cpu::tiles;
use crate::precision::Layout;
use crate::tensor::Into;

/// How many rows are finished before the next rows are read.
const ROWS: usize = 96;
/// How many numbers of the left operand's rows stay in the L1 cache, next to a panel.
const FIRST_CACHE: usize = 1 << 13;
/// How many numbers a cache line holds.
const LINE: usize = 16;

/// A block of a row-major result.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    /// The block's first element.
    pub(crate) start: *mut f32,
    /// The distance from one row to the next, in elements.
    pub(crate) stride: usize,
}

/// `out = scale * a b` (or `+=`), with `a` in words of the same layout as `b`.
///
/// # Safety
/// `out` is valid for reads and writes of `a.rows()` rows of `b.cols()` numbers, which nothing else touches meanwhile.
pub(crate) unsafe fn multiply(out: Output, a: View, b: &Panels, scale: f32, into: Into) {
    // SAFETY: the caller's promise.
    unsafe { multiply_part(out, a, b.whole(), scale, into) }
}

/// Like [`multiply`], with a part of the right operand.
///
/// # Safety
/// As for [`multiply`].
pub(crate) unsafe fn multiply_part(out: Output, a: View, b: PanelsPart, scale: f32, into: Into) {
    assert_eq!(a.cols(), b.inner(), "inner sizes of a matmul");
    assert!(a.holds(), "the left operand lies within its slice");
    let multiply = Multiply { out, a, b, scale, into };
    match b.layout() {
        Layout::Singles | Layout::Rounded => pulp::Arch::new().dispatch(multiply),
        Layout::Pairs => pairs::multiply(multiply),
        // SAFETY: the caller's promise.
        Layout::Tiles | Layout::Split => unsafe { tiles::multiply(out, a, b, scale, into) },
    }
}

/// The innermost loop's operation on two vectors of words.
trait MultiplyAdd: Copy {
    type Simd: Simd;
    fn simd(self) -> Self::Simd;
    /// `sum + a b`, word by word.
    fn multiply_add(self, a: F32s<Self>, b: F32s<Self>, sum: F32s<Self>) -> F32s<Self>;
}

type F32s<M> = <<M as MultiplyAdd>::Simd as Simd>::f32s;

/// Each word is a number.
#[derive(Clone, Copy)]
struct Singles<S>(S);

impl<S: Simd> MultiplyAdd for Singles<S> {
    type Simd = S;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn multiply_add(self, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        self.0.mul_add_f32s(a, b, sum)
    }
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
    use std::mem::transmute;

    use pulp::x86::V4;

    use super::{F32s, Multiply, MultiplyAdd};
    use crate::precision::has_pairs;

    /// Each word is a pair of bf16.
    #[derive(Clone, Copy)]
    struct Pairs(V4);

    impl MultiplyAdd for Pairs {
        type Simd = V4;

        #[inline(always)]
        fn simd(self) -> V4 {
            self.0
        }

        #[inline(always)]
        fn multiply_add(self, a: F32s<Self>, b: F32s<Self>, sum: F32s<Self>) -> F32s<Self> {
            // SAFETY: both types have 64 bytes without invalid patterns; `Pairs` is made only in `with_pairs`, which
            // has the feature.
            unsafe {
                let [a, b] = [a, b].map(|x| transmute::<F32s<Self>, __m512bh>(x));
                transmute::<__m512, F32s<Self>>(_mm512_dpbf16_ps(transmute::<F32s<Self>, __m512>(sum), a, b))
            }
        }
    }

    pub(super) fn multiply(multiply: Multiply) {
        let simd =
            V4::try_new().filter(|_| has_pairs()).expect("a layout of pairs is chosen where there are matmuls of them");
        // SAFETY: the processor has the features.
        unsafe { with_pairs(multiply, simd) }
    }

    #[target_feature(enable = "avx512f,avx512cd,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi1,bmi2")]
    fn with_pairs(multiply: Multiply, simd: V4) {
        multiply.run(Pairs(simd));
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod pairs {
    pub(super) fn multiply(_: super::Multiply) {
        unreachable!("a layout of pairs is chosen where there are matmuls of them");
    }
}

struct Multiply<'a> {
    out: Output,
    a: View<'a>,
    b: PanelsPart<'a>,
    scale: f32,
    into: Into,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.run(Singles(simd));
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn run<M: MultiplyAdd>(self, words: M) {
        // These are plain loops, because a closure's body isn't compiled for the vectors unless it happens to be
        // inlined.
        let (all_rows, inner, panels) = (self.a.rows(), self.b.inner(), self.b.cols().div_ceil(PANEL));
        let mut copy = Scratch::new();
        for start in (0..all_rows).step_by(ROWS) {
            let rows = start..(start + ROWS).min(all_rows);
            if !self.a.is_row_major() {
                copy_strips::<M::Simd>(&mut copy, self.a, rows.clone());
            }
            if rows.len() * inner <= FIRST_CACHE {
                for panel in 0..panels {
                    for strip in Strips::<M::Simd>::new(&rows) {
                        self.tile(words, strip, &rows, &copy, panel);
                    }
                }
            } else {
                for strip in Strips::<M::Simd>::new(&rows) {
                    self.prefetch(strip.end..(strip.end + strip.len()).min(all_rows));
                    for panel in 0..panels {
                        self.tile(words, strip.clone(), &rows, &copy, panel);
                    }
                }
            }
        }
    }

    /// Multiplies a strip of `rows` by a panel; `copy` holds the rows if the left operand is transposed.
    #[inline(always)]
    fn tile<M: MultiplyAdd>(&self, words: M, strip: Range<usize>, rows: &Range<usize>, copy: &[f32], panel: usize) {
        let (inner, height, col) = (self.b.inner(), strip.len(), panel * PANEL);
        let left = match self.a.is_row_major() {
            true => Left { start: self.a.at(strip.start), row_stride: self.a.row_stride(), inner_stride: 1 },
            false => {
                let strip = &copy[(strip.start - rows.start) * inner..(strip.end - rows.start) * inner];
                Left { start: strip.as_ptr(), row_stride: 1, inner_stride: height }
            }
        };
        let to = Tile {
            // SAFETY: the strip's rows and the panel's columns lie within `out` by the promise to `multiply`.
            start: unsafe { self.out.start.add(strip.start * self.out.stride + col) },
            stride: self.out.stride,
            cols: PANEL.min(self.b.cols() - col),
            scale: self.scale,
            into: self.into,
        };
        let panel = self.b.panel(panel);
        // SAFETY: as above for `to`; `left` is a strip of `height` rows of `inner` numbers.
        unsafe {
            match height {
                12 => strip_times_panel::<M, 12>(words, left, panel, to),
                8 => strip_times_panel::<M, 8>(words, left, panel, to),
                6 => strip_times_panel::<M, 6>(words, left, panel, to),
                4 => strip_times_panel::<M, 4>(words, left, panel, to),
                2 => strip_times_panel::<M, 2>(words, left, panel, to),
                _ => strip_times_panel::<M, 1>(words, left, panel, to),
            }
        }
    }

    /// Prefetches rows of the left operand, which lie too far apart for the processor to predict.
    #[inline(always)]
    fn prefetch(&self, rows: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.a.is_row_major() {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            for row in rows {
                for k in (0..self.a.cols()).step_by(LINE) {
                    // SAFETY: a prefetch has no visible effect, whatever its address.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(self.a.at(row).wrapping_add(k).cast()) };
                }
            }
        }
    }
}

/// Splits rows into strips, each as high as there are registers for the sums.
struct Strips<S> {
    left: Range<usize>,
    simd: PhantomData<S>,
}

impl<S> Strips<S> {
    #[inline(always)]
    fn new(rows: &Range<usize>) -> Self {
        Self { left: rows.clone(), simd: PhantomData }
    }
}

impl<S: Simd> Iterator for Strips<S> {
    type Item = Range<usize>;

    #[inline(always)]
    fn next(&mut self) -> Option<Range<usize>> {
        let height = match self.left.len() {
            0 => return None,
            12.. if S::F32_LANES >= 16 => 12,
            8.. if S::F32_LANES >= 16 => 8,
            6.. if S::F32_LANES < 16 => 6,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let start = self.left.start;
        self.left.start += height;
        Some(start..start + height)
    }
}

/// Copies the strips of some rows of a matrix with contiguous columns; each strip is copied column by column.
#[inline(always)]
fn copy_strips<S: Simd>(to: &mut Vec<f32>, a: View, rows: Range<usize>) {
    to.clear();
    for strip in Strips::<S>::new(&rows) {
        for k in 0..a.cols() {
            to.extend_from_slice(&a.t().row(k)[strip.clone()]);
        }
    }
}

/// A strip of the left operand: element `[i, k]` lies at `i * row_stride + k * inner_stride`.
struct Left {
    start: *const f32,
    row_stride: usize,
    inner_stride: usize,
}

/// The block of the result that a strip times a panel is written to.
struct Tile {
    start: *mut f32,
    stride: usize,
    cols: usize,
    scale: f32,
    into: Into,
}

/// # Safety
/// `left` is valid for `HEIGHT` rows of as many numbers as the panel has rows; `to` for reads and writes of `HEIGHT` rows
/// of `to.cols` numbers.
#[inline(always)]
unsafe fn strip_times_panel<M: MultiplyAdd, const HEIGHT: usize>(words: M, left: Left, panel: &[f32], to: Tile) {
    let simd = words.simd();
    let scale = simd.splat_f32s(to.scale);
    for first in (0..to.cols).step_by(2 * M::Simd::F32_LANES) {
        // Each stride has a loop of its own, in which it is a constant.
        let sums = match left.inner_stride {
            // SAFETY: the caller's promise.
            1 => unsafe { sums::<M, HEIGHT>(words, left.start, [left.row_stride, 1], panel, first) },
            // SAFETY: the caller's promise; a copied strip's columns are `HEIGHT` numbers apart.
            _ => unsafe { sums::<M, HEIGHT>(words, left.start, [1, HEIGHT], panel, first) },
        };
        let cols = (2 * M::Simd::F32_LANES).min(to.cols - first);
        for (i, sums) in sums.iter().enumerate() {
            // SAFETY: row `i` and `cols` columns from `first` lie within the tile.
            let out = unsafe { std::slice::from_raw_parts_mut(to.start.add(i * to.stride + first), cols) };
            match (M::Simd::as_mut_simd_f32s(out).0, to.into) {
                ([o0, o1], Into::Set) => {
                    *o0 = simd.mul_f32s(sums[0], scale);
                    *o1 = simd.mul_f32s(sums[1], scale);
                }
                ([o0, o1], Into::Add) => {
                    *o0 = simd.mul_add_f32s(sums[0], scale, *o0);
                    *o1 = simd.mul_add_f32s(sums[1], scale, *o1);
                }
                // Fewer columns than two vectors are left.
                (_, into) => {
                    for (out, sum) in out.iter_mut().zip(bytemuck::cast_slice::<_, f32>(sums)) {
                        *out = if into == Into::Set { sum * to.scale } else { sum.mul_add(to.scale, *out) };
                    }
                }
            }
        }
    }
}

/// The sums of a strip times two vectors of a panel's columns.
///
/// # Safety
/// `left` is valid for `HEIGHT` rows of as many numbers as the panel has rows; the two vectors from column `first` on
/// lie within each row of the panel.
#[inline(always)]
unsafe fn sums<M: MultiplyAdd, const HEIGHT: usize>(
    words: M,
    mut left: *const f32,
    [row_stride, inner_stride]: [usize; 2],
    panel: &[f32],
    first: usize,
) -> [[F32s<M>; 2]; HEIGHT] {
    let simd = words.simd();
    const { assert!(PANEL.is_multiple_of(2 * M::Simd::F32_LANES), "two vectors divide a panel") };
    let mut sums = [[simd.splat_f32s(0.0); 2]; HEIGHT];
    for row in panel.as_chunks::<PANEL>().0 {
        let (vectors, _) = M::Simd::as_simd_f32s(&row[first..]);
        let [b0, b1] = [vectors[0], vectors[1]];
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: this is row `i` of the strip, at the inner index of the panel's row.
            let a = simd.splat_f32s(unsafe { *left.add(i * row_stride) });
            sums[0] = words.multiply_add(a, b0, sums[0]);
            sums[1] = words.multiply_add(a, b1, sums[1]);
        }
        left = left.wrapping_add(inner_stride);
    }
    sums
}

#[cfg(test)]
mod tests {
    /// If a vector width is left out of the build, nothing fails, but the speed drops to a fortieth.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_processors_vectors_are_used() {
        let width = match pulp::Arch::new() {
            pulp::Arch::Scalar => 1,
            pulp::Arch::V3(_) => 8,
            pulp::Arch::V4(_) => 16,
            _ => panic!("a vector width that this test doesn't know"),
        };
        let has = |wide: bool, width: usize| if wide { width } else { 1 };
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
        assert_eq!(width, has(avx2, 8).max(has(avx512, 16)));
    }
}
