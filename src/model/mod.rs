//! The network, and how checkpoints are loaded into it.

mod adapter_tensors;
pub mod arithmetic;
pub mod batch;
pub mod block;
mod buckets;
pub mod cached;
pub mod checkpoint;
pub mod config;
mod config_fields;
pub mod facts;
pub mod family;
mod foreign;
pub mod from_hub;
pub(crate) mod halves;
mod inference;
mod layer;
mod layout;
pub mod lora;
mod lora_config;
mod meta;
pub mod new_config;
mod non_finite;
pub mod positions;
pub mod settings;
mod tensor_file;
pub mod weights;
