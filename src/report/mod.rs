//! What a person looks at: the page of a run, the page of a text's entropies, and charts. Pages are one file each, with
//! everything in it; what came from data or model is escaped.

pub mod chart;
pub mod entropy_map;
pub mod page;
pub mod training;
