//! Pretraining of a small model on generated text: texts, tokenizer, a new network, and the same loop as fine-tuning.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_kernels::weight::Dtype;

use super::resolved::Resolved;
use super::run::{Options, Summary, train};
use super::settings::TrainTable;
use super::{Job, Trainer};
use crate::data::chat_template::TextModel;
use crate::data::mixing::Mixture;
use crate::data::packing::Padding;
use crate::data::synthetic::{self, Choices, Difficulty, Side};
use crate::data::{Conversation, Example, Message, tokenizer};
use crate::device;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::model::checkpoint;
use crate::model::new_config::{Sizes, new_llada};
use crate::objective::Objective;
use crate::settings;

/// The number of texts that the tokenizer is trained on.
const TOKENIZER_TEXTS: u64 = 20_000;
/// The index of the first held-out text; training texts have lower ones.
const FIRST_HELD_OUT: u64 = 1 << 40;

/// A pretraining recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PretrainRecipe {
    /// The model's sizes.
    pub model: ModelTable,
    /// The amount and kinds of generated text.
    pub data: DataTable,
    /// The objective that is trained.
    pub objective: Objective,
    /// How it is trained.
    pub train: TrainTable,
}

/// `[model]`: the model's sizes, and where it is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelTable {
    /// The folder of the finished model.
    pub output: PathBuf,
    /// Width.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Width of the MLP's hidden layer.
    pub mlp_hidden_size: usize,
    /// Size of the vocabulary, including special tokens.
    pub vocab_size: usize,
    /// The longest sequence, as stated in config.json.
    pub max_seq_len: usize,
}

/// `[data]`: how much text of which kinds is generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataTable {
    /// The number of training texts.
    pub texts: u64,
    /// The number of held-out texts.
    pub held_out_texts: u64,
    /// Percentage of the texts that are bare Sudoku grids.
    pub sudoku: usize,
    /// Percentage of the texts that are lines of arithmetic.
    pub arithmetic: usize,
    /// Percentage of the texts that are word problems and number puzzles; the rest are turns of a chat about
    /// arithmetic.
    pub puzzles: usize,
    /// Percentage of the texts whose question is never masked.
    pub questions_clear: usize,
}

impl Default for ModelTable {
    fn default() -> Self {
        Self {
            output: PathBuf::from("runs/tiny-base/model"),
            width: 192,
            layers: 6,
            heads: 6,
            mlp_hidden_size: 512,
            vocab_size: 1024,
            max_seq_len: 512,
        }
    }
}

impl Default for DataTable {
    fn default() -> Self {
        Self { texts: 100_000, held_out_texts: 256, sudoku: 50, arithmetic: 15, puzzles: 20, questions_clear: 50 }
    }
}

/// A generated text: a question and what follows it.
struct Text {
    question: String,
    answer: String,
    is_chat: bool,
}

impl PretrainRecipe {
    /// Reads a recipe, and the settings that override it.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self> {
        settings::parse(&settings::recipe_file::read_for::<Self>(path, settings)?, path, settings, Self::problems)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.train.problems();
        let ModelTable { width, heads, layers, mlp_hidden_size, vocab_size, .. } = self.model;
        if heads == 0 || width % (2 * heads.max(1)) != 0 || layers == 0 || mlp_hidden_size == 0 {
            problems.push(format!("model: width {width} does not divide into {heads} even heads"));
        }
        if vocab_size < 300 {
            problems.push(format!("model.vocab_size = {vocab_size} holds no more than the bytes; give at least 300"));
        }
        let DataTable { sudoku, arithmetic, puzzles, texts, .. } = self.data;
        if sudoku + arithmetic + puzzles > 100 {
            problems.push(format!("data: {sudoku} + {arithmetic} + {puzzles} percent add up to more than 100"));
        }
        if texts == 0 {
            problems.push("data.texts = 0; give at least 1".to_owned());
        }
        problems
    }
}

/// Trains the tokenizer and the model, and saves both to `model.output`.
///
/// # Errors
/// Those of [`train`]; files that can't be written.
pub fn pretrain(recipe: &PretrainRecipe, options: Options) -> Result<Summary> {
    let seed = recipe.train.seed;
    let text_of = |index| text(&recipe.data, seed, index);
    // 1. The tokenizer. Its folder lies within the run's until the model is finished.
    let folder = recipe.train.output.join("tokenizer");
    let texts: Vec<String> = (0..TOKENIZER_TEXTS.min(recipe.data.texts))
        .map(text_of)
        .map(|t| format!("{}{}", t.question, t.answer))
        .collect();
    tokenizer::train(&folder, &texts, recipe.model.vocab_size)?;
    let text_model = TextModel::open(&folder)?;
    // 2. The texts as examples.
    let examples = |from: u64, count: u64| -> Result<Vec<Example>> {
        (from..from + count).map(|index| example(&recipe.data, &text_model, seed, index)).collect()
    };
    let train_examples = examples(0, recipe.data.texts)?;
    let held_out = examples(FIRST_HELD_OUT, recipe.data.held_out_texts)?;
    // 3. The model.
    let token = |name: &str| text_model.token_id(name).expect("the tokenizer was trained with its special tokens");
    let ModelTable { width, layers, heads, mlp_hidden_size, max_seq_len, .. } = recipe.model;
    let config = new_llada(Sizes {
        width,
        layers,
        heads,
        mlp_hidden_size,
        vocab_size: text_model.vocab_size(),
        max_seq_len,
        mask_token_id: token(tokenizer::MASK),
        eos_token_id: token(tokenizer::END_OF_TEXT),
    })
    .map_err(|e| Error::Usage(format!("[model]: {e}")))?;
    let job = Job {
        examples: train_examples,
        mixture: Mixture::default(),
        objective: recipe.objective,
        padding: Padding::None,
        eos_token_id: token(tokenizer::END_OF_TEXT),
        settings: recipe.train.clone(),
    };
    let mut fresh = checkpoint::fresh(&config, seed);
    fresh.put_on(&device::current());
    let mut trainer = Trainer::new(fresh, job);
    let [own, defaults] =
        [recipe, &PretrainRecipe::default()].map(|r| serde_json::to_value(r).expect("a recipe is JSON"));
    let resolved = Resolved { recipe: own, defaults };
    let rows = (&held_out[..], recipe.train.output.as_path());
    let summary = train(&mut trainer, rows, &resolved, options, |_| ControlFlow::Continue(()))?;
    // 4. The finished model.
    checkpoint::save(&recipe.model.output, &trainer.model, &config, Dtype::Bf16)?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        crate::files::write_whole(&recipe.model.output.join(file), read_text(&folder.join(file))?.as_bytes())?;
    }
    Ok(summary)
}

fn example(data: &DataTable, model: &TextModel, seed: u64, index: u64) -> Result<Example> {
    let Text { question, answer, is_chat } = text(data, seed, index);
    let is_clear = Choices::new(seed ^ 1, index).below(100) < data.questions_clear;
    let Example { prompt_ids, answer_ids } = match is_chat {
        true => {
            let prompt = vec![Message { role: "user".to_owned(), content: question }];
            model.example(&Conversation { prompt, answer })?
        }
        false => {
            let mut answer_ids = model.encode(&answer)?;
            answer_ids.extend(model.token_id(tokenizer::END_OF_TEXT));
            Example { prompt_ids: model.encode(&question)?, answer_ids }
        }
    };
    match is_clear {
        true => Ok(Example { prompt_ids, answer_ids }),
        false => Ok(Example { prompt_ids: vec![], answer_ids: [prompt_ids, answer_ids].concat() }),
    }
}

/// The text number `index` for a seed.
fn text(data: &DataTable, seed: u64, index: u64) -> Text {
    let mut choices = Choices::new(seed, index);
    let kind = choices.below(100);
    let plain = |question: String, answer: String| Text { question, answer, is_chat: false };
    if kind < data.sudoku {
        let num_empty = choices.between(4, 11) as usize;
        let sudoku = synthetic::sudoku(&mut choices, num_empty, Side::Train);
        let (before, between) = *choices.one_of(&[
            &("Sudoku ", " = "),
            &("Sudoku\n", "\nSolution\n"),
            &("puzzle: ", "\nsolved: "),
            &("Fill the grid ", " so that every row, column and box holds 1 2 3 4.\n"),
        ]);
        return plain(format!("{before}{}{between}", sudoku.puzzle), sudoku.solution);
    }
    if kind < data.sudoku + data.arithmetic {
        let lines: Vec<String> = (0..4).map(|_| synthetic::arithmetic(&mut choices)).collect();
        let text = lines.join("\n");
        let (question, answer) = text.split_once("= ").expect("every line has a result");
        return plain(format!("{question}= "), answer.to_owned());
    }
    if kind < data.sudoku + data.arithmetic + data.puzzles {
        if choices.below(3) == 0 {
            let puzzle =
                synthetic::countdown(&mut choices, Difficulty { largest: 20, is_in_order: false }, Side::Train);
            let [a, b, c] = puzzle.numbers;
            let question = format!("Numbers: [{a}, {b}, {c}]\nTarget: {}\n", puzzle.target);
            return plain(question, format!("{} = {}", puzzle.expression, puzzle.target));
        }
        let (question, answer) = synthetic::word_problem(&mut choices);
        return plain(format!("Question: {question}\nAnswer: "), answer);
    }
    let line = synthetic::arithmetic(&mut choices);
    let (left, result) = line.split_once(" = ").expect("every line has a result");
    let question = choices.one_of(&["What is ", "Compute the following: ", "Please solve "]);
    let answer = format!("<answer>\n{result}\n</answer>");
    Text { question: format!("{question}{left}"), answer, is_chat: true }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    /// Rows of the first held-out texts that `row` takes, as JSONL.
    fn rows(count: usize, row: impl Fn(Text) -> Option<Value>) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/tiny-base.toml");
        let recipe = PretrainRecipe::read(&path, &[]).expect("the recipe is whole");
        let held_out = (FIRST_HELD_OUT..).map(|index| text(&recipe.data, recipe.train.seed, index));
        held_out.filter_map(row).take(count).map(|row| format!("{row}\n")).collect()
    }

    /// The rows on which comparisons measure what the embedded base forgets: texts and chats of the kinds that it was trained
    /// on, but which it never saw.
    #[test]
    fn the_assets_are_held_out_texts_of_the_embedded_base() {
        let texts = rows(128, |Text { question, answer, is_chat }| {
            (!is_chat).then(|| json!({ "text": format!("{question}{answer}") }))
        });
        let sums = rows(96, |Text { question, answer, is_chat }| {
            let result: i64 = answer.lines().nth(1)?.parse().ok()?;
            let turns = [("user", &question), ("assistant", &answer)];
            let messages = turns.map(|(role, content)| json!({ "role": role, "content": content }));
            is_chat.then(|| json!({ "messages": messages, "question": question, "ground_truth": result }))
        });
        for (name, expected) in [("tiny-base-texts.jsonl", texts), ("tiny-base-sums.jsonl", sums)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name);
            assert_eq!(read_text(&path).unwrap_or_default(), expected, "{}", path.display());
        }
    }
}
