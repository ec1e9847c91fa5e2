//! Conversions between f16 and f32: f16 is widened exactly, and f32 is rounded. Files may hold f16, but nothing computes in
//! it.

/// Widens f16 numbers to f32, which represents them exactly.
pub(crate) fn widened(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|pair| wide(u16::from_le_bytes([pair[0], pair[1]]))).collect()
}

fn wide(half: u16) -> f32 {
    let [sign, exponent, fraction] = [half >> 15, half >> 10 & 0x1f, half & 0x3ff].map(u32::from);
    match exponent {
        // The fractions of f16's subnormal numbers count in steps of 2^-24.
        0 => f32::from_bits(sign << 31 | (fraction as f32 / 16_777_216.0).to_bits()),
        0x1f => f32::from_bits(sign << 31 | 0xff << 23 | fraction << 13),
        _ => f32::from_bits(sign << 31 | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

/// Rounds f32 numbers to the bytes of the nearest f16 numbers, ties to even, as PyTorch does. Numbers of 65520 and more
/// become infinite.
pub(crate) fn narrowed(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| narrow(*x).to_le_bytes()).collect()
}

fn narrow(x: f32) -> u16 {
    let (sign, size) = ((x.to_bits() >> 16 & 0x8000) as u16, x.to_bits() & 0x7fff_ffff);
    sign | match size {
        0x7f80_0001.. => 0x7e00,
        0x477f_f000.. => 0x7c00,
        // The smallest normal number is 2^-14. A fraction that is rounded up past its end raises the exponent.
        0x3880_0000.. => ((size + 0xfff + (size >> 13 & 1) - 0x3800_0000) >> 13) as u16,
        _ => (f32::from_bits(size) * 16_777_216.0).round_ties_even() as u16,
    }
}

/// Whether each of these numbers is finite in f16.
pub(crate) fn are_in_range(numbers: &[f32]) -> bool {
    numbers.iter().all(|x| !x.is_finite() || x.abs() < 65520.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_widens_to_the_number_that_it_represents() {
        let halves = [0u16, 0x8000, 0x3c00, 0xc000, 0x3555, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x7c00, 0xfc00];
        let tiny = 2f32.powi(-24);
        let expected = [
            0.0,
            -0.0,
            1.0,
            -2.0,
            1365.0 / 4096.0,
            tiny,
            1023.0 * tiny,
            1024.0 * tiny,
            65504.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        assert_eq!(widened(&bytes).iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits));
        assert!(widened(&0x7e00u16.to_le_bytes())[0].is_nan());
    }

    #[test]
    fn every_f16_number_survives_widening_and_numbers_between_go_to_the_nearest() {
        for half in 0..=u16::MAX {
            let x = wide(half);
            assert!(narrow(x) == half || x.is_nan() && wide(narrow(x)).is_nan(), "{half:04x}");
            // The next number away from zero, and half of the way to it.
            if half & 0x7fff < 0x7bff {
                let next = wide(half + 1);
                let middle = x + (next - x) / 2.0;
                assert_eq!(narrow(middle), half + (half & 1), "{half:04x}: the even one");
                assert_eq!(narrow(f32::from_bits(middle.to_bits() - 1)), half, "{half:04x}");
                assert_eq!(narrow(f32::from_bits(middle.to_bits() + 1)), half + 1, "{half:04x}");
            }
        }
        assert_eq!([65519.0, 65520.0, -1e9].map(narrow), [0x7bff, 0x7c00, 0xfc00]);
        assert_eq!([[65519.0], [-65520.0]].map(|x| are_in_range(&x)), [true, false]);
    }
}
