//! A server of answers in OpenAI's protocol, without its connections: what a request asks for, the queue, the batches, and
//! the replies. It knows no sockets: `weft serve` (src/cli/serve) reads HTTP, and a test or a program of your own can call
//! it directly.
//!
//! A request's head is judged by [`door`], its body by [`request`], and [`serving`] makes jobs of it, one for each choice,
//! which wait in a [`queue`]. One thread, the [`engine`], answers batches of them on [`models`], and tells each job's
//! listener of its events; [`reply`] puts those into OpenAI's words.

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
