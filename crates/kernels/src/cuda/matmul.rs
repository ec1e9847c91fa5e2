//! Matmuls on a GPU, by cuBLASLt: operands in f32 or bf16, sums in f32. An f32 matmul multiplies f32 numbers, not TF32.
//! Algorithms that add in no fixed order are excluded, so that a matmul has the same bits in every run on one GPU. The
//! chosen algorithm depends on the shape.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::array::Array;
use super::gpu::Gpu;
use super::work::Work;
use crate::tensor::Into;
use crate::weight::Dtype;

/// The size of the workspace in bytes: what NVIDIA recommends for Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// cuBLASLt with its workspace, and the algorithms for the shapes met so far.
#[derive(Debug)]
pub(super) struct Matmuls {
    handle: Handle,
    /// Locked during a matmul, because another matmul must not overwrite what the first one keeps there.
    workspace: Mutex<CudaSlice<u8>>,
    prepared: Mutex<HashMap<Shape, Arc<Prepared>>>,
}

#[derive(Debug)]
struct Handle(sys::cublasLtHandle_t);

/// What the choice of an algorithm depends on, in cuBLASLt's terms: matrices are column-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows and columns of the result, and the inner size.
    sizes: [usize; 3],
    /// Whether each operand is transposed.
    transposed: [bool; 2],
    /// The formats of the operands and of the result.
    dtypes: [Dtype; 2],
    /// Powers of two that the pointers are multiples of: the operands', the added matrix's, the result's.
    alignments: [u32; 4],
}

/// The descriptors and the algorithm for a shape.
#[derive(Debug)]
struct Prepared {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: several threads may use cuBLASLt's handle, and descriptors don't change once they are made.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}
// SAFETY: as above.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

/// A row-major matrix, or its transpose.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    array: &'a Array,
    rows: usize,
    cols: usize,
    is_transposed: bool,
}

impl<'a> Operand<'a> {
    /// A row-major matrix; the array may be longer.
    pub(super) fn new(array: &'a Array, rows: usize, cols: usize) -> Self {
        assert!(rows * cols <= array.len(), "a matrix of [{rows}, {cols}]");
        Self { array, rows, cols, is_transposed: false }
    }

    /// The transpose of the operand.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, is_transposed: !self.is_transposed, ..self }
    }
}

/// `out [M, N] = scale * a b` (or `+=`); the array may be longer.
pub(super) fn matmul(out: &mut Array, operands: [Operand; 2], scale: f32, into: Into) {
    let before = (into == Into::Add).then(|| out.at(0));
    compute(out, operands, scale, before);
}

/// `out [M, N] = a b + before`, where `before` has the size and format of `out`.
pub(super) fn matmul_onto(out: &mut Array, operands: [Operand; 2], before: &Array) {
    assert_eq!((out.len(), out.dtype()), (before.len(), before.dtype()), "matrices of one size and format");
    compute(out, operands, 1.0, Some(before.at(0)));
}

/// `out = scale * a b`, plus the matrix at `before` if there is one.
fn compute(out: &mut Array, [a, b]: [Operand; 2], scale: f32, before: Option<u64>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner sizes of a matmul");
    assert_eq!(a.array.dtype(), b.array.dtype(), "operands in one format");
    assert!(k > 0 && m * n <= out.len(), "a result of [{m}, {n}], sums of {k}");
    let gpu = out.gpu().clone();
    if m * n == 0 {
        return;
    }
    // A row-major matrix is the transpose of a column-major one, and (a b)^T = b^T a^T: the operands swap places.
    let pointers = [b.array.at(0), a.array.at(0), before.unwrap_or_else(|| out.at(0)), out.at(0)];
    let shape = Shape {
        sizes: [n, m, k],
        transposed: [b.is_transposed, a.is_transposed],
        dtypes: [a.array.dtype(), out.dtype()],
        alignments: pointers.map(|pointer| 1 << pointer.trailing_zeros().min(8)),
    };
    let operands = [scale, if before.is_some() { 1.0 } else { 0.0 }];
    let (size, is_bf16) = (a.array.dtype().size(), a.array.dtype() == Dtype::Bf16);
    let bytes = size * (m * k + k * n) + out.dtype().size() * m * n * if before.is_some() { 2 } else { 1 };
    let work = Work { operations: 2 * (m * k * n) as u64, bytes: bytes as u64, is_bf16 };
    let kernel = if is_bf16 { "matmul_bf16" } else { "matmul_f32" };
    let computed = gpu.counted(kernel, work, |engine| engine.matmuls.compute(shape, pointers, operands, gpu.clone()));
    computed.unwrap_or_else(|e| gpu.fail(&format!("compute a matmul of [{m}, {k}] and [{k}, {n}]"), e));
}

impl Matmuls {
    /// Opens cuBLASLt.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, String> {
        let handle = result::create_handle().map_err(|e| format!("cuBLASLt can't be opened: {e}"))?;
        // SAFETY: a workspace is written before it is read.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) };
        let workspace = workspace.map_err(|e| format!("the GPU has no room for cuBLASLt's 34 MB: {e}"))?;
        Ok(Self { handle: Handle(handle), workspace: Mutex::new(workspace), prepared: Mutex::default() })
    }

    fn compute(
        &self,
        shape: Shape,
        [a, b, before, out]: [u64; 4],
        [alpha, beta]: [f32; 2],
        gpu: Arc<Gpu>,
    ) -> Result<(), CublasError> {
        let prepared = self.prepared(shape)?;
        let stream = gpu.engine().expect("it computes").streams.compute();
        gpu.bind();
        let workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let (workspace, [of_a, of_b, of_out]) = (workspace.device_ptr(stream).0, prepared.layouts);
        // SAFETY: the layouts describe the matrices, whose sizes the caller has checked.
        unsafe {
            result::matmul(
                self.handle.0,
                prepared.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a as *const c_void,
                of_a,
                b as *const c_void,
                of_b,
                before as *const c_void,
                of_out,
                out as *mut c_void,
                of_out,
                &raw const prepared.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
    }

    /// The descriptors and the algorithm for a shape.
    fn prepared(&self, shape: Shape) -> Result<Arc<Prepared>, CublasError> {
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = all.get(&shape) {
            return Ok(prepared.clone());
        }
        let prepared = Arc::new(Prepared::new(&self.handle, shape)?);
        all.insert(shape, prepared.clone());
        Ok(prepared)
    }
}

impl Prepared {
    fn new(handle: &Handle, shape: Shape) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        let Shape { sizes: [m, n, k], transposed: [a, b], dtypes: [operands, out], .. } = shape;
        let f32_sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(f32_sums, sys::cudaDataType_t::CUDA_R_32F)?;
        for (attribute, is_transposed) in [(CUBLASLT_MATMUL_DESC_TRANSA, a), (CUBLASLT_MATMUL_DESC_TRANSB, b)] {
            let operation = i32::from(is_transposed);
            // SAFETY: the attribute is a 32-bit number, 0 for no transpose and 1 for the transpose.
            unsafe {
                result::set_matmul_desc_attribute(description, attribute, (&raw const operation).cast(), 4)?;
            }
        }
        let layout = |dtype: Dtype, [rows, cols]: [usize; 2]| {
            result::create_matrix_layout(data_type(dtype), rows as u64, cols as u64, rows.max(1) as i64)
        };
        let stored = |[rows, cols]: [usize; 2], is_transposed| if is_transposed { [cols, rows] } else { [rows, cols] };
        let layouts =
            [layout(operands, stored([m, k], a))?, layout(operands, stored([k, n], b))?, layout(out, [m, n])?];
        let mut prepared = Self { description, layouts, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        prepared.algorithm = prepared.choose(handle, shape.alignments)?;
        Ok(prepared)
    }

    /// The algorithm that cuBLASLt expects to be fastest, among those that add in a fixed order.
    fn choose(&self, handle: &Handle, alignments: [u32; 4]) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t as Reduction;
        // Algorithms that round partial sums to the result's format are excluded too.
        let ordered = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let [a, b, before, out] = alignments;
        let numbers = [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, ordered),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, before),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ];
        let preference = result::create_matmul_pref()?;
        let bytes = (Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64);
        let [of_a, of_b, of_out] = self.layouts;
        // SAFETY: the attributes have these sizes; every handle passed was created and not yet destroyed.
        unsafe {
            let mut set = result::set_matmul_pref_attribute(preference, bytes.0, (&raw const bytes.1).cast(), 8);
            for (attribute, number) in numbers {
                set = set.and_then(|()| {
                    result::set_matmul_pref_attribute(preference, attribute, (&raw const number).cast(), 4)
                });
            }
            let (handle, description) = (handle.0, self.description);
            let chosen = set.and_then(|()| {
                result::get_matmul_algo_heuristic(handle, description, of_a, of_b, of_out, of_out, preference)
            });
            let _ = result::destroy_matmul_pref(preference);
            chosen.map(|chosen| chosen.algo)
        }
    }
}

fn data_type(dtype: Dtype) -> sys::cudaDataType_t {
    match dtype {
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: each was created once and is destroyed once; if the library refuses, they leak.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was created once and is destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}
