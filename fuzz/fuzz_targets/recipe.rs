//! A recipe, of a run and of pre-training; what is read is warned of and resolved.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use weft::recipe::Recipe;
use weft_fuzz::{check, cut};

fuzz_target!(|data: &[u8]| {
    let (recipe, setting) = cut(data);
    let (Ok(recipe), Ok(setting)) = (std::str::from_utf8(recipe), std::str::from_utf8(setting)) else { return };
    let settings = if setting.is_empty() { vec![] } else { vec![setting.to_owned()] };
    match Recipe::parse(recipe, Path::new("recipe.toml"), &settings) {
        Ok(recipe) => {
            recipe.warnings();
            let again = serde_json::to_value(&recipe).expect("a recipe is JSON");
            assert_eq!(serde_json::from_value::<Recipe>(again).expect("it reads what it wrote"), recipe);
        }
        Err(error) => check(&error),
    }
});
