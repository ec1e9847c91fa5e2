//! What a program needs, to be imported at once: `use weft::prelude::*`.
//!
//! The names are here and not at the crate's root because the root holds modules of the same words: `merge` is a module and
//! a verb, `train` a module and a method. Everything else that is public serves the command `weft` and the tests; it is
//! hidden from this documentation and may change with any version.
//!
//! - A recipe's run: [`Recipe`], [`Experiment`], [`Trained`], [`Options`], [`StepReport`], [`Summary`].
//! - A loop of one's own: [`Base`], [`LoraConfig`], [`attach_fresh`], [`Job`], [`TrainTable`], [`Trainer`].
//! - Answers and their scores: [`ask`], [`generate`], [`Prompt`], [`Sampling`]; [`Task`], [`read_problems`], [`evaluate`],
//!   [`accuracy_of`].
//! - The method without a network: [`Objective`], [`Kind`], [`AnswerEntropy`], [`DrawnAnswer`], [`NoisedAnswer`].
//! - A checkpoint for others: [`merge`].

pub use crate::base::Base;
pub use crate::data::{Conversation, Example, Message};
pub use crate::error::{Error, Result};
pub use crate::eval::generations::{Generation, accuracy_of, ask, evaluate};
pub use crate::eval::{Accuracy, Problem, Task, read_problems};
pub use crate::experiment::Experiment;
pub use crate::experiment::trained::Trained;
pub use crate::merge::write as merge;
pub use crate::model::lora::{LoraConfig, attach_fresh, load as load_adapter, save as save_adapter};
pub use crate::noising::entropy::AnswerEntropy;
pub use crate::objective::{DrawnAnswer, Kind, NoisedAnswer, Objective};
pub use crate::progress::Progress;
pub use crate::recipe::Recipe;
pub use crate::sampler::generate::{Output, Prompt, Sampling, generate};
pub use crate::train::run::{Options, Summary};
pub use crate::train::settings::TrainTable;
pub use crate::train::step::StepReport;
pub use crate::train::{Job, Trainer};
