//! The network, and how checkpoints are loaded into it.

pub mod arithmetic;
pub mod batch;
pub mod block;
mod buckets;
pub mod cached;
mod dream;
pub mod family;
pub mod from_hub;
mod inference;
mod layer;
mod layout;
pub mod llada;
pub mod lora;
mod meta;
mod non_finite;
pub mod settings;
pub mod weights;
