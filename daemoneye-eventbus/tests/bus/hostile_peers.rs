//! What a peer does wrong costs that peer its connection, and nobody else anything.

use std::time::Duration;

use daemoneye_eventbus::wire::Frame;
use daemoneye_eventbus::*;
use tokio::io::AsyncWriteExt;

use crate::common::*;

/// A publisher and a subscriber that must not notice anything.
struct Bystanders {
    writer: Writer,
    live: LiveSubscription,
}

impl Bystanders {
    async fn new(bus: &Bus) -> Self {
        let live = bus.live("watch", "events.#").await;
        Self { writer: bus.writer(Log::new()).await, live }
    }

    async fn are_well(&mut self) {
        self.writer.publish(3).await;
        let last = self.writer.log.last;
        self.writer.acked(last).await;
        assert_eq!(events(&mut self.live, 3).await[2], last);
    }
}

async fn refusal(peer: &mut RawPeer) -> RefusalCode {
    loop {
        match peer.next().await.expect("a word before the end") {
            Frame::Refused(refused) => {
                assert_eq!(peer.next().await, None, "the connection ends");
                return refused.code;
            }
            Frame::Welcome(_) | Frame::Declare { .. } => {}
            other => panic!("a refusal, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn garbage_and_oversized_frames_end_their_own_connection() {
    let bus = Bus::with(|options| options.frame_bytes_max = 10_000).await;
    let mut bystanders = Bystanders::new(&bus).await;
    let oversized = [&10_001_u32.to_le_bytes()[..], &[5, 0, 0, 0]].concat();
    let unknown = [&[0, 0, 0, 0][..], &[99, 0, 0, 0]].concat();
    let cases: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &[0xFF; 64], &[0; 64], &oversized, &unknown];
    for bytes in cases {
        // As the first bytes, and from somebody who is in.
        let mut stranger = RawPeer::connect(&bus).await;
        stranger.stream.write_all(bytes).await.unwrap();
        assert_eq!(refusal(&mut stranger).await, RefusalCode::Protocol, "{bytes:?}");
        let mut member = RawPeer::hello(&bus, Role::Subscriber, "member").await;
        member.stream.write_all(bytes).await.unwrap();
        assert_eq!(refusal(&mut member).await, RefusalCode::Protocol, "{bytes:?}");
        bystanders.are_well().await;
    }
    until(|| bus.broker.stats().connections.len() == 2).await;
}

/// A stranger could make the broker wait for, and keep, 16 MiB before it had said who it was.
#[tokio::test]
async fn a_stranger_may_send_a_hello_and_no_more() {
    let bus = Bus::new().await;
    let mut stranger = RawPeer::connect(&bus).await;
    let announced = [&4097_u32.to_le_bytes()[..], &[1, 0, 0, 0]].concat();
    stranger.stream.write_all(&announced).await.unwrap();
    assert_eq!(refusal(&mut stranger).await, RefusalCode::Protocol);

    // What comes in one piece with a Hello may be longer than that.
    let mut member = RawPeer::connect(&bus).await;
    let patterns: Vec<TopicPattern> =
        (0..200).map(|n| format!("events.a-topic-of-some-length.n{n}").parse().unwrap()).collect();
    let mut bytes = bytes::BytesMut::new();
    Frame::Hello(wire::Hello {
        version_min: 1,
        version_max: 1,
        role: Role::Subscriber,
        client_id: "member".to_owned(),
        position: None,
    })
    .encode(&mut bytes);
    Frame::Subscribe(wire::SubscribeFrame {
        subscription: 1,
        patterns,
        kind: wire::SubscribeKind::Live { bytes_max: 1000, count_max: 10 },
    })
    .encode(&mut bytes);
    assert!(bytes.len() > 5000, "{}", bytes.len());
    member.stream.write_all(&bytes).await.unwrap();
    assert!(matches!(member.next().await, Some(Frame::Welcome(_))));
    assert_eq!(member.next().await, Some(Frame::Subscribed { subscription: 1 }));
}

#[tokio::test]
async fn a_frame_cut_off_by_its_sender_leaves_no_trace() {
    let bus = Bus::new().await;
    let mut bystanders = Bystanders::new(&bus).await;
    for cut in 1..40 {
        let mut peer = RawPeer::connect(&bus).await;
        let mut bytes = bytes::BytesMut::new();
        Frame::Hello(wire::Hello {
            version_min: 1,
            version_max: 1,
            role: Role::Subscriber,
            client_id: "a-name-that-makes-the-frame-long-enough".to_owned(),
            position: None,
        })
        .encode(&mut bytes);
        peer.stream.write_all(&bytes[..cut]).await.unwrap();
    }
    bystanders.are_well().await;
    until(|| bus.broker.stats().connections.len() == 2).await;
}

#[tokio::test]
async fn frames_of_the_other_side_are_refused() {
    let bus = Bus::new().await;
    let mut peer = RawPeer::hello(&bus, Role::Collector, "odd").await;
    peer.send(&Frame::Missed { subscription: 1, count: 1 }).await;
    assert_eq!(refusal(&mut peer).await, RefusalCode::Protocol);
}

/// Were the broker to wait until it can write before it reads on, the two would wait for each
/// other for ever.
#[tokio::test]
async fn a_peer_that_sends_and_never_reads_is_still_heard() {
    let bus = Bus::new().await;
    let mut peer = RawPeer::connect(&bus).await;
    let log = Log::new();
    let position = log.position();
    peer.say_hello(Role::Collector, "loud", Some(position)).await;
    peer.send(&Frame::Subscribe(wire::SubscribeFrame {
        subscription: 1,
        patterns: vec!["events.#".parse().unwrap()],
        kind: wire::SubscribeKind::Live { bytes_max: 1 << 20, count_max: 1 << 20 },
    }))
    .await;
    peer.send(&Frame::Declare { alias: 3, topic: START.parse().unwrap() }).await;
    for sequence in 1..=400 {
        let mut entries = bytes::BytesMut::new();
        wire::append_entry(&mut entries, Sequence(sequence), 1, 0, 3, &[0; 50_000]);
        peer.send(&Frame::Publish(wire::Publish {
            epoch: log.epoch,
            after: Sequence(sequence - 1),
            through: Sequence(sequence),
            count: 1,
            entries,
        }))
        .await;
    }
    until(|| bus.broker.stats().streams[0].last == Sequence(400)).await;
    assert!(bus.broker.stats().live[0].missed_total > 0, "what it did not read was dropped");
}

#[tokio::test]
async fn optional_frames_of_a_later_version_are_skipped() {
    let bus = Bus::new().await;
    let mut peer = RawPeer::hello(&bus, Role::Subscriber, "newer").await;
    let optional = [&[3, 0, 0, 0, 99, wire::OPTIONAL, 0, 0][..], b"new"].concat();
    peer.stream.write_all(&optional).await.unwrap();
    peer.send(&Frame::Ping { token: 5 }).await;
    assert_eq!(peer.next().await, Some(Frame::Pong { token: 5 }));
}

#[tokio::test]
async fn who_says_no_hello_in_time_is_dropped() {
    let bus = Bus::with(|options| options.handshake = Duration::from_millis(20)).await;
    let mut peer = RawPeer::connect(&bus).await;
    assert!(matches!(peer.next().await, Some(Frame::Goodbye { code: GoodbyeCode::Silent, .. })));
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn who_is_silent_too_long_is_dropped_and_who_answers_is_not() {
    let bus = Bus::with(|options| options.heartbeat = Duration::from_millis(50)).await;
    let client = bus.subscriber("lively").await;
    let mut silent = RawPeer::hello(&bus, Role::Subscriber, "silent").await;
    assert!(matches!(silent.next().await, Some(Frame::Goodbye { code: GoodbyeCode::Silent, .. })));
    assert_eq!(silent.next().await, None);
    assert!(!client.is_closed());
}

#[tokio::test]
async fn a_broker_that_is_silent_too_long_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut welcome = bytes::BytesMut::new();
        Frame::Welcome(wire::Welcome {
            version: 1,
            connection: 1,
            credit_bytes: 1,
            frame_bytes_max: 1000,
            heartbeat_ms: 20,
            committed: None,
            positions: vec![],
        })
        .encode(&mut welcome);
        stream.write_all(&welcome).await.unwrap();
        stream
    });
    let options = ClientOptions::new("x", Role::Subscriber);
    let client = within(Client::connect(&socket, options)).await.unwrap();
    let reason = within(client.closed()).await;
    assert!(matches!(reason, CloseReason::Silent), "{reason:?}");
    assert!(reason.may_retry());
    server.await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_to_come_back() {
    let bus = Bus::with(|options| options.connections_max = 1).await;
    let client = bus.subscriber("one").await;
    let refused =
        within(Client::connect(&bus.socket(), ClientOptions::new("two", Role::Subscriber))).await;
    match refused {
        Err(ConnectError::Refused { code: RefusalCode::Limit, retry: true, .. }) => {}
        other => panic!("a refusal, not {other:?}"),
    }
    within(client.goodbye()).await;
    until(|| bus.broker.stats().connections.is_empty()).await;
    bus.subscriber("three").await;
}
