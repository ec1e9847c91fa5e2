//! LIFT in a reference file: its draws, the candidates' log-probabilities, and the quantities of every objective.
//!
//! `t` `[B]` and `u` `[B, L]` are those of the other objectives; `lift.v` and `lift.choice` `[B]` and `lift.s` `[B, L]` are
//! LIFT's own draws. `lift_random.` and `lift_time.` begin the quantities of the two policies.

use super::tensors::Tensors;
use super::{Case, Row};
use crate::error::Result;
use crate::objective::{Kind, LiftDraws, LiftPolicy, Objective};

/// The policies that a reference may contain.
const POLICIES: [(&str, LiftPolicy); 2] = [("lift_random", LiftPolicy::Random), ("lift_time", LiftPolicy::Time)];

/// Recomputes the policies that a reference file holds.
pub(super) fn check(case: &Case, tensors: &Tensors) -> Result<Vec<Row>> {
    let held: Vec<_> = POLICIES.into_iter().filter(|(name, _)| tensors.has(&format!("{name}.masked"))).collect();
    if held.is_empty() {
        return Ok(vec![]);
    }
    let of_answers = |name: &str| tensors.numbers(name, case.starts.len());
    let (t, v, choice) = (of_answers("t")?, of_answers("lift.v")?, of_answers("lift.choice")?);
    let [u, s] = [tensors.numbers("u", case.ids.len())?, tensors.numbers("lift.s", case.ids.len())?];
    let of_tokens = case.answers(&u).into_iter().zip(case.answers(&s)).enumerate();
    let draws: Vec<LiftDraws> = of_tokens
        .map(|(i, (u, s))| LiftDraws { t: t[i].into(), v: v[i].into(), choice: choice[i].into(), u, s })
        .collect();
    // 1. The pass that ranks: every candidate masked.
    let mut is_candidate = vec![false; case.ids.len()];
    for (i, draws) in draws.iter().enumerate() {
        let own = is_candidate[i * case.length + case.starts[i]..(i + 1) * case.length].iter_mut();
        own.zip(draws.candidates()).for_each(|(to, is)| *to = is);
    }
    let tokens: Vec<usize> = (0..case.ids.len()).filter(|n| is_candidate[*n]).collect();
    let ids: Vec<u32> = tokens.iter().map(|n| case.ids[*n]).collect();
    let batch = case.batch(&case.noised(|n| is_candidate[n]));
    let found = case.spread(&tokens, &case.model.log_probability(&batch, &case.rows(&tokens), &ids));
    let mut rows = vec![tensors.compare("lift.log_probability", &found)?];
    // 2. Each policy's masks, and what follows from them.
    for (name, lift_policy) in held {
        let objective = Objective { kind: Kind::Lift, lift_policy, ..Objective::default() };
        let answers = draws.iter().zip(case.answers(&found)).zip(&case.starts);
        let noised: Vec<_> = answers.map(|((draws, log), start)| objective.lift(*start, draws, log)).collect();
        rows.extend(case.quantities(&format!("{name}."), objective, &noised, tensors)?);
    }
    Ok(rows)
}
