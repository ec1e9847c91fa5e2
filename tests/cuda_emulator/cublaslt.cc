// cuBLASLt's matmul on the CPU: f32 or bf16 operands, sums in f32 in the order of k.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "driver.h"
#include "gemm.h"

namespace {

enum Status {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
};

enum DataType { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum ComputeType {
    COMPUTE_32F = 68,
    COMPUTE_32F_PEDANTIC = 69,
    COMPUTE_32F_FAST_16BF = 75,
    COMPUTE_32F_FAST_TF32 = 77,
};
enum Epilogue { EPILOGUE_DEFAULT = 1 };
enum MatrixOrder { ORDER_COL = 0, ORDER_ROW = 1 };

// Attributes are stored at the index of their number; a 4-byte attribute leaves the upper half zero.
struct Attributes {
    int64_t values[64] = {};

    Status set(unsigned attribute, const void* value, size_t bytes) {
        if (attribute >= 64 || !value || (bytes != 4 && bytes != 8)) return CUBLAS_STATUS_INVALID_VALUE;
        values[attribute] = 0;
        return memcpy(&values[attribute], value, bytes), CUBLAS_STATUS_SUCCESS;
    }
    Status get(unsigned attribute, void* value, size_t bytes, size_t* written) const {
        if (attribute >= 64 || (bytes != 4 && bytes != 8)) return CUBLAS_STATUS_INVALID_VALUE;
        if (written) *written = bytes;
        return memcpy(value, &values[attribute], bytes), CUBLAS_STATUS_SUCCESS;
    }
};

struct Layout : Attributes {
    int type() const { return values[0]; }
    int order() const { return values[1]; }
    int64_t rows() const { return values[2]; }
    int64_t cols() const { return values[3]; }
    int64_t ld() const { return values[4]; }
    int64_t batch() const { return int32_t(values[5]); }
    int64_t stride() const { return values[6]; }

    size_t element_bytes() const { return type() == CUDA_R_32F ? 4 : 2; }
    int64_t row_stride() const { return order() == ORDER_ROW ? ld() : 1; }
    int64_t col_stride() const { return order() == ORDER_ROW ? 1 : ld(); }
    size_t bytes() const {
        int64_t last = (rows() - 1) * row_stride() + (cols() - 1) * col_stride();
        return (last + 1 + (batch() - 1) * stride()) * element_bytes();
    }
    bool is_valid() const {
        return rows() > 0 && cols() > 0 && order() <= ORDER_ROW && batch() > 0 &&
               ld() >= (order() == ORDER_ROW ? cols() : rows());
    }
};

struct MatmulDesc : Attributes {
    int compute_type() const { return values[0]; }
    int scale_type() const { return values[1]; }
    bool is_on_host() const { return values[2] == 0; }  // for alpha and beta
    bool is_transposed_a() const { return values[3] != 0; }
    bool is_transposed_b() const { return values[4] != 0; }
    bool is_transposed_c() const { return values[5] != 0; }
    int epilogue() const { return values[7]; }
};

struct Preference : Attributes {
    size_t max_workspace() const { return values[1]; }
    unsigned alignment(int matrix) const { return uint32_t(values[5 + matrix]); }  // for a, b, c, d
};

// The contents of cublasLtMatmulAlgo_t's 64 bytes.
struct Algorithm {
    uint64_t workspace_bytes;
    uint32_t alignment[4];
    uint64_t unused[5];
};

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
};

struct Operation {
    const MatmulDesc& desc;
    const Layout &a, &b, &c, &d;

    int64_t m() const { return d.rows(); }
    int64_t n() const { return d.cols(); }
    int64_t k() const { return desc.is_transposed_a() ? a.rows() : a.cols(); }
};

Status check_shapes(const Operation& op) {
    const Layout* all[] = {&op.a, &op.b, &op.c, &op.d};
    for (const Layout* layout : all)
        if (!layout->is_valid() || layout->batch() != op.d.batch()) return CUBLAS_STATUS_INVALID_VALUE;
    bool ta = op.desc.is_transposed_a(), tb = op.desc.is_transposed_b();
    bool fits = (ta ? op.a.cols() : op.a.rows()) == op.m() && (tb ? op.b.rows() : op.b.cols()) == op.n() &&
                (tb ? op.b.cols() : op.b.rows()) == op.k() && op.c.rows() == op.m() && op.c.cols() == op.n();
    return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

// The combinations of types that the real library supports with f32 scales.
Status check_types(const Operation& op) {
    bool f32 = op.a.type() == CUDA_R_32F && op.b.type() == CUDA_R_32F && op.d.type() == CUDA_R_32F;
    bool bf16 = op.a.type() == CUDA_R_16BF && op.b.type() == CUDA_R_16BF &&
                (op.d.type() == CUDA_R_32F || op.d.type() == CUDA_R_16BF);
    int compute = op.desc.compute_type();
    bool is_plain = compute == COMPUTE_32F || compute == COMPUTE_32F_PEDANTIC;
    bool is_fast = compute == COMPUTE_32F_FAST_16BF || compute == COMPUTE_32F_FAST_TF32;
    bool has_types = op.c.type() == op.d.type() && ((f32 && (is_plain || is_fast)) || (bf16 && is_plain));
    bool has_rest = op.desc.scale_type() == CUDA_R_32F && op.desc.epilogue() == EPILOGUE_DEFAULT &&
                    op.desc.is_on_host() && !op.desc.is_transposed_c();
    return has_types && has_rest && op.c.order() == op.d.order() ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

Status check(const Operation& op) {
    Status status = check_shapes(op);
    return status ? status : check_types(op);
}

int rounding(const MatmulDesc& desc) {
    if (desc.compute_type() == COMPUTE_32F_FAST_16BF) return 16;
    return desc.compute_type() == COMPUTE_32F_FAST_TF32 ? 13 : 0;
}

Strided matrix(const Layout& layout, const void* data, int64_t batch, bool is_transposed) {
    const char* start = static_cast<const char*>(data) + batch * layout.stride() * layout.element_bytes();
    Strided matrix = {start, layout.row_stride(), layout.col_stride(), layout.type() == CUDA_R_16BF};
    if (is_transposed) std::swap(matrix.row_stride, matrix.col_stride);
    return matrix;
}

void check_alignment(const void* pointer, uint32_t alignment, char name) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return;
    fprintf(stderr, "emulated CUDA: cublasLtMatmul: %c lies at %p, not aligned to %u bytes as its preference says\n",
            name, pointer, alignment);
    abort();
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
size_t cublasLtGetCudartVersion() { return 13000; }

const char* cublasLtGetStatusName(Status status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown error";
}
Status cublasLtLoggerSetLevel(int) { return CUBLAS_STATUS_SUCCESS; }
Status cublasLtLoggerOpenFile(const char*) { return CUBLAS_STATUS_SUCCESS; }
const char* cublasLtGetStatusString(Status status) { return cublasLtGetStatusName(status); }

Status cublasLtCreate(void** handle) {
    if (emulated_cuda_device() < 0) return CUBLAS_STATUS_NOT_INITIALIZED;
    return *handle = new char, CUBLAS_STATUS_SUCCESS;
}
Status cublasLtDestroy(void* handle) { return delete static_cast<char*>(handle), CUBLAS_STATUS_SUCCESS; }

Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    Layout* created = *layout = new Layout;
    int64_t values[] = {type, ORDER_COL, int64_t(rows), int64_t(cols), ld, 1, 0};
    std::copy(values, values + 7, created->values);
    return CUBLAS_STATUS_SUCCESS;
}
Status cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, CUBLAS_STATUS_SUCCESS; }
Status cublasLtMatrixLayoutSetAttribute(Layout* layout, unsigned attribute, const void* value, size_t bytes) {
    return layout->set(attribute, value, bytes);
}
Status cublasLtMatrixLayoutGetAttribute(Layout* layout, unsigned which, void* value, size_t bytes, size_t* written) {
    return layout->get(which, value, bytes, written);
}

Status cublasLtMatmulDescCreate(MatmulDesc** desc, int compute_type, int scale_type) {
    *desc = new MatmulDesc;
    (*desc)->values[0] = compute_type;
    (*desc)->values[1] = scale_type;
    (*desc)->values[7] = EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}
Status cublasLtMatmulDescDestroy(MatmulDesc* desc) { return delete desc, CUBLAS_STATUS_SUCCESS; }
Status cublasLtMatmulDescSetAttribute(MatmulDesc* desc, unsigned attribute, const void* value, size_t bytes) {
    return desc->set(attribute, value, bytes);
}
Status cublasLtMatmulDescGetAttribute(MatmulDesc* desc, unsigned which, void* value, size_t bytes, size_t* written) {
    return desc->get(which, value, bytes, written);
}

Status cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    for (int matrix = 0; matrix < 4; matrix++) (*preference)->values[5 + matrix] = 256;
    return CUBLAS_STATUS_SUCCESS;
}
Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return delete preference, CUBLAS_STATUS_SUCCESS; }
Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, unsigned which, const void* value, size_t bytes) {
    return preference->set(which, value, bytes);
}

Status cublasLtMatmulAlgoGetHeuristic(void* handle, MatmulDesc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                      Preference* preference, int requested, HeuristicResult* results, int* found) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
    *found = 0;
    if (Status status = check(Operation{*desc, *a, *b, *c, *d})) return status;
    HeuristicResult result = {};
    result.algorithm.workspace_bytes = std::min<size_t>(preference->max_workspace(), 64 << 10);
    // Kernels load at most 16 bytes at once.
    for (int i = 0; i < 4; i++) result.algorithm.alignment[i] = std::clamp(preference->alignment(i), 1u, 16u);
    result.workspace_bytes = result.algorithm.workspace_bytes;
    result.waves = 1;
    return results[0] = result, *found = 1, CUBLAS_STATUS_SUCCESS;
}

Status cublasLtMatmul(void* handle, MatmulDesc* desc, const float* alpha, const void* a, Layout* a_layout,
                      const void* b, Layout* b_layout, const float* beta, const void* c, Layout* c_layout, void* d,
                      Layout* d_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                      void* stream) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!alpha || !beta || !a || !b || !d || check_stream(stream)) return CUBLAS_STATUS_INVALID_VALUE;
    Operation op = {*desc, *a_layout, *b_layout, *c_layout, *d_layout};
    if (Status status = check(op)) return status;
    if (algorithm) {
        const void* pointers[] = {a, b, c, d};
        for (int i = 0; i < 4; i++) check_alignment(pointers[i], algorithm->alignment[i], "ABCD"[i]);
        if (workspace_bytes < algorithm->workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
        // Overwrite the workspace, so that a program that keeps anything there is noticed.
        emulated_cuda_check(workspace, workspace_bytes, "cublasLtMatmul's workspace");
        memset(workspace, 0xff, algorithm->workspace_bytes);
    }
    emulated_cuda_check(a, a_layout->bytes(), "cublasLtMatmul's A");
    emulated_cuda_check(b, b_layout->bytes(), "cublasLtMatmul's B");
    emulated_cuda_check(d, d_layout->bytes(), "cublasLtMatmul's D");
    if (*beta != 0) emulated_cuda_check(c, c_layout->bytes(), "cublasLtMatmul's C");
    for (const void* used : {a, b, *beta != 0 ? c : nullptr, const_cast<const void*>(d), const_cast<const void*>(workspace)})
        emulated_cuda_use(used, stream, "cublasLtMatmul");
    for (int64_t batch = 0; batch < d_layout->batch(); batch++) {
        Product product = {op.m(), op.n(), op.k(), *alpha, *beta, rounding(*desc),
                           matrix(op.a, a, batch, desc->is_transposed_a()),
                           matrix(op.b, b, batch, desc->is_transposed_b()),
                           matrix(op.c, c, batch, false), matrix(op.d, d, batch, false)};
        multiply(product);
    }
    emulated_cuda_verify("cublasLtMatmul");
    emulated_cuda_log("matmul %ld %ld %ld batch %ld", long(op.m()), long(op.n()), long(op.k()),
                      long(d_layout->batch()));
    return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
