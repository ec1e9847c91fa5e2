//! Weft fine-tunes masked diffusion language models by entropy-weighted masking
//! (WeFT, arXiv 2509.20863, later named GIFT).
//!
//! [`prelude`] is the library's interface: it has what a program needs to train, generate, score, or use the objective alone.
//! With [`progress`] a program shows progress in its own way, and with [`interrupt`] it stops runs from a signal handler. The
//! other modules are public for the command `weft` and the tests; they are hidden here and may change with any version.
//! Programs should leave out the command's dependencies: `weft-dllm = { ..., default-features = false, features = ["hub"] }`.
//!
//! From the command down: `train` and `eval` run; `objective` and `sampler` decide; `noising` and `model` compute, on the
//! kernels of `weft_kernels`. `noising` and `objective` are pure functions of entropies and explicit random draws, which
//! `rng` makes; they know no model. `recipe` is what a user writes, `data` reads the user's rows, `hub` fetches models and
//! rows, `plan` predicts what a run will take, `parity` compares with PyTorch, `merge` turns a run into a checkpoint that
//! transformers loads, and `convert` an autoregressive checkpoint into one to be trained. A model computes where its weights
//! are: `device` opens a GPU, and `model` moves them there.
//!
//! # The library by example
//!
//! The method alone, on entropies from any source:
//!
//! ```
//! use weft::prelude::*;
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
//! use weft::prelude::*;
//!
//! let base = Base::open("tiny-base".as_ref())?;
//! let sampling = Sampling { gen_length: 8, block_length: 8, diffusion_steps: 8, ..Sampling::default() };
//! println!("{}", ask(&base, "What is 7 + 5?", &sampling)?);
//! # Ok::<(), weft::prelude::Error>(())
//! ```
//!
//! The example below runs a recipe step by step. [`Experiment::train`](prelude::Experiment::train) does all of this, with
//! checkpoints and files; its documentation shows how a program watches a run and stops it.
//!
//! ```
//! use weft::prelude::*;
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
//! `docs/library.md` shows more uses of the library, and `examples/` has complete programs.
#![forbid(unsafe_code)]

pub mod interrupt;
pub mod prelude;
pub mod progress;

#[doc(hidden)]
pub mod base;
#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod compare;
#[doc(hidden)]
pub mod convert;
#[doc(hidden)]
pub mod counted;
#[doc(hidden)]
pub mod data;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod eval;
#[doc(hidden)]
pub mod experiment;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod machine;
#[doc(hidden)]
pub mod merge;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod noising;
#[doc(hidden)]
pub mod objective;
#[doc(hidden)]
pub mod parallel;
#[doc(hidden)]
pub mod parity;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod recipe;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod reproduce;
#[doc(hidden)]
pub mod rng;
#[doc(hidden)]
pub mod sampler;
#[doc(hidden)]
pub mod serve;
#[doc(hidden)]
pub mod settings;
#[doc(hidden)]
pub mod train;

/// The examples of `docs/library.md`, as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct Library;
