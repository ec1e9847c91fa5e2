//! The operations on the CPU, over slices. They are the reference for other devices. `precision` lays out the operands
//! of matmuls.

pub mod adamw;
pub(crate) mod amx;
pub mod attention;
pub mod embedding;
pub mod exp;
pub mod frozen_head;
pub mod head_loss;
pub mod linear;
pub mod lora_linear;
pub mod matrix;
mod microkernel;
mod panels;
pub mod predict;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
mod tiles;
