// Rows of matrices: gathered, replaced, added. One block per row.

// to[i] = from[index[i]].
template <class T, class U>
__device__ inline void gather(U* to, const T* from, const int* index, int width) {
    from += (long long)index[blockIdx.x] * width;
    to += (long long)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from_float<U>(to_float(from[i]));
}

extern "C" __global__ void gather_f32(float* to, const float* from, const int* index, int width) {
    gather(to, from, index, width);
}

extern "C" __global__ void gather_bf16(bf16* to, const bf16* from, const int* index, int width) {
    gather(to, from, index, width);
}

// Gathers the rows of an embedding and converts them to f32.
extern "C" __global__ void embed_bf16(float* to, const bf16* from, const int* index, int width) {
    gather(to, from, index, width);
}

// to[index[i]] = from[i].
template <class T>
__device__ inline void replace(T* to, const T* from, const int* index, int width) {
    to += (long long)index[blockIdx.x] * width;
    from += (long long)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

extern "C" __global__ void replace_f32(float* to, const float* from, const int* index, int width) {
    replace(to, from, index, width);
}

extern "C" __global__ void replace_bf16(bf16* to, const bf16* from, const int* index, int width) {
    replace(to, from, index, width);
}

// to[row of group g] += from[members of g], in their order; a group's members are order[starts[g]] to order[starts[g +
// 1] - 1], and no two groups share a row.
extern "C" __global__ void scatter_add(float* to, const float* from, const int* group_rows, const int* starts,
                                       const int* order, int width) {
    int group = blockIdx.x;
    to += (long long)group_rows[group] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = to[i];
        for (int member = starts[group]; member < starts[group + 1]; member++) {
            sum += from[(long long)order[member] * width + i];
        }
        to[i] = sum;
    }
}
