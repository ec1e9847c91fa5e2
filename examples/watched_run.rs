//! Runs a recipe, draws its loss as it falls, stops the run when the loss is low enough, and then resumes it to its end:
//! `cargo run --release --example watched_run`.

use std::ops::ControlFlow::{self, Break, Continue};
use std::path::Path;

use weft::prelude::*;

const RECIPE: &str = "
[data]
generate = \"sudoku\"
train_rows = 64
held_out_rows = 4
[train]
micro_batch_size = 4
eval_every = 4
lr = 3e-3
";

fn main() -> Result<()> {
    // 1. Write the recipe, with a folder for this process's run.
    let output = std::env::temp_dir().join(format!("weft-example-run-{}", std::process::id()));
    let settings = [format!("train.output={}", output.display())];
    let open = || Experiment::open(Recipe::parse(RECIPE, Path::new("examples/watched_run.rs"), &settings)?);
    // 2. Run it, and stop after the third evaluation.
    let (experiment, base) = open()?;
    let mut evaluations = 0;
    let watch = |report: &StepReport| -> ControlFlow<()> {
        println!("step {:2}  {}", report.step, "#".repeat((10.0 * report.loss) as usize));
        evaluations += usize::from(report.held_out.is_some());
        if evaluations == 3 { Break(()) } else { Continue(()) }
    };
    match experiment.train(base, Options { quiet: true, ..Options::default() }, watch) {
        Err(Error::Stopped { step, .. }) => println!("stopped at step {step}"),
        ended => println!("ended: {:?}", ended?.summary.held_out),
    }
    // 3. Resume it and run the rest.
    let (experiment, base) = open()?;
    let trained = experiment.train(base, Options { resume: true, quiet: true }, |report| {
        println!("step {:2}  loss {:.3}", report.step, report.loss);
        Continue(())
    })?;
    println!("{}", trained.folder.display());
    Ok(())
}
