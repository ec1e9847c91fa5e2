//! From a prompt to an answer: LLaDA's iterative denoising.

pub mod generate;
pub mod remasking;
