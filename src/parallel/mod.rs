//! Data parallelism over several ranks: processes that hold the same model and share the examples, on one machine or on
//! many. They communicate through [`collective::Collective`], over an existing library (MPI, cargo feature `mpi`; NCCL
//! where each rank has a GPU). How parameters are split among them, and which rank trains on what, belongs to `train`.

pub(crate) mod collective;
pub mod nccl;
pub mod session;

#[cfg(feature = "mpi")]
pub(crate) mod mpi;

pub(crate) use collective::solo;
pub use collective::{Collective, Ranks, Solo};
