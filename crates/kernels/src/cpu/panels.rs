//! A matmul's right operand as the innermost loop reads it: one panel of 32 columns of words after another.

use std::ops::Range;

use crate::buffer::Scratch;
use crate::cpu::matrix::View;
use crate::precision::Layout;
use crate::weight::Weight;

/// The number of columns of a panel.
pub(crate) const PANEL: usize = 32;
/// The side of the squares in which a block is transposed.
const SQUARE: usize = 16;

/// The right operand of a matmul, wherever it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    Matrix(View<'a>),
    /// Rows `start..end` of a weight.
    WeightRows(&'a Weight, [usize; 2]),
    WeightT(&'a Weight),
}

/// A block of a right operand: panels `[inner, 32]` of words, one after another, the last one padded with zeros.
pub(crate) struct Panels {
    words: Scratch,
    /// Holds the words before they are copied into panels.
    spare: Scratch,
    layout: Layout,
    inner: usize,
    cols: usize,
}

impl<'a> Right<'a> {
    /// All rows of a weight.
    pub(crate) fn weight(weight: &'a Weight) -> Self {
        Self::WeightRows(weight, [0, weight.rows()])
    }

    /// The number of rows: the inner size of the matmul.
    pub(crate) fn inner(&self) -> usize {
        match self {
            Self::Matrix(view) => view.rows(),
            Self::WeightT(weight) => weight.cols(),
            Self::WeightRows(_, [start, end]) => end - start,
        }
    }

    /// The number of columns.
    pub(crate) fn cols(&self) -> usize {
        match self {
            Self::Matrix(view) => view.cols(),
            Self::WeightRows(weight, _) => weight.cols(),
            Self::WeightT(weight) => weight.rows(),
        }
    }

    /// Copies a block of the operand into panels.
    pub(crate) fn pack(&self, panels: &mut Panels, layout: Layout, inner: Range<usize>, cols: Range<usize>) {
        match self {
            Self::Matrix(view) => panels.pack(view.block(inner, cols), layout),
            Self::WeightRows(weight, [start, _]) => {
                let rows = start + inner.start..start + inner.end;
                weight.with_block(rows, cols, |block| panels.pack(block, layout));
            }
            Self::WeightT(weight) => weight.with_block(cols, inner, |block| panels.pack(block.t(), layout)),
        }
    }
}

impl Panels {
    /// Panels without contents.
    pub(crate) fn new() -> Self {
        Self { words: Scratch::new(), spare: Scratch::new(), layout: Layout::default(), inner: 0, cols: 0 }
    }

    /// Copies a matrix into panels.
    pub(crate) fn pack(&mut self, b: View, layout: Layout) {
        let b = layout.of(b.t(), &mut self.spare).t();
        (self.inner, self.cols, self.layout) = (b.rows(), b.cols(), layout);
        self.words.resize(self.cols.div_ceil(PANEL) * self.inner * PANEL, 0.0);
        if self.words.is_empty() {
            return;
        }
        for (p, panel) in self.words.chunks_mut(self.inner * PANEL).enumerate() {
            let cols = p * PANEL..((p + 1) * PANEL).min(self.cols);
            if cols.len() < PANEL {
                panel.fill(0.0);
            }
            match b.is_row_major() {
                true => copy(panel, b, cols),
                false => transpose(panel, b.t(), cols),
            }
        }
    }

    /// The whole operand.
    pub(crate) fn whole(&self) -> PanelsPart<'_> {
        PanelsPart { panels: self, words: [0, self.inner], first: 0, cols: self.cols }
    }

    /// Some columns, the first of which begins a panel.
    pub(crate) fn columns(&self, cols: Range<usize>) -> PanelsPart<'_> {
        assert!(cols.start.is_multiple_of(PANEL) && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        PanelsPart { first: cols.start / PANEL, cols: cols.len(), ..self.whole() }
    }

    /// Some rows, the first of which begins a word.
    pub(crate) fn rows(&self, rows: Range<usize>) -> PanelsPart<'_> {
        let per_word = self.layout.numbers_per_word();
        assert!(rows.start.is_multiple_of(per_word), "rows {rows:?} of words of {per_word}");
        let words = [rows.start, rows.end].map(|row| self.layout.words(row));
        assert!(words[1] <= self.inner, "rows {rows:?} of {} words", self.inner);
        PanelsPart { words, ..self.whole() }
    }
}

/// Some rows and columns of a right operand in panels.
#[derive(Clone, Copy)]
pub(crate) struct PanelsPart<'a> {
    panels: &'a Panels,
    /// The rows, in words.
    words: [usize; 2],
    /// The first panel.
    first: usize,
    cols: usize,
}

impl<'a> PanelsPart<'a> {
    /// The content of a word.
    pub(crate) fn layout(&self) -> Layout {
        self.panels.layout
    }

    /// The number of rows, in words.
    pub(crate) fn inner(&self) -> usize {
        self.words[1] - self.words[0]
    }

    /// The number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The panel `[inner, 32]` at an index.
    pub(crate) fn panel(&self, index: usize) -> &'a [f32] {
        let (start, [from, to]) = ((self.first + index) * self.panels.inner, self.words);
        &self.panels.words[(start + from) * PANEL..(start + to) * PANEL]
    }
}

/// `panel[k][j] = from[k][cols.start + j]`.
fn copy(panel: &mut [f32], from: View, cols: Range<usize>) {
    for (k, to) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
        let from = &from.row(k)[cols.clone()];
        match <&[f32; PANEL]>::try_from(from) {
            Ok(whole) => *to = *whole,
            Err(_) => to[..cols.len()].copy_from_slice(from),
        }
    }
}

/// `panel[k][j] = from[cols.start + j][k]`.
fn transpose(panel: &mut [f32], from: View, cols: Range<usize>) {
    let inner = from.cols();
    for j in (0..cols.len()).step_by(SQUARE) {
        let width = SQUARE.min(cols.len() - j);
        let rows: [&[f32]; SQUARE] = std::array::from_fn(|i| from.row(cols.start + j + i.min(width - 1)));
        let in_squares = if width == SQUARE { inner / SQUARE * SQUARE } else { 0 };
        for k in (0..in_squares).step_by(SQUARE) {
            let square: [&[f32; SQUARE]; SQUARE] = rows.map(|row| row[k..].first_chunk().expect("a square's side"));
            for (i, to) in panel[k * PANEL..(k + SQUARE) * PANEL].chunks_mut(PANEL).enumerate() {
                for (to, from) in to[j..j + SQUARE].iter_mut().zip(square) {
                    *to = from[i];
                }
            }
        }
        for k in in_squares..inner {
            for (to, row) in panel[k * PANEL + j..].iter_mut().zip(&rows[..width]) {
                *to = row[k];
            }
        }
    }
}
