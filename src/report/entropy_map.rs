//! A page that shows the entropies of some texts: each answer token is coloured by how uncertain the model is about it,
//! together with the rate at which WeFT masks it.

use std::fmt::Write;

use super::chart::escape;
use super::page::{page, turns};
use crate::data::chat_template::TextModel;
use crate::data::turns;
use crate::data::{Example, Message};
use crate::model::batch::{AttentionKind, Batch};
use crate::model::block::Transformer;
use crate::noising::entropy::{AnswerEntropy, Reference, Transform, relative_uncertainty};

/// A text with the results of pass 1 for its answer.
#[derive(Clone, Debug)]
pub struct InspectedText {
    /// The turns of the prompt.
    pub prompt: Vec<Message>,
    /// The tokens of the answer.
    pub tokens: Vec<ShownToken>,
    /// The entropy `H_i` of each token, in nats.
    pub token_entropy: Vec<f32>,
    /// The relative uncertainty `r_i` of each token.
    pub relative_uncertainty: Vec<f32>,
    /// The tokens per block, if each block was predicted given the clean ones before it.
    pub block_length: Option<usize>,
}

/// A token as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownToken {
    /// Its text. If the token is a part of a character, it is the whole character.
    pub text: String,
    /// Which part of the text the token is, counted from 1, and of how many.
    pub part: [usize; 2],
}

/// The most tokens that are joined into characters: a character has at most four bytes.
const MOST_PARTS: usize = 6;

/// The tokens as they are shown. Tokens that are parts of one character are decoded together.
pub fn shown_tokens(text: &TextModel, ids: &[u32]) -> Vec<ShownToken> {
    let (mut shown, mut start) = (vec![], 0);
    let is_broken = |ids: &[u32]| text.decode_canvas(ids).contains(char::REPLACEMENT_CHARACTER);
    while start < ids.len() {
        let most = (start + MOST_PARTS).min(ids.len());
        let whole = (start + 1..=most).find(|end| !is_broken(&ids[start..*end]));
        // Bytes that form no character stay as they are.
        let end = whole.unwrap_or(start + 1);
        let text = text.decode_canvas(&ids[start..end]);
        shown.extend((start..end).map(|i| ShownToken { text: text.clone(), part: [i - start + 1, end - start] }));
        start = end;
    }
    shown
}

/// Runs pass 1 on an example, with its whole answer masked. If the model was trained by block diffusion, each block is
/// predicted given the clean blocks before it.
pub fn inspect(model: &Transformer, text: &TextModel, example: &Example, transform: Transform) -> InspectedText {
    let Example { prompt_ids, answer_ids } = example;
    let clean = [prompt_ids.as_slice(), answer_ids].concat();
    let mut ids = clean.clone();
    ids[prompt_ids.len()..].fill(model.config.mask_token_id);
    let in_blocks = |block_length| AttentionKind::BlockDiffusion { block_length };
    let kind = model.config.block_length.map_or(AttentionKind::Bidirectional, in_blocks);
    let rows: Vec<usize> = (prompt_ids.len()..ids.len()).collect();
    let token_entropy = model.entropy(&Batch::pack_as(kind, [[ids.as_slice(), &clean]]), &rows);
    let answer = AnswerEntropy { token_entropy: &token_entropy, num_supervised: answer_ids.len() };
    let relative_uncertainty = relative_uncertainty(&[answer], transform, Reference::Sequence).remove(0);
    InspectedText {
        prompt: turns::turns(text, prompt_ids),
        tokens: shown_tokens(text, answer_ids),
        token_entropy,
        relative_uncertainty,
        block_length: model.config.block_length,
    }
}

/// The page for a model and some texts.
pub fn entropy_page(model: &str, texts: &[InspectedText], transform: Transform) -> String {
    let all = || texts.iter().flat_map(|t| &t.token_entropy);
    let largest = all().copied().fold(0.0, f32::max);
    let title = format!("Entropies of {model}");
    let name = serde_json::to_value(transform).expect("a name is JSON");
    let mut body = format!(
        "<h1>{}</h1>\n<p class=\"note\">Each answer token's entropy where the whole answer is masked (pass 1), and the \
         rate t_i = 1 - (1 - t)^r_i at which WeFT ({}) masks it at time t. Rest the pointer on a token, or touch it.</p>\n\
         <p class=\"options\"><label>colour <select id=\"colour\"><option value=\"zero\">entropy, from 0</option>\
         <option value=\"lowest\">entropy, from the lowest</option><option value=\"rate\">rate at time t</option>\
         </select></label> <label>t <input id=\"t\" type=\"range\" min=\"0.01\" max=\"0.99\" step=\"0.01\" value=\"0.5\">\
         <output id=\"t-shown\">0.50</output></label></p>\n<div class=\"scale\"></div><p class=\"note ends\"><span id=\"low\">0 nats</span><span id=\"high\">{largest:.2} nats</span></p>\n",
        escape(&title),
        escape(name.as_str().unwrap_or_default())
    );
    for (i, text) in texts.iter().enumerate() {
        let count = text.tokens.len();
        let mean = text.token_entropy.iter().map(|h| f64::from(*h)).sum::<f64>() / count.max(1) as f64;
        let blocks = |length| format!("; each block of {length} tokens is given the blocks before it");
        let blocks = text.block_length.map(blocks).unwrap_or_default();
        let _ = writeln!(
            body,
            "<h2>Text {}</h2>\n<p class=\"note\">{count} answer tokens, mean entropy {mean:.3} nats{blocks}</p>\n{}\
             <div class=\"text\">{}</div>",
            i + 1,
            turns(&text.prompt),
            tokens(text, largest)
        );
    }
    body.push_str(RATES);
    page(&title, &body)
}

fn tokens(text: &InspectedText, largest: f32) -> String {
    let mut html = String::new();
    for ((token, entropy), r) in text.tokens.iter().zip(&text.token_entropy).zip(&text.relative_uncertainty) {
        // The page's style turns it into a colour on which text is readable in both schemes.
        let share = if largest > 0.0 { (entropy / largest).clamp(0.0, 1.0) } else { 0.0 };
        let ShownToken { text: token, part: [part, parts] } = token;
        let shown = if token.trim_matches(' ').is_empty() { token.replace(' ', "\u{b7}") } else { token.clone() };
        // A line break is shown as a sign and also breaks the line.
        let mut shown = escape(&shown).replace('\n', "\u{21b5}\n");
        if *parts > 1 {
            // A character is shown at the first of its parts.
            shown = format!("{}<sup>{part}/{parts}</sup>", if *part == 1 { &shown } else { "" });
        }
        let of_parts = if *parts > 1 { format!(" data-part=\"{part} of {parts}\"") } else { String::new() };
        let _ = write!(
            html,
            "<span class=\"token\" style=\"--share:{share:.3}\" data-h=\"{entropy:.4}\" data-r=\"{r:.4}\" data-token=\"{}\"{of_parts} \
             data-tip=\"\">{shown}</span>",
            escape(token)
        );
    }
    html
}

/// Shows each token's numbers at the chosen time, and colours the tokens by the chosen quantity.
const RATES: &str = concat!("<script>\n", include_str!("rates.js"), "</script>\n");
