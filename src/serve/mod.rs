//! A server of answers in OpenAI's protocol, without its connections: parsing requests, the queue, the batches, and the
//! replies. It uses no sockets: `weft serve` (src/cli/serve) reads HTTP, and a test or your own program can call this module
//! directly.
//!
//! [`door`] checks a request's head and [`request`] parses its body; [`serving`] turns the request into jobs, one for each
//! choice, which wait in a [`queue`]. One thread, the [`engine`], answers batches of jobs on [`models`] and sends events to
//! each job's listener; [`reply`] turns the events into OpenAI's objects.

pub mod door;
pub mod engine;
mod fields;
mod follow;
pub mod models;
pub mod page;
pub mod queue;
pub mod refusal;
pub mod reply;
pub mod request;
pub mod serving;
mod steps;
