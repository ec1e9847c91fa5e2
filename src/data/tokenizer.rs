//! A small tokenizer trained on text, for models trained from scratch: byte-level BPE that keeps digits apart, with
//! LLaDA's special tokens and a chat template. Checkpoints have their own tokenizer.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{Error, Result};
use crate::files::{make_folder, write_whole};

/// The mask token.
pub const MASK: &str = "<|mdm_mask|>";
/// The token that ends a text.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";
/// The token that ends a turn; it is the end token of answers.
pub const END_OF_TURN: &str = "<|eot_id|>";
/// The tokens around a role's name.
const HEADER: [&str; 2] = ["<|start_header_id|>", "<|end_header_id|>"];

/// Trains a tokenizer and writes `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// A trainer that fails on the texts, or a file that can't be written.
pub fn train(folder: &Path, texts: &[String], vocab_size: usize) -> Result<()> {
    let run = |e: tokenizers::Error| Error::Run(format!("the tokenizer can't be trained: {e}"));
    let specials = [END_OF_TEXT, END_OF_TURN, HEADER[0], HEADER[1], MASK];
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    let split: Vec<PreTokenizerWrapper> =
        vec![Digits::new(true).into(), ByteLevel::default().add_prefix_space(false).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(split))).with_decoder(Some(ByteLevel::default()));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials.map(|s| AddedToken::from(s, true)).to_vec())
        .build();
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter()).map_err(run)?;
    make_folder(folder)?;
    let text = tokenizer.to_string(true).map_err(run)?;
    write_whole(&folder.join("tokenizer.json"), text.as_bytes())?;
    let [open, close] = HEADER;
    let template = format!(
        "{{% for message in messages %}}{{{{ '{open}' + message['role'] + '{close}\\n' + message['content'] + '{END_OF_TURN}' }}}}\
         {{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{open}assistant{close}\\n' }}}}{{% endif %}}"
    );
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "mask_token": MASK,
        "chat_template": template,
    });
    let text = serde_json::to_string_pretty(&config).expect("a literal is JSON");
    write_whole(&folder.join("tokenizer_config.json"), text.as_bytes())
}
