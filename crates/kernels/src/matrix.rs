//! Matrix products: the one place that calls the GEMM library. Outputs are split into tiles of a fixed size,
//! one task each, so the sum behind every element is the same at any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::weight::Weight;

/// Output columns per task where a weight's rows become columns of the result.
const TILE_COLS: usize = 256;
/// Output rows per task there.
const TILE_TOKENS: usize = 512;
/// Output rows per task elsewhere.
const TILE_ROWS: usize = 128;

/// Numbers per task of a sum.
const ADD_CHUNK: usize = 1 << 15;

/// A strided read-only matrix.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A contiguous row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix of [{rows}, {cols}]");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Columns `cols` of a row-major matrix whose rows are `width` wide.
    pub fn columns(data: &'a [f32], rows: usize, width: usize, cols: Range<usize>) -> Self {
        assert!(data.len() == rows * width && cols.end <= width, "columns {cols:?} of [{rows}, {width}]");
        let len = cols.len();
        let data = if rows == 0 { data } else { &data[cols.start..] };
        Self { data, rows, cols: len, row_stride: width, col_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn slice_rows(self, rows: Range<usize>) -> Self {
        let data = if rows.is_empty() { &[] } else { &self.data[rows.start * self.row_stride..] };
        Self { data, rows: rows.len(), ..self }
    }

    fn holds(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// What a product does with the numbers already there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// Overwrite them.
    Set,
    /// Add to them.
    Add,
}

/// `out = scale * a b` (or `+=`) on this thread; `out` has rows of `out_stride` numbers, of which it writes the first `b.cols`.
pub fn product(out: &mut [f32], out_stride: usize, a: View, b: View, scale: f32, into: Into) {
    let (m, n) = (a.rows, b.cols);
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= out_stride && (m - 1) * out_stride + n <= out.len(), "the result holds [{m}, {n}]");
    // SAFETY: the assertion above bounds every element written, and `out` is borrowed mutably.
    unsafe { product_at(out.as_mut_ptr(), out_stride, a, b, scale, into) }
}

/// The product through a pointer, for tasks that write disjoint columns of one result.
///
/// # Safety
/// `out` is valid for writes of `a.rows` rows, `out_stride` apart, of `b.cols` numbers each, and nothing else
/// reads or writes those numbers meanwhile.
unsafe fn product_at(out: *mut f32, out_stride: usize, a: View, b: View, scale: f32, into: Into) {
    assert_eq!(a.cols, b.rows, "inner sizes of a product");
    assert!(a.holds() && b.holds(), "the factors lie within their slices");
    // SAFETY: the assertions above bound every index of the factors, the caller those of the result.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            out_stride as isize,
            into == Into::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out [M, N] = scale * a b` (or `+=`), rows in parallel.
pub fn par_product(out: &mut [f32], a: View, b: View, scale: f32, into: Into) {
    let n = b.cols;
    assert_eq!(out.len(), a.rows * n, "a result of [{}, {n}]", a.rows);
    if n == 0 {
        return;
    }
    out.par_chunks_mut(TILE_ROWS * n).enumerate().for_each(|(i, tile)| {
        let rows = i * TILE_ROWS..i * TILE_ROWS + tile.len() / n;
        product(tile, n, a.slice_rows(rows), b, scale, into);
    });
}

/// `out [N, out] = x W^T` (or `+=`): the weight is read once, row block by row block, each converted to f32 while it is used.
pub fn times_weight_t(out: &mut [f32], x: View, weight: &Weight, into: Into) {
    let (n, width) = (x.rows, weight.rows());
    assert_eq!(out.len(), n * width, "a result of [{n}, {width}]");
    if n == 0 {
        return;
    }
    let out = Shared(out.as_mut_ptr());
    (0..width.div_ceil(TILE_COLS)).into_par_iter().for_each(|block| {
        let cols = block * TILE_COLS..((block + 1) * TILE_COLS).min(width);
        let weight_rows = weight.rows_f32(cols.clone());
        let w = View::new(&weight_rows, cols.len(), weight.cols()).t();
        // A narrow layer has fewer column blocks than threads.
        (0..n.div_ceil(TILE_TOKENS)).into_par_iter().for_each(|tile| {
            let tokens = tile * TILE_TOKENS..((tile + 1) * TILE_TOKENS).min(n);
            let start = tokens.start * width + cols.start;
            // SAFETY: the task writes columns `cols` of the rows `tokens` of `out`, which holds `n * width` numbers;
            // no two tasks have an element in common.
            unsafe { product_at(out.at(start), width, x.slice_rows(tokens), w, 1.0, into) }
        });
    });
}

/// `out [N, in] = y W` (or `+=`).
pub fn times_weight(out: &mut [f32], y: View, weight: &Weight, into: Into) {
    let width = weight.cols();
    assert_eq!(y.cols, weight.rows(), "inner sizes of a product");
    let mut mode = into;
    // Blocks of the weight's rows are summed in order: f32 copies of a large bf16 weight stay small.
    let block = (1 << 22) / width.max(1) + 1;
    for start in (0..weight.rows()).step_by(block) {
        let rows = start..(start + block).min(weight.rows());
        let w = weight.rows_f32(rows.clone());
        let y_block = View { data: y.data.get(start * y.col_stride..).unwrap_or(&[]), cols: rows.len(), ..y };
        par_product(out, y_block, View::new(&w, rows.len(), width), 1.0, mode);
        mode = Into::Add;
    }
}

/// `to += from`.
pub fn add(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), from.len(), "two matrices of one size");
    to.par_chunks_mut(ADD_CHUNK).zip(from.par_chunks(ADD_CHUNK)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    });
}

/// A result that tasks write in disjoint columns.
struct Shared(*mut f32);

// SAFETY: the tasks that share it write disjoint elements (see `times_weight_t`).
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer to element `start`.
    ///
    /// # Safety
    /// `start` lies within the result.
    unsafe fn at(&self, start: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(start) }
    }
}
