#!/usr/bin/env python3
"""A client of the event bus in Python's standard library, written from docs/bus-protocol.md alone.

It shows that the document is enough to write one, and the end-to-end tests use it for that. Run as
a program it does one thing, named by its first argument, and prints one JSON object a line:

    live    SOCKET ID PATTERN...                 what passes, until standard input ends
    durable SOCKET NAME FILE COUNT PATTERN...    COUNT more events, stored in FILE, then a goodbye
    publish SOCKET ID STREAM EPOCH LAST TOPIC    a log of LAST events, until all are acknowledged
    request SOCKET TOPIC PAYLOAD                 the answer to a request
    answer  SOCKET ID TOPIC                      answers one request with what it was asked
    ping    SOCKET                               a Ping and its Pong
"""

import json
import os
import select
import socket
import struct
import sys
import time
import uuid

VERSION = 1
MAGIC = b"DEYE"
SUBSCRIBER, COLLECTOR = 0, 1
OPTIONAL = 1
(HELLO, WELCOME, REFUSED, DECLARE, PUBLISH, ACK, SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, DELIVER,
 COMMIT, MISSED, MESSAGE, UNDELIVERABLE, PING, PONG, GOODBYE) = range(1, 18)
DONE = 3
LEVELS = {1: "accepted", 2: "committed"}
ALIASES_MAX = 4096
ENTRY_HEADER = 32


class Refused(Exception):
    """The broker has refused the connection, a subscription or a message."""

    def __init__(self, code, reason, retry=False):
        super().__init__(f"{code}: {reason}")
        self.code, self.reason, self.retry = code, reason, retry


class Ended(Exception):
    """The connection has ended: with a Goodbye (`code`), or without a word (None)."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code = code


class Fields:
    """Reads the fields of one body."""

    def __init__(self, body):
        self.body, self.at = body, 0

    def take(self, count):
        if self.at + count > len(self.body):
            raise ValueError("a body ends within a field")
        self.at += count
        return self.body[self.at - count:self.at]

    def numbers(self, layout):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def number(self, layout):
        return self.numbers(layout)[0]

    def text(self):
        return self.take(self.number("H")).decode("utf-8")

    def stream(self):
        return uuid.UUID(bytes=bytes(self.take(16)))

    def end(self):
        if self.at != len(self.body):
            raise ValueError("bytes behind the last field of a body")


def text(value):
    encoded = value.encode("utf-8")
    return struct.pack("<H", len(encoded)) + encoded


class Client:
    """One connection. `publishes` is (stream, epoch, first unacknowledged, last in the log)."""

    def __init__(self, path, client_id, role=SUBSCRIBER, publishes=None):
        self.topics, self.aliases = {}, {}
        self.subscriptions, self.pings = 0, 0
        self.received, self.buffer, self.broken = [], bytearray(), False
        self.heartbeat, self.frame_max = 5.0, 32 << 20
        self.heard = self.pinged = time.monotonic()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        hello = MAGIC + struct.pack("<HHBB", VERSION, VERSION, role, publishes is not None)
        if publishes is not None:
            stream, epoch, first, last = publishes
            hello += stream.bytes + struct.pack("<QQQ", epoch, first, last)
        self.send(HELLO, hello + text(client_id))
        fields = self.expect(WELCOME)
        (self.version, self.connection, self.credit, self.body_max, heartbeat_ms, committed) = (
            fields.numbers("HQQIIB"))
        self.heartbeat = heartbeat_ms / 1000
        self.committed = fields.numbers("QQ") if committed else None
        self.positions = [fields.numbers("QQ") for _ in range(fields.number("I"))]
        fields.end()

    def send(self, kind, body):
        if self.broken:
            return
        try:
            self.socket.sendall(struct.pack("<IBBH", len(body), kind, 0, 0) + body)
        except OSError:
            # The broker may have said why before it closed: `next` raises what it said.
            self.broken = True
            while True:
                self.next()

    def frame(self):
        """The next whole frame in the buffer, as (kind, flags, body)."""
        if len(self.buffer) < 8:
            return None
        length, kind, flags, zero = struct.unpack_from("<IBBH", self.buffer)
        if zero or flags & ~OPTIONAL or length > self.frame_max:
            raise ValueError("a frame header that is none")
        if len(self.buffer) < 8 + length:
            return None
        body = bytes(self.buffer[8:8 + length])
        del self.buffer[:8 + length]
        return kind, flags, body

    def next(self, also=None):
        """The next frame that is not about the connection itself, as (kind, Fields); None as soon
        as the file `also` can be read."""
        while True:
            frame = self.frame()
            if frame is None:
                if not self.wait(also):
                    return None
                continue
            kind, flags, body = frame
            fields = Fields(body)
            if kind == PING:
                self.send(PONG, struct.pack("<Q", *fields.numbers("Q")))
            elif kind == DECLARE:
                alias = fields.number("H")
                self.topics[alias] = fields.text()
            elif kind == GOODBYE:
                raise Ended(fields.number("H"), fields.text())
            elif kind == REFUSED:
                _, code, retry = fields.numbers("IHB")
                raise Refused(code, fields.text(), bool(retry))
            elif kind < HELLO or kind > GOODBYE:
                if not flags & OPTIONAL:
                    raise ValueError(f"a required frame of unknown kind {kind}")
            elif kind != PONG or self.pings:
                return kind, fields

    def wait(self, also):
        """Waits for bytes from the broker and keeps the heartbeat."""
        while True:
            now = time.monotonic()
            if now - self.heard > 3 * self.heartbeat:
                raise Ended(None, "the broker is silent")
            if now - self.pinged >= self.heartbeat / 2:
                self.pinged = now
                self.send(PING, bytes(8))
            files = [self.socket] if also is None else [self.socket, also]
            readable, _, _ = select.select(files, [], [], self.heartbeat / 2)
            if self.socket in readable:
                try:
                    read = self.socket.recv(1 << 16)
                except ConnectionError:
                    read = b""
                if not read:
                    raise Ended(None, "the connection broke")
                self.heard = time.monotonic()
                self.buffer += read
                return True
            if readable:
                return False

    def expect(self, wanted):
        """The next frame of this kind. Others that come before it wait for their turn."""
        for number, (kind, _) in enumerate(self.received):
            if kind == wanted:
                return self.received.pop(number)[1]
        while True:
            kind, fields = self.next()
            if kind == wanted:
                return fields
            self.received.append((kind, fields))

    def take(self, also=None):
        return self.received.pop(0) if self.received else self.next(also)

    def subscribe(self, patterns, kind):
        self.subscriptions += 1
        body = struct.pack("<II", self.subscriptions, len(patterns))
        self.send(SUBSCRIBE, body + b"".join(map(text, patterns)) + kind)
        self.expect(SUBSCRIBED)
        return self.subscriptions

    def subscribe_live(self, patterns, max_bytes=4 << 20, max_count=65536):
        return self.subscribe(patterns, struct.pack("<BII", 0, max_bytes, max_count))

    def subscribe_durable(self, name, patterns, positions):
        """`positions`: what is stored, stream to (sequence, epoch)."""
        body = struct.pack("<B", 1) + text(name) + struct.pack("<I", len(positions))
        for stream, position in positions.items():
            body += stream.bytes + struct.pack("<QQ", *position)
        return self.subscribe(patterns, body)

    def commit(self, subscription, stream, sequence, epoch):
        self.send(COMMIT,
                  struct.pack("<I", subscription) + stream.bytes
                  + struct.pack("<QQ", sequence, epoch))

    def publish(self, epoch, after, entries):
        """`entries`: (sequence, time, topic, payload), one after the other from `after`."""
        body = struct.pack("<QQQI", epoch, after, entries[-1][0], len(entries))
        for sequence, time_ns, topic, payload in entries:
            if topic not in self.aliases:
                if len(self.aliases) == ALIASES_MAX:
                    raise ValueError("more topics than aliases")
                self.aliases[topic] = len(self.aliases)
                self.send(DECLARE, struct.pack("<H", self.aliases[topic]) + text(topic))
            body += struct.pack("<QQqIHH", sequence, 1, time_ns, len(payload),
                                self.aliases[topic], 0) + payload
        self.send(PUBLISH, body)

    def message(self, topic, payload, reply_to="", correlation=0):
        self.send(MESSAGE,
                  struct.pack("<IQB", 0, correlation, 0) + text(topic) + text(reply_to) + payload)

    def request(self, topic, payload, correlation=1):
        self.message(topic, payload, f"reply.{self.connection}", correlation)
        while True:
            kind, fields = self.take()
            if kind == MESSAGE:
                answer = message(fields)
                if answer["subscription"] == 0 and answer["correlation"] == correlation:
                    return answer["payload"]
            elif kind == UNDELIVERABLE:
                number, code = fields.numbers("QH")
                if number == correlation:
                    fields.text()
                    raise Refused(code, fields.text())

    def ping(self, token):
        self.pings += 1
        self.send(PING, struct.pack("<Q", token))
        while self.expect(PONG).number("Q") != token:
            pass
        self.pings -= 1

    def goodbye(self):
        self.send(GOODBYE, struct.pack("<H", DONE) + text(""))
        self.socket.close()

    def delivery(self, fields):
        """A Deliver: (subscription, stream, epoch, after, through, entries)."""
        subscription, count = fields.numbers("II")
        stream = fields.stream()
        epoch, after, through = fields.numbers("QQQ")
        entries = []
        for _ in range(count):
            sequence, span, time_ns, length, alias, zero = fields.numbers("QQqIHH")
            if zero or not span:
                raise ValueError("an entry header that is none")
            entries.append((sequence, span, time_ns, self.topics[alias], fields.take(length)))
        fields.end()
        return subscription, stream, epoch, after, through, entries


def message(fields):
    subscription, correlation, retained = fields.numbers("IQB")
    return {"subscription": subscription, "correlation": correlation,
            "retained": bool(retained), "topic": fields.text(), "reply_to": fields.text(),
            "payload": bytes(fields.body[fields.at:])}


def say(**what):
    print(json.dumps(what), flush=True)


def live(path, client_id, *patterns):
    client = Client(path, client_id)
    client.subscribe_live(patterns)
    say(ready=client.connection, version=client.version)
    while (frame := client.take(also=sys.stdin)) is not None:
        kind, fields = frame
        if kind == MISSED:
            say(missed=fields.numbers("IQ")[1])
        elif kind == DELIVER:
            _, stream, epoch, _, _, entries = client.delivery(fields)
            for sequence, span, time_ns, topic, payload in entries:
                say(stream=str(stream), epoch=epoch, sequence=sequence, span=span, time=time_ns,
                    topic=topic, bytes=len(payload))
    client.goodbye()


def durable(path, name, store, count, *patterns):
    # A line holds a delivery and the position behind it: they are stored together or not at all.
    positions, wanted, first = {}, int(count), True
    with open(store, "a+", encoding="utf-8") as file:
        file.seek(0)
        for line in map(json.loads, file):
            positions[uuid.UUID(line["stream"])] = (line["through"], line["epoch"])
        client = Client(path, name)
        subscription = client.subscribe_durable(name, patterns, positions)
        say(ready=client.connection)
        while wanted > 0:
            kind, fields = client.take()
            if kind != DELIVER:
                continue
            _, stream, epoch, after, through, entries = client.delivery(fields)
            have = positions.get(stream, (0, 0))[0]
            if first:
                first = say(have=have, after=after)
            elif after != have:
                say(gap=[have, after])
            new = [entry for entry in entries if entry[0] > have]
            if through > have:
                print(json.dumps({
                    "stream": str(stream), "epoch": epoch, "after": have, "through": through,
                    "entries": [[entry[0], entry[3], entry[4].decode()] for entry in new],
                }), file=file, flush=True)
                os.fsync(file.fileno())
                positions[stream] = (through, epoch)
            wanted -= len(new)
            # The last commit is left out, as if it had been lost: the positions of the next
            # Subscribe stand for it.
            if wanted > 0:
                client.commit(subscription, stream, *positions[stream])
        client.goodbye()


def publish(path, client_id, stream, epoch, last, topic):
    stream, epoch, last = uuid.UUID(stream), int(epoch), int(last)
    client = Client(path, client_id, COLLECTOR, (stream, epoch, 1, last))
    at = acked = client.committed[0] if client.committed else 0
    say(resumed=at, credit=client.credit)
    unacked = {}
    while acked < last:
        batch, size = [], 0
        while at + len(batch) < last and len(batch) < 50:
            payload = f"event {at + len(batch) + 1}".encode()
            entry = ENTRY_HEADER + len(payload)
            if sum(unacked.values()) + size + entry > client.credit and (batch or unacked):
                break
            size += entry
            batch.append((at + len(batch) + 1, time.time_ns(), topic, payload))
        if batch:
            client.publish(epoch, at, batch)
            at = batch[-1][0]
            unacked[at] = size
        else:
            acked, level = client.expect(ACK).numbers("QB")
            unacked = {through: n for through, n in unacked.items() if through > acked}
            say(acked=acked, level=LEVELS[level])
    client.goodbye()


def request(path, topic, payload):
    client = Client(path, "python-asks")
    say(answer=client.request(topic, payload.encode()).decode())
    client.goodbye()


def answer(path, client_id, topic):
    client = Client(path, client_id, COLLECTOR)
    client.subscribe_live([topic])
    say(ready=client.connection)
    asked = message(client.expect(MESSAGE))
    client.message(asked["reply_to"], asked["payload"], correlation=asked["correlation"])
    say(asked=asked["payload"].decode(), topic=asked["topic"])
    client.goodbye()


def ping(path):
    client = Client(path, "python-pings")
    client.ping(0x1234567890ABCDEF)
    say(pong=True)
    client.goodbye()


COMMANDS = {"live": live, "durable": durable, "publish": publish, "request": request,
            "answer": answer, "ping": ping}

if __name__ == "__main__":
    try:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
    except (Refused, Ended) as end:
        say(ended=type(end).__name__, code=end.code, reason=str(end))
        sys.exit(1)
