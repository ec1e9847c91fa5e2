//! The plan's replay against the pool itself: a forward and a backward take as much as they were planned to. The pool is
//! the process's, so this is a test of its own file.

use std::path::Path;

use weft::base::Base;
use weft::model::batch::{Batch, Targets};
use weft::model::lora::{self, LoraConfig};
use weft::plan::{MicroBatch, Stored, Work};
use weft_kernels::buffer::most_used_bytes;
use weft_kernels::precision::Precision;

#[test]
fn a_replayed_step_takes_the_buffers_of_a_step() {
    let mut model = Base::open(Path::new("tiny-base")).expect("the embedded base opens").model;
    // Adapters on every layer, the head's too, with dropout, in bf16: a step in which every kind of buffer is taken.
    let targets =
        ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"].map(str::to_owned).to_vec();
    lora::attach_fresh(&mut model, &LoraConfig::new(8, 16.0, 0.1, targets, false), 1).expect("there are layers");
    model.config.precision = Precision::Bf16;
    // Enough for two of the four layers' products.
    model.config.activation_bytes = 4_000_000;
    let ids: Vec<u32> = (0..700).map(|i| i % 500).collect();
    let mut batch = Batch::pack([&ids[..], &ids[..500], &ids[..300]]);
    let answers: Vec<usize> = (0..batch.ids.len()).filter(|i| i % 4 > 0).collect();
    let rows: Vec<usize> = answers.iter().copied().filter(|i| i % 2 > 0).collect();
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
    let micro = MicroBatch {
        tokens: batch.ids.len(),
        longest: 700,
        answers: answers.len(),
        masked: rows.len(),
        ..MicroBatch::default()
    };
    let steps = vec![vec![micro; 2]; 2];
    let outline = model.outline();
    let work = Work { distinct_ids: 500, needs_entropy: true, ..Work::of_steps(&outline, Stored::Embedded, &steps) };
    let (planned, taken) = (work.buffer_bytes() as f64, most_used_bytes() as f64);
    // Tiles are taken by as many threads as happen to work at once.
    assert!((planned / taken - 1.0).abs() < 0.02, "{planned} bytes of buffers were planned, {taken} taken");
}
