//! Weights in forms that Weft doesn't read: pickles, files that were cut short, and other dtypes. Each error says what the
//! file is, and how to convert it.

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
        safetensors::Dtype::F64 => {
            "load the model in Python with torch_dtype=torch.bfloat16 and save it: model.save_pretrained(DIR)"
        }
        _ => "give the checkpoint that it was quantized from",
    };
    let reason = format!("{name} is stored as {dtype:?}, and Weft reads F32, BF16 and F16; {fix}");
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
        // The format's own limit on the header shows that these bytes can be a length.
        return if len <= MAX_HEADER_BYTES { cut(8 + len) } else { None };
    };
    let tensors: Map<String, Value> = serde_json::from_slice(header).ok()?;
    let ends = tensors.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    cut((8 + len).checked_add(ends.max()?)?)
}

/// The size limit of a safetensors header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
