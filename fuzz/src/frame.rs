//! The bus's frames, as they come in pieces from a peer.

use bytes::BytesMut;
use daemoneye_eventbus::wire::{Entries, Frame, FrameDecoder};

use crate::allocations::bounded;
use crate::input::Input;

pub fn frame(data: &[u8]) {
    const BODY_BYTES_MAX: usize = 1 << 20;
    let mut input = Input::new(data);
    let mut decoder = FrameDecoder::new(BODY_BYTES_MAX);
    let piece_bytes = 1 + input.number(2) as usize;
    bounded((512 << 10) + 4 * data.len(), || {
        for piece in input.rest().chunks(piece_bytes) {
            decoder.buffer().extend_from_slice(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(raw)) => {
                        if let Ok(Some(frame)) = Frame::decode(raw) {
                            again(&frame);
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    });
}

/// Encodes a frame and reads it again.
fn again(frame: &Frame) {
    match frame {
        Frame::Publish(publish) => walk(&publish.entries),
        Frame::Deliver(deliver) => walk(&deliver.entries),
        _ => {}
    }
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    let mut decoder = FrameDecoder::new(bytes.len());
    decoder.buffer().extend_from_slice(&bytes);
    let raw = decoder.next_frame().expect("our own frame").expect("all of it");
    assert_eq!(Frame::decode(raw).expect("decodes").as_ref(), Some(frame));
    assert!(!decoder.is_mid_frame());
}

fn walk(entries: &[u8]) {
    let mut bytes = 0;
    for entry in Entries::new(entries) {
        let Ok((header, payload)) = entry else { return };
        assert_eq!(header.payload_bytes as usize, payload.len());
        assert!(header.after() < header.sequence);
        bytes += header.entry_bytes();
    }
    assert_eq!(bytes, entries.len());
}
