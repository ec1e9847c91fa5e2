//! Weft fine-tunes masked diffusion language models by entropy-weighted masking
//! (WeFT, arXiv 2509.20863, later named GIFT).
//!
//! From the command down: [`train`] and [`eval`] run; [`objective`] and [`sampler`] decide; [`noising`] and [`model`]
//! compute, on the kernels of `weft_kernels`. [`noising`] and [`objective`] are pure functions of entropies and
//! explicit random draws, which [`rng`] makes; they know no model. [`recipe`] is what a user writes, [`data`] reads the
//! user's rows, [`hub`] fetches models and rows, [`plan`] predicts what a run will take, [`parity`] compares with
//! PyTorch, [`merge`] turns a run into a checkpoint that transformers loads, and [`convert`] an autoregressive
//! checkpoint into one to be trained. A model computes where its weights are: [`device`] opens a GPU, and
//! [`model::block::Transformer::put_on`] moves them there.
//!
//! # The library by example
//!
//! The method alone, on entropies from any source:
//!
//! ```
//! use weft::noising::entropy::AnswerEntropy;
//! use weft::objective::{DrawnAnswer, Objective};
//!
//! let token_entropy = [0.1, 2.4]; // nats
//! let answer = DrawnAnswer {
//!     prompt_len: 12,
//!     entropy: AnswerEntropy { token_entropy: &token_entropy, num_supervised: 2 },
//!     t: 0.5,         // the diffusion time of this step
//!     u: &[0.4, 0.4], // a draw in [0, 1) for each token
//! };
//! let weft = Objective::default();
//! let noised = weft.noise(&[answer]);
//! assert_eq!(noised[0].masked, [false, true], "the uncertain token is masked more often");
//! let weights = weft.loss_weights(&noised);
//! assert!((weights[0][1] - 1.0 / noised[0].p_mask[1]).abs() < 1e-6, "and weighs 1 / its rate, over one masked token");
//! ```
//!
//! An answer from a base, here the embedded one; a folder or an id of the hub works the same way:
//!
//! ```
//! use weft::base::Base;
//! use weft::data::Message;
//! use weft::sampler::generate::{Prompt, Sampling, generate};
//!
//! let base = Base::open("tiny-base".as_ref())?;
//! let ids = base.text.prompt_ids(&[Message { role: "user".to_owned(), content: "What is 7 + 5?".to_owned() }])?;
//! let sampling = Sampling { gen_length: 8, block_length: 8, diffusion_steps: 8, ..Sampling::default() };
//! let outputs = generate(&base.model, &[Prompt { ids: &ids, example: 0 }], &sampling)?;
//! println!("{}", base.text.decode_answer(&outputs[0].ids[ids.len()..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A recipe's run, step by step; [`train::run::train`] does all of it, with checkpoints and files:
//!
//! ```
//! use weft::experiment::Experiment;
//! use weft::recipe::Recipe;
//!
//! # let folder = std::env::temp_dir().join(format!("weft-doc-{}", std::process::id()));
//! # let output = folder.display();
//! let text = format!("[data]\ngenerate = \"sudoku\"\ntrain_rows = 4\n[train]\noutput = \"{output}\"\nlr = 1e-3");
//! let recipe = Recipe::parse(&text, "in the program".as_ref(), &["train.micro_batch_size=4".to_owned()])?;
//! let (experiment, base) = Experiment::open(recipe)?;
//! let (mut trainer, adapter) = experiment.trainer(base.model, &base.text)?;
//! assert!(adapter.is_some() && trainer.num_steps() == 1);
//! let report = trainer.step()?;
//! assert!(report.loss > 0.0 && report.grad_norm > 0.0);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/` holds complete programs.
#![forbid(unsafe_code)]

pub mod base;
pub mod bench;
pub mod compare;
pub mod convert;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod experiment;
pub mod files;
pub mod hub;
pub mod interrupt;
pub mod machine;
pub mod merge;
pub mod model;
pub mod noising;
pub mod objective;
pub mod parallel;
pub mod parity;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod reproduce;
pub mod rng;
pub mod sampler;
pub mod serve;
pub mod settings;
pub mod train;
