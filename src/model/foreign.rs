//! Weights in forms that Weft doesn't compute with: pickles, files that were cut short, and other dtypes. Each is named
//! as what it is, with how to get a form that is read; f16 can be widened.

use std::path::Path;

use serde_json::{Map, Value};

use super::lora::TENSORS as ADAPTER;
use super::weights::SINGLE;
use crate::error::Error;

/// The endings of PyTorch's pickles, and of their index.
const PICKLES: [&str; 4] = [".bin", ".bin.index.json", ".pt", ".pth"];

/// How pickled weights become a file that is read.
pub(super) const UNPICKLE: &str = "the weights are pickled, which Weft doesn't read; load them in Python and save them as \
                                   safetensors: model.save_pretrained(DIR, safe_serialization=True)";

/// The error for an absent file of weights beside which they lie as a pickle.
pub(super) fn pickled(path: &Path) -> Option<Error> {
    let stem = match path.file_name()?.to_str()? {
        SINGLE => "pytorch_model",
        ADAPTER => "adapter_model",
        _ => return None,
    };
    let names = path.parent()?.read_dir().ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let pickle = names.filter(|name| is_pickle(name, stem)).min().filter(|_| !path.exists())?;
    Some(Error::Config { path: path.with_file_name(pickle), reason: UNPICKLE.to_owned() })
}

/// Whether a file is a pickle of weights, `stem` of which is the beginning of its name.
pub(super) fn is_pickle(name: &str, stem: &str) -> bool {
    name.starts_with(stem) && PICKLES.iter().any(|ending| name.ends_with(ending))
}

/// The error for a tensor of a dtype that isn't read.
pub(super) fn refused(path: &Path, name: &str, dtype: safetensors::Dtype) -> Error {
    let fix = match dtype {
        safetensors::Dtype::F16 | safetensors::Dtype::F64 => {
            "load the model in Python with torch_dtype=torch.bfloat16 and save it: model.save_pretrained(DIR)"
        }
        _ => "give the checkpoint that it was quantized from",
    };
    let reason = format!("{name} is stored as {dtype:?}, and Weft reads F32 and BF16; {fix}");
    Error::Config { path: path.to_owned(), reason }
}

/// What is wrong with a safetensors file that ends before the end that its header declares.
pub(super) fn cut_short(bytes: &[u8]) -> Option<String> {
    let cut = |expected: u64| {
        let bytes = bytes.len() as u64;
        let reason =
            format!("it has {bytes} of the {expected} bytes that it declares, as a download that isn't finished does");
        (bytes < expected).then_some(reason)
    };
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let len = u64::from_le_bytes(*head);
    let Some(header) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
        // The format's own limit of a header tells a length from bytes of another kind.
        return if len <= MAX_HEADER_BYTES { cut(8 + len) } else { None };
    };
    let tensors: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    cut((8 + len).checked_add(ends.max()?)?)
}

/// The size limit of a safetensors header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The f32 numbers of f16 ones, which they represent exactly.
pub(super) fn widened(bytes: &[u8]) -> Vec<f32> {
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
}
