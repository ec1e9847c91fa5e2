//! Output for people: the page of a run, the page of a text's entropies, and charts. Each page is a single
//! self-contained file; everything that came from data or model is escaped.

mod axis;
pub(crate) mod chart;
pub(crate) mod curves;
pub(crate) mod date;
pub mod entropy_map;
pub(crate) mod page;
pub mod rows;
pub mod table;
pub mod training;
pub mod visible;
