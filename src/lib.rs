//! Weft fine-tunes masked diffusion language models by entropy-weighted masking
//! (WeFT, arXiv 2509.20863, later named GIFT).
//!
//! Today the library holds the network ([`model`]) and the method as pure functions: [`noising`] turns entropies and explicit random draws
//! into masks, [`objective`] turns masks into loss weights, [`rng`] makes the draws; none of these knows a model. [`sampler`] generates.
#![forbid(unsafe_code)]

pub mod base;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod model;
pub mod noising;
pub mod objective;
pub mod parity;
pub mod recipe;
pub mod rng;
pub mod sampler;
pub mod train;
