//! The known arms of a comparison: what each sets in the recipe, the arms it is compared with, and its name in a sentence.

/// The number of arms that a comparison has by default: those of the paper.
pub const DEFAULT_ARMS: usize = 9;

/// The placeholder for `reproduce.block_length` in what an arm sets.
const BLOCK_LENGTH: &str = "{block_length}";

/// The table of a report that an arm belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// SFT and WeFT under two divisors.
    Main,
    /// Parts of WeFT, and other uses of the same entropies.
    Ablation,
    /// LIFT, and SFT and WeFT in blocks.
    Method,
}

/// An arm.
#[derive(Clone, Copy, Debug)]
pub struct Arm {
    /// The name, which is also the name of a folder.
    pub name: &'static str,
    /// The table that shows it.
    pub group: Group,
    /// What it sets, as `table.key=value`.
    sets: &'static [&'static str],
    /// The arms that it is compared with, if they are run too.
    references: &'static [&'static str],
    /// The name in a sentence.
    pub said: &'static str,
}

impl Arm {
    /// What the arm sets, for blocks of this length.
    pub fn sets(&self, block_length: usize) -> Vec<String> {
        self.sets.iter().map(|set| set.replace(BLOCK_LENGTH, &block_length.to_string())).collect()
    }

    /// Whether the arm trains and samples in blocks.
    pub fn is_in_blocks(&self) -> bool {
        self.sets.iter().any(|set| set.contains(BLOCK_LENGTH))
    }

    /// The arm with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ARMS.iter().find(|arm| arm.name == name)
    }
}

const SFT: &str = "objective.kind=sft";
const WEFT: &str = "objective.kind=weft";
const MASKED: &str = "objective.normalizer=masked";
const ANSWER: &str = "objective.normalizer=answer";
const IDENTITY: &str = "objective.transform=identity";
const SQRT: &str = "objective.transform=sqrt";
const BLOCKWISE: &str = "objective.blocks=blockwise";
const BD3LM: &str = "objective.blocks=bd3lm";
const LENGTH: &str = "objective.block_length={block_length}";
/// An arm in blocks is scored by the decoding that it is trained for.
const SAMPLED: &str = "sampler.block_length={block_length}";
const BIDIRECTIONAL: &str = "sampler.attention=bidirectional";
const CAUSAL: &str = "sampler.attention=block-causal";
const CLIP_01: &str = "train.max_grad_norm=0.1";
const CLIP_1: &str = "train.max_grad_norm=1";
const NO_CLIP: &str = "train.max_grad_norm=0";
/// The only remedy of the arms that warm up, which don't clip gradients.
const WARMUP: &str = "train.warmup_steps=100";

/// The known arms. All except `sft-answer` and `weft-answer` divide by the masked tokens, so that only the method differs.
pub static ARMS: [Arm; 24] = [
    arm("sft-masked", Group::Main, &[SFT, MASKED], &[], "SFT"),
    arm("sft-answer", Group::Main, &[SFT, ANSWER], &[], "SFT divided by answer tokens"),
    arm("weft-masked", Group::Main, &[WEFT, MASKED], &[], "WeFT"),
    arm("weft-answer", Group::Main, &[WEFT, ANSWER], &[], "WeFT divided by answer tokens"),
    arm("token_weight", Group::Ablation, &["objective.kind=token_weight", MASKED], &["sft-masked"], "token weights"),
    arm("cart", Group::Ablation, &["objective.kind=cart", MASKED], &["sft-masked"], "CART"),
    arm("weft-identity", Group::Ablation, &[WEFT, MASKED, IDENTITY], &OF_TRANSFORM, "WeFT with identity"),
    arm("weft-cbrt", Group::Ablation, &[WEFT, MASKED, "objective.transform=cbrt"], &OF_TRANSFORM, "WeFT with cbrt"),
    arm("weft-log1p", Group::Ablation, &[WEFT, MASKED, "objective.transform=log1p"], &OF_TRANSFORM, "WeFT with log1p"),
    arm("weft-elbo", Group::Ablation, &[WEFT, MASKED, "objective.weighting=elbo"], &["sft-masked"], "WeFT with elbo"),
    arm(
        "lift-random",
        Group::Method,
        &["objective.kind=lift", "objective.lift_policy=random", MASKED],
        &OF_TRANSFORM,
        "LIFT (random)",
    ),
    arm(
        "lift-time",
        Group::Method,
        &["objective.kind=lift", "objective.lift_policy=time", MASKED],
        &OF_TRANSFORM,
        "LIFT (time)",
    ),
    arm(
        "sft-blockwise",
        Group::Method,
        &[SFT, MASKED, BLOCKWISE, LENGTH, SAMPLED, BIDIRECTIONAL],
        &["sft-masked"],
        "blockwise SFT",
    ),
    arm(
        "weft-blockwise",
        Group::Method,
        &[WEFT, MASKED, BLOCKWISE, LENGTH, SAMPLED, BIDIRECTIONAL],
        &["sft-masked", "sft-blockwise", "weft-masked"],
        "blockwise WeFT",
    ),
    arm("sft-bd3lm", Group::Method, &[SFT, MASKED, BD3LM, LENGTH, SAMPLED, CAUSAL], &["sft-masked"], "BD3LM with SFT"),
    arm(
        "weft-bd3lm",
        Group::Method,
        &[WEFT, MASKED, BD3LM, LENGTH, SAMPLED, CAUSAL],
        &["sft-masked", "sft-bd3lm", "weft-masked"],
        "BD3LM with WeFT",
    ),
    remedy("weft-clip-0.1", &[WEFT, MASKED, SQRT, CLIP_01], &OF_SQRT, "WeFT (clipped at 0.1)"),
    remedy("weft-clip-1", &[WEFT, MASKED, SQRT, CLIP_1], &OF_SQRT, "WeFT (clipped at 1)"),
    remedy("weft-no-clip", &[WEFT, MASKED, SQRT, NO_CLIP], &["sft-masked"], "WeFT (not clipped)"),
    remedy("weft-warmup", &[WEFT, MASKED, SQRT, NO_CLIP, WARMUP], &OF_SQRT, "WeFT (warm-up, not clipped)"),
    remedy(
        "weft-identity-clip-0.1",
        &[WEFT, MASKED, IDENTITY, CLIP_01],
        &["sft-masked", "weft-clip-0.1", "weft-identity-no-clip"],
        "WeFT with identity (clipped at 0.1)",
    ),
    remedy(
        "weft-identity-clip-1",
        &[WEFT, MASKED, IDENTITY, CLIP_1],
        &["sft-masked", "weft-clip-1", "weft-identity-no-clip"],
        "WeFT with identity (clipped at 1)",
    ),
    remedy(
        "weft-identity-no-clip",
        &[WEFT, MASKED, IDENTITY, NO_CLIP],
        &["sft-masked", "weft-no-clip"],
        "WeFT with identity (not clipped)",
    ),
    remedy(
        "weft-identity-warmup",
        &[WEFT, MASKED, IDENTITY, NO_CLIP, WARMUP],
        &["sft-masked", "weft-warmup", "weft-identity-no-clip"],
        "WeFT with identity (warm-up, not clipped)",
    ),
];

/// The arms that WeFT's other transforms and LIFT are compared with.
const OF_TRANSFORM: [&str; 2] = ["sft-masked", "weft-masked"];
/// The arms that the remedies of large gradients are compared with under the paper's transform.
const OF_SQRT: [&str; 2] = ["sft-masked", "weft-no-clip"];

/// The pairs of SFT and WeFT under two divisors.
const MAIN_PAIRS: [(&str, &str); 4] = [
    ("weft-masked", "sft-masked"),
    ("weft-answer", "sft-answer"),
    ("sft-masked", "sft-answer"),
    ("weft-masked", "weft-answer"),
];

const fn arm(
    name: &'static str,
    group: Group,
    sets: &'static [&'static str],
    references: &'static [&'static str],
    said: &'static str,
) -> Arm {
    Arm { name, group, sets, references, said }
}

/// An arm that tests the effect of large gradients: WeFT with an explicit transform, clipping and warm-up.
const fn remedy(
    name: &'static str,
    sets: &'static [&'static str],
    references: &'static [&'static str],
    said: &'static str,
) -> Arm {
    arm(name, Group::Ablation, sets, references, said)
}

/// The pairs that are compared, each an arm and its reference: first those of SFT and WeFT, then the other arms against
/// SFT, then against the arms from which they differ in one respect.
pub fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of_rank = |rank: usize| ARMS.iter().filter_map(move |arm| Some((arm.name, *arm.references.get(rank)?)));
    MAIN_PAIRS.into_iter().chain((0..3).flat_map(of_rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_is_an_arm_and_every_pair_is_told_apart() {
        let all: Vec<(&str, &str)> = pairs().collect();
        for (i, (arm, reference)) in all.iter().enumerate() {
            assert!(Arm::named(arm).is_some() && Arm::named(reference).is_some(), "{arm} - {reference}");
            assert_ne!(arm, reference);
            assert!(!all[..i].contains(&(arm, reference)), "{arm} - {reference} is listed twice");
        }
        let longest = ARMS.iter().map(|arm| arm.references.len()).max();
        assert_eq!(longest, Some(3), "pairs() goes through so many references");
        for (i, arm) in ARMS.iter().enumerate() {
            let is_other = |other: &Arm| other.name != arm.name && other.said != arm.said && other.sets != arm.sets;
            assert!(ARMS[..i].iter().all(is_other), "{}", arm.name);
            // Every arm but SFT itself is compared to SFT under its own divisor.
            let own = if arm.sets.contains(&ANSWER) { "sft-answer" } else { "sft-masked" };
            assert!(arm.name == own || all.contains(&(arm.name, own)), "{}", arm.name);
        }
    }

    #[test]
    fn an_arm_in_blocks_sets_the_length_everywhere() {
        let arm = Arm::named("weft-bd3lm").expect("it is known");
        assert!(arm.is_in_blocks() && !Arm::named("lift-time").expect("it is known").is_in_blocks());
        let sets = arm.sets(8);
        for set in ["objective.block_length=8", "sampler.block_length=8", "sampler.attention=block-causal"] {
            assert!(sets.iter().any(|own| own == set), "{set}");
        }
    }
}
