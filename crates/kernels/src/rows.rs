//! Operations on some rows of a matrix: gather, scatter-add and replace.

use crate::buffer::Buffer;
use crate::cuda;
use crate::tensor::Tensor;

/// Rows `index` of `x` `[N, width]`, in the format of `x`.
///
/// # Shapes
/// `[M, width]`.
pub fn gather(x: &Tensor, index: &[usize], width: usize) -> Tensor {
    match x {
        Tensor::Host(x) => {
            let rows = || index.iter().flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect();
            Tensor::Host(Buffer::vector(x.meta(), index.len() * width, rows))
        }
        Tensor::Gpu(x) => Tensor::Gpu(cuda::rows::gather(x, index, width)),
    }
}

/// `to[index_i] += rows_i`; a row may occur several times.
///
/// # Shapes
/// `to` `[N, width]`, `rows` `[M, width]`.
pub fn scatter_add(to: &mut Tensor, index: &[usize], rows: &Tensor, width: usize) {
    match (to, rows) {
        (to, _) if to.is_meta() => {}
        (Tensor::Host(to), Tensor::Host(rows)) => {
            for (row, from) in index.iter().zip(rows.chunks_exact(width)) {
                to[row * width..(row + 1) * width].iter_mut().zip(from).for_each(|(to, x)| *to += x);
            }
        }
        (to, rows) => cuda::rows::scatter_add(to.array_mut(), index, rows.array(), width),
    }
}

/// `to[index_i] = rows_i`; no row occurs twice.
///
/// # Shapes
/// `to` `[N, width]`, `rows` `[M, width]`.
pub fn replace(to: &mut Tensor, index: &[usize], rows: &Tensor, width: usize) {
    match (to, rows) {
        (to, _) if to.is_meta() => {}
        (Tensor::Host(to), Tensor::Host(rows)) => {
            for (row, from) in index.iter().zip(rows.chunks_exact(width.max(1))) {
                to[row * width..(row + 1) * width].copy_from_slice(from);
            }
        }
        (to, rows) => cuda::rows::replace(to.array_mut(), index, rows.array(), width),
    }
}
