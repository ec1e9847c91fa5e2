//! From a prompt to an answer: iterative denoising by LLaDA's loop or by Dream's.

mod block_causal;
pub mod cache;
mod dream;
pub mod generate;
pub mod infill;
mod llada;
pub mod remasking;
pub(crate) mod settings;
