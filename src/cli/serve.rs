//! `weft serve`: answers requests in OpenAI's protocol over HTTP, with a playground. `weft::serve` parses and answers the
//! requests; the folder `serve/` has the connections.

mod body;
mod http;
mod wording;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use weft::base::Base;
use weft::data::typed_tokens::SpecialTokens;
use weft::error::{Error, Result};
use weft::model::positions;
use weft::serve::door::Door;
use weft::serve::engine;
use weft::serve::models::Models;
use weft::serve::serving::{Limits, Serving};
use weft_kernels::precision::Precision;

use super::generate::SamplingArgs;
use super::{FactArgs, ModelArgs, Object, object, precision, signals, warn_of_base, warn_of_bits};
use http::Server;

/// The environment variable with the API key.
const API_KEY: &str = "WEFT_API_KEY";
/// The limit on prompt and answer together, in tokens, if config.json doesn't say what length the model was trained for.
const MOST_TOKENS: usize = 1 << 15;

/// Serve answers in OpenAI's protocol, and a playground
///
/// Requests name the base or one of the adapters as their model. An answer is the one that weft generate gives with the
/// same settings and seed, alone or in a batch. The page / is a playground that shows how an answer is denoised. On SIGTERM
/// or SIGINT the server finishes the requests that it has accepted; a second signal ends it at once.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  weft serve --model tiny-base\n  weft serve --model dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1 --adapter maths=runs/maths/adapter --adapter runs/mine/adapter\n  WEFT_API_KEY=secret weft serve --model tiny-base --host 0.0.0.0 --port 8080 --batch-size 16"
)]
pub struct Serve {
    /// The checkpoint's folder, a model of the hub (ORG/NAME or ORG/NAME@REVISION), or tiny-base
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    model: PathBuf,
    /// The folder or hub id of a PEFT adapter, optionally with the name that requests use; may be given several times. By
    /// default the name is that of the folder, or of the run for runs/NAME/adapter
    #[arg(long, value_name = "[NAME=]DIR", help_heading = "Model")]
    adapter: Vec<String>,
    /// The format that matmuls round their operands to: f32, bf16, bf16x3 or auto, as in weft generate
    #[arg(long, default_value = "f32", value_name = "FORMAT", value_parser = precision, help_heading = "Model")]
    precision: Precision,
    #[command(flatten, next_help_heading = "Model")]
    facts: FactArgs,
    /// Variables for the chat template, like a recipe's data.chat_template_kwargs: '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", value_parser = object, help_heading = "Model")]
    chat_template_kwargs: Option<Object>,
    /// How to read special tokens in the turns of a chat: as text or tokens; default: text
    #[arg(long, value_name = "WHAT", value_parser = SpecialTokens::parse, help_heading = "Model")]
    special_tokens: Option<SpecialTokens>,
    /// The address to listen on; any address but this machine's loopback lets other machines send requests
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST", help_heading = "Server")]
    host: String,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8000, value_name = "N", help_heading = "Server")]
    port: u16,
    /// The key that requests must have, as Authorization: Bearer KEY; default: WEFT_API_KEY, else none. Other users of the
    /// machine can see a key that is given here
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    api_key: Option<String>,
    /// The largest number of answers that are computed together
    #[arg(long, default_value_t = 8, value_name = "N", help_heading = "Server")]
    batch_size: usize,
    /// The largest number of answers that wait; further requests are refused with status 429
    #[arg(long, default_value_t = 256, value_name = "N", help_heading = "Server")]
    queue: usize,
    /// The longest answer that a request may ask for, in tokens
    #[arg(long, default_value_t = 4096, value_name = "N", help_heading = "Server")]
    max_gen_length: usize,
    /// The largest number of tokens in a prompt and its answer together; default: what the model was trained for according
    /// to its config.json, else 32768
    #[arg(long, value_name = "N", help_heading = "Server")]
    max_length: Option<usize>,
    /// The time that the accepted requests have after SIGTERM or SIGINT; those that aren't answered by then are refused with
    /// status 503. Default: as long as they take
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    shutdown_seconds: Option<u64>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl Serve {
    pub fn run(mut self, quiet: bool) -> Result<ExitCode> {
        // 1. Check everything that can be checked before the weights are read.
        let api_key = self.api_key.take().or_else(|| std::env::var(API_KEY).ok());
        let api_key = api_key.map(|key| key.trim().to_owned());
        if api_key.as_ref().is_some_and(String::is_empty) {
            return Err(Error::Usage(format!("the API key is empty; give --api-key KEY, or unset {API_KEY}")));
        }
        if api_key.as_ref().is_some_and(|key| !key.chars().all(|c| matches!(c, ' '..='~'))) {
            let fix = format!("give --api-key or {API_KEY} a key of letters, digits and punctuation of ASCII");
            return Err(Error::Usage(format!("the API key has a character that a header of HTTP can't have; {fix}")));
        }
        for (name, value) in
            [("batch-size", self.batch_size), ("queue", self.queue), ("max-gen-length", self.max_gen_length)]
        {
            if value == 0 {
                return Err(Error::Usage(format!("--{name} 0: give at least 1")));
            }
        }
        self.sampling.given().check()?;
        let (listener, address) = self.listen()?;
        let adapters = named_adapters(&self.adapter, &self.model)?;
        // 2. Open the models.
        let (mut models, serving) = self.models(adapters)?;
        let serving = Arc::new(serving);
        // 3. Serve the connections on a thread of their own; this thread computes.
        let door = Door { is_loopback: address.ip().to_canonical().is_loopback(), api_key };
        if !door.is_loopback && door.api_key.is_none() {
            tell!(
                "warning: anyone who can reach {address} can send requests without a key; set {API_KEY}, or leave out --host"
            );
        }
        let server = Arc::new(Server::new(serving.clone(), door));
        let (ended, has_ended) = watch::channel(false);
        let runtime = http::runtime()?;
        let connections = std::thread::spawn(move || runtime.block_on(http::serve(listener, server, has_ended)));
        let (closing, limit) = (serving.clone(), self.shutdown_seconds);
        signals::on_stop(move || close(closing, limit));
        say!("weft serves {} at http://{address}", serving.names.join(", "));
        if !quiet {
            tell!("OpenAI's protocol is at /v1, a playground at /; Ctrl-C ends the server");
        }
        engine::run(&mut models, &serving, |reason| tell!("error: {reason}"));
        let _ = ended.send(true);
        match connections.join() {
            Ok(Ok(())) => Ok(ExitCode::SUCCESS),
            Ok(Err(e)) => Err(Error::Run(format!("the connections ended: {e}"))),
            Err(_) => Err(Error::Run("the connections ended because of a bug in Weft".to_owned())),
        }
    }

    /// Opens the base and its adapters.
    fn models(&self, adapters: Vec<(String, PathBuf)>) -> Result<(Models, Serving)> {
        let base = self.base_args().open()?;
        let usual = self.sampling.sampling(&base)?.gen_length;
        if usual > self.max_gen_length {
            let most = self.max_gen_length;
            return Err(Error::Usage(format!("--gen-length {usual} is more than --max-gen-length {most}; raise that")));
        }
        let limits = self.limits(&base);
        let Base { model, text, name: base_name, .. } = base;
        let (mut named, quantization) = (vec![(name_of(&self.model), model.config)], model.quantization());
        let mut models = Models::new(model);
        for (name, folder) in adapters {
            let config = models.attach(&folder)?;
            warn_of_base(&folder, &base_name);
            warn_of_bits(&folder, quantization);
            named.push((name, config));
        }
        Ok((models, Serving::new(named, text, self.sampling.given(), limits)))
    }

    /// Listens at the address that was asked for.
    fn listen(&self) -> Result<(TcpListener, SocketAddr)> {
        let (host, port) = (self.host.trim_matches(['[', ']']), self.port);
        let cannot = |e: std::io::Error| {
            Error::Usage(format!("cannot listen on {host}, port {port}: {e}; give another --host or --port"))
        };
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(cannot)?.collect();
        let listener = TcpListener::bind(&*addresses).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok((listener, address))
    }

    fn base_args(&self) -> ModelArgs {
        ModelArgs {
            model: self.model.clone(),
            adapter: None,
            precision: self.precision,
            facts: self.facts.clone(),
            chat_template_kwargs: self.chat_template_kwargs.clone(),
            special_tokens: self.special_tokens,
        }
    }

    fn limits(&self, base: &Base) -> Limits {
        let trained = positions::trained(base.config()).map(|(positions, _)| positions as usize);
        let length = self.max_length.or(trained).unwrap_or(MOST_TOKENS);
        if let Some((trained, most)) = trained.zip(self.max_length).filter(|(trained, most)| most > trained) {
            tell!("warning: --max-length {most} is more than the {trained} positions that the model was trained for");
        }
        Limits { batch_size: self.batch_size, queue: self.queue, gen_length: self.max_gen_length, length }
    }
}

/// Accepts no more requests. If there is a limit, in seconds, what isn't answered by then is given up.
fn close(serving: Arc<Serving>, limit: Option<u64>) {
    serving.queue.close();
    let within = limit.map_or(String::new(), |secs| format!(" within {secs} s"));
    tell!("finishing the accepted requests{within}; a second signal stops at once");
    if let Some(secs) = limit {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(secs));
            serving.queue.abandon();
        });
    }
}

/// The adapters' names and folders; two models can't have the same name.
fn named_adapters(given: &[String], model: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut adapters: Vec<(String, PathBuf)> = vec![];
    for given in given {
        let (name, folder) = match given.split_once('=').filter(|_| !Path::new(given).exists()) {
            Some((name, folder)) => (name.to_owned(), PathBuf::from(folder)),
            None => (name_of(Path::new(given)), PathBuf::from(given)),
        };
        let is_taken = name == name_of(model) || adapters.iter().any(|(other, _)| *other == name);
        if name.is_empty() || is_taken {
            let folder = folder.display();
            let reason = if is_taken { "is the name of another model" } else { "is no name" };
            return Err(Error::Usage(format!("--adapter {given}: {name:?} {reason}; give --adapter NAME={folder}")));
        }
        adapters.push((name, folder));
    }
    Ok(adapters)
}

/// The name of a model: a hub id as it is, or the last part of a folder's path that isn't `adapter` or `checkpoint`, which is
/// the run's name in runs/NAME/adapter.
fn name_of(path: &Path) -> String {
    if !path.exists() {
        return path.display().to_string();
    }
    let parts = path.components().rev().filter_map(|part| part.as_os_str().to_str());
    let name = parts.into_iter().find(|part| !["adapter", "checkpoint", ".", "/"].contains(part));
    name.map_or_else(|| path.display().to_string(), str::to_owned)
}
