//! Output for people: the page of a run, the page of a text's entropies, and charts. Each page is a single
//! self-contained file; everything that came from data or model is escaped.

mod axis;
pub mod chart;
pub mod curves;
pub mod date;
pub mod entropy_map;
pub mod page;
pub mod table;
pub mod training;
pub mod visible;
