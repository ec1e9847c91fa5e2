//! The text side of a checkpoint: tokenizer, special tokens, and chat template, rendered as transformers renders it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::chat::Turn;
use super::clock::Clock;
use super::guarded::guarded;
use super::token_cache::text_key;
use super::tokenizer_files::{self, text_of};
use super::typed_tokens::{SpecialFinder, SpecialTokens};
use super::{Message, qwen_tokenizer, template_environment, template_source, template_variables};
use crate::error::{Error, Result};
use crate::files::{read_if_there, read_small};

/// The end-of-turn tokens in the chat templates of LLaDA and Llama 3, and of Dream and Qwen, where they differ from
/// `eos_token`.
const ENDS_OF_TURN: [&str; 2] = ["<|eot_id|>", "<|im_end|>"];
/// The largest chat template that is accepted, a hundred times a long one. The bound matters because each statement can
/// nest a list in another.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const TEMPLATE: &str = "chat_template";
/// The function of templates that writes the time.
const CLOCK: &str = "strftime_now";
/// The special tokens that templates see by their names, as in transformers.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer with its chat template.
pub struct TextModel {
    pub(super) tokenizer: Tokenizer,
    /// The special tokens that may occur in turns.
    pub(super) special: SpecialFinder,
    /// How special tokens in the turns of a prompt are read.
    pub(super) special_tokens: SpecialTokens,
    environment: Arc<Environment<'static>>,
    pub(super) path: PathBuf,
    /// The file that the chat template comes from, for errors.
    template_path: PathBuf,
    /// Special tokens by their names, and the values of [`TextModel::set_template_kwargs`], as templates see them.
    variables: Map<String, Value>,
    /// The names that the chat template reads.
    names: BTreeSet<String>,
    pub(super) eos_token_id: u32,
    last_id: u32,
    content_key: u128,
}

impl TextModel {
    /// Opens `tokenizer.json`, or `vocab.json` and `merges.txt` as in Dream's checkpoints, and, where they exist,
    /// `tokenizer_config.json` and `chat_template.jinja`. What `tokenizer_config.json` lacks is taken from
    /// `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// # Errors
    /// A file that is missing or damaged, or a template that doesn't parse.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = tokenizer_files::config(folder)?;
        let path = folder.join("tokenizer.json");
        let parts = || {
            // `build` reports a damaged configuration.
            qwen_tokenizer::tokenizer_json(folder, &serde_json::from_str(&config).unwrap_or_default())
        };
        let tokenizer = match if path.exists() { None } else { parts()? } {
            Some(tokenizer) => tokenizer,
            None => read_small(&path)?,
        };
        Self::build(folder, &tokenizer, &config, read_if_there(&folder.join("chat_template.jinja"))?)
    }

    /// Builds a text model from the contents of its files.
    ///
    /// # Errors
    /// As [`TextModel::open`].
    pub fn from_bytes(tokenizer: &[u8], config: &str) -> Result<Self> {
        Self::build(Path::new("embedded"), tokenizer, config, None)
    }

    fn build(folder: &Path, tokenizer: &[u8], config: &str, template: Option<String>) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let parts = [tokenizer, config.as_bytes(), template.as_deref().unwrap_or_default().as_bytes()];
        let mut content_key = text_key(&parts);
        let format = |path: &Path, reason: String| Error::Format { path: path.to_owned(), reason };
        let tokenizer = guarded(|| tokenizer_files::tokenizer(tokenizer)).map_err(|reason| format(&path, reason))?;
        let last_id = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let config_path = folder.join("tokenizer_config.json");
        let config: Value = serde_json::from_str(config).map_err(|e| format(&config_path, e.to_string()))?;
        let eos_token = text_of(&config["eos_token"]).unwrap_or_default();
        let Some(eos_token_id) = tokenizer.token_to_id(&eos_token) else {
            let reason =
                format!("eos_token {eos_token:?} is not a token of tokenizer.json; name the model's end token");
            return Err(Error::Config { path: config_path, reason });
        };
        let (template, template_path) = match template {
            Some(template) => (Some(template), folder.join("chat_template.jinja")),
            None => {
                let refuse = |reason: &str| Error::Config { path: config_path.clone(), reason: reason.to_owned() };
                (template_of(&config["chat_template"]).map_err(refuse)?, config_path.clone())
            }
        };
        let (mut environment, clock) = (template_environment::new(), Clock::given());
        let mut names = BTreeSet::new();
        if let Some(template) = template {
            if template.len() > MAX_TEMPLATE_BYTES {
                let told = format!("the chat template has more than {MAX_TEMPLATE_BYTES} bytes");
                return Err(format(&template_path, told));
            }
            names = template_source::names(&template);
            if let Some(clock) = clock.filter(|_| names.contains(CLOCK)) {
                let times = template_source::times(&template, &clock);
                content_key = text_key(&[&content_key.to_le_bytes(), times.as_bytes()]);
                template_environment::set_clock(&mut environment, clock);
            }
            environment
                .add_template_owned(TEMPLATE, template_source::for_engine(&template))
                .map_err(|e| format(&template_path, format!("the chat template doesn't parse: {e}")))?;
        }
        let special = SPECIAL_TOKENS.iter().filter_map(|key| Some(((*key).to_owned(), text_of(&config[key])?.into())));
        let unk = text_of(&config["unk_token"]).and_then(|token| tokenizer.token_to_id(&token));
        Ok(Self {
            variables: special.collect(),
            special: SpecialFinder::new(&tokenizer, unk),
            special_tokens: SpecialTokens::Text,
            names,
            eos_token_id,
            last_id,
            tokenizer,
            environment: Arc::new(environment),
            path,
            template_path,
            content_key,
        })
    }

    /// Hands values to the template as variables, as the keyword arguments of transformers' `apply_chat_template`.
    /// `named` stands before a variable's name in errors.
    ///
    /// # Errors
    /// A variable that the template never reads, or one that every rendering sets itself.
    pub fn set_template_kwargs(&mut self, kwargs: &Map<String, Value>, named: &str) -> Result<()> {
        template_variables::check(kwargs, (&self.environment, TEMPLATE))
            .map_err(|reason| Error::Config { path: self.template_path.clone(), reason: format!("{named}{reason}") })?;
        if !kwargs.is_empty() {
            // Equal values are equal in any order.
            let sorted: BTreeMap<&String, &Value> = kwargs.iter().collect();
            let values = serde_json::to_vec(&sorted).expect("JSON values print");
            self.content_key = text_key(&[&self.content_key.to_le_bytes(), &values]);
        }
        self.variables.extend(kwargs.clone());
        Ok(())
    }

    /// Sets how special tokens in the turns of a prompt are read.
    pub fn set_special_tokens(&mut self, special_tokens: SpecialTokens) {
        if self.special_tokens != special_tokens {
            self.content_key = text_key(&[&self.content_key.to_le_bytes(), b"special tokens"]);
        }
        self.special_tokens = special_tokens;
    }

    /// Fixes the time that the template's `strftime_now` writes, in seconds since 1970, in UTC. By default the time is
    /// that of `SOURCE_DATE_EPOCH`; if that isn't set, the template has no such function.
    pub fn set_time(&mut self, seconds: i64) {
        let clock = Ok(Clock::at(seconds));
        self.content_key = text_key(&[&self.content_key.to_le_bytes(), &seconds.to_le_bytes()]);
        template_environment::set_clock(Arc::make_mut(&mut self.environment), clock);
    }

    /// Renders turns as text; `None` if there is no template.
    ///
    /// # Errors
    /// An error that the template raises.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Option<String>> {
        self.rendered((messages, None), add_generation_prompt)
    }

    /// Renders turns with all their fields, and the tools that the assistant may call, as text; `None` if there is no
    /// template.
    ///
    /// # Errors
    /// An error that the template raises.
    pub fn render_turns(
        &self,
        turns: &[Turn],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<Option<String>> {
        self.rendered((turns, tools), add_generation_prompt)
    }

    /// Whether there is a chat template.
    pub fn has_template(&self) -> bool {
        self.environment.get_template(TEMPLATE).is_ok()
    }

    /// Whether the chat template reads a variable or key of this name.
    pub(super) fn reads(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Renders turns, and the tools that they may call.
    fn rendered<T: Serialize>(
        &self,
        (turns, tools): (&[T], Option<&Value>),
        add_generation_prompt: bool,
    ) -> Result<Option<String>> {
        // transformers hands these two to every template, as none if the caller gives none.
        let mut variables: BTreeMap<&str, minijinja::Value> =
            ["tools", "documents"].map(|name| (name, minijinja::Value::from(()))).into();
        let own = self.variables.iter().map(|(name, value)| (name.as_str(), minijinja::Value::from(Serde(value))));
        variables.extend(own);
        variables.extend(tools.map(|tools| ("tools", minijinja::Value::from(Serde(tools)))));
        variables.insert("messages", minijinja::Value::from(Serde(turns)));
        variables.insert("add_generation_prompt", add_generation_prompt.into());
        template_environment::render(&self.environment, TEMPLATE, minijinja::Value::from(variables)).map_err(|reason| {
            Error::Config {
                path: self.template_path.clone(),
                reason: format!("the chat template rejects the messages: {reason}"),
            }
        })
    }

    /// The error for a prompt that isn't the beginning of the whole.
    pub(super) fn no_beginning(&self, prompt: &str, thinks: bool) -> Error {
        let reason = match prompt.trim_end().ends_with("</think>") && thinks {
            true => {
                "the chat template ends the prompt with an empty thinking block, but the answer has its own; turn thinking \
                 on (data.chat_template_kwargs), or remove the thinking from the answers"
            }
            false => {
                "the chat template renders the prompt differently once an answer follows; give a template that renders the \
                 prompt as a prefix of the whole"
            }
        };
        Error::Config { path: self.template_path.clone(), reason: reason.to_owned() }
    }

    /// Whether a text contains the text of an end token.
    pub(super) fn holds_end_token(&self, text: &str) -> bool {
        let tokens = self.end_token_ids().into_iter().filter_map(|id| self.tokenizer.id_to_token(id));
        tokens.into_iter().any(|token| text.contains(&token))
    }

    /// The text without the end tokens at its end; `None` if it doesn't end with one. White space between and after end
    /// tokens is removed with them.
    pub(super) fn before_end_token<'a>(&self, text: &'a str) -> Option<&'a str> {
        let ends = self.end_token_ids().into_iter().filter_map(|id| self.token(id));
        let ends: Vec<String> = ends.filter(|end| !end.trim().is_empty()).collect();
        let mut before = None;
        while let Some(rest) = ends.iter().find_map(|end| before.unwrap_or(text).trim_end().strip_suffix(end.as_str()))
        {
            before = Some(rest);
        }
        before
    }

    /// The tokens of a text, without added special tokens.
    ///
    /// # Errors
    /// An error of the tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.tokenizer.encode_fast(text, false).map_err(|e| e.to_string()));
        let ids = encoded.map(|e| e.get_ids().to_vec());
        ids.map_err(|e| Error::Format { path: self.path.clone(), reason: format!("it can't encode the text: {e}") })
    }

    /// The text of a generated answer: up to its first end token, without special tokens.
    pub fn decode_answer(&self, ids: &[u32]) -> String {
        let ends = self.end_token_ids();
        let end = ids.iter().position(|id| ends.contains(id)).unwrap_or(ids.len());
        self.decode(&ids[..end], true)
    }

    /// The text of all tokens of a canvas, special ones included, as d1 stores and scores it.
    pub fn decode_canvas(&self, ids: &[u32]) -> String {
        self.decode(ids, false)
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        guarded(|| self.tokenizer.decode(ids, skip_special_tokens).map_err(|e| e.to_string())).unwrap_or_default()
    }

    /// The id of `eos_token`.
    pub fn eos_token_id(&self) -> u32 {
        self.eos_token_id
    }

    /// The ids of `eos_token` and of the end-of-turn tokens that the tokenizer has besides it.
    pub fn end_token_ids(&self) -> Vec<u32> {
        let mut ids = vec![self.eos_token_id];
        ids.extend(ENDS_OF_TURN.iter().filter_map(|end| self.token_id(end)).filter(|id| *id != self.eos_token_id));
        ids
    }

    /// A hash of tokenizer, configuration and chat template.
    pub fn content_key(&self) -> u128 {
        self.content_key
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The text of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The ids of the tokenizer's special tokens.
    pub(crate) fn special_ids(&self) -> BTreeSet<u32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect()
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The number of bytes of the longest token.
    pub fn longest_token(&self) -> usize {
        self.tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(0)
    }

    /// The largest token id; ids may have gaps.
    pub fn last_id(&self) -> u32 {
        self.last_id
    }
}

/// A template is either a string or the entry named `default` in a list; `None` if it is absent.
fn template_of(field: &Value) -> std::result::Result<Option<String>, &'static str> {
    match field {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        list => {
            let named = list.as_array().into_iter().flatten().find(|t| t["name"] == "default");
            let template = named.and_then(|t| t["template"].as_str()).map(str::to_owned);
            template.map(Some).ok_or("chat_template is neither a string nor a list with a template named default")
        }
    }
}
