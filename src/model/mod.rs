//! The network and how checkpoints become it.

pub mod batch;
pub mod block;
mod layer;
pub mod llada;
pub mod lora;
pub mod weights;
