//! Data parallelism over several ranks: processes that hold the same model and share the examples, on one machine or on
//! many. They communicate through [`collective::Collective`], over an existing library (MPI, cargo feature `mpi`; NCCL
//! where each rank has a GPU). How parameters are split among them, and which rank trains on what, belongs to `train`.

pub mod collective;
pub mod nccl;
pub mod session;

#[cfg(feature = "mpi")]
pub mod mpi;

pub use collective::{Collective, Ranks, Solo, solo};
