//! A run's numbers as a TensorBoard event file: records of a length and bytes, each with its checksum. A record is a
//! protocol buffer `Event`, of whose fields only time, step and scalars are written.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// An event file to which each step adds a record.
pub(crate) struct EventFile {
    file: File,
}

impl EventFile {
    /// Creates an empty file and replaces one of the same name.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn create(path: &Path, unix_seconds: f64) -> io::Result<Self> {
        let mut events = Self { file: File::create(path)? };
        let version = bytes_field(3, b"brain.Event:2");
        events.record(&[time_field(unix_seconds), version].concat())?;
        Ok(events)
    }

    /// Adds a step's scalars.
    ///
    /// # Errors
    /// An error of the operating system.
    pub(crate) fn scalars(&mut self, unix_seconds: f64, step: u64, scalars: &[(String, f64)]) -> io::Result<()> {
        // Summary { repeated Value value = 1 }, Value { string tag = 1; float simple_value = 2 }
        let value = |(tag, value): &(String, f64)| {
            let number = [&[(2 << 3) | 5], &(*value as f32).to_le_bytes()[..]].concat();
            bytes_field(1, &[bytes_field(1, tag.as_bytes()), number].concat())
        };
        let summary: Vec<u8> = scalars.iter().flat_map(value).collect();
        let step = [vec![2 << 3], varint(step)].concat();
        self.record(&[time_field(unix_seconds), step, bytes_field(5, &summary)].concat())
    }

    /// Flushes the file to disk.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Writes the length, its checksum, the bytes and their checksum at once, so that a crash cuts off at most the last
    /// record.
    fn record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = (bytes.len() as u64).to_le_bytes();
        let [of_length, of_bytes] = [&length[..], bytes].map(|b| masked_crc32c(b).to_le_bytes());
        self.file.write_all(&[&length[..], &of_length, bytes, &of_bytes].concat())
    }
}

/// `double wall_time = 1`.
fn time_field(unix_seconds: f64) -> Vec<u8> {
    [&[(1 << 3) | 1], &unix_seconds.to_le_bytes()[..]].concat()
}

/// A field that holds bytes, text or a message.
fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2], &varint(bytes.len() as u64)[..], bytes].concat()
}

/// A varint: seven bits per byte, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = vec![];
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The checksum of TensorFlow's record files.
///
/// # Source
/// CRC-32C (Castagnoli), RFC 3720 appendix B.4, rotated and shifted as in TensorFlow's `crc32c::Mask`.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (0..8).fold(crc, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 });
    let crc = !bytes.iter().fold(!0, |crc, byte| shift(crc ^ u32::from(*byte)));
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_rfc_3720s() {
        let unmasked = |bytes: &[u8]| masked_crc32c(bytes).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked(&[0; 32]), 0x8a91_36aa);
        assert_eq!(unmasked(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(unmasked(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn a_record_is_framed_as_tensorflow_frames_it() {
        let path = std::env::temp_dir().join(format!("weft-events-{}", std::process::id()));
        let mut events = EventFile::create(&path, 1.5).expect("the file can be made");
        events.scalars(2.5, 300, &[("loss".to_owned(), 0.25)]).expect("the file can be written");
        let bytes = std::fs::read(&path).expect("the file can be read");
        std::fs::remove_file(&path).expect("the file can be removed");
        let mut rest = &bytes[..];
        let mut records = vec![];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes")) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(crc(8), masked_crc32c(&rest[..8]));
            assert_eq!(crc(12 + length), masked_crc32c(&rest[12..12 + length]));
            records.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        let version = [&[9][..], &1.5f64.to_le_bytes(), &[26, 13], b"brain.Event:2"].concat();
        let value = [&[10, 4][..], b"loss", &[21], &0.25f32.to_le_bytes()].concat();
        let step = [&[9][..], &2.5f64.to_le_bytes(), &[16, 0xac, 0x02], &[42, 13, 10, 11], &value].concat();
        assert_eq!(records, [version, step]);
    }
}
