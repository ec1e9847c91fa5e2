//! The network and how checkpoints become it.

pub mod batch;
pub mod block;
pub mod llada;
pub mod lora;
pub mod weights;
