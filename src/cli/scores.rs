//! The scores of a run's tasks: computes them for `weft train`, and writes the generations into the run folder.

use weft::data::chat_template::TextModel;
use weft::error::Result;
use weft::eval::generations::save;
use weft::eval::task_score::TaskScore;
use weft::experiment::Experiment;
use weft::files::make_folder;
use weft::model::block::Transformer;

use super::progress::bar;

/// A network's scores on the recipe's tasks, whose generations are saved in `NAME-generations.json`, or with several tasks in a
/// file for each.
pub fn evaluate(
    experiment: &Experiment,
    (model, text): (&Transformer, &TextModel),
    name: &str,
    quiet: bool,
) -> Result<Vec<TaskScore>> {
    let output = &experiment.recipe.train.output;
    let mut scores = vec![];
    for posed in &experiment.tasks {
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
