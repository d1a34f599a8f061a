//! What a segment says of itself, and with it the watermark: there is no other checkpoint.

use procmond::wal::fuzzing::{control_again, header_again};

use crate::decoder::{self, Refusal, le};
use crate::input::Input;

pub fn label(data: &[u8]) {
    let mut input = Input::new(data);
    let mend = !input.u8().is_multiple_of(4);
    let mut bytes = input.rest().to_vec();
    header(&mut bytes.clone(), mend);
    control(&mut bytes, mend);
}

fn header(bytes: &mut [u8], mend: bool) {
    if mend && let Some(header) = bytes.first_chunk_mut::<104>() {
        header[..12].copy_from_slice(b"DEYEWAL\x1a\x01\x00\x68\x00");
        let checksum = crc32fast::hash(&[&header[..12], &header[16..]].concat());
        header[12..16].copy_from_slice(&checksum.to_le_bytes());
    }
    let number = bytes.get(48..56).map_or(0, |number| le(number, 0, 8));
    // Only the header's own: what follows may hold a control record.
    let header = bytes.get(..104).unwrap_or(bytes);
    let again = header_again(header);
    assert_eq!(again.is_some(), decoder::label(header, number).is_ok());
    if let Some(again) = again {
        assert_eq!(header, again, "nothing in it is overlooked");
    }
}

fn control(bytes: &mut Vec<u8>, mend: bool) {
    if mend && let Some(frame) = bytes.first_chunk_mut::<120>() {
        frame[..4].copy_from_slice(&[0xd7, b'W', b'A', b'L']);
        frame[8..13].copy_from_slice(&[88, 0, 0, 0, 0]);
        let salt = le(frame, 32 + 40, 4) as u32;
        let checksum = crc32fast::hash(&frame[8..]) ^ salt;
        frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
    bytes.truncate(120);
    let number = bytes.get(64..72).map_or(0, |number| le(number, 0, 8));
    let again = control_again(bytes);
    // Behind nothing that could be a header, and nothing else that could be a frame.
    assert_eq!(
        again.is_some(),
        decoder::frame(bytes, 0).is_some()
            && decoder::label(bytes, number) != Err(Refusal::Unreadable)
    );
    if let Some(again) = again
        && le(bytes, 32 + 44, 2) == 1
    {
        assert_eq!(*bytes, again, "nothing in it is overlooked");
    }
}
