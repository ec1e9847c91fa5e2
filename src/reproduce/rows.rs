//! The rows of a comparison: what is known of each setting's rows once its base is scored, the section of the report that
//! lists them, and the warning of too few of them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::findings::{Findings, SettingFindings};
use super::markdown::table;
use super::statistics::few;
use crate::counted::counted;
use crate::data::hold_out::HeldOut;
use crate::experiment::Experiment;
use crate::recipe::Recipe;
use crate::report::rows::{COLUMNS, SourceRows};
use crate::report::visible::visible;

/// The rows of a setting, and the problems of its task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRows {
    /// The sources of the rows, held-out rows last.
    pub sources: Vec<SourceRows>,
    /// The number of the task's problems; `None` without a task.
    pub problems: Option<usize>,
    /// Whether each seed draws rows of its own.
    pub by_seed: bool,
}

impl SettingRows {
    /// The rows of an experiment.
    pub(super) fn of(experiment: &Experiment) -> Self {
        let Experiment { recipe, train, held_out, tasks, .. } = experiment;
        let mut sources = SourceRows::of(train, held_out.as_ref(), recipe.data.max_seq_len.0);
        if let Some(puzzle) = recipe.data.generate {
            // Their files are removed at the end of each run.
            sources.iter_mut().for_each(|source| source.name = format!("generated {}", puzzle.name()));
        }
        Self {
            sources,
            problems: tasks.first().map(|posed| posed.problems.len()),
            by_seed: recipe.data.generate.is_some() || is_split_by_seed(recipe),
        }
    }

    /// The number of held-out examples.
    fn num_held_out(&self) -> usize {
        self.sources.iter().filter(|source| source.is_held_out).map(|source| source.examples).sum()
    }
}

/// Whether each seed of a recipe holds out rows of its own. Generated held-out rows are the same for every seed.
pub(super) fn is_split_by_seed(recipe: &Recipe) -> bool {
    let is_drawn = matches!(recipe.data.held_out, Some(HeldOut::Percent(_) | HeldOut::Rows(_)));
    recipe.data.generate.is_none() && is_drawn
}

/// Warnings of settings whose scores rest on few rows or problems, given the rows of each setting. The setting with the fewest
/// stands for all.
pub(super) fn warnings<'a>(rows: impl Iterator<Item = &'a SettingRows> + Clone) -> Vec<String> {
    let held_out = rows.clone().map(SettingRows::num_held_out).min();
    let problems = rows.filter_map(|rows| rows.problems).min();
    let of_rows =
        held_out.and_then(|count| few("the held-out losses", (count, "held-out example"), "more held-out rows"));
    let of_problems = problems
        .and_then(|count| few("the accuracies", (count, "problem"), "more problems (eval.limit, held-out rows)"));
    [of_rows, of_problems].into_iter().flatten().collect()
}

/// The section of a report, with the warnings of too few rows.
pub(super) fn section(page: &mut String, findings: &Findings) {
    page.push_str("## Rows\n\n");
    for warning in warnings(findings.settings.iter().filter_map(|setting| setting.rows.as_ref())) {
        let _ = writeln!(page, "Beware: {warning}.\n");
    }
    for setting in &findings.settings {
        of_setting(page, setting, findings.seeds.first().copied().unwrap_or(0));
    }
}

fn of_setting(page: &mut String, setting: &SettingFindings, first_seed: u64) {
    let Some(rows) = &setting.rows else {
        let under = setting.label().map(|name| format!(" of setting {name}")).unwrap_or_default();
        let _ = writeln!(page, "The rows{under} aren't known: an earlier version of Weft scored the base.\n");
        return;
    };
    if let Some(name) = setting.label() {
        let _ = writeln!(page, "Setting {name}:\n");
    }
    let head = COLUMNS.iter().map(|name| if name.is_empty() { "source".to_owned() } else { (*name).to_owned() });
    let cells = |source: &SourceRows| source.cells().iter().map(|cell| in_table(cell)).collect();
    table(page, head.collect(), rows.sources.iter().map(cells).collect());
    let remarks: Vec<String> = rows.sources.iter().flat_map(SourceRows::remarks).collect();
    remarks.iter().for_each(|remark| {
        let _ = writeln!(page, "- {}", as_text(remark));
    });
    if !remarks.is_empty() {
        page.push('\n');
    }
    if rows.by_seed {
        let scored = match setting.base_by_seed.len() {
            0 | 1 => String::new(),
            count => format!(" The base's scores are means over the rows of {}.", counted(count, "seed")),
        };
        let _ = writeln!(page, "These are the rows of seed {first_seed}; each seed draws its own.{scored}\n");
    }
}

/// What came from files, as text of Markdown: it begins no tag.
fn as_text(text: &str) -> String {
    visible(text).replace('<', "\\<")
}

fn in_table(text: &str) -> String {
    as_text(text).replace('|', "\\|")
}
