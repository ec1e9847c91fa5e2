//! The network and LLaDA's loop as slowly and plainly as can be, in f64, one sequence at a time: what the fast ones are
//! held against. A stale row's keys and values are those of an earlier pass.

#![allow(dead_code)] // each test binary uses a part

use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use weft::model::block::{Linear, ParamId, Transformer};
use weft::model::checkpoint;
use weft::model::config::ModelConfig;
use weft::sampler::cache::Caching;
use weft::sampler::generate::Sampling;

type Matrix = Vec<Vec<f64>>;

/// A model of numbers large enough for every part of the layout to count: no gain is 1, no bias 0.
pub fn random(fields: &Value) -> (Transformer, ModelConfig) {
    let config = ModelConfig::parse(&fields.to_string(), Path::new("config.json")).unwrap_or_else(|e| panic!("{e}"));
    let mut model = checkpoint::fresh(&config, 7);
    for param in &mut model.params {
        let is_bias = param.name.ends_with(".bias");
        for (i, x) in param.weight.make_trainable().iter_mut().enumerate() {
            let wave = ((i * 7 + param.name.len()) as f32 * 0.7).sin();
            *x = match (param.shape.len(), is_bias) {
                (1, true) => 0.4 * wave,
                (1, false) => 1.0 + 0.4 * wave,
                _ => *x * 6.0,
            };
        }
    }
    (model, config)
}

/// A pass over a sequence.
pub struct Pass {
    /// The logits that predict each token, empty where its row wasn't computed.
    pub logits: Matrix,
    /// Keys and values of every row, layer by layer.
    kept: Vec<[Matrix; 2]>,
}

/// A pass over `fresh` rows of a sequence; the others are those of an `earlier` one, which a first pass has none of.
pub fn forward(model: &Transformer, ids: &[u32], fresh: Range<usize>, earlier: Option<&Pass>) -> Pass {
    let c = &model.config;
    let (dim, group) = (c.head_dim, c.heads / c.kv_heads);
    let embedding = matrix(model, model.embedding);
    let mut x: Matrix = fresh.clone().map(|i| embedding[ids[i] as usize].clone()).collect();
    let mut kept = vec![];
    for (layer, block) in model.blocks.iter().enumerate() {
        let normed: Matrix = x.iter().map(|row| norm(model, row, block.attn_norm)).collect();
        let [mut q, mut k, v] = block.qkv.each_ref().map(|of| apply(model, of, &normed));
        if let Some([q_gain, k_gain]) = block.qk_norm {
            for (rows, gain) in [(&mut q, q_gain), (&mut k, k_gain)] {
                let of_heads = |row: &Vec<f64>| row.chunks(dim).flat_map(|head| norm(model, head, gain)).collect();
                *rows = rows.iter().map(of_heads).collect();
            }
        }
        for (i, position) in fresh.clone().enumerate() {
            turn(&mut q[i], position, dim, c.rope_theta);
            turn(&mut k[i], position, dim, c.rope_theta);
        }
        let of_all = |part: usize, rows: Matrix| {
            let mut all = earlier.map_or(vec![vec![]; ids.len()], |pass| pass.kept[layer][part].clone());
            all.splice(fresh.clone(), rows);
            all
        };
        let (keys, values) = (of_all(0, k), of_all(1, v));
        let attended: Matrix = q
            .iter()
            .map(|q| (0..c.heads).flat_map(|h| attend(q, [&keys, &values], [h, h / group, dim])).collect())
            .collect();
        add(&mut x, apply(model, &block.attn_out, &attended));
        let normed: Matrix = x.iter().map(|row| norm(model, row, block.ff_norm)).collect();
        let [gate, up] = block.gate_up.each_ref().map(|of| apply(model, of, &normed));
        let silu = |(g, u): (&f64, &f64)| g / (1.0 + (-g).exp()) * u;
        let hidden = gate.iter().zip(&up).map(|(g, u)| g.iter().zip(u).map(silu).collect()).collect::<Matrix>();
        add(&mut x, apply(model, &block.down, &hidden));
        kept.push([keys, values]);
    }
    let normed: Matrix = x.iter().map(|row| norm(model, row, model.final_norm)).collect();
    let mut own = vec![vec![]; ids.len()];
    own.splice(fresh.clone(), apply(model, &model.head, &normed));
    // Where logits are shifted, those of a row predict the next token; the first row's predict the first one too.
    let shift = usize::from(c.logits_shifted);
    let logits = (0..ids.len()).map(|i| own[i.saturating_sub(shift)].clone()).collect();
    Pass { logits, kept }
}

/// The logits that predict each token of a noised sequence in block diffusion, by the definition: row i of `[x_t ; x_0]`
/// sees row j where both are of one half and one block, or i is noised and j a clean one of an earlier block, or both are
/// clean and j is of an earlier block.
pub fn block_diffusion(model: &Transformer, halves: [&[u32]; 2], block_length: usize) -> Matrix {
    let len = halves[0].len();
    let sees = |i: usize, j: usize| {
        let ([i_noised, j_noised], [i, j]) = ([i, j].map(|row| row < len), [i, j].map(|row| row % len / block_length));
        (i_noised == j_noised && i == j) || (i_noised && !j_noised && j < i) || (!i_noised && !j_noised && j <= i)
    };
    let positions: Vec<usize> = (0..2 * len).map(|row| row % len).collect();
    let own = rows_of(model, &halves.concat(), &positions, sees);
    // Where logits are shifted, a block's first token is predicted by the clean row before it.
    let row = |i: usize| match model.config.logits_shifted && i > 0 {
        true if i.is_multiple_of(block_length) => len + i - 1,
        true => i - 1,
        false => i,
    };
    (0..len).map(|i| own[row(i)].clone()).collect()
}

/// The loop of block-causal attention at temperature 0, every row computed at every step.
pub fn denoise_in_blocks(model: &Transformer, prompt: &[u32], sampling: &Sampling) -> Vec<u32> {
    let (mask, length) = (model.config.mask_token_id, sampling.block_length);
    let end = prompt.len() + sampling.gen_length;
    let mut ids = prompt.to_vec();
    ids.resize(end.next_multiple_of(length), mask);
    for start in (prompt.len() / length * length..ids.len()).step_by(length) {
        let masked = |ids: &[u32]| (start..start + length).filter(|i| ids[*i] == mask).collect::<Vec<_>>();
        let all = masked(&ids).len();
        let steps = (all * sampling.diffusion_steps).div_ceil(sampling.gen_length).clamp(1, all.max(1));
        for step in 0..steps {
            let positions: Vec<usize> = (0..ids.len()).collect();
            let own = rows_of(model, &ids, &positions, |i, j| j / length <= i / length);
            let shift = usize::from(model.config.logits_shifted);
            let mut found: Vec<(f64, usize, u32)> =
                masked(&ids).into_iter().map(|i| best(&own[i.saturating_sub(shift)], i, mask)).collect();
            found.sort_by(|a, b| b.0.total_cmp(&a.0));
            let keep = all / steps + usize::from(step < all % steps);
            found.iter().take(keep).for_each(|(_, i, id)| ids[*i] = *id);
        }
    }
    ids.truncate(end);
    ids
}

/// The logits of every row, where row i attends to row j if `sees(i, j)`.
fn rows_of(model: &Transformer, ids: &[u32], positions: &[usize], sees: impl Fn(usize, usize) -> bool) -> Matrix {
    let c = &model.config;
    let (dim, group) = (c.head_dim, c.heads / c.kv_heads);
    let embedding = matrix(model, model.embedding);
    let mut x: Matrix = ids.iter().map(|id| embedding[*id as usize].clone()).collect();
    for block in &model.blocks {
        let normed: Matrix = x.iter().map(|row| norm(model, row, block.attn_norm)).collect();
        let [mut q, mut k, v] = block.qkv.each_ref().map(|of| apply(model, of, &normed));
        if let Some([q_gain, k_gain]) = block.qk_norm {
            for (rows, gain) in [(&mut q, q_gain), (&mut k, k_gain)] {
                let of_heads = |row: &Vec<f64>| row.chunks(dim).flat_map(|head| norm(model, head, gain)).collect();
                *rows = rows.iter().map(of_heads).collect();
            }
        }
        for (i, position) in positions.iter().enumerate() {
            turn(&mut q[i], *position, dim, c.rope_theta);
            turn(&mut k[i], *position, dim, c.rope_theta);
        }
        let attended = |(i, q): (usize, &Vec<f64>)| -> Vec<f64> {
            let seen =
                |rows: &Matrix| -> Matrix { (0..ids.len()).filter(|j| sees(i, *j)).map(|j| rows[j].clone()).collect() };
            let (keys, values) = (seen(&k), seen(&v));
            (0..c.heads).flat_map(|h| attend(q, [&keys, &values], [h, h / group, dim])).collect()
        };
        let attended: Matrix = q.iter().enumerate().map(attended).collect();
        add(&mut x, apply(model, &block.attn_out, &attended));
        let normed: Matrix = x.iter().map(|row| norm(model, row, block.ff_norm)).collect();
        let [gate, up] = block.gate_up.each_ref().map(|of| apply(model, of, &normed));
        let silu = |(g, u): (&f64, &f64)| g / (1.0 + (-g).exp()) * u;
        let hidden = gate.iter().zip(&up).map(|(g, u)| g.iter().zip(u).map(silu).collect()).collect::<Matrix>();
        add(&mut x, apply(model, &block.down, &hidden));
    }
    let normed: Matrix = x.iter().map(|row| norm(model, row, model.final_norm)).collect();
    apply(model, &model.head, &normed)
}

/// LLaDA's loop at temperature 0 with caches and threshold: the sequence, passes and rows.
pub fn denoise(model: &Transformer, prompt: &[u32], sampling: &Sampling) -> (Vec<u32>, u64, u64) {
    let mask = model.config.mask_token_id;
    let (start, block_length) = (prompt.len(), sampling.block_length);
    let mut ids = [prompt, &vec![mask; sampling.gen_length]].concat();
    let (mut passes, mut rows) = (0, 0);
    for block in 0..sampling.gen_length / block_length {
        let block = start + block * block_length..start + (block + 1) * block_length;
        let before = block.start.saturating_sub(usize::from(model.config.logits_shifted));
        let steps = sampling.diffusion_steps / (sampling.gen_length / block_length);
        let mut first: [Option<Pass>; 2] = [None, None];
        let mut step = 0;
        while block.clone().any(|i| ids[i] == mask) {
            let fresh = match (&first[0], sampling.cache) {
                (None, _) | (_, Caching::None) => 0..ids.len(),
                (_, Caching::Prefix) => before..ids.len(),
                (_, Caching::Dual) => before..block.end,
            };
            let mut pass = |ids: &[u32], first: &mut Option<Pass>| {
                let pass = forward(model, ids, fresh.clone(), first.as_ref());
                (passes, rows) = (passes + 1, rows + fresh.len() as u64);
                let logits = pass.logits.clone();
                first.get_or_insert(pass);
                logits
            };
            let mut logits = pass(&ids, &mut first[0]);
            if sampling.cfg_scale > 0.0 {
                let without = [&vec![mask; start], &ids[start..]].concat();
                for (l, u) in logits.iter_mut().flatten().zip(pass(&without, &mut first[1]).iter().flatten()) {
                    *l = u + (sampling.cfg_scale + 1.0) * (*l - u);
                }
            }
            let mut found: Vec<(f64, usize, u32)> =
                block.clone().filter(|i| ids[*i] == mask).map(|i| best(&logits[i], i, mask)).collect();
            found.sort_by(|a, b| b.0.total_cmp(&a.0));
            let keep = match sampling.confidence_threshold {
                Some(threshold) => found.iter().filter(|f| f.0 >= threshold).count().max(1),
                None => block_length / steps + usize::from(step < block_length % steps),
            };
            found.iter().take(keep).for_each(|(_, i, id)| ids[*i] = *id);
            step += 1;
        }
    }
    (ids, passes, rows)
}

/// The likeliest token but the mask with its probability.
fn best(logits: &[f64], at: usize, mask: u32) -> (f64, usize, u32) {
    let total: f64 = logits.iter().map(|z| z.exp()).sum();
    let tokens = (0..logits.len() as u32).filter(|v| *v != mask);
    let likeliest = tokens.max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize])).expect("a vocabulary");
    (logits[likeliest as usize].exp() / total, at, likeliest)
}

fn matrix(model: &Transformer, id: ParamId) -> Matrix {
    let weight = &model.params[id].weight;
    weight.to_f32().chunks(weight.cols()).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn times(x: &[f64], weight: &[Vec<f64>]) -> Vec<f64> {
    weight.iter().map(|row| dot(x, row)).collect()
}

fn add(x: &mut Matrix, y: Matrix) {
    x.iter_mut().flatten().zip(y.into_iter().flatten()).for_each(|(x, y)| *x += y);
}

fn apply(model: &Transformer, layer: &Linear, x: &Matrix) -> Matrix {
    let weight = matrix(model, layer.weight);
    let mut y: Matrix = x.iter().map(|row| times(row, &weight)).collect();
    if let Some(ids) = layer.lora {
        let [a, b] = ids.map(|id| matrix(model, id));
        let scale = f64::from(model.config.lora_scale);
        let adapted = |row: &Vec<f64>| times(&times(row, &a), &b).iter().map(|y| scale * y).collect();
        add(&mut y, x.iter().map(adapted).collect());
    }
    if let Some(bias) = layer.bias {
        let bias = matrix(model, bias).concat();
        y.iter_mut().for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
    }
    y
}

fn norm(model: &Transformer, x: &[f64], gain: ParamId) -> Vec<f64> {
    let root = (dot(x, x) / x.len() as f64 + f64::from(model.config.rms_norm_eps)).sqrt();
    x.iter().zip(matrix(model, gain).concat()).map(|(x, gain)| x / root * gain).collect()
}

fn turn(row: &mut [f64], position: usize, dim: usize, theta: f64) {
    for head in row.chunks_mut(dim) {
        for i in 0..dim / 2 {
            let (sin, cos) = (position as f64 * theta.powf(-2.0 * i as f64 / dim as f64)).sin_cos();
            let (a, b) = (head[i], head[i + dim / 2]);
            (head[i], head[i + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }
}

fn attend(q: &[f64], [keys, values]: [&Matrix; 2], [head, kv_head, dim]: [usize; 3]) -> Vec<f64> {
    let of = |row: &[f64], head: usize| row[head * dim..(head + 1) * dim].to_vec();
    let scores: Vec<f64> =
        keys.iter().map(|k| (dot(&of(q, head), &of(k, kv_head)) / (dim as f64).sqrt()).exp()).collect();
    let total: f64 = scores.iter().sum();
    let weighted = |i: usize| scores.iter().zip(values).map(|(p, v)| p / total * of(v, kv_head)[i]).sum();
    (0..dim).map(weighted).collect()
}
