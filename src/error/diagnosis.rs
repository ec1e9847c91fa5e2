//! What an error says of a step whose numbers aren't finite: plain values and their sentence. `train::diagnosis` finds
//! them out.

use std::fmt::{self, Display, Formatter};

/// Examples that are told one by one.
const MOST_TOLD: usize = 4;

/// A step's numbers gone wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnosis {
    /// The step, counted from 1.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
    /// Its gradient's norm.
    pub grad_norm: f64,
    /// How many examples it has.
    pub examples: usize,
    /// Those of them that go wrong by themselves.
    pub wrong: Vec<WrongExample>,
    /// Where the first of these goes wrong.
    pub place: String,
    /// Steps in a row that were passed over before it, where they are why the run ends; else 0.
    pub skipped_before: u64,
}

/// An example that goes wrong by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct WrongExample {
    /// Counted from 0 over all rows.
    pub example: usize,
    /// Its diffusion time.
    pub t: f64,
    /// Its file and row, where that is known.
    pub row: Option<String>,
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { step, loss, grad_norm, examples, wrong, place, skipped_before } = self;
        write!(f, "step {step}: loss {loss}, gradient norm {grad_norm}; ")?;
        let told: Vec<String> = wrong.iter().take(MOST_TOLD).map(WrongExample::to_string).collect();
        match wrong.len() {
            0 => write!(f, "{place}")?,
            1 => write!(f, "of its {examples} examples {}: {place}", told[0])?,
            count => {
                let more = if count > MOST_TOLD { " and others" } else { "" };
                write!(f, "{count} of its {examples} examples ({}{more}): {place}", told.join("; "))?;
            }
        }
        match skipped_before {
            0 => Ok(()),
            count => write!(f, "; the {count} steps before it were passed over too"),
        }
    }
}

impl Display for WrongExample {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let row = self.row.as_ref().map(|row| format!("{row}, ")).unwrap_or_default();
        write!(f, "example {} ({row}t {:.4})", self.example, self.t)
    }
}
