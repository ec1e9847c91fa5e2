//! The compute engine: the operations of a bidirectional transformer, forward and backward side by side, one file each,
//! on the CPU (`cpu`) or on an NVIDIA GPU (`cuda`). On a meta device (`meta`) the CPU's operations only count the bytes
//! they would allocate and compute nothing. The crate knows tensors, but nothing of diffusion, the names in
//! checkpoints, or recipes.
//!
//! Shape letters: `N` tokens of a packed batch, `D` width, `H` heads, `K` key/value heads, `V` rows of the
//! LM head, `R` LoRA rank. Every matrix is row-major and contiguous. Arithmetic is f32, totals are
//! f64; matmuls may round their operands to bf16 (`precision`).
//! Every sum adds its terms in an order that doesn't depend on the number of threads, so results have the same bits at
//! any number.

pub mod adamw;
pub mod attention;
pub mod buffer;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod embedding;
pub mod head_loss;
pub mod linear;
pub mod lora_linear;
pub mod mapped;
pub mod meta;
pub mod nf4;
pub mod philox;
pub mod precision;
pub mod predict;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod saved;
pub mod slice;
pub mod swiglu;
pub mod tensor;
pub mod weight;
