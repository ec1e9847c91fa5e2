//! NF4 against bitsandbytes: its numbers bit for bit (`tests/golden/nf4.safetensors`), its checkpoints, and the cache of
//! bases that were quantized here.

mod fixtures;
mod scratch;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::{FAMILIES, Golden, LLADA, assert_close, load, logits};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use scratch::{folder, names};
use serde_json::{Value, json};
use weft::base::Base;
use weft::merge;
use weft::model::block::Transformer;
use weft::model::checkpoint::load_cached;
use weft::model::facts::Overrides;
use weft::model::lora::{self, LoraConfig};
use weft::model::quantize::Quantization;
use weft::model::quantized_cache::QuantizedCache;
use weft_kernels::device::Device;
use weft_kernels::linear;
use weft_kernels::nf4::{CODEBOOK, Nf4, Original, Scales, dynamic_map};
use weft_kernels::precision::Precision;
use weft_kernels::weight::Weight;

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// A matrix that bitsandbytes quantized.
struct Case<'a> {
    file: &'a SafeTensors<'a>,
    name: String,
}

impl Case<'_> {
    fn bytes(&self, part: &str) -> &[u8] {
        self.file.tensor(&format!("{}.{part}", self.name)).unwrap_or_else(|e| panic!("{part}: {e}")).data()
    }

    fn state(&self) -> Value {
        serde_json::from_slice(self.bytes("packed_state.quant_state.bitsandbytes__nf4")).expect("the state is JSON")
    }

    fn original(&self) -> Original {
        if self.state()["dtype"] == "bfloat16" { Original::Bf16 } else { Original::F32 }
    }

    fn shape(&self) -> [usize; 2] {
        serde_json::from_value(self.state()["shape"].clone()).expect("two sizes")
    }

    /// The matrix as bitsandbytes stored it.
    fn stored(&self) -> Nf4 {
        let own = |part: &str| self.bytes(part).to_vec().into();
        let scales = match self.state().get("nested_offset") {
            None => Scales::Plain(own("packed_state.absmax")),
            Some(offset) => Scales::Nested {
                codes: own("packed_state.absmax"),
                absmax: own("packed_state.nested_absmax"),
                offset: offset.as_f64().expect("a number") as f32,
                map: Arc::new(f32s(self.bytes("packed_state.nested_quant_map")).try_into().expect("256 numbers")),
            },
        };
        Nf4::new(self.shape().iter().product(), own("packed"), scales, self.original()).expect("the parts fit")
    }

    /// The matrix as it is quantized here.
    fn own(&self) -> Nf4 {
        let weight = f32s(self.bytes("weight"));
        let is_nested = self.state().get("nested_offset").is_some();
        let read = |at: usize, to: &mut [f32]| to.copy_from_slice(&weight[at..at + to.len()]);
        Nf4::quantize(weight.len(), read, self.original(), is_nested)
    }
}

fn each_case(mut f: impl FnMut(&Case)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nf4.safetensors");
    let bytes = fs::read(path).expect("the golden file is there");
    let file = SafeTensors::deserialize(&bytes).expect("the golden file is whole");
    for index in 0..3 {
        for kind in ["single", "double"] {
            f(&Case { file: &file, name: format!("{index}.{kind}") });
        }
    }
}

fn dequantized(nf4: &Nf4) -> Vec<f32> {
    let mut numbers = vec![f32::NAN; nf4.len()];
    nf4.dequantize(0, &mut numbers);
    numbers
}

#[test]
fn what_bitsandbytes_quantized_is_dequantized_bit_for_bit() {
    each_case(|case| {
        assert_eq!(bits(&f32s(case.bytes("packed_state.quant_map"))), bits(&CODEBOOK));
        let stored = case.stored();
        assert_eq!(bits(&dequantized(&stored)), bits(&f32s(case.bytes("dequantized"))), "{}", case.name);
        let ([rows, cols], x, y) = (case.shape(), f32s(case.bytes("x")), f32s(case.bytes("y")));
        let weight = Weight::from_nf4(rows, cols, stored);
        let mut got = Device::Cpu.unset(y.len());
        linear::forward(&mut got, &Device::Cpu.put(x), &weight, Precision::F32);
        assert_close(&got.to_host(), &y, 1e-5);
    });
}

/// Codes and plain scales are bitsandbytes' bit for bit. Its nested scales are not always the nearest of their map:
/// its kernel for CPUs takes the neighbour for 5 of these 588, and sums their mean in f32.
#[test]
fn quantizing_gives_the_codes_of_bitsandbytes() {
    let (mut nested, mut others) = (0, 0);
    each_case(|case| {
        let (own, stored) = (case.own(), case.stored());
        assert_eq!(own.codes()[..], case.bytes("packed")[..], "{}", case.name);
        match (own.scales(), stored.scales()) {
            (Scales::Plain(own), Scales::Plain(stored)) => {
                assert_eq!(own[..], stored[..]);
                assert_eq!(own[..], case.bytes("absmax")[..]);
            }
            (
                Scales::Nested { codes, absmax, offset, map },
                Scales::Nested { codes: c, absmax: a, offset: o, map: m },
            ) => {
                assert_eq!(bits(&map[..]), bits(&m[..]));
                assert!((offset - o).abs() <= 2.0 * f32::EPSILON * o, "{offset} and {o}");
                assert!(f32s(absmax).iter().zip(f32s(a)).all(|(own, stored)| (own - stored).abs() <= 1e-6 * stored));
                assert!(codes.iter().zip(&c[..]).all(|(own, stored)| own.abs_diff(*stored) <= 1));
                nested += codes.len();
                others += codes.iter().zip(&c[..]).filter(|(own, stored)| own != stored).count();
            }
            _ => panic!("{}: scales of one kind", case.name),
        }
    });
    assert!(nested == 588 && others <= 5, "{others} of {nested}");
    assert_eq!(bits(&dynamic_map())[255], 1.0f32.to_bits());
}

const DOUBLE: Overrides = Overrides {
    mask_token_id: None,
    logits_shifted: None,
    rounds_halves: false,
    quantize: Some(Quantization { double_quant: true }),
};

fn quantized(checkpoint: &Path, cache: Option<&QuantizedCache>) -> Transformer {
    load_cached(checkpoint, DOUBLE, cache).unwrap_or_else(|e| panic!("{e}")).0
}

/// A golden checkpoint as bitsandbytes saves it: the file of the cache has its layout.
fn as_bitsandbytes(golden: &Golden, name: &str, change: impl Fn(&str) -> String, config: Value) -> PathBuf {
    let cache = folder(&format!("{}-{name}-cache", golden.name));
    quantized(&golden.path(), Some(&QuantizedCache::new(&cache, 0)));
    let file = names(&cache).into_iter().find(|name| name.ends_with(".safetensors")).expect("it was kept");
    let [plain, kept] =
        [golden.path().join("model.safetensors"), cache.join(file)].map(|p| fs::read(p).expect("there"));
    let [plain, kept] = [&plain, &kept].map(|bytes| SafeTensors::deserialize(bytes).expect("whole"));
    let mut all: HashMap<String, TensorView> = plain.tensors().into_iter().collect();
    all.extend(kept.tensors());
    let to = folder(&format!("{}-{name}", golden.name));
    let all = all.into_iter().map(|(name, view)| (change(&name), view));
    fs::write(to.join("model.safetensors"), safetensors::serialize(all, None).expect("unique")).expect("written");
    fs::write(to.join("config.json"), golden.config(json!({ "quantization_config": config }))).expect("written");
    to
}

fn config_of_nf4() -> Value {
    json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true, "bnb_4bit_compute_dtype": "bfloat16"
    })
}

#[test]
fn checkpoints_of_bitsandbytes_load_in_every_family() {
    for golden in FAMILIES {
        let saved = as_bitsandbytes(&golden, "saved", str::to_owned, config_of_nf4());
        let (loaded, own) = (load(&saved), quantized(&golden.path(), None));
        assert_eq!(loaded.quantization(), Some(Quantization { double_quant: true }));
        assert_eq!(bits(&logits(&loaded)), bits(&logits(&own)), "{}", golden.name);
        assert_ne!(logits(&own), logits(&golden.load()), "4 bits are fewer");
        // Setting it again changes nothing.
        assert_eq!(bits(&logits(&quantized(&saved, None))), bits(&logits(&own)));
        let plain = |name: &str| own.params.iter().any(|p| p.name == name && !p.weight.is_quantized());
        assert!([golden.embedding, golden.head].iter().all(|m| plain(&format!("{m}.weight")) || own.has_tied_head()));
        assert_eq!(own.params.iter().filter(|p| p.weight.is_quantized()).count(), 7 * own.blocks.len());
    }
}

/// What is merged onto a base in 4 bits is dequantized, and so config.json no longer says otherwise.
#[test]
fn a_checkpoint_of_bitsandbytes_is_merged_dequantized() {
    let saved = as_bitsandbytes(&LLADA, "to-merge", str::to_owned, config_of_nf4());
    let mut base = Base::open(&LLADA.with_text("to-merge-text", &saved)).unwrap_or_else(|e| panic!("{e}"));
    let config = LoraConfig::new(3, 6.0, 0.0, vec!["all-linear".to_owned()], false);
    lora::attach_fresh(&mut base.model, &config, 5).expect("there are layers");
    fixtures::disturb(&mut base.model);
    let out = folder("merged");
    merge::write(&base, &out).expect("an empty folder is free");
    let merged = load(&out);
    assert_eq!(merged.quantization(), None);
    assert_close(&logits(&merged), &logits(&base.model), 1e-5);
    let config = fs::read_to_string(out.join("config.json")).expect("it is there");
    assert!(!config.contains("quantization_config"), "{config}");
}

fn refusal(folder: &Path) -> String {
    load_cached(folder, Overrides::default(), None).map(|_| ()).expect_err("it is refused").to_string()
}

#[test]
fn other_formats_are_refused_by_name() {
    let fp4 = |name: &str| name.replace("bitsandbytes__nf4", "bitsandbytes__fp4");
    let told = refusal(&as_bitsandbytes(&LLADA, "fp4", fp4, config_of_nf4()));
    assert!(told.contains("quantized to fp4") && told.contains("model.quantize=nf4"), "{told}");
    for (change, expected) in [
        (json!({ "bnb_4bit_quant_type": "fp4" }), "bnb_4bit_quant_type = \"fp4\" is not supported"),
        (json!({ "bnb_4bit_quant_type": null }), "bnb_4bit_quant_type = null is not supported"),
        (json!({ "load_in_8bit": true }), "load_in_8bit = true is not supported"),
        (json!({ "quant_method": "awq" }), "only null is"),
    ] {
        let mut config = config_of_nf4();
        config.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        let told = refusal(&LLADA.checkpoint("other", json!({ "quantization_config": config }), &LLADA.tensors()));
        assert!(told.contains(expected), "{told}");
    }
    let lacks = |part: &'static str| move |name: &str| name.replace(part, ".elsewhere");
    let told = refusal(&as_bitsandbytes(&LLADA, "no-absmax", lacks(".nested_absmax"), config_of_nf4()));
    assert!(told.contains(".nested_absmax is missing"), "{told}");
    let told = refusal(&as_bitsandbytes(&LLADA, "no-state", lacks(".quant_state.bitsandbytes__nf4"), config_of_nf4()));
    assert!(told.contains("stored as U8"), "{told}");
}

#[test]
fn a_quantized_base_is_kept_and_a_damaged_one_is_made_again() {
    let (at, base) = (folder("cache"), LLADA.checkpoint("kept", json!({}), &LLADA.tensors()));
    let cache = QuantizedCache::new(&at, 0);
    let first = bits(&logits(&quantized(&base, Some(&cache))));
    let [record, file] = &names(&at)[..] else { panic!("a file and its record: {:?}", names(&at)) };
    assert!(record.ends_with(".json") && file.ends_with(".safetensors"));
    let made = fs::metadata(at.join(file)).and_then(|m| m.modified()).expect("there");
    assert_eq!(bits(&logits(&quantized(&base, Some(&cache)))), first);
    assert!(fs::metadata(at.join(file)).and_then(|m| m.modified()).expect("there") >= made, "it was used");
    let whole = fs::read(at.join(file)).expect("there");
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    for damaged in [flipped(whole.len() - 1), flipped(9), whole[..whole.len() / 2].to_vec(), vec![]] {
        fs::write(at.join(file), damaged).expect("written");
        assert_eq!(bits(&logits(&quantized(&base, Some(&cache)))), first);
        assert_eq!(fs::read(at.join(file)).expect("there"), whole, "it was made again");
    }
    // Half a write has no record.
    fs::remove_file(at.join(record)).expect("it was there");
    assert_eq!(bits(&logits(&quantized(&base, Some(&cache)))), first);
    // Other settings and other files have their own.
    let single = Overrides { quantize: Some(Quantization { double_quant: false }), ..DOUBLE };
    load_cached(&base, single, Some(&cache)).expect("it loads");
    assert_eq!(names(&at).len(), 4);
    let mut tensors = LLADA.tensors();
    tensors.values_mut().for_each(|(_, numbers)| numbers.iter_mut().for_each(|x| *x *= 0.5));
    fixtures::write(&base.join("model.safetensors"), &tensors);
    assert_ne!(bits(&logits(&quantized(&base, Some(&cache)))), first, "the files have changed");
    assert_eq!(names(&at).len(), 6);
}

#[test]
fn a_cache_that_cannot_be_written_costs_only_time() {
    let at = folder("no-cache").join("file");
    fs::write(&at, "in the way").expect("written");
    let cache = QuantizedCache::new(&at, 0);
    assert_eq!(logits(&quantized(&LLADA.path(), Some(&cache))), logits(&quantized(&LLADA.path(), None)));
    // Small bases aren't kept.
    let at = folder("small");
    quantized(&LLADA.path(), Some(&QuantizedCache::new(&at, 1 << 30)));
    assert!(names(&at).is_empty());
}
