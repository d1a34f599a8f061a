//! A Unix or a TCP socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    /// `tcp:<address>` or a path.
    pub(super) fn connect(address: &str) -> io::Result<Self> {
        match address.strip_prefix("tcp:") {
            Some(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            None => UnixStream::connect(address).map(Self::Unix),
        }
    }

    /// Writes `question` and reads until the answer is `enough`.
    pub(super) fn ask(&mut self, question: &[u8], enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        self.write_all(question).expect("the broker is there");
        let (mut answer, mut some) = (Vec::new(), [0; 4096]);
        while !enough(&answer) {
            let read = self.read(&mut some).expect("the broker is there");
            assert!(read > 0, "the broker ended the connection: {}", answer.escape_ascii());
            answer.extend_from_slice(&some[..read]);
        }
        answer
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
