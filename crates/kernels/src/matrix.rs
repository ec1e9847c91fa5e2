//! Matrix products, on this thread or on all. A result's element is a sum in a fixed order, so it has the same bits at
//! any number of threads; how a result is cut into tasks changes nothing but the time.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::microkernel::{Output, multiply};
use crate::panels::{Panels, Right};
use crate::weight::Weight;

/// Rows and columns of the right factor that are packed at once: half a megabyte, which the second cache holds.
const BLOCK: [usize; 2] = [512, 256];
/// Fewest rows of a task: packing costs as much as some ten rows.
const TASK_ROWS: usize = 192;
/// Rows of a tile that isn't stored; its columns are packed anew for as many.
const TILE_ROWS: usize = 2048;
/// Tasks for each thread, so that a slow core can be helped out.
const TASKS_PER_THREAD: usize = 4;

/// Numbers per task of a sum.
const ADD_CHUNK: usize = 1 << 15;

/// A strided read-only matrix, its rows or its columns contiguous.
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
        Self::new(data, rows, width).block(0..rows, cols)
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Some rows and columns.
    pub(crate) fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a block within the matrix");
        let start = rows.start * self.row_stride + cols.start * self.col_stride;
        Self { data: self.data.get(start..).unwrap_or(&[]), rows: rows.len(), cols: cols.len(), ..self }
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

    /// Whether rows are contiguous.
    pub(crate) fn is_row_major(&self) -> bool {
        self.col_stride == 1
    }

    /// Where a row begins.
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

/// What a product does with the numbers already there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// Overwrite them.
    Set,
    /// Add to them.
    Add,
}

/// `out = scale * a b` (or `+=`) on this thread; `out` has rows of `out_stride` numbers, of which it writes the first
/// `b.cols`.
pub fn product(out: &mut [f32], out_stride: usize, a: View, b: View, scale: f32, into: Into) {
    let (m, n) = (a.rows, b.cols);
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= out_stride && (m - 1) * out_stride + n <= out.len(), "the result holds [{m}, {n}]");
    let out = Output { start: out.as_mut_ptr(), stride: out_stride };
    // SAFETY: the assertion above bounds every element written, and `out` is borrowed mutably.
    unsafe { task(out, a, Right::Matrix(b), 0..n, scale, into) }
}

/// `out [M, N] = scale * a b` (or `+=`).
pub fn par_product(out: &mut [f32], a: View, b: View, scale: f32, into: Into) {
    sum_of_products(out, &[Term { a, b: Right::Matrix(b), scale }], into);
}

/// `out [N, out] = x W^T` (or `+=`); a bf16 weight is widened block by block while it is used.
pub fn times_weight_t(out: &mut [f32], x: View, weight: &Weight, into: Into) {
    sum_of_products(out, &[Term { a: x, b: Right::WeightT(weight), scale: 1.0 }], into);
}

/// `out [N, in] = y W` (or `+=`).
pub fn times_weight(out: &mut [f32], y: View, weight: &Weight, into: Into) {
    sum_of_products(out, &[Term { a: y, b: Right::Weight(weight), scale: 1.0 }], into);
}

/// One product `scale * a b` of a sum.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub(crate) a: View<'a>,
    pub(crate) b: Right<'a>,
    pub(crate) scale: f32,
}

/// `out [M, N] = sum of products` (or `+=`), cut into tasks: blocks of columns, each packed once by every task, and of
/// rows. A block of the result stays in the cache from one product to the next.
pub(crate) fn sum_of_products(out: &mut [f32], terms: &[Term], into: Into) {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols());
    assert_eq!(out.len(), m * n, "a result of [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    let out = Shared(out.as_mut_ptr());
    let blocks = n.div_ceil(BLOCK[1]);
    let splits = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(blocks);
    let rows_per_task = m.div_ceil(splits).max(TASK_ROWS);
    (0..blocks * m.div_ceil(rows_per_task)).into_par_iter().for_each(|index| {
        let (row, col) = (index / blocks * rows_per_task, index % blocks * BLOCK[1]);
        let rows = row..(row + rows_per_task).min(m);
        let cols = col..(col + BLOCK[1]).min(n);
        for (term, into) in terms.iter().zip(std::iter::once(into).chain(std::iter::repeat(Into::Add))) {
            assert!(term.a.rows == m && term.b.cols() == n, "products of one shape");
            // SAFETY: the task writes rows `rows` and columns `cols` of `out`, which holds `m * n` numbers; no two tasks
            // have an element in common.
            unsafe {
                let out = Output { start: out.at(row * n + col), stride: n };
                task(out, term.a.block(rows.clone(), 0..term.a.cols), term.b, cols.clone(), term.scale, into);
            }
        }
    });
}

/// All rows of `a` times columns `cols` of `b`.
///
/// # Safety
/// `out` is valid for reads and writes of `a.rows` rows of `cols.len()` numbers, which nothing else touches meanwhile.
unsafe fn task(out: Output, a: View, b: Right, cols: Range<usize>, scale: f32, into: Into) {
    assert_eq!(a.cols, b.inner(), "inner sizes of a product");
    Panels::with_spare(|panels| {
        for start in cols.clone().step_by(BLOCK[1]) {
            let block = start..(start + BLOCK[1]).min(cols.end);
            // A sum of no terms is written too.
            for k in (0..b.inner().max(1)).step_by(BLOCK[0]) {
                let inner = k..(k + BLOCK[0]).min(b.inner());
                b.pack(panels, inner.clone(), block.clone());
                let into = if k == 0 { into } else { Into::Add };
                // SAFETY: the block's columns lie within the caller's.
                unsafe {
                    let out = Output { start: out.start.add(start - cols.start), ..out };
                    multiply(out, a.block(0..a.rows, inner), panels, scale, into);
                }
            }
        }
    });
}

/// `f(first row, columns, tile)` of every tile of a sum of products that is never stored as a whole: for each block of
/// rows its blocks of columns, in order.
pub(crate) fn map_tiles<R: Send>(terms: &[Term], f: impl Fn(usize, Range<usize>, &[f32]) -> R + Sync) -> Vec<Vec<R>> {
    let (m, n) = (terms[0].a.rows, terms[0].b.cols());
    let tile = |rows: Range<usize>, cols: Range<usize>| {
        let mut tile = Buffer::unset(rows.len() * cols.len());
        for (term, into) in terms.iter().zip([Into::Set, Into::Add]) {
            let out = Output { start: tile.as_mut_ptr(), stride: cols.len() };
            let a = term.a.block(rows.clone(), 0..term.a.cols);
            // SAFETY: the tile holds `rows` rows of `cols` columns, and is borrowed mutably.
            unsafe { task(out, a, term.b, cols.clone(), term.scale, into) };
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
pub fn add(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), from.len(), "two matrices of one size");
    to.par_chunks_mut(ADD_CHUNK).zip(from.par_chunks(ADD_CHUNK)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    });
}

/// A result that tasks write in disjoint parts.
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
