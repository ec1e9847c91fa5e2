//! Files of rows as people have them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{BrotliLevel, Compression, GzipLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::program::{Case, pairs, recipe, recipe_of, refused, shows};
use crate::scratch::folder;

pub const CASES: &[Case] = &[("D12", save_to_disk), ("D13", codecs_of_parquet), ("D15", nan), ("D16", compressed_rows)];

fn save_to_disk() {
    let folder = recipe("saved", &pairs(1));
    let fix = ["was written by save_to_disk (Arrow)", "write it with to_parquet or to_json"];
    for (name, files) in [
        ("dataset", &["data-00000-of-00001.arrow", "dataset_info.json", "state.json"][..]),
        ("dict", &["dataset_dict.json", "train/data-00000-of-00001.arrow"]),
    ] {
        for file in files.iter().map(|file| folder.join(name).join(file)) {
            fs::create_dir_all(file.parent().expect("a folder")).expect("it is made");
            fs::write(file, "{}").expect("it is written");
        }
        refused(&folder, &["data", "recipe.toml", "--set", &format!("data.train={name}")], &fix);
    }
}

fn parquet(path: &Path, codec: Compression) {
    let schema = "message rows { REQUIRED BYTE_ARRAY prompt (STRING); REQUIRED BYTE_ARRAY response (STRING); }";
    let schema = Arc::new(parse_message_type(schema).expect("it is a schema"));
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let file = fs::File::create(path).expect("it is made");
    let mut writer = SerializedFileWriter::new(file, schema, properties).expect("it begins");
    let mut group = writer.next_row_group().expect("a group");
    for values in [["2+2?", "3+3?"], ["4", "6"]] {
        let mut column = group.next_column().expect("a column").expect("there is one");
        let values = values.map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("it is written");
        column.close().expect("it ends");
    }
    group.close().expect("it ends");
    writer.close().expect("it ends");
}

fn codecs_of_parquet() {
    let folder = folder("codecs");
    recipe_of(&folder, "t.parquet");
    for codec in [
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::SNAPPY,
        Compression::LZ4,
    ] {
        parquet(&folder.join("t.parquet"), codec);
        shows(&folder, &[], &["t.parquet: 2 examples", "\n2+2?<|eot_id|>"]);
    }
}

fn nan() {
    let folder = folder("nan");
    fs::write(folder.join("rows.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\", \"score\": NaN}\n")
        .expect("written");
    recipe_of(&folder, "rows.jsonl");
    shows(&folder, &[], &["rows.jsonl: 1 example,", "columns not read: score"]);
}

fn compressed_rows() {
    let folder = recipe("compressed", &pairs(3));
    let plain = fs::read(folder.join("rows.jsonl")).expect("it is there");
    let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    gzip.write_all(&plain).expect("it is compressed");
    let files =
        [("gz", gzip.finish().expect("it ends")), ("zst", zstd::encode_all(&plain[..], 3).expect("compressed"))];
    for (ending, bytes) in files {
        fs::create_dir(folder.join(ending)).expect("it is made");
        for file in [format!("train.jsonl.{ending}"), format!("{ending}/train.jsonl.{ending}")] {
            fs::write(folder.join(file), &bytes).expect("it is written");
        }
        for train in [format!("train.jsonl.{ending}"), ending.to_owned()] {
            shows(&folder, &["--set", &format!("data.train={train}")], &["3 examples", "What is 0 + 1?"]);
        }
    }
}
