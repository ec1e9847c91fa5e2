//! Rows of matrices on a GPU: embedding, gather, replace and scatter-add.

use std::collections::BTreeMap;

use super::array::{Array, Memory};
use super::elementwise::{int, suffix};
use super::gpu::Grid;
use crate::weight::{Dtype, Weight};

/// `x_n = E[id_n]`, in f32.
pub(crate) fn embed(x: &mut Array, ids: &[u32], weight: &Weight) {
    let (table, width) = (weight.array(), weight.cols());
    assert!(x.len() == ids.len() * width && x.dtype() == Dtype::F32, "a row in f32 for each id");
    assert!(ids.iter().all(|id| (*id as usize) < weight.rows()), "ids of the vocabulary");
    let kernel = if table.dtype() == Dtype::F32 { "gather_f32" } else { "embed_bf16" };
    let index = Memory::of(x.gpu(), ids);
    // SAFETY: every id is a row of the table.
    unsafe {
        x.gpu().launch(kernel, Grid::rows(ids.len(), 256), &[x.arg(), table.part(0, x.len()), index.arg(), int(width)]);
    }
}

/// `dE[id_n] += dx_n`, in the tokens' order.
pub(crate) fn embed_backward(dweight: &mut Array, ids: &[u32], dx: &Array) {
    let width = dx.len() / ids.len().max(1);
    scatter_add(dweight, &ids.iter().map(|id| *id as usize).collect::<Vec<_>>(), dx, width);
}

/// Rows `index` of a matrix, in the matrix's format.
pub(crate) fn gather(x: &Array, index: &[usize], width: usize) -> Array {
    let (rows, at) = (Array::unset(x.gpu(), index.len() * width, x.dtype()), checked(x, index, width));
    let kernel = format!("gather_{}", suffix(x.dtype()));
    // SAFETY: every index is a row of the matrix.
    unsafe {
        x.gpu().launch(
            &kernel,
            Grid::rows(index.len(), 256),
            &[rows.arg(), x.part(0, rows.len()), at.arg(), int(width)],
        );
    }
    rows
}

/// `to[index_i] = rows_i`.
pub(crate) fn replace(to: &mut Array, index: &[usize], rows: &Array, width: usize) {
    let at = checked(to, index, width);
    assert!(rows.len() == index.len() * width && rows.dtype() == to.dtype(), "a row in one format for each index");
    let kernel = format!("replace_{}", suffix(to.dtype()));
    // SAFETY: every index is a row of the matrix, and none comes twice.
    unsafe {
        to.gpu().launch(
            &kernel,
            Grid::rows(index.len(), 256),
            &[to.part(0, rows.len()), rows.arg(), at.arg(), int(width)],
        );
    }
}

/// `to[index_i] += rows_i`; rows added to the same row are added in order.
pub(crate) fn scatter_add(to: &mut Array, index: &[usize], rows: &Array, width: usize) {
    assert!(rows.len() == index.len() * width, "a row for each index");
    assert!(to.dtype() == Dtype::F32 && rows.dtype() == Dtype::F32, "sums in f32");
    let mut groups: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
    index.iter().zip(0..).for_each(|(row, member)| groups.entry(*row).or_default().push(member));
    let group_rows = checked(to, &groups.keys().copied().collect::<Vec<_>>(), width);
    let end = |at: &mut i32, members: &Vec<i32>| {
        *at += members.len() as i32;
        Some(*at)
    };
    let starts: Vec<i32> = [0].into_iter().chain(groups.values().scan(0, end)).collect();
    let [starts, order] = [starts, groups.values().flatten().copied().collect()].map(|x| Memory::of(to.gpu(), &x));
    let args = [to.part(0, groups.len() * width), rows.arg(), group_rows.arg(), starts.arg(), order.arg(), int(width)];
    // SAFETY: every group's row is a row of the matrix, and every member is one of the rows to add.
    unsafe { to.gpu().launch("scatter_add", Grid::rows(groups.len(), 256), &args) };
}

/// Uploads row indices, after checking that each is a row of the matrix.
fn checked(matrix: &Array, index: &[usize], width: usize) -> Memory {
    let rows = matrix.len() / width.max(1);
    assert!(index.iter().all(|row| *row < rows), "rows of the matrix");
    Memory::of(matrix.gpu(), &index.iter().map(|row| *row as i32).collect::<Vec<_>>())
}
