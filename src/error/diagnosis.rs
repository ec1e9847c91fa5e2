//! The report of a step whose numbers aren't finite: plain values, and the sentence that an error prints. The values are
//! found by `train::diagnosis`.

use std::fmt::{self, Display, Formatter};

use crate::counted::{counted, verb};

/// The largest number of examples that the sentence lists; it sums up the rest as "others".
const MOST_TOLD: usize = 4;

/// A step whose loss, gradient or entropies aren't finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnosis {
    /// The step's number, counted from 1.
    pub step: u64,
    /// The step's loss.
    pub loss: f64,
    /// The norm of the step's gradient.
    pub grad_norm: f64,
    /// The number of examples in the step.
    pub examples: usize,
    /// The examples whose numbers aren't finite even when each is computed alone.
    pub wrong: Vec<WrongExample>,
    /// Where the first of the wrong examples stops being finite; if `wrong` is empty, a note that only their sum is not finite.
    pub place: String,
    /// The number of steps in a row that were skipped just before this one, if that many skips end the run; 0 otherwise.
    pub skipped_before: u64,
    /// Whether the run skips such steps, and stops because too many of them come in a row.
    pub skips: bool,
    /// The step of the run's newest checkpoint; `None` if there is none.
    pub saved: Option<u64>,
}

impl Diagnosis {
    /// What to do about it.
    pub fn advice(&self) -> String {
        let avoids = "a lower train.lr or an objective.rate_floor above 0 avoids them in a new run";
        match (self.skips, self.saved) {
            (true, _) => {
                "skipping them does not help, and --resume would come to the same steps: start over in another \
                          train.output with a lower train.lr or an objective.rate_floor above 0"
                    .to_owned()
            }
            (false, Some(_)) => format!(
                "the last checkpoint is unchanged: --resume --set train.on_non_finite=skip skips such steps, {avoids}"
            ),
            (false, None) => format!(
                "no checkpoint was saved before it: --resume --set train.on_non_finite=skip skips such steps from the \
                 beginning, {avoids}"
            ),
        }
    }
}

/// An example whose numbers aren't finite even when it is computed alone.
#[derive(Clone, Debug, PartialEq)]
pub struct WrongExample {
    /// The example's index, counted from 0 over all rows.
    pub example: usize,
    /// The diffusion time t of its draw.
    pub t: f64,
    /// The example's file and line or row; `None` if they are not known.
    pub row: Option<String>,
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { step, loss, grad_norm, examples, wrong, place, skipped_before, .. } = self;
        write!(f, "step {step}: loss {loss}, gradient norm {grad_norm}; ")?;
        let told: Vec<String> = wrong.iter().take(MOST_TOLD).map(WrongExample::to_string).collect();
        match wrong.len() {
            0 => write!(f, "{place}")?,
            1 if *examples == 1 => write!(f, "its only example is at fault, {}: {place}", told[0])?,
            1 => write!(f, "1 of its {examples} examples is at fault, {}: {place}", told[0])?,
            count => {
                let more = if count > MOST_TOLD { " and others" } else { "" };
                write!(
                    f,
                    "{count} of its {examples} examples ({}{more}) are at fault; in the first, {place}",
                    told.join("; ")
                )?;
            }
        }
        match skipped_before {
            0 => Ok(()),
            count => {
                write!(f, "; the {} before it {} skipped too", counted(*count, "step"), verb(*count, ["was", "were"]))
            }
        }
    }
}

impl Display for WrongExample {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let row = self.row.as_ref().map(|row| format!("{row}, ")).unwrap_or_default();
        write!(f, "example {} ({row}t {:.4})", self.example, self.t)
    }
}
