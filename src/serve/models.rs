//! A base with several adapters. The base's weights are in memory once, with the weights of all adapters beside them, and one
//! adapter at a time is attached.

use std::path::Path;

use crate::error::Result;
use crate::model::block::{Block, Config, Linear, Transformer};
use crate::model::lora;

/// A base and its adapters.
pub struct Models {
    model: Transformer,
    /// What attaching each model sets; the bare base comes first.
    attached: Vec<Attached>,
}

/// The layers of a model, which hold the indices of the adapter's weights, and its constants.
#[derive(Clone)]
struct Attached {
    blocks: Vec<Block>,
    head: Linear,
    config: Config,
}

impl Models {
    /// A base without adapters.
    pub fn new(model: Transformer) -> Self {
        let attached = vec![Attached::of(&model)];
        Self { model, attached }
    }

    /// Loads one more adapter onto the base's device; returns the configuration of the model with it.
    ///
    /// # Errors
    /// Those of [`lora::load`].
    pub fn attach(&mut self, folder: &Path) -> Result<Config> {
        self.select(0);
        lora::load(folder, &mut self.model)?;
        let device = self.model.device.clone();
        self.model.put_on(&device);
        self.attached.push(Attached::of(&self.model));
        Ok(self.model.config)
    }

    /// Selects the model of this index: 0 is the base, and the adapters follow in the order in which they were attached.
    pub fn select(&mut self, index: usize) -> &Transformer {
        let Attached { blocks, head, config } = self.attached[index].clone();
        (self.model.blocks, self.model.head, self.model.config) = (blocks, head, config);
        &self.model
    }
}

impl Attached {
    fn of(model: &Transformer) -> Self {
        Self { blocks: model.blocks.clone(), head: model.head, config: model.config }
    }
}
