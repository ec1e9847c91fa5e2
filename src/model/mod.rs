//! The network, and how checkpoints are loaded into it.

mod adapter_tensors;
pub mod arithmetic;
pub mod batch;
mod bitsandbytes;
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
mod inference;
mod layer;
mod layout;
pub mod lora;
pub(crate) mod lora_config;
mod meta;
pub mod new_config;
mod non_finite;
pub mod positions;
pub mod quantize;
pub mod quantized_cache;
pub mod settings;
pub mod weights;
