//! The tensors of an adapter's file: those of its layers are taken, copies of the base's own tensors are passed over, and
//! all others are refused with what their names tell of where they come from.

use std::path::{Path, PathBuf};

use weft_kernels::weight::Weight;

use super::block::Transformer;
use super::lora::TENSORS;
use super::weights::{COMPILED, Checkpoint};
use crate::error::{Error, Result};

/// What PEFT writes before the names of the base's modules.
pub(super) const PREFIX: &str = "base_model.model.";

/// The tensors of adapter_model.safetensors.
pub(super) struct AdapterTensors {
    path: PathBuf,
    tensors: Checkpoint,
}

impl AdapterTensors {
    /// Maps the file.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        Ok(Self { path: folder.join(TENSORS), tensors: Checkpoint::open_file(folder, TENSORS)? })
    }

    fn refuse(&self, reason: String) -> Error {
        Error::Config { path: self.path.clone(), reason }
    }

    /// The names of the adapted modules, without what comes before the last dot.
    pub(super) fn modules(&self) -> Vec<String> {
        let module = |name: &str| Some(name.strip_suffix(".lora_A.weight")?.rsplit('.').next()?.to_owned());
        let mut modules: Vec<String> = self.tensors.rest().filter_map(module).collect();
        modules.sort();
        modules.dedup();
        modules
    }

    /// Takes the tensor of a layer.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        let found = self.tensors.shape_of(name);
        let reason = match found {
            Some(found) if found == shape => return self.tensors.take(name, shape),
            Some(found) => format!("{name}: expected {shape:?}, got {found:?}; is it the adapter of this base?"),
            None => self.missing(name),
        };
        Err(self.refuse(reason))
    }

    /// What is wrong where a name is missing, by the names that are there.
    fn missing(&self, name: &str) -> String {
        let Some(first) = self.tensors.rest().min() else {
            return format!("{name} is missing, as is every other tensor");
        };
        let any = |part: &str| self.tensors.rest().any(|other| other.contains(part));
        let why = if any(COMPILED) {
            "the model was saved while torch.compile wrapped it: save what it wraps, model._orig_mod.save_pretrained(DIR)"
        } else if any(".lora_A.default.") {
            "the names hold the adapter's own name, as a state dict of PEFT does: save it by model.save_pretrained(DIR)"
        } else {
            "is it the adapter of this base?"
        };
        format!("{name} is missing, and it has {first}; {why}")
    }

    /// Refuses tensors that nothing has taken, except for copies of the base's own, which PEFT saves of embeddings and
    /// heads.
    pub(super) fn check_rest(&self, model: &Transformer) -> Result<()> {
        let mut rest: Vec<&str> = self.tensors.rest().collect();
        rest.sort_unstable();
        for name in rest {
            let own = name.strip_prefix(PREFIX).map(|own| own.replace(".base_layer.", "."));
            let head = format!("{}.weight", model.config.family.names.head);
            let is_own = |param: &&super::block::Param| Some(&param.name) == own.as_ref();
            let tied = Some(&model.params[model.head.weight]).filter(|_| own.as_ref() == Some(&head));
            let Some(base) = model.params.iter().find(is_own).or(tied) else {
                return Err(self.refuse(format!("no layer of the model uses {name}; is it the adapter of this base?")));
            };
            if !self.tensors.equals(name, &base.weight) {
                return Err(self.refuse(format!(
                    "{name} isn't the base's own: the adapter replaces the whole of it, which Weft doesn't do; load the \
                     adapter on its base in PEFT and save the merged model, which is read as a base: \
                     model.merge_and_unload().save_pretrained(DIR)"
                )));
            }
        }
        Ok(())
    }
}
