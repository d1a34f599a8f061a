//! The fuzzer's bytes as a row of decisions. When they have run out every further one is 0, so
//! that any bytes are a whole plan and a shorter one is a simpler one.

pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    pub fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    pub fn number(&mut self, bytes: usize) -> u64 {
        let (first, rest) = self.rest.split_at(bytes.min(self.rest.len()));
        self.rest = rest;
        first.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    /// A number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        let bytes = if limit <= 1 << 8 { 1 } else { 3 };
        self.number(bytes) as usize % limit
    }

    /// A number that is likely to be at an edge of something.
    pub fn odd(&mut self) -> u64 {
        match self.u8() {
            0 => 0,
            1 => u64::MAX,
            2 => (1 << 62) - 1,
            3 => 1 << 62,
            4 => 0xff_ffff,
            5 => self.number(8),
            6 => (1 << 62) - self.number(1),
            small => u64::from(small) - 7,
        }
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
