//! Weft fine-tunes masked diffusion language models by entropy-weighted masking
//! (WeFT, arXiv 2509.20863, later named GIFT).
//!
//! From the command down: [`train`] and [`eval`] run; [`objective`] and [`sampler`] decide; [`noising`] and [`model`]
//! compute, on the kernels of `weft_kernels`. [`noising`] and [`objective`] are pure functions of entropies and explicit
//! random draws, which [`rng`] makes; they know no model. [`recipe`] is what a user writes, [`data`] what they bring,
//! [`hub`] what is fetched for them, [`plan`] what a run will take, [`parity`] the comparison with PyTorch, [`merge`] what
//! of a run transformers loads.
#![forbid(unsafe_code)]

pub mod base;
pub mod bench;
pub mod data;
pub mod error;
pub mod eval;
pub mod experiment;
pub mod files;
pub mod hub;
pub mod machine;
pub mod merge;
pub mod model;
pub mod noising;
pub mod objective;
pub mod parity;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod reproduce;
pub mod rng;
pub mod sampler;
pub mod train;
