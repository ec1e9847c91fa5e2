//! Work on several ranks: processes that hold the same model and share the examples, on one machine or on many. What they
//! say to each other goes through [`collective::Collective`], over an engine that is there already (MPI, cargo feature
//! `mpi`; NCCL where each holds a GPU); how parameters are split among them, and which rank trains on what, is `train`'s.

pub mod collective;
pub mod nccl;
pub mod session;

#[cfg(feature = "mpi")]
pub mod mpi;

pub use collective::{Collective, Ranks, Solo, solo};
