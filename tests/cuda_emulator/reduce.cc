#include "reduce.h"

#include <stdint.h>
#include <string.h>

#include <type_traits>

namespace {

struct Bf16 {
    uint16_t bits;

    Bf16() = default;
    explicit Bf16(float value) {
        uint32_t word;
        memcpy(&word, &value, 4);
        bits = value != value ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t word = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &word, 4);
        return value;
    }
};

// Calls `use` with a null pointer to the type's C++ equivalent.
template <class Use>
void with_type(int type, Use use) {
    switch (type) {
        case 0: return use(static_cast<int8_t*>(nullptr));
        case 1: return use(static_cast<uint8_t*>(nullptr));
        case 2: return use(static_cast<int32_t*>(nullptr));
        case 3: return use(static_cast<uint32_t*>(nullptr));
        case 4: return use(static_cast<int64_t*>(nullptr));
        case 5: return use(static_cast<uint64_t*>(nullptr));
        case 7: return use(static_cast<float*>(nullptr));
        case 8: return use(static_cast<double*>(nullptr));
        case 9: return use(static_cast<Bf16*>(nullptr));
    }
}

template <class T>
T reduced(T a, T b, int op) {
    switch (op) {
        case op_prod: return T(a * b);
        case op_max: return a < b ? b : a;
        case op_min: return b < a ? b : a;
        default: return T(a + b);
    }
}

}  // namespace

size_t element_bytes(int type) {
    size_t bytes = 0;
    with_type(type, [&](auto* none) { bytes = sizeof *none; });
    return bytes;
}

void reduce_into(void* total, const void* part, size_t count, int type, int op) {
    with_type(type, [&](auto* none) {
        auto* a = static_cast<decltype(none)>(total);
        auto* b = static_cast<decltype(none)>(const_cast<void*>(part));
        for (size_t i = 0; i < count; i++) a[i] = reduced(a[i], b[i], op);
    });
}

void divide(void* total, size_t count, int type, int divisor) {
    with_type(type, [&](auto* none) {
        using T = std::remove_pointer_t<decltype(none)>;
        T* a = static_cast<T*>(total);
        for (size_t i = 0; i < count; i++) a[i] = T(a[i] / T(divisor));
    });
}
