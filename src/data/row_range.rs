//! Which rows of a source are used: the first `n`, or a slice such as `"100:5000"`, `"10%:"`, `":90%"`.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A range of rows, counted from 0; its end is exclusive, as in Python's slices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct RowRange {
    from: Bound,
    to: Option<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Row(usize),
    /// A percentage of all rows, rounded down: `":90%"` and `"90%:"` share no row and leave none out.
    Percent(f64),
}

impl RowRange {
    /// The first `rows` rows.
    pub fn first(rows: usize) -> Self {
        Self { from: Bound::Row(0), to: Some(Bound::Row(rows)) }
    }

    /// The number of rows, if the range starts at the first one.
    pub fn as_first(&self) -> Option<usize> {
        match self {
            Self { from: Bound::Row(0), to: Some(Bound::Row(rows)) } => Some(*rows),
            _ => None,
        }
    }

    /// Whether the total number of rows must be known.
    pub(crate) fn needs_count(&self) -> bool {
        [Some(self.from), self.to].iter().flatten().any(|bound| matches!(bound, Bound::Percent(_)))
    }

    /// The rows of the range; `count` is the total number of rows, which only percentages need.
    pub fn of(&self, count: usize) -> Range<usize> {
        let row = |bound: Bound| match bound {
            Bound::Row(row) => row,
            Bound::Percent(percent) => (percent * count as f64 / 100.0) as usize,
        };
        row(self.from)..self.to.map_or(usize::MAX, row)
    }

    fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once(':')?;
        let bound = |text: &str| match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|p| (0.0..=100.0).contains(p)).map(Bound::Percent),
            None => text.parse().ok().map(Bound::Row),
        };
        let or_none = |text: &str| if text.is_empty() { Some(None) } else { bound(text).map(Some) };
        Some(Self { from: or_none(from.trim())?.unwrap_or(Bound::Row(0)), to: or_none(to.trim())? })
    }
}

impl TryFrom<Value> for RowRange {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let range = match &value {
            Value::String(text) => Self::parse(text),
            number => number.as_u64().and_then(|n| usize::try_from(n).ok()).map(Self::first),
        };
        let wrong = || {
            format!("{value} is not a range of rows; give the number of first rows, or a slice: \"100:5000\", \"10%:\"")
        };
        range.ok_or_else(wrong)
    }
}

impl From<RowRange> for Value {
    fn from(range: RowRange) -> Self {
        range.as_first().map_or_else(|| Value::from(range.to_string()), Value::from)
    }
}

impl fmt::Display for RowRange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bound = |bound: Bound| match bound {
            Bound::Row(row) => row.to_string(),
            Bound::Percent(percent) => format!("{percent}%"),
        };
        write!(f, "{}:{}", bound(self.from), self.to.map(bound).unwrap_or_default())
    }
}
