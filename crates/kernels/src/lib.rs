//! The compute engine: the operations of a bidirectional transformer, forward and backward side by side,
//! one file each. It knows tensors and nothing of diffusion, checkpoints' names or recipes.
//!
//! Shape letters: `N` tokens of a packed batch, `D` width, `H` heads, `K` key/value heads, `V` rows of the
//! LM head, `R` LoRA rank. Every matrix is row-major and contiguous. Arithmetic is f32, totals are f64.
//! Work is split into pieces of a fixed size, so a result has the same bits at any number of threads.

pub mod adamw;
pub mod attention;
pub mod buffer;
pub mod embedding;
pub mod exp;
pub mod head_loss;
pub mod linear;
pub mod lora_linear;
pub mod matrix;
mod microkernel;
mod panels;
pub mod philox;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
pub mod weight;
