//! Weights in 4 bits in bitsandbytes' layout: read from checkpoints that it saved, and written to the cache of quantized
//! bases. A weight `W` is a matrix of bytes, beside which lie `W.absmax`, `W.quant_map`,
//! `W.quant_state.bitsandbytes__nf4` (JSON as bytes), and where scales are quantized too `W.nested_absmax` and
//! `W.nested_quant_map`.
//!
//! Other formats are refused by their names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensorError, View};
use serde_json::{Value, json};
use weft_kernels::nf4::{BLOCK, Bytes, CODEBOOK, NESTED_BLOCK, Nf4, Original, Scales};
use weft_kernels::weight::Weight;

use super::block::Transformer;
use super::foreign;
use super::weights::Held;
use crate::error::{Error, Result};

/// What precedes the format in the name of the state.
const STATE: &str = ".quant_state.bitsandbytes__";
/// The parts of a quantized weight besides its codes and its state.
const PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// How a quantized checkpoint is turned into one that loads.
const FIX: &str = "quantize it in NF4 (bnb_4bit_quant_type=\"nf4\"), or give the checkpoint that it was quantized from and \
                   set model.quantize=nf4";

/// A tensor whose bytes are a part of a quantized weight.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) dtype: Dtype,
    pub(super) bytes: Bytes,
}

/// Whether a tensor is a part of a quantized weight.
pub(super) fn is_part(name: &str, dtype: Dtype) -> bool {
    dtype == Dtype::U8 || name.contains(STATE) || PARTS.iter().any(|part| name.ends_with(part))
}

/// Puts quantized weights together from their parts, and adds them to the other tensors.
///
/// # Errors
/// A part that is missing, left over or of another size; a format other than NF4.
pub(super) fn assemble(
    mut parts: HashMap<String, Part>,
    tensors: &mut HashMap<String, (Vec<usize>, Held)>,
) -> Result<()> {
    let mut states: Vec<(String, String)> = parts
        .keys()
        .filter_map(|name| name.split_once(STATE).map(|(weight, format)| (weight.to_owned(), format.to_owned())))
        .collect();
    states.sort();
    for (name, format) in states {
        let state = parts.remove(&format!("{name}{STATE}{format}")).expect("its name was just read");
        let refuse = |reason: String| Error::Config { path: state.path.clone(), reason: format!("{name}: {reason}") };
        if format != "nf4" {
            return Err(refuse(format!("it is quantized to {format}, which Weft doesn't read; {FIX}")));
        }
        let (shape, nf4) = weight(&name, &state, &mut parts).map_err(refuse)?;
        let weight = Weight::from_nf4(shape[0], shape[1], nf4);
        tensors.insert(name, (shape.to_vec(), Held::Weight(weight)));
    }
    match parts.into_iter().min_by(|(a, _), (b, _)| a.cmp(b)) {
        Some((name, part)) => Err(foreign::refused(&part.path, &name, part.dtype)),
        None => Ok(()),
    }
}

/// A weight's shape and numbers, from its state and its other parts.
fn weight(
    name: &str,
    state: &Part,
    parts: &mut HashMap<String, Part>,
) -> std::result::Result<([usize; 2], Nf4), String> {
    let fields: Value = serde_json::from_slice(&state.bytes).map_err(|e| format!("its quant_state is no JSON: {e}"))?;
    let fixed = [("blocksize", BLOCK), ("nested_blocksize", NESTED_BLOCK)];
    let differs = |key: &str, size: usize| fields.get(key).is_some_and(|value| *value != size);
    if let Some((key, size)) = fixed.into_iter().find(|(key, size)| differs(key, *size)) {
        return Err(format!("its {key} is {}, and Weft reads {size}; {FIX}", fields[key]));
    }
    let original = match fields["dtype"].as_str() {
        Some("float32") => Original::F32,
        Some("bfloat16") => Original::Bf16,
        Some("float16") => Original::F16,
        _ => return Err(format!("its dtype is {}, expected float32, bfloat16 or float16", fields["dtype"])),
    };
    let sizes: Option<Vec<usize>> = fields["shape"]
        .as_array()
        .and_then(|sizes| sizes.iter().map(|size| size.as_u64().and_then(|size| usize::try_from(size).ok())).collect());
    let Some([rows, cols]) = sizes.as_deref().and_then(|sizes| <[usize; 2]>::try_from(sizes).ok()) else {
        return Err(format!("its shape is {}, expected two sizes", fields["shape"]));
    };
    let len = rows.checked_mul(cols).ok_or_else(|| format!("its shape is {}, more than fits", fields["shape"]))?;
    let mut take = |part: &str, dtype: Dtype| {
        let found = parts.remove(&format!("{name}{part}")).ok_or_else(|| format!("{name}{part} is missing"))?;
        match found.dtype == dtype {
            true => Ok(found.bytes),
            false => Err(format!("{name}{part} is stored as {:?}, expected {dtype:?}", found.dtype)),
        }
    };
    if numbers(&take(".quant_map", Dtype::F32)?) != CODEBOOK {
        return Err(format!("its quant_map isn't that of NF4; {FIX}"));
    }
    let scales = match fields.get("nested_offset") {
        None => Scales::Plain(take(".absmax", Dtype::F32)?),
        Some(offset) => Scales::Nested {
            codes: take(".absmax", Dtype::U8)?,
            absmax: take(".nested_absmax", Dtype::F32)?,
            offset: offset.as_f64().ok_or_else(|| format!("its nested_offset is {offset}, which is no number"))? as f32,
            map: Arc::new(
                <[f32; 256]>::try_from(numbers(&take(".nested_quant_map", Dtype::F32)?))
                    .map_err(|map| format!("its nested_quant_map has {} numbers, expected 256", map.len()))?,
            ),
        },
    };
    Ok(([rows, cols], Nf4::new(len, take("", Dtype::U8)?, scales, original)?))
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}

/// Refuses a `quantization_config` of config.json other than that of bitsandbytes' NF4.
pub(super) fn check_config(config: &Value) -> std::result::Result<(), String> {
    let is = |key: &str, value: Value| config.get(key).is_some_and(|own| *own == value);
    let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("bitsandbytes");
    if method != "bitsandbytes" {
        return Err(format!("quantization_config = {config} is not supported; only null is"));
    }
    if is("load_in_8bit", json!(true)) {
        return Err(format!("quantization_config.load_in_8bit = true is not supported; {FIX}"));
    }
    match is("bnb_4bit_quant_type", json!("nf4")) {
        true => Ok(()),
        // bitsandbytes' default is FP4.
        false => {
            let kind = config.get("bnb_4bit_quant_type").cloned().unwrap_or(json!("fp4"));
            Err(format!("quantization_config.bnb_4bit_quant_type = {kind} is not supported; {FIX}"))
        }
    }
}

/// A part that is being written.
struct Written<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes the quantized weights of a model, and nothing else of it.
///
/// # Errors
/// An error of the operating system.
pub(super) fn write(path: &Path, model: &Transformer) -> io::Result<()> {
    let mut views = vec![];
    for id in model.quantizable() {
        let param = &model.params[id];
        let Some(nf4) = param.weight.as_nf4() else { continue };
        parts(nf4, &param.shape, |part, dtype, bytes| {
            let size = if dtype == Dtype::F32 { size_of::<f32>() } else { 1 };
            let (rows, cols) = if part.is_empty() { (bytes.len(), Some(1)) } else { (bytes.len() / size, None) };
            let shape = [rows].into_iter().chain(cols).collect();
            views.push((format!("{}{part}", param.name), Written { dtype, shape, bytes }));
        });
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(error) => error,
        other => io::Error::other(other),
    })
}

/// Calls `f(ending of its name, dtype, bytes)` for each part of a weight.
fn parts<'a>(nf4: &'a Nf4, shape: &[usize], mut f: impl FnMut(&str, Dtype, Cow<'a, [u8]>)) {
    let dtype = match nf4.original() {
        Original::F32 => "float32",
        Original::Bf16 => "bfloat16",
        Original::F16 => "float16",
    };
    let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let mut state = json!({ "quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": shape });
    f("", Dtype::U8, Cow::Borrowed(nf4.codes()));
    f(".quant_map", Dtype::F32, bytes(&CODEBOOK).into());
    match nf4.scales() {
        Scales::Plain(absmax) => f(".absmax", Dtype::F32, Cow::Borrowed(absmax)),
        Scales::Nested { codes, absmax, offset, map } => {
            f(".absmax", Dtype::U8, Cow::Borrowed(codes));
            f(".nested_absmax", Dtype::F32, Cow::Borrowed(absmax));
            f(".nested_quant_map", Dtype::F32, bytes(&map[..]).into());
            state["nested_blocksize"] = json!(NESTED_BLOCK);
            state["nested_dtype"] = json!("float32");
            state["nested_offset"] = json!(f64::from(*offset));
        }
    }
    let state = serde_json::to_vec(&state).expect("the state is JSON");
    f(&format!("{STATE}nf4"), Dtype::U8, state.into());
}
