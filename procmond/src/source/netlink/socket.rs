//! A netlink socket to which the kernel tells things.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname,
    recvfrom, sendto, socket_with,
};

use super::super::native::is_ready_within;

/// More than the kernel sends at once here.
const DATAGRAM_BYTES: usize = 16 << 10;
/// How long the kernel may take to answer: it does so while it is asked.
pub(super) const ANSWER: Duration = Duration::from_millis(500);

/// The socket and what was last read from it.
pub(super) struct Socket {
    fd: OwnedFd,
    protocol: u32,
    port: u32,
    datagram: Box<[u8]>,
}

/// What there was to read.
pub(super) enum Received<'a> {
    /// Something that the kernel sent.
    Datagram(&'a [u8]),
    /// Something that somebody else sent.
    Foreign,
    /// Things found no room since this was last said.
    Overrun,
    /// Nothing now.
    Nothing,
}

impl Socket {
    /// Opens one that hears what is sent to these groups.
    pub(super) fn open(protocol: Protocol, groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(protocol))?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        let port = SocketAddrNetlink::try_from(getsockname(&fd)?)?.pid();
        let protocol = protocol.as_raw().get();
        Ok(Self { fd, protocol, port, datagram: vec![0; DATAGRAM_BYTES].into() })
    }

    /// Makes room for this many bytes; as many of them as this user may have.
    pub(super) fn make_room(&self, bytes: u32) -> io::Result<()> {
        let bytes = bytes as usize;
        set_socket_recv_buffer_size_force(&self.fd, bytes)
            .or_else(|_| set_socket_recv_buffer_size(&self.fd, bytes))?;
        Ok(())
    }

    /// Sends something to the kernel.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// What there is to read, without waiting. Only the kernel is believed: others may send to
    /// this socket, too, if they are privileged.
    pub(super) fn receive(&mut self) -> io::Result<Received<'_>> {
        match recvfrom(&self.fd, &mut *self.datagram, RecvFlags::DONTWAIT) {
            Ok((length, _, from)) => {
                let from = from.map(SocketAddrNetlink::try_from);
                let is_kernel = matches!(from, Some(Ok(address)) if address.pid() == 0);
                let datagram = self.datagram.get(..length).filter(|_| is_kernel);
                Ok(datagram.map_or(Received::Foreign, Received::Datagram))
            }
            Err(Errno::NOBUFS) => Ok(Received::Overrun),
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            // Read again then.
            Err(Errno::INTR) => Ok(Received::Foreign),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until there is something to read; says whether there is.
    pub(super) fn is_ready_within(&self, most: Duration) -> bool {
        is_ready_within(&self.fd, most)
    }

    /// How many datagrams have found no room; `None` if that cannot be read.
    pub(super) fn dropped(&self) -> Option<u64> {
        // The same as SO_MEMINFO says, without asking for it in ways that are not safe.
        let text = fs::read_to_string("/proc/self/net/netlink").ok()?;
        dropped(&text, self.protocol, self.port)
    }

    #[cfg(test)]
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    #[cfg(test)]
    pub(super) fn send_to(&self, port: u32, bytes: &[u8]) -> io::Result<()> {
        sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(port, 0))?;
        Ok(())
    }
}

fn dropped(text: &str, protocol: u32, port: u32) -> Option<u64> {
    let mut lines = text.lines();
    let column = lines.next()?.split_ascii_whitespace().position(|name| name == "Drops")?;
    lines.find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = words.get(1)?.parse() == Ok(protocol) && words.get(2)?.parse() == Ok(port);
        is_it.then(|| words.get(column)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_line_among_the_sockets() {
        let text = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                    0000000000000000 11  77         00000001 0        0        0     2        5        100\n\
                    0000000000000000 11  4294963063 00000001 0        0        0     2        812      101\n\
                    0000000000000000 16  77         00000000 0        0        0     2        9        102\n";
        assert_eq!(dropped(text, 11, 4_294_963_063), Some(812));
        assert_eq!(dropped(text, 16, 77), Some(9));
        assert_eq!(dropped(text, 11, 78), None);
        assert_eq!(dropped("", 11, 77), None);
        assert_eq!(dropped("Eth Drops\n11\n", 11, 77), None);
    }
}
