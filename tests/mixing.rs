//! Sources mixed by weight: how often each row comes, that copies of a row have draws of their own, that a run of them
//! resumes to the same bits, and that it notices when rows have changed meanwhile.

mod scratch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use indicatif::ProgressBar;
use scratch::folder;
use weft::data::mixing::{Mixture, Occurrence};
use weft::experiment::Experiment;
use weft::model::block::Transformer;
use weft::recipe::Recipe;
use weft::train::metrics::Progress;
use weft::train::run::Run;

/// How often each example comes.
fn counts(occurrences: &[Occurrence]) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    occurrences.iter().for_each(|occurrence| *counts.entry(occurrence.example).or_default() += 1);
    counts
}

#[test]
fn a_weight_is_how_often_each_row_comes() {
    let mixture = Mixture::new(vec![(10, 2.0), (40, 0.25), (6, 1.5)]);
    assert_eq!(mixture.epoch_len(56), 20 + 10 + 9);
    let epochs: Vec<Vec<Occurrence>> = (0..40).map(|epoch| mixture.epoch(3, epoch, 56)).collect();
    let mut seen = BTreeMap::<usize, usize>::new();
    for occurrences in &epochs {
        assert_eq!(occurrences.len(), 39, "every epoch is as long");
        let counts = counts(occurrences);
        assert!((0..10).all(|i| counts[&i] == 2));
        assert_eq!((10..50).filter(|i| counts.contains_key(i)).count(), 10);
        assert!((10..50).all(|i| counts.get(&i).is_none_or(|n| *n == 1)));
        let thirds: Vec<usize> = (50..56).map(|i| counts[&i]).collect();
        assert_eq!((thirds.iter().sum::<usize>(), thirds.iter().all(|n| [1, 2].contains(n))), (9, true));
        counts.iter().for_each(|(i, n)| *seen.entry(*i).or_default() += n);
        let mut draws: Vec<u64> = occurrences.iter().map(|occurrence| occurrence.draw).collect();
        draws.sort_unstable();
        draws.dedup();
        assert_eq!(draws.len(), 39, "each copy has draws of its own");
    }
    // 40 epochs of a quarter: 10 times each to be expected, with a standard deviation of 2.7.
    assert!((10..50).all(|i| (1..=20).contains(&seen[&i])), "{seen:?}");
    assert_ne!(counts(&epochs[0]), counts(&epochs[1]), "other rows come once more in each epoch");
    assert_eq!(epochs[7], mixture.epoch(3, 7, 56), "an epoch doesn't depend on those before it");
    assert_ne!(counts(&epochs[0]), counts(&mixture.epoch(4, 0, 56)), "the seed names the draws");
}

#[test]
fn weights_of_one_are_no_mixture() {
    let (even, mixed) = (Mixture::default(), Mixture::new(vec![(3, 1.0), (4, 1.0)]));
    assert_eq!(even.epoch(1, 5, 7), mixed.epoch(1, 5, 7));
    let twice = Mixture::new(vec![(7, 2.0)]).epoch(1, 5, 7);
    let first: Vec<Occurrence> = twice.iter().copied().filter(|occurrence| occurrence.draw < 7).collect();
    assert_eq!(first, even.epoch(1, 5, 7), "a first copy has the draws it has alone");
    assert!(twice.iter().all(|occurrence| occurrence.draw % 7 == occurrence.example as u64 && occurrence.draw < 14));
}

/// A recipe of two files, one of them twice and in JSON, and a slice.
fn recipe(folder: &Path, output: &str) -> Recipe {
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}", i + 1);
    let rows = |range: std::ops::Range<usize>| range.map(row).collect::<Vec<_>>();
    if !folder.join("a.jsonl").exists() {
        fs::write(folder.join("a.jsonl"), rows(0..6).join("\n")).expect("it is written");
        fs::write(folder.join("b.json"), format!("[{}]", rows(6..12).join(","))).expect("it is written");
    }
    let text = format!(
        "[model]\nlora_rank = 2\n[data]\nheld_out = \"{0}/a.jsonl\"\nheld_out_rows = \":50%\"\n[[data.sources]]\n\
         path = \"{0}/a.jsonl\"\nrows = \"50%:\"\nweight = 2\n[[data.sources]]\npath = \"{0}/b.json\"\nweight = 0.5\n\
         [objective]\nentropy_every = 2\n[train]\noutput = \"{0}/{output}\"\nepochs = 2\nmicro_batch_size = 2\nlr = 1e-2\n\
         checkpoint_every = 1\n",
        folder.display()
    );
    Recipe::parse(&text, Path::new("mixed.toml"), &[]).expect("the recipe is whole")
}

/// Trains to a step, in a new process's way; the trained weights, or why the run can't go on.
fn train_to(recipe: Recipe, step: u64) -> Result<Transformer, String> {
    let (experiment, base) = Experiment::open(recipe).map_err(|e| e.to_string())?;
    let (mut trainer, _) = experiment.trainer(base.model, &base.text).map_err(|e| e.to_string())?;
    assert_eq!(trainer.steps_per_epoch(), 5, "3 rows twice and 3 of 6 rows");
    let progress = Progress { bar: ProgressBar::hidden(), tells: false };
    let output = experiment.recipe.train.output.clone();
    let held_out = experiment.held_out_examples();
    assert_eq!(held_out.len(), 3);
    let run = Run::open(&mut trainer, held_out, &output, experiment.resolved(), progress);
    run.and_then(|mut run| run.advance(&mut trainer, step)).map_err(|e| e.to_string())?;
    Ok(trainer.model)
}

#[test]
fn a_mixed_run_resumes_to_the_same_bits() {
    let folder = folder("resume");
    let bits = |model: Transformer| -> Vec<Vec<u32>> {
        let trained = model.params.into_iter().filter(|p| p.trainable);
        trained.map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect()).collect()
    };
    let whole = bits(train_to(recipe(&folder, "whole"), 10).expect("it trains"));
    for step in [3, 7] {
        train_to(recipe(&folder, "parts"), step).expect("it trains");
    }
    assert_eq!(bits(train_to(recipe(&folder, "parts"), 10).expect("it trains")), whole);
}

#[test]
fn a_run_notices_that_its_rows_have_changed() {
    let folder = folder("changed");
    train_to(recipe(&folder, "run"), 1).expect("it trains");
    let file = folder.join("b.json");
    let text = fs::read_to_string(&file).expect("it is there");
    // Bytes may change; the examples may not.
    fs::write(&file, text.replace("},{", "},\n  {")).expect("it is written");
    train_to(recipe(&folder, "run"), 2).expect("the rows are the same");
    fs::write(&file, text.replace("\"7\"", "\"8\"")).expect("it is written");
    let error = train_to(recipe(&folder, "run"), 3).map(|_| ()).expect_err("a row is another");
    let name = file.display();
    assert!(
        error.ends_with(&format!(
            "state.json: the rows of {name} have changed since the run to resume was started; put them back or start over \
             (where the chat template writes the date, set SOURCE_DATE_EPOCH to the day when the run was started)"
        )),
        "{error}"
    );
    fs::write(&file, &text).expect("it is written");
    let held_out = fs::read_to_string(folder.join("a.jsonl")).expect("it is there");
    fs::write(folder.join("a.jsonl"), held_out.replace("What is 1 + 1?", "What is 1+1?")).expect("it is written");
    let error = train_to(recipe(&folder, "run"), 3).map(|_| ()).expect_err("a held-out row is another");
    assert!(error.contains(&format!("the rows of {}/a.jsonl [0:50%] have changed", folder.display())), "{error}");
}
