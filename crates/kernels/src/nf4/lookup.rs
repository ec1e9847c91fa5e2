//! The innermost loop of dequantising: sixteen numbers, looked up by 4-bit codes. Every instruction set copies the same
//! bits out of the same table.

use std::sync::LazyLock;

/// `to[i] = table[code at + i]`.
#[inline]
pub(super) fn lookup(to: &mut [f32], codes: &[u8], at: usize, table: &[f32; 16]) {
    if at.is_multiple_of(2) && to.len().is_multiple_of(2) {
        return by_bytes(to, &codes[at / 2..(at + to.len()) / 2], table);
    }
    for (to, at) in to.iter_mut().zip(at..) {
        let byte = codes[at / 2];
        *to = table[usize::from(if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 })];
    }
}

/// The widest vectors that the processor looks codes up with.
#[derive(Clone, Copy, PartialEq)]
enum Vectors {
    None,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

static VECTORS: LazyLock<Vectors> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Vectors::Avx512;
        }
        if is_x86_feature_detected!("avx2") {
            return Vectors::Avx2;
        }
    }
    Vectors::None
});

/// Looks up two codes for each byte, the one in the upper half first.
fn by_bytes(to: &mut [f32], codes: &[u8], table: &[f32; 16]) {
    match *VECTORS {
        // SAFETY: the processor has AVX-512F.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => unsafe { x86::by_sixteen(to, codes, table) },
        // SAFETY: the processor has AVX2.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => unsafe { x86::by_eight(to, codes, table) },
        Vectors::None => one_by_one(to, codes, table),
    }
}

fn one_by_one(to: &mut [f32], codes: &[u8], table: &[f32; 16]) {
    for (to, byte) in to.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *to = [table[usize::from(byte >> 4)], table[usize::from(byte & 15)]];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Sixteen bytes at a time.
    ///
    /// # Safety
    /// The processor has AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn by_sixteen(to: &mut [f32], codes: &[u8], table: &[f32; 16]) {
        let (groups, rest) = codes.as_chunks::<16>();
        let (whole, rest_to) = to.split_at_mut(32 * groups.len());
        let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        // SAFETY: the pointers lead to 16 numbers of the table, 16 bytes of codes and 32 numbers of the result.
        unsafe {
            let table = _mm512_loadu_ps(table.as_ptr());
            for (to, codes) in whole.as_chunks_mut::<32>().0.iter_mut().zip(groups) {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
                // A lookup reads the lowest four bits of an index only.
                let upper = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table);
                let lower = _mm512_permutexvar_ps(bytes, table);
                _mm512_storeu_ps(to.as_mut_ptr(), _mm512_permutex2var_ps(upper, first, lower));
                _mm512_storeu_ps(to.as_mut_ptr().add(16), _mm512_permutex2var_ps(upper, second, lower));
            }
        }
        super::one_by_one(rest_to, rest, table);
    }

    /// Eight bytes at a time.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn by_eight(to: &mut [f32], codes: &[u8], table: &[f32; 16]) {
        let (groups, rest) = codes.as_chunks::<8>();
        let (whole, rest_to) = to.split_at_mut(16 * groups.len());
        // SAFETY: the pointers lead to 8 numbers of the table, 8 bytes of codes and 16 numbers of the result.
        unsafe {
            let halves = [_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))];
            for (to, codes) in whole.as_chunks_mut::<16>().0.iter_mut().zip(groups) {
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast()));
                let [upper, lower] = [_mm256_srli_epi32::<4>(bytes), bytes].map(|codes| look_up(halves, codes));
                let (low, high) = (_mm256_unpacklo_ps(upper, lower), _mm256_unpackhi_ps(upper, lower));
                _mm256_storeu_ps(to.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(to.as_mut_ptr().add(8), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
        super::one_by_one(rest_to, rest, table);
    }

    /// Looks up the lowest four bits of each index: three in either half of the table, and the fourth chooses the half.
    #[target_feature(enable = "avx2")]
    fn look_up([low, high]: [__m256; 2], codes: __m256i) -> __m256 {
        let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), is_high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_copies_the_same_numbers() {
        let table: [f32; 16] = std::array::from_fn(|i| i as f32 * 1.5 - 3.0);
        for len in [0, 1, 7, 8, 9, 16, 31, 32, 33, 64] {
            let codes: Vec<u8> = (0..len).map(|i| (i * 41 + 7) as u8).collect();
            let mut expected = vec![0.0; 2 * len];
            one_by_one(&mut expected, &codes, &table);
            let mut got = vec![0.0; 2 * len];
            by_bytes(&mut got, &codes, &table);
            assert_eq!(got, expected);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                got.fill(0.0);
                // SAFETY: the processor has AVX2.
                unsafe { x86::by_eight(&mut got, &codes, &table) };
                assert_eq!(got, expected);
            }
            let mut by_index = vec![0.0; 2 * len];
            by_index.iter_mut().zip(0..).for_each(|(to, at)| lookup(std::slice::from_mut(to), &codes, at, &table));
            assert_eq!(by_index, expected);
        }
    }
}
