//! The operations on an NVIDIA GPU. The driver and NVIDIA's libraries are loaded when a GPU is opened, so the program
//! needs none of them to be built or to run on a CPU. Kernels are CUDA C (`kernels/`), compiled for the GPU at hand and
//! cached on disk; matmuls are cuBLASLt's. Computation goes to one stream, in the order in which it was asked for, and
//! communication between ranks goes to a second stream beside it; the host waits only for numbers that are copied back
//! to it.
//!
//! An operation has no way to return an error, and a caller could continue after hardly any of a GPU's errors:
//! [`Failure`] unwinds with one sentence to whatever began the work.

pub mod adamw;
mod array;
pub mod attention;
mod compile;
pub mod elementwise;
mod gpu;
pub mod head_loss;
mod libraries;
pub mod linear;
pub mod lora_linear;
mod matmul;
pub mod nccl;
mod nf4;
pub mod predict;
pub mod rms_norm;
pub mod rows;
mod streams;
mod work;

pub use array::{Array, Keys};
pub use compile::{ARCHITECTURES, compile_for};
pub use gpu::{Gpu, Mark};
pub use matmul::WORKSPACE;
pub use nf4::Nf4Array;
pub use streams::Beside;
pub use work::{Launches, Work};

/// The names of the kernels.
const KERNELS: &[&str] = &[
    "add_f32",
    "cast_f32_bf16",
    "cast_bf16_f32",
    "swiglu_f32",
    "swiglu_bf16",
    "swiglu_backward_f32",
    "swiglu_backward_bf16",
    "rope_f32",
    "rope_bf16",
    "add_bias_f32",
    "add_bias_bf16",
    "dequantize_nf4_f32",
    "dequantize_nf4_bf16",
    "dropout_f32",
    "dropout_bf16",
    "dropout_add_f32",
    "dropout_add_bf16",
    "fill_normal_bf16",
    "rms_norm_f32",
    "rms_norm_bf16",
    "rms_norm_f32_of_bf16",
    "rms_norm_bf16_of_bf16",
    "rms_norm_short_f32",
    "rms_norm_short_bf16",
    "rms_norm_short_f32_of_bf16",
    "rms_norm_short_bf16_of_bf16",
    "rms_norm_backward",
    "rms_norm_in_place_f32",
    "rms_norm_in_place_bf16",
    "rms_norm_in_place_short_f32",
    "rms_norm_in_place_short_bf16",
    "add_column_partials",
    "gain_partials",
    "bias_partials_f32",
    "bias_partials_bf16",
    "add_partials",
    "gather_f32",
    "gather_bf16",
    "embed_bf16",
    "replace_f32",
    "replace_bf16",
    "scatter_add",
    "head_statistics",
    "head_gradient_f32",
    "head_gradient_bf16",
    "predict",
    "sums_of_squares",
    "adamw",
    "attention_delta_f32",
    "attention_delta_bf16",
    "attention_forward_f32_64",
    "attention_backward_keys_f32_64",
    "attention_backward_queries_f32_64",
    "attention_forward_f32_128",
    "attention_backward_keys_f32_128",
    "attention_backward_queries_f32_128",
    "attention_forward_f32_256",
    "attention_backward_keys_f32_256",
    "attention_backward_queries_f32_256",
    "attention_forward_bf16_32",
    "attention_backward_keys_bf16_32",
    "attention_backward_queries_bf16_32",
    "attention_forward_bf16_64",
    "attention_backward_keys_bf16_64",
    "attention_backward_queries_bf16_64",
    "attention_forward_bf16_96",
    "attention_backward_keys_bf16_96",
    "attention_backward_queries_bf16_96",
    "attention_forward_bf16_128",
    "attention_backward_keys_bf16_128",
    "attention_backward_queries_bf16_128",
    "attention_forward_some_f32_64",
    "attention_backward_keys_some_f32_64",
    "attention_backward_queries_some_f32_64",
    "attention_forward_some_f32_128",
    "attention_backward_keys_some_f32_128",
    "attention_backward_queries_some_f32_128",
    "attention_forward_some_f32_256",
    "attention_backward_keys_some_f32_256",
    "attention_backward_queries_some_f32_256",
    "attention_forward_some_bf16_32",
    "attention_backward_keys_some_bf16_32",
    "attention_backward_queries_some_bf16_32",
    "attention_forward_some_bf16_64",
    "attention_backward_keys_some_bf16_64",
    "attention_backward_queries_some_bf16_64",
    "attention_forward_some_bf16_96",
    "attention_backward_keys_some_bf16_96",
    "attention_backward_queries_some_bf16_96",
    "attention_forward_some_bf16_128",
    "attention_backward_keys_some_bf16_128",
    "attention_backward_queries_some_bf16_128",
];

/// A GPU's error as one sentence: the payload of an unwinding.
#[derive(Debug)]
pub struct Failure(pub String);

/// Unwinds with a sentence about what went wrong.
fn fail(sentence: String) -> ! {
    std::panic::resume_unwind(Box::new(Failure(sentence)))
}
