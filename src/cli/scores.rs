//! The scores of a run's tasks: computes them for `weft train`, and writes the generations into the run folder.

use std::time::Instant;

use weft::base::Base;
use weft::counted::counted;
use weft::data::chat_template::TextModel;
use weft::error::Result;
use weft::eval::generations::save;
use weft::eval::task_score::TaskScore;
use weft::experiment::Experiment;
use weft::files::make_folder;
use weft::interrupt::{self, Stage};
use weft::model::block::Transformer;
use weft::train::Trainer;

use super::progress::{bar, needs_lines};

/// The base's scores before training, and the seconds that they took. A run that resumes takes them from its log, which doesn't
/// say how long they took.
pub fn of_base(
    experiment: &Experiment,
    base: &Base,
    (resume, quiet): (bool, bool),
) -> Result<(Vec<TaskScore>, Option<f64>)> {
    if let Some(logged) = experiment.logged_before(resume)? {
        return Ok((logged, None));
    }
    let start = Instant::now();
    let scores = evaluate(experiment, (&base.model, &base.text), "base", quiet)?;
    Ok((scores, Some(start.elapsed().as_secs_f64())))
}

/// The scores of a network that is being trained.
pub fn of_trained(
    experiment: &Experiment,
    (trainer, text): (&Trainer, &TextModel),
    name: &str,
    quiet: bool,
) -> Result<Vec<TaskScore>> {
    let is_last = trainer.step >= trainer.num_steps();
    interrupt::enter(if is_last { Stage::End } else { Stage::Scoring });
    let scores = evaluate(experiment, (&trainer.model, text), name, quiet);
    interrupt::enter(if is_last { Stage::End } else { Stage::Steps });
    scores
}

/// A network's scores on the recipe's tasks, whose generations are saved in `NAME-generations.json`, or with several tasks in a
/// file for each.
fn evaluate(
    experiment: &Experiment,
    (model, text): (&Transformer, &TextModel),
    name: &str,
    quiet: bool,
) -> Result<Vec<TaskScore>> {
    let output = &experiment.recipe.train.output;
    let mut scores = vec![];
    for posed in &experiment.tasks {
        if needs_lines(quiet) {
            let problems = counted(posed.problems.len(), "problem");
            tell!("scoring the {name} on {problems} of {}", posed.task.name());
        }
        let generations = experiment.answer((model, text), posed, &bar(quiet))?;
        if experiment.ranks.is_first() {
            // The base is scored before the run creates its folder.
            make_folder(output)?;
            let file = match &experiment.tasks[..] {
                [_] => format!("{name}-generations.json"),
                _ => format!("{name}-generations-{}.json", posed.task.name()),
            };
            save(&output.join(file), &posed.task, &generations)?;
        }
        scores.push(TaskScore::of(&posed.task, &generations));
    }
    Ok(scores)
}
