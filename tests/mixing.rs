//! Sources mixed by weight: how often each row comes, that copies of a row have draws of their own, that a run of them
//! resumes to the same bits, and that it notices when rows have changed meanwhile.

mod scratch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use scratch::folder;
use weft::data::mixing::{Mixture, Occurrence};
use weft::experiment::Experiment;
use weft::model::block::Transformer;
use weft::progress::Progress;
use weft::recipe::Recipe;
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
    let progress = Progress::hidden();
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
            "state.json: the rows of {name} have changed since the run to resume was started; put them back or start over"
        )),
        "{error}"
    );
    fs::write(&file, &text).expect("it is written");
    let held_out = fs::read_to_string(folder.join("a.jsonl")).expect("it is there");
    fs::write(folder.join("a.jsonl"), held_out.replace("What is 1 + 1?", "What is 1+1?")).expect("it is written");
    let error = train_to(recipe(&folder, "run"), 3).map(|_| ()).expect_err("a held-out row is another");
    assert!(error.contains(&format!("the rows of {}/a.jsonl [0:50%] have changed", folder.display())), "{error}");
}

/// A recipe of chats of one to four answers, of which one is drawn per epoch, beside pairs.
fn chats(folder: &Path, output: &str) -> Recipe {
    let turn = |role: &str, i: usize| format!("{{\"role\": \"{role}\", \"content\": \"{i} + 1\"}}");
    let chat = |i: usize| {
        let turns = (0..1 + i % 4).flat_map(|k| [turn("user", 10 * i + k), turn("assistant", k)]);
        format!("{{\"messages\": [{}]}}\n", turns.collect::<Vec<_>>().join(","))
    };
    if !folder.join("chats.jsonl").exists() {
        let pair = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
        fs::write(folder.join("chats.jsonl"), (0..7).map(chat).collect::<String>()).expect("it is written");
        fs::write(folder.join("pairs.jsonl"), (0..3).map(pair).collect::<String>()).expect("it is written");
    }
    let text = format!(
        "[model]\nlora_rank = 2\n[data]\nheld_out = \"{0}/chats.jsonl\"\ntrain_on = \"drawn\"\n[[data.sources]]\npath = \
         \"{0}/chats.jsonl\"\n[[data.sources]]\npath = \"{0}/pairs.jsonl\"\n[objective]\nentropy_every = 3\n[train]\noutput \
         = \"{0}/{output}\"\nepochs = 3\nmicro_batch_size = 2\nlr = 1e-2\ncheckpoint_every = 1\n",
        folder.display()
    );
    Recipe::parse(&text, Path::new("chats.toml"), &[]).expect("the recipe is whole")
}

#[test]
fn an_epoch_draws_one_answer_of_each_chat() {
    // Chats of 1, 3 and 2 answers.
    let mixture = Mixture::default().with_chats(vec![0, 1, 4]);
    assert_eq!(mixture.epoch_len(6), 3);
    let chat = |example: usize| [0, 1, 1, 1, 2, 2][example];
    let mut seen = [0; 6];
    for epoch in 0..600 {
        let occurrences = mixture.epoch(3, epoch, 6);
        let mut chats: Vec<usize> = occurrences.iter().map(|o| chat(o.example)).collect();
        assert!(occurrences.iter().all(|o| o.draw == chat(o.example) as u64), "the draws are the chat's");
        chats.sort_unstable();
        assert_eq!(chats, [0, 1, 2], "each chat once");
        occurrences.iter().for_each(|o| seen[o.example] += 1);
        assert_eq!(occurrences, mixture.epoch(3, epoch, 6), "an epoch doesn't depend on others");
    }
    assert_eq!(seen[0], 600);
    // 200 and 300 times to be expected, with standard deviations of 11.5 and 12.2.
    assert!(seen[1..4].iter().all(|n| (150..250).contains(n)), "{seen:?}");
    assert!(seen[4..].iter().all(|n| (250..350).contains(n)), "{seen:?}");
    // Copies of a chat draw answers of their own.
    let twice = Mixture::new(vec![(3, 2.0)]).with_chats(vec![0, 1, 4]);
    assert_eq!(twice.epoch_len(6), 6);
    let drawn = |epoch: u64| -> Vec<usize> {
        let mut of_second: Vec<Occurrence> = twice.epoch(3, epoch, 6).into_iter().filter(|o| o.draw % 3 == 1).collect();
        of_second.sort_unstable_by_key(|o| o.draw);
        assert_eq!(of_second.iter().map(|o| o.draw).collect::<Vec<_>>(), [1, 4]);
        of_second.iter().map(|o| o.example).collect()
    };
    assert!((0..20).any(|epoch| drawn(epoch)[0] != drawn(epoch)[1]), "not always the same answer twice");
    // Chats of one answer are examples.
    let (plain, single) = (Mixture::default(), Mixture::default().with_chats((0..6).collect()));
    assert_eq!(plain.epoch(5, 2, 6), single.epoch(5, 2, 6));
}

#[test]
fn drawn_answers_are_the_same_whatever_the_batch_and_resume_to_the_same_bits() {
    let folder = folder("drawn");
    let (experiment, base) = Experiment::open(chats(&folder, "none")).expect("it opens");
    let [part, pairs] = &experiment.train.parts[..] else { panic!("two sources") };
    assert_eq!((part.num_chats(), part.examples, pairs.num_chats()), (Some(7), 16, Some(3)));
    assert_eq!(experiment.train.epoch_len(), 10);
    assert_eq!(experiment.held_out_examples().len(), 16, "every answer is held out");
    let tokens = |e: &weft::data::Example| (e.prompt_ids.len() + e.answer_ids.len()) as f64;
    let epochs = 2000;
    let drawn = |epoch: u64| experiment.train.mixture.epoch(1, epoch, experiment.train.dataset.examples.len());
    let of_epoch =
        |epoch: u64| drawn(epoch).iter().map(|o| tokens(&experiment.train.dataset.examples[o.example])).sum::<f64>();
    let mean = (0..epochs).map(of_epoch).sum::<f64>() / epochs as f64;
    let expected = experiment.train.tokens_per_epoch();
    assert!((mean / expected - 1.0).abs() < 0.01, "{mean} tokens of an epoch, and {expected} are expected");
    drop((experiment, base));
    // The masks of a run belong to its chats, however they are batched.
    let masks = |micro_batch_size: usize, grad_accum_steps: usize| -> Vec<Vec<bool>> {
        let mut recipe = chats(&folder, "none");
        (recipe.train.micro_batch_size, recipe.train.grad_accum_steps) = (micro_batch_size, grad_accum_steps);
        (recipe.train.lr, recipe.objective.kind) = (1e-9, weft::objective::Kind::Sft);
        let (experiment, base) = Experiment::open(recipe).expect("it opens");
        let (mut trainer, _) = experiment.trainer(base.model, &base.text).expect("it begins");
        let steps = trainer.num_steps();
        (0..steps).flat_map(|_| trainer.step().expect("a step").masked).collect()
    };
    let one = masks(1, 1);
    assert_eq!(one.len(), 30, "three epochs of ten");
    for (micro_batch_size, grad_accum_steps) in [(2, 1), (5, 1), (2, 2), (10, 1)] {
        assert_eq!(masks(micro_batch_size, grad_accum_steps), one, "{micro_batch_size} x {grad_accum_steps}");
    }
    let train = |output: &str, step: u64| -> Vec<Vec<u32>> {
        let (experiment, base) = Experiment::open(chats(&folder, output)).expect("it opens");
        let (mut trainer, _) = experiment.trainer(base.model, &base.text).expect("it begins");
        assert_eq!(trainer.steps_per_epoch(), 5);
        let progress = Progress::hidden();
        let output = experiment.recipe.train.output.clone();
        let run = Run::open(&mut trainer, experiment.held_out_examples(), &output, experiment.resolved(), progress);
        run.and_then(|mut run| run.advance(&mut trainer, step)).expect("it trains");
        let trained = trainer.model.params.into_iter().filter(|p| p.trainable);
        trained.map(|p| p.weight.to_f32().iter().map(|x| x.to_bits()).collect()).collect()
    };
    let whole = train("whole", 15);
    for step in [4, 7, 11] {
        train("parts", step);
    }
    assert!(train("parts", 15) == whole, "a resumed run ends with the same bits");
}
