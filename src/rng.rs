//! Random draws that belong to the example, not to the machine: every draw is a function of
//! (seed, stream, epoch, example index, position), so batch size, threads, ranks and resuming change none.

use weft_kernels::philox::{philox, unit_f32, unit_f64};

/// What a draw is for; no two streams share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The diffusion time of an example.
    Time = 1,
    /// The mask of an answer token.
    Mask = 2,
    /// Adapter dropout.
    Dropout = 3,
    /// The order of the examples.
    Order = 4,
    /// Initial values of new weights.
    Init = 5,
    /// Generated text.
    Text = 7,
    /// The rows of a source that occur once more than its others in an epoch.
    Mixing = 8,
    /// Gumbel noise of the sampler.
    Sampling = 6,
    /// The masks of a likelihood's samples.
    Likelihood = 9,
    /// The assistant turn of a chat that an epoch trains on.
    Answer = 10,
    /// The block of an answer that is noised by itself.
    Block = 11,
    /// LIFT's margin, choice and ranks.
    Lift = 12,
}

/// The draws of one example in one epoch for one purpose.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    key: u64,
}

impl Draws {
    /// The draws of an example in an epoch, for the purpose that `stream` names.
    pub fn new(seed: u64, stream: Stream, epoch: u64, example: u64) -> Self {
        // Two Philox calls hash (seed, stream, epoch, example) into one key; the counter is left to the position.
        let words = philox(seed, [stream as u32, epoch as u32, (epoch >> 32) as u32, 0]);
        let epoch_key = u64::from(words[0]) << 32 | u64::from(words[1]);
        let words = philox(epoch_key, [example as u32, (example >> 32) as u32, 0, 1]);
        Self { key: u64::from(words[0]) << 32 | u64::from(words[1]) }
    }

    /// A uniform number in `[0, 1)` for a position.
    pub fn unit_f64(&self, position: u64) -> f64 {
        let words = self.words(position);
        unit_f64(words[0], words[1])
    }

    /// A uniform number in `[0, 1)` for a position.
    pub fn unit_f32(&self, position: u64) -> f32 {
        unit_f32(self.words(position)[0])
    }

    /// A standard normal number for a position, by the Box-Muller method.
    pub fn normal(&self, position: u64) -> f64 {
        let words = self.words(position);
        let radius = (-2.0 * (1.0 - unit_f64(words[0], words[1])).ln()).sqrt();
        radius * (std::f64::consts::TAU * unit_f64(words[2], words[3])).cos()
    }

    /// 64 random bits for a position: a key for further draws, such as a token's dropout.
    pub fn key(&self, position: u64) -> u64 {
        let words = self.words(position);
        u64::from(words[2]) << 32 | u64::from(words[3])
    }

    /// The key of a row's Gumbel noise (`weft_kernels::predict::RowDraw`). The uniform number for a position and a
    /// token is [`Draws::unit_f64`] at `(position + 1) << 32 | token`.
    pub(crate) fn row_key(&self) -> u64 {
        self.key
    }

    fn words(&self, position: u64) -> [u32; 4] {
        philox(self.key, [position as u32, (position >> 32) as u32, 0, 2])
    }
}
