//! Everything that most programs need, in one import: `use weft::prelude::*`.
//!
//! The names are here and not at the crate's root because the root has modules of the same names: `merge`, for example, is a
//! module there and a function here. Most other public items serve the command `weft` and the tests; they are hidden from
//! this documentation and may change with any version.
//!
//! - To run a recipe: [`Recipe`], [`Experiment`], [`Trained`], [`Options`], [`StepReport`], [`Summary`].
//! - To write a training loop: [`Base`], [`LoraConfig`], [`attach_fresh`], [`Job`], [`TrainTable`], [`Trainer`].
//! - To generate answers and score them: [`ask`], [`generate`], [`Prompt`], [`Sampling`]; [`Task`], [`read_problems`],
//!   [`evaluate`], [`accuracy_of`].
//! - To use the objective without a network: [`Objective`], [`Kind`], [`AnswerEntropy`], [`DrawnAnswer`], [`NoisedAnswer`].
//! - To write a checkpoint that other programs load: [`merge`].

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
