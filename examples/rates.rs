//! The method without a model: entropies in, rates, masks and loss weights out. `cargo run --example rates`.

use weft::prelude::*;

fn main() {
    // Entropies of an answer's tokens in nats, from pass 1 or from anywhere, and the draws of one step.
    let token_entropy = [0.02, 1.3, 0.4, 2.7, 0.0];
    let (t, u) = (0.5, [0.4f32, 0.4, 0.4, 0.4, 0.4]);
    let answer = DrawnAnswer {
        prompt_len: 12,
        entropy: AnswerEntropy { token_entropy: &token_entropy, num_supervised: token_entropy.len() },
        t,
        u: &u,
    };
    for kind in [Kind::Sft, Kind::Weft, Kind::TokenWeight] {
        let objective = Objective { kind, ..Objective::default() };
        let noised = objective.noise(&[answer]);
        let weights = objective.loss_weights(&noised);
        println!("{} at t = {t}, loss divided by the {} tokens", kind.name(), objective.normalizer().divides_by());
        println!("  entropy    r     rate   masked  weight");
        for i in 0..token_entropy.len() {
            println!(
                "  {:6.2}  {:5.2}  {:6.3}   {:6}  {:.3}",
                token_entropy[i],
                noised[0].relative_uncertainty[i],
                noised[0].p_mask[i],
                noised[0].masked[i],
                weights[0][i]
            );
        }
    }
}
