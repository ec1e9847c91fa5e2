//! Matmuls, on this thread or on all threads. Each element of a result is a sum in a fixed order, so it has the same
//! bits at any number of threads; splitting a result into tasks affects only the time.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::microkernel::{Output, multiply};
use crate::cpu::panels::{Panels, Right};
use crate::meta::Meta;
use crate::precision::{LaidOut, Layout, Precision};
use crate::slice::{Slice, SliceMut};
use crate::tensor::Into;
use crate::weight::Weight;

/// Rows, in words, and columns of the right operand that are packed at once: half a megabyte, which fits in the L2
/// cache.
pub(crate) const BLOCK: [usize; 2] = [512, 256];
/// The fewest rows of a task: packing costs as much as about ten rows.
const TASK_ROWS: usize = 192;
/// The rows of a tile that isn't stored; the columns are packed again for every tile of rows.
const TILE_ROWS: usize = 2048;
/// Tasks per thread: enough that other threads can take over a slow core's work.
const TASKS_PER_THREAD: usize = 4;

/// How many numbers a task of [`add`] covers.
const ADD_CHUNK: usize = 1 << 15;

/// A strided read-only matrix whose rows or columns are contiguous.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    meta: Option<&'a Meta>,
}

impl<'a> View<'a> {
    /// A contiguous row-major matrix.
    pub fn new(data: impl std::convert::Into<Slice<'a>>, rows: usize, cols: usize) -> Self {
        let data = data.into();
        assert_eq!(data.len(), rows * cols, "a matrix of [{rows}, {cols}]");
        Self { data: data.numbers(), rows, cols, row_stride: cols, col_stride: 1, meta: data.meta() }
    }

    /// Columns `cols` of a row-major matrix whose rows are `width` wide.
    pub fn columns(data: &'a [f32], rows: usize, width: usize, cols: Range<usize>) -> Self {
        assert!(data.len() == rows * width && cols.end <= width, "columns {cols:?} of [{rows}, {width}]");
        Self::new(data, rows, width).block(0..rows, cols)
    }

    /// The transpose of the view.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// A block of rows and columns.
    pub(crate) fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a block within the matrix");
        let start = rows.start * self.row_stride + cols.start * self.col_stride;
        Self { data: self.data.get(start..).unwrap_or(&[]), rows: rows.len(), cols: cols.len(), ..self }
    }

    /// A range of rows.
    fn some_rows(self, rows: Range<usize>) -> Self {
        self.block(rows, 0..self.cols)
    }

    /// The meta device that the matrix lies on, if any.
    pub(crate) fn meta(&self) -> Option<&'a Meta> {
        self.meta
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Whether the rows are contiguous.
    pub(crate) fn is_row_major(&self) -> bool {
        self.col_stride == 1
    }

    /// The address of a row's first element.
    pub(crate) fn at(&self, row: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(row * self.row_stride)
    }

    /// A row of a matrix with contiguous rows.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        debug_assert!(self.is_row_major());
        &self.data[row * self.row_stride..row * self.row_stride + self.cols]
    }

    pub(crate) fn holds(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// `out [M, N] = scale * a b` (or `+=`).
pub fn par_matmul(out: SliceMut, a: View, b: View, scale: f32, into: Into, precision: Precision) {
    sum_of_matmuls(out, &[Term { a, b: Right::Matrix(b), scale }], into, precision);
}

/// `out [N, out] = x W^T` (or `+=`); a bf16 weight is converted block by block as the matmul reads it.
pub fn times_weight_t(out: SliceMut, x: View, weight: &Weight, into: Into, precision: Precision) {
    sum_of_matmuls(out, &[Term { a: x, b: Right::WeightT(weight), scale: 1.0 }], into, precision);
}

/// `out [N, in] = y W` (or `+=`).
pub fn times_weight(out: SliceMut, y: View, weight: &Weight, into: Into, precision: Precision) {
    sum_of_matmuls(out, &[Term { a: y, b: Right::weight(weight), scale: 1.0 }], into, precision);
}

/// One matmul `scale * a b` in a sum of matmuls.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub(crate) a: View<'a>,
    pub(crate) b: Right<'a>,
    pub(crate) scale: f32,
}

/// `out [M, N] = sum of matmuls` (or `+=`), split into tasks by blocks of columns and by rows; every task packs its
/// block of columns once. A block of the result stays in the cache from one matmul to the next.
pub(crate) fn sum_of_matmuls(out: SliceMut, terms: &[Term], into: Into, precision: Precision) {
    sum_in(precision.layout(), out, terms, into);
}

fn sum_in(layout: Layout, out: SliceMut, terms: &[Term], into: Into) {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols());
    assert_eq!(out.len(), m * n, "a result of [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    let lefts: Vec<LaidOut> = terms.iter().map(|term| LaidOut::new(term.a, layout)).collect();
    let Some(out) = out.numbers() else { return };
    let out = Shared(out.as_mut_ptr());
    let blocks = n.div_ceil(BLOCK[1]);
    let splits = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(blocks);
    let rows_per_task = m.div_ceil(splits).max(TASK_ROWS);
    (0..blocks * m.div_ceil(rows_per_task)).into_par_iter().for_each(|index| {
        let (row, col) = (index / blocks * rows_per_task, index % blocks * BLOCK[1]);
        let rows = row..(row + rows_per_task).min(m);
        let cols = col..(col + BLOCK[1]).min(n);
        for ((term, left), into) in
            terms.iter().zip(&lefts).zip(std::iter::once(into).chain(std::iter::repeat(Into::Add)))
        {
            assert!(term.a.rows == m && term.b.cols() == n, "matmuls of one shape");
            // SAFETY: the task writes rows `rows` and columns `cols` of `out`, which holds `m * n` numbers; no two
            // tasks share an element.
            unsafe {
                let out = Output { start: out.at(row * n + col), stride: n };
                task(out, left.view().some_rows(rows.clone()), term, layout, cols.clone(), into);
            }
        }
    });
}

/// Multiplies all rows of `a`, which holds the words of the term's left operand, by columns `cols` of the right
/// operand.
///
/// # Safety
/// `out` is valid for reads and writes of `a.rows` rows of `cols.len()` numbers, which nothing else touches meanwhile.
pub(crate) unsafe fn task(out: Output, a: View, term: &Term, layout: Layout, cols: Range<usize>, into: Into) {
    let (inner, per_word) = (term.b.inner(), layout.numbers_per_word());
    assert_eq!(term.a.cols, inner, "inner sizes of a matmul");
    let mut panels = Panels::new();
    for start in cols.clone().step_by(BLOCK[1]) {
        let block = start..(start + BLOCK[1]).min(cols.end);
        // A sum without terms is written too.
        for k in (0..a.cols.max(1)).step_by(BLOCK[0]) {
            let words = k..(k + BLOCK[0]).min(a.cols);
            term.b.pack(&mut panels, layout, k * per_word..(words.end * per_word).min(inner), block.clone());
            let into = if k == 0 { into } else { Into::Add };
            // SAFETY: the block's columns lie within the caller's.
            unsafe {
                let out = Output { start: out.start.add(start - cols.start), ..out };
                multiply(out, a.block(0..a.rows, words), &panels, term.scale, into);
            }
        }
    }
}

/// Calls `f(first row, columns, tile)` on every tile of a sum of matmuls that is never stored as a whole. The results
/// are in order: one list for each block of rows, with one entry for each block of columns. On a meta device there are
/// no tiles.
pub(crate) fn map_tiles<R: Send>(
    terms: &[Term],
    precision: Precision,
    f: impl Fn(usize, Range<usize>, &[f32]) -> R + Sync,
) -> Vec<Vec<R>> {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols());
    let layout = precision.layout();
    let lefts: Vec<LaidOut> = terms.iter().map(|term| LaidOut::new(term.a, layout)).collect();
    if let Some(meta) = terms[0].a.meta() {
        meta.take_on_threads(m.min(TILE_ROWS) * n.min(BLOCK[1]));
        return vec![];
    }
    let tile = |rows: Range<usize>, cols: Range<usize>| {
        let mut tile = Buffer::unset(None, rows.len() * cols.len());
        for ((term, left), into) in terms.iter().zip(&lefts).zip([Into::Set, Into::Add]) {
            let out = Output { start: tile.as_mut_ptr(), stride: cols.len() };
            // SAFETY: the tile holds `rows` rows of `cols` columns and is borrowed mutably.
            unsafe { task(out, left.view().some_rows(rows.clone()), term, layout, cols.clone(), into) };
        }
        f(rows.start, cols, &tile)
    };
    let blocks = |rows: Range<usize>| {
        let cols = (0..n.div_ceil(BLOCK[1])).into_par_iter().map(|b| b * BLOCK[1]..((b + 1) * BLOCK[1]).min(n));
        cols.map(|cols| tile(rows.clone(), cols)).collect()
    };
    (0..m).step_by(TILE_ROWS).map(|row| blocks(row..(row + TILE_ROWS).min(m))).collect()
}

/// `to += from`.
pub fn add(to: SliceMut, from: Slice) {
    assert_eq!(to.len(), from.len(), "two matrices of one size");
    let (Some(to), from) = (to.numbers(), from.numbers()) else { return };
    to.par_chunks_mut(ADD_CHUNK).zip(from.par_chunks(ADD_CHUNK)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    });
}

/// A result that tasks write in disjoint parts, through one pointer.
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: the tasks that share it write disjoint elements (see where it is made).
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer to element `start`.
    ///
    /// # Safety
    /// `start` lies within the result.
    pub(crate) unsafe fn at(&self, start: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(start) }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::philox::{philox, unit_f32};
    use crate::precision::has_pairs;

    #[test]
    fn matmuls_in_bf16_are_exact_sums_of_rounded_factors() {
        let random = |seed, len: usize| -> Vec<f32> {
            (0..len).map(|i| 2.0 * unit_f32(philox(seed, [i as u32, 0, 0, 0])[0]) - 1.0).collect()
        };
        let wide = |x: f32| bf16::from_f32(x).to_f64();
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (13, 1027, 33), (97, 514, 300)] {
            let (a, b) = (random(1, m * k), random(2, k * n));
            let lefts = [View::new(&a[..], m, k), View::new(&a[..], k, m).t()];
            let rights = [View::new(&b[..], k, n), View::new(&b[..], n, k).t()];
            let at = |x: View, i: usize, j: usize| if x.is_row_major() { x.row(i)[j] } else { x.t().row(j)[i] };
            let layouts = [Some(Layout::Rounded), has_pairs().then_some(Layout::Pairs), Some(Layout::Tiles)];
            for (layout, (left, right)) in
                layouts.into_iter().flatten().flat_map(|l| [0, 1, 2, 3].map(|i| (l, (lefts[i / 2], rights[i % 2]))))
            {
                let mut out = vec![1.0; m * n];
                sum_in(
                    layout,
                    out[..].as_mut().into(),
                    &[Term { a: left, b: Right::Matrix(right), scale: 2.0 }],
                    Into::Add,
                );
                for (i, j) in [(0, 0), (m - 1, n - 1), (m / 2, n / 3), (m / 3, n / 2)] {
                    let terms = (0..k).map(|l| wide(at(left, i, l)) * wide(at(right, l, j)));
                    let expected = 1.0 + 2.0 * terms.sum::<f64>();
                    let got = f64::from(out[i * n + j]);
                    assert!(
                        (got - expected).abs() < 1e-6 * k as f64 + 1e-5,
                        "{layout:?} {m} {k} {n}: {got}, {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn matmuls_of_two_parts_a_number_are_nearly_exact() {
        let random = |seed, len: usize| -> Vec<f32> {
            (0..len).map(|i| 2.0 * unit_f32(philox(seed, [i as u32, 0, 0, 0])[0]) - 1.0).collect()
        };
        for (m, k, n) in [(1, 1, 1), (5, 31, 3), (33, 33, 65), (40, 1027, 33), (97, 514, 300)] {
            let (a, b) = (random(1, m * k), random(2, k * n));
            let lefts = [View::new(&a[..], m, k), View::new(&a[..], k, m).t()];
            let rights = [View::new(&b[..], k, n), View::new(&b[..], n, k).t()];
            let at = |x: View, i: usize, j: usize| if x.is_row_major() { x.row(i)[j] } else { x.t().row(j)[i] };
            for (left, right) in [0, 1, 2, 3].map(|i| (lefts[i / 2], rights[i % 2])) {
                let mut out = vec![0.0; m * n];
                sum_in(
                    Layout::Split,
                    out[..].as_mut().into(),
                    &[Term { a: left, b: Right::Matrix(right), scale: 1.0 }],
                    Into::Set,
                );
                let (mut error, mut norm) = (0.0, 0.0);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let exact: f64 = (0..k).map(|l| f64::from(at(left, i, l)) * f64::from(at(right, l, j))).sum();
                    error += (f64::from(out[i * n + j]) - exact).powi(2);
                    norm += exact.powi(2);
                }
                assert!((error / norm).sqrt() < 1e-5, "[{m}, {k}] by [{k}, {n}]: {}", (error / norm).sqrt());
            }
        }
    }
}
