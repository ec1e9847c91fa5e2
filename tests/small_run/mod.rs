//! A small training run of the golden LLaDA: ten examples, three steps an epoch, an adapter on every layer.
#![allow(dead_code)] // each test binary uses a part

use std::ops::ControlFlow;

use weft::data::Example;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::model::block::Transformer;
use weft::model::lora::{self, LoraConfig};
use weft::objective::Objective;
use weft::train::run::Options;
use weft::train::settings::TrainTable;
use weft::train::step::StepReport;
use weft::train::{Job, Trainer};

/// How a run begins, and how one goes on.
pub const BEGIN: Options = Options { resume: false, quiet: true };
pub const RESUME: Options = Options { resume: true, quiet: true };

/// Observes a run without stopping it.
pub fn go_on(_: &StepReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Attaches the adapter.
pub fn adapt(model: &mut Transformer, lora_dropout: f64) {
    let config = LoraConfig::new(4, 8.0, lora_dropout, vec!["all-linear".to_owned()], false);
    lora::attach_fresh(model, &config, 3).expect("there are layers");
}

pub fn examples() -> Vec<Example> {
    let ids = |from: usize, len: usize| (from..from + len).map(|i| (i * 37 % 150) as u32).collect();
    (0..10).map(|i| Example { prompt_ids: ids(i, 3 + i % 4), answer_ids: ids(5 * i, 4 + i % 5) }).collect()
}

pub fn settings() -> TrainTable {
    TrainTable {
        seed: 11,
        epochs: 3,
        micro_batch_size: 2,
        grad_accum_steps: 2,
        lr: 1e-2,
        weight_decay: 0.1,
        warmup_steps: 2,
        ..TrainTable::default()
    }
}

pub fn trainer(
    model: Transformer,
    examples: Vec<Example>,
    settings: TrainTable,
    (objective, padding): (Objective, Padding),
) -> Trainer {
    Trainer::new(model, Job { examples, mixture: Mixture::default(), objective, padding, eos_token_id: 157, settings })
}
