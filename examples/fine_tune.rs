//! Fine-tunes the embedded base on rows made here, without a recipe or a file, and asks it before and after: `cargo run
//! --release --example fine_tune`.

use std::path::Path;

use weft::prelude::*;

fn main() -> Result<()> {
    // 1. A base and an adapter on all of its linear layers.
    let mut base = Base::open(Path::new("tiny-base"))?;
    let config = LoraConfig::new(16, 32.0, 0.0, vec!["all-linear".to_owned()], false);
    attach_fresh(&mut base.model, &config, 1)?;
    // 2. Rows: a greeting for every name.
    let names = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"];
    let question = |name: &str| vec![Message { role: "user".to_owned(), content: format!("I am {name}.") }];
    let row =
        |name: &&str| base.text.example(&Conversation { prompt: question(name), answer: format!("Hello {name}!") });
    let examples = names.iter().map(row).collect::<Result<Vec<_>>>()?;
    let gen_length = examples.iter().map(|e| e.answer_ids.len()).max().unwrap_or(0);
    let sampling =
        Sampling { gen_length, block_length: gen_length, diffusion_steps: gen_length, ..Sampling::default() };
    let prompt = base.text.prompt_ids(&question("Emma"))?;
    let ask = |model| -> Result<String> {
        let outputs = generate(model, &[Prompt { ids: &prompt, example: 0 }], &sampling)?;
        Ok(base.text.decode_answer(&outputs[0].ids[prompt.len()..]))
    };
    println!("before: {:?}", ask(&base.model)?);
    // 3. Steps of WeFT.
    let settings = TrainTable { epochs: 60, micro_batch_size: names.len(), lr: 3e-3, ..TrainTable::default() };
    let job = Job::new(examples, Objective::default(), settings, base.text.eos_token_id());
    let mut trainer = Trainer::new(base.model.clone(), job);
    for _ in 0..trainer.num_steps() {
        let report = trainer.step()?;
        if report.step % 20 == 0 {
            println!("step {}: loss {:.3}, gradient norm {:.2}", report.step, report.loss, report.grad_norm);
        }
    }
    // 4. The answer, and the adapter as PEFT stores it.
    println!("after: {:?}", ask(&trainer.model)?);
    let folder = std::env::temp_dir().join("weft-example-adapter");
    save_adapter(&folder, &trainer.model, &config, "tiny-base")?;
    println!("the adapter is in {}", folder.display());
    Ok(())
}
