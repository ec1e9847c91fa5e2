//! The file of a source's tokens: as it is, or with the right head and hash about it; whatever is read fits the tokenizer.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use twox_hash::XxHash3_128;
use weft::base::Base;
use weft::data::chat_template::TextModel;
use weft::data::sources::Source;
use weft::data::token_cache::TokenCache;
use weft::data::{Reading, load};
use weft::model::facts::Overrides;
use weft_fuzz::{folder, write};

/// Bytes before the counts: the magic and the key.
const HEAD: usize = 32;

struct Saved {
    text: TextModel,
    mask_token_id: u32,
    source: Source,
    cache: TokenCache,
    file: PathBuf,
    head: Vec<u8>,
}

static KEPT: LazyLock<Saved> = LazyLock::new(|| {
    let folder = folder("token_cache");
    let rows = folder.join("rows.jsonl");
    write(&rows, b"{\"prompt\": \"a\", \"response\": \"b\"}\n");
    let (text, config) = Base::open_text(Path::new("tiny-base"), Overrides::default()).expect("the embedded base opens");
    let mask_token_id = config.mask_token_id();
    let (source, cache) = (Source::at(&rows, "train"), TokenCache::new(&folder.join("tokens"), 0));
    let reading = Reading { text: &text, mask_token_id, max_seq_len: 64, cache: Some(cache.clone()) };
    load(&source, &reading).expect("the row is read");
    let file =
        fs::read_dir(folder.join("tokens")).expect("it was made").next().expect("it was kept").expect("it is there");
    let file = file.path();
    let head = fs::read(&file).expect("it is there")[..HEAD].to_vec();
    Saved { text, mask_token_id, source, cache, file, head }
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let Saved { text, mask_token_id, source, cache, file, head } = &*KEPT;
    let mut bytes = data.to_vec();
    if kind & 1 == 0 {
        bytes = [head, data].concat();
        let hash = XxHash3_128::oneshot(&bytes).to_le_bytes();
        bytes.extend(hash);
    }
    write(file, &bytes);
    let reading = Reading { text, mask_token_id: *mask_token_id, max_seq_len: 64, cache: Some(cache.clone()) };
    let dataset = load(source, &reading).expect("a damaged file is no hit");
    for example in &dataset.examples {
        let ids = || example.prompt_ids.iter().chain(&example.answer_ids);
        assert!(ids().all(|id| (*id as usize) < text.vocab_size()), "an id without a row");
    }
});
