//! The meta device against the CPU: the same steps take the same buffers on both, and the planner's steps take as much. The
//! CPU's pool is the process's, so this is a test of its own file.

use std::path::Path;

use weft::base::Base;
use weft::model::batch::{Batch, Targets};
use weft::model::block::Transformer;
use weft::model::cached::{KeysValues, Part};
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft::model::lora::{self, LoraConfig};
use weft::plan::{MicroBatch, Stored, Work};
use weft_kernels::device::Device;
use weft_kernels::meta::Meta;
use weft_kernels::precision::Precision;
use weft_kernels::predict::{Guidance, RowDraw, Rule};

/// Three sequences, the answers' rows and every second of those.
fn batch() -> (Batch, Vec<usize>, Vec<usize>) {
    let ids: Vec<u32> = (0..700).map(|i| i % 500).collect();
    let batch = Batch::pack([&ids[..], &ids[..500], &ids[..300]]);
    let answers: Vec<usize> = (0..batch.ids.len()).filter(|i| i % 4 > 0).collect();
    let rows = answers.iter().copied().filter(|i| i % 2 > 0).collect();
    (batch, answers, rows)
}

/// Pass 1 and two micro-batches' pass 2, twice.
fn steps(model: &Transformer) {
    let (mut batch, answers, rows) = batch();
    let (clean, weights) = (rows.iter().map(|row| batch.ids[*row]).collect::<Vec<_>>(), vec![1e-3; rows.len()]);
    for _ in 0..2 {
        batch.dropout_keys = None;
        model.entropy(&batch, &answers);
        batch.dropout_keys = Some((0..batch.ids.len() as u64).collect());
        let mut grads = model.zero_gradients();
        for _ in 0..2 {
            model.loss_and_gradients(&batch, Targets { rows: &rows, ids: &clean, weights: &weights }, &mut grads);
        }
    }
}

/// Predictions by way of a sampler's keys and values, guided by a pass without them.
fn predictions(model: &Transformer) {
    let (batch, _, rows) = batch();
    let computed: Vec<usize> = (0..batch.ids.len()).collect();
    let mut cache = KeysValues::new(model, &batch);
    let x = model.predicting_inputs_cached(&batch, &mut cache, Part { computed: &computed, predicted: &rows });
    let other = model.predicting_inputs(&batch, &rows);
    let draws = vec![RowDraw { key: 0, position: 0 }; rows.len()];
    model.predict(&x, Some(Guidance { x: &other, scale: 0.5 }), &draws, &Rule::GREEDY);
}

/// The most bytes that a model's work takes on the meta device.
fn on_meta(model: &Transformer, work: &[fn(&Transformer)]) -> f64 {
    let mut meta = model.to_meta();
    let device = Device::Meta(Meta::default());
    meta.put_on(&device);
    work.iter().for_each(|work| work(&meta));
    device.most_used_bytes() as f64
}

fn assert_near(counted: f64, taken: f64, what: &str) {
    // On the CPU tiles are taken by as many threads as happen to work at once.
    assert!((counted / taken - 1.0).abs() < 0.02, "{what}: {counted} bytes on the meta device, {taken} on the CPU");
}

/// A small model with norms of queries and keys, wide heads and a tied head.
fn qwen3() -> Transformer {
    let config = serde_json::json!({
        "model_type": "a2d-qwen3", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 20, "tie_word_embeddings": true,
        "mask_token_id": 511,
    });
    let config = ModelConfig::parse(&config.to_string(), Path::new("config.json")).expect("it is a configuration");
    checkpoint::fresh(&config, 1)
}

/// Steps of Qwen3's layout: each takes more than the one before, so that the most bytes are its own.
fn steps_of_qwen3() {
    let mut before = 0.0;
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"].map(str::to_owned).to_vec();
    for (what, is_whole, precision, activation_bytes) in [
        ("adapters, everything computed again", false, Precision::F32, 0),
        ("every weight, everything computed again", true, Precision::F32, 0),
        ("every weight in bf16, matmul results of two layers saved", true, Precision::Bf16, 3_500_000),
        ("every weight, everything saved", true, Precision::F32, usize::MAX),
    ] {
        let mut model = qwen3();
        if !is_whole {
            model.params.iter_mut().for_each(|param| param.trainable = false);
            let config = LoraConfig::new(4, 8.0, 0.1, targets.clone(), true);
            lora::attach_fresh(&mut model, &config, 1).expect("there are layers");
        }
        (model.config.precision, model.config.activation_bytes) = (precision, activation_bytes);
        steps(&model);
        let taken = Device::Cpu.most_used_bytes() as f64;
        assert!(taken > before, "{what}: no more than in the steps before");
        // A thread's tile is 2 % of such a small model's bytes.
        let counted = on_meta(&model, &[steps]);
        assert!((counted / taken - 1.0).abs() < 0.06, "{what}: {counted} bytes on the meta device, {taken} on the CPU");
        before = taken;
    }
}

#[test]
fn steps_on_the_meta_device_take_the_buffers_of_steps() {
    // The pool has one largest size, so the smallest model comes first.
    steps_of_qwen3();
    let base = Base::open(Path::new("tiny-base")).expect("the embedded base opens").model;
    // 1. A frozen head, in f32, with everything computed again.
    let mut small = base.clone();
    let targets = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
    lora::attach_fresh(&mut small, &LoraConfig::new(8, 16.0, 0.0, targets, false), 1).expect("there are layers");
    small.config.activation_bytes = 0;
    steps(&small);
    let taken = Device::Cpu.most_used_bytes() as f64;
    assert_near(on_meta(&small, &[steps]), taken, "queries and values adapted");
    // 2. Adapters on every layer, the head's too, with dropout, in bf16: every kind of buffer is taken.
    let mut model = base;
    let targets =
        ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"].map(str::to_owned).to_vec();
    lora::attach_fresh(&mut model, &LoraConfig::new(8, 16.0, 0.1, targets, false), 1).expect("there are layers");
    model.config.precision = Precision::Bf16;
    // Enough for two of the four layers' matmuls.
    model.config.activation_bytes = 4_000_000;
    steps(&model);
    let mut taken = Device::Cpu.most_used_bytes() as f64;
    assert_near(on_meta(&model, &[steps]), taken, "every layer adapted");
    // 3. The planner's own steps.
    let (batch, answers, rows) = batch();
    let micro = MicroBatch {
        tokens: batch.ids.len(),
        longest: 700,
        answers: answers.len(),
        masked: rows.len(),
        ..MicroBatch::default()
    };
    let planned = vec![vec![micro; 2]; 2];
    let meta = model.to_meta();
    let work = Work { needs_entropy: true, ..Work::of_steps(&meta, Stored::Embedded, &planned) };
    assert_near(work.buffer_bytes() as f64, taken, "the planner's steps");
    // 4. The sampler's forwards beside the largest step's gradients.
    let with_predictions = |model: &Transformer| {
        let _gradients: Vec<_> = (0..100).map(|_| model.zero_gradients()).collect();
        predictions(model);
    };
    with_predictions(&model);
    let of_steps = std::mem::replace(&mut taken, Device::Cpu.most_used_bytes() as f64);
    assert!(taken > of_steps, "the pool is fuller than in the steps before");
    assert_near(on_meta(&model, &[steps, with_predictions]), taken, "predictions");
}
