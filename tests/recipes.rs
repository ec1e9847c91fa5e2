//! The recipes that come with the program are read as their users would read them.

use std::path::Path;

use weft::recipe::Recipe;
use weft::train::pretrain::PretrainRecipe;

#[test]
fn every_recipe_is_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("there are recipes") {
        let path = entry.expect("the folder can be read").path();
        match path.ends_with("tiny-base.toml") {
            true => drop(PretrainRecipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"))),
            false => {
                let recipe = Recipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                assert!(recipe.warnings().is_empty(), "{:?}", recipe.warnings());
            }
        }
        count += 1;
    }
    assert!(count >= 3, "{count} recipes");
}

#[test]
fn a_setting_replaces_the_recipes() {
    let text = "[data]\ntrain = \"a.jsonl\"\n[train]\nlr = 1e-3\n";
    let settings = ["train.lr=5e-4", "data.train=b c.jsonl", "objective.normalizer=sequence", "train.max_steps=7"];
    let settings = settings.map(str::to_owned);
    let recipe = Recipe::parse(text, Path::new("r.toml"), &settings).expect("the recipe is whole");
    assert_eq!((recipe.train.lr, recipe.train.max_steps), (5e-4, Some(7)));
    assert_eq!(recipe.data.train.as_deref(), Some(Path::new("b c.jsonl")));
    assert_eq!(recipe.objective.normalizer(), weft::objective::Normalizer::Sequence);
    let error = Recipe::parse(text, Path::new("r.toml"), &["lr=3".to_owned()]).expect_err("no table");
    assert_eq!(error.to_string(), "r.toml: --set \"lr=3\" is not table.key=value");
}
