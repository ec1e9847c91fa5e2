//! `weft likelihood`: bounds the negative log-likelihood of given answers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use weft::counted::counted;
use weft::data::notes::Notes;
use weft::data::row_range::RowRange;
use weft::data::settings::{OnRow, RowPolicy};
use weft::data::sources::Source;
use weft::data::{self, Example, Reading};
use weft::error::{Error, Result};
use weft::eval::likelihood::{MonteCarlo, NllBound, nll_bounds, save};

use super::progress::bar;
use super::rows;

/// Bound the negative log-likelihood of given answers
///
/// Uses LLaDA's Monte Carlo estimator, which masks some tokens of each answer and predicts them, many times. The bound
/// is an upper bound per answer in nats, the end token included. The number after +- is the standard error over the
/// masks that were drawn, not over the rows. A model whose config.json names a block length is bounded block by block.
#[derive(Args)]
#[command(
    after_help = "Example:\n  weft likelihood --model tiny-base --adapter runs/quickstart/adapter --data runs/quickstart/data/held-out.jsonl --limit 64 --out bounds.jsonl"
)]
pub struct Likelihood {
    #[command(flatten)]
    model: super::ModelArgs,
    /// Rows as weft train reads them: JSONL, JSON, parquet, CSV, a quoted pattern of files, or a data set of the hub
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The split where --data is a folder or a data set of the hub; default: train
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// What to do with rows that can't be used, like a recipe's data.on_bad_row: stop, with an error that lists them, or skip,
    /// which counts them; default: stop
    #[arg(long, value_name = "WHAT", value_parser = super::on_bad_row)]
    on_bad_row: Option<OnRow>,
    /// Masks drawn per answer; the error falls with the square root of their number
    #[arg(long, value_name = "N", default_value_t = MonteCarlo::default().mc_samples)]
    mc_samples: usize,
    /// Read only the first N rows; default: all
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The seed of the random draws
    #[arg(long, value_name = "N", default_value_t = MonteCarlo::default().seed)]
    seed: u64,
    /// Write one row per answer with line, nll_bound, standard_error and answer_tokens to this new file (JSONL)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the bounds as one JSON object
    #[arg(long)]
    json: bool,
}

impl Likelihood {
    pub fn run(self, quiet: bool) -> Result<ExitCode> {
        self.out.iter().try_for_each(|out| super::check_new(out))?;
        super::warn_of_split(self.split.as_ref(), &self.data);
        let base = self.model.open()?;
        let source = Source {
            path: self.data.clone().into(),
            split: self.split.clone(),
            rows: self.limit.map(RowRange::first),
            policy: RowPolicy { bad_row: self.on_bad_row.unwrap_or_default(), ..RowPolicy::default() },
            ..Source::default()
        };
        let mask_token_id = base.model.config.mask_token_id;
        let reading = Reading { text: &base.text, mask_token_id, max_seq_len: usize::MAX, cache: None };
        let (numbered, notes) = data::numbered_with_notes(&source, &reading)?;
        let (lines, examples): (Vec<usize>, Vec<Example>) = numbered.into_iter().unzip();
        if examples.is_empty() {
            let skipped = notes.lines().into_iter().next().map(|line| format!(" ({line})")).unwrap_or_default();
            return Err(Error::Usage(format!(
                "{} holds no answer to bound{skipped}; give a row per answer",
                source.name()
            )));
        }
        notes.warning(&source.name()).into_iter().for_each(|warning| tell!("warning: {warning}"));
        let settings = MonteCarlo { mc_samples: self.mc_samples, seed: self.seed, ..MonteCarlo::default() };
        let bounds = nll_bounds(&base.model, &examples, settings, &bar(quiet))?;
        if let Some(out) = &self.out {
            save(out, &lines, &bounds)?;
        }
        self.print(&bounds, &notes);
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, bounds: &[NllBound], notes: &Notes) {
        let answers = bounds.len() as f64;
        let tokens = bounds.iter().map(|b| b.answer_tokens).sum::<usize>();
        let nats: f64 = bounds.iter().map(|b| b.nll_bound).sum();
        // The masks of different answers are drawn independently.
        let error = bounds.iter().map(|b| b.standard_error.powi(2)).sum::<f64>().sqrt();
        if self.json {
            let per = |count: f64| json!({ "nats": nats / count, "standard_error": error / count });
            say!(
                "{}",
                json!({
                    "answers": bounds.len(),
                    "answer_tokens": tokens,
                    "mc_samples": self.mc_samples,
                    "per_answer": per(answers),
                    "per_token": per(tokens as f64),
                    "perplexity": (nats / tokens as f64).exp(),
                    "notes": notes,
                })
            );
            return;
        }
        let [answers_told, tokens_told] = [(bounds.len(), "answer"), (tokens, "token")].map(|(n, of)| counted(n, of));
        say!("{answers_told}, {tokens_told}, {} each", counted(self.mc_samples, "mask"));
        rows::lines_of_options(notes).iter().for_each(|line| say!("  {line}"));
        say!("at most {:.4} +- {:.4} nats per answer", nats / answers, error / answers);
        say!("at most {:.4} +- {:.4} nats per token", nats / tokens as f64, error / tokens as f64);
        say!("perplexity at most {:.4} per token", (nats / tokens as f64).exp());
        if let Some(out) = &self.out {
            say!("bounds are in {}", out.display());
        }
    }
}
