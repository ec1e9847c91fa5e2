//! A trainer whose state fits in a few lines: two examples, an adapter on the queries, entropies that are reused. The
//! tests of hostile texts and the fuzz target of training states both read states into it.

use weft::data::Example;
use weft::data::mixing::Mixture;
use weft::data::packing::Padding;
use weft::model::block::Transformer;
use weft::model::lora::{LoraConfig, attach_fresh};
use weft::objective::Objective;
use weft::train::settings::TrainTable;
use weft::train::{Job, Trainer};

pub fn trainer(mut model: Transformer, lora_rank: usize, epochs: u64) -> Trainer {
    let adapter = LoraConfig::new(lora_rank, lora_rank as f64, 0.0, vec!["q_proj".to_owned()], false);
    attach_fresh(&mut model, &adapter, 1).expect("the layer is there");
    let example = |id| Example { prompt_ids: vec![id], answer_ids: vec![2, 3, 4] };
    let job = Job {
        examples: vec![example(0), example(1)],
        mixture: Mixture::default(),
        objective: Objective { entropy_every: 3, ..Objective::default() },
        padding: Padding::None,
        eos_token_id: 4,
        settings: TrainTable { epochs, ..TrainTable::default() },
    };
    Trainer::new(model, job)
}
