//! The network, and how checkpoints are loaded into it.

pub mod arithmetic;
pub mod batch;
pub mod block;
mod buckets;
pub mod cached;
pub mod checkpoint;
pub mod config;
pub mod facts;
pub mod family;
pub mod from_hub;
mod inference;
mod layer;
mod layout;
pub mod lora;
mod meta;
pub mod new_config;
mod non_finite;
pub mod positions;
pub mod settings;
pub mod weights;
