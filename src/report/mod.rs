//! What a person looks at after a run: charts.

pub mod chart;
