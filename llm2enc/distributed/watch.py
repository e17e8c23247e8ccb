"""The processes of one run watch each other: when one dies, all stop within seconds and say which one it was, and why.

    hub      in process 0: knows all processes, and passes on what happens to one of them
    member   in every process: one TCP connection to the hub, read by a thread

The operating system closes the connections of a process that dies, in whatever way, so the others know at once. Without
that they would sit in a collective until its timeout. And waiting for a process that works alone, for hours perhaps
(evaluation, export), is no collective here but a message, so it has no timeout at all: it lasts as long as all are alive.
A process that is stopped keeps its connections; it is given up after `silence` seconds without a sign of life.

Messages are lines of JSON:

    member -> hub   {"token", "number", "title", "node", "local"} first; {} alive; {"at": n} waits for the n-th time;
                    {"failed": text, "code": exit code}; {"bye": true}
    hub -> member   {} alive; {"go": n} all wait for the n-th time; {"stop": verdict}; {"bye": true}
"""

import json
import os
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

TICK = 1.0  # seconds between signs of life
LOST = 60  # seconds until a machine that answers nothing counts as gone
GRACE = 5.0  # seconds in which the true cause of a broken collective becomes known: the end of another process
LONGEST = 2**16  # bytes of a message


@dataclass(frozen=True)
class Verdict:
    """Why all stop."""

    number: int
    """Of the process that is to blame."""
    node: str
    """Its machine; empty if that is not known."""
    local: int
    """Its number on its machine."""
    text: str
    code: int = 1
    """Exit code of the others."""


class Hub:
    """Knows all processes of a run. Its thread ends with the process that has it."""

    def __init__(self, count: int, silence: float):
        self.count, self.silence = count, silence
        self.token = secrets.token_hex(16)
        self._server = _server()
        self.port = self._server.getsockname()[1]
        self._peers: dict[int, _Peer] = {}
        self._opened, self._over = 0, False
        threading.Thread(target=self._run, name="llm2enc-hub", daemon=True).start()
        _to_drop.append(self)

    def leave(self) -> None:
        """This process ends in order: the others are on their own."""
        self._over = True
        self._broadcast({"bye": True})

    def drop(self) -> None:
        """Close what a forked child has inherited: a copy would keep the connections of a dead process open."""
        for connection in [self._server, *(peer.connection for peer in self._peers.values())]:
            connection.close()

    def _run(self) -> None:
        beat = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while not self._over:
                for key, _ in selector.select(TICK):
                    if key.data is None:
                        self._accept(selector)
                    elif not self._read(key.data):
                        selector.unregister(key.data.connection)
                        key.data.connection.close()
                if time.monotonic() - beat >= TICK:
                    beat = time.monotonic()
                    self._broadcast({})
                    self._look_for_silence(beat)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._server.accept()
            _set_up(connection)
        except OSError:  # gone again
            return
        selector.register(connection, selectors.EVENT_READ, _Peer(connection))

    def _read(self, peer: "_Peer") -> bool:
        """Take what a process sent; False when there is nothing more to come."""
        messages = peer.lines.receive()
        if messages is None:
            if peer.number >= 0 and not peer.left:
                self._stop(peer, "was killed, or its machine is gone")
            return False
        for message in messages:
            if peer.number < 0 and not self._greet(peer, message):
                return False
            self._take(peer, message)
        return True

    def _greet(self, peer: "_Peer", message: dict[str, Any]) -> bool:
        if message.get("token") != self.token:
            return False
        peer.number, peer.title = message["number"], message["title"]
        peer.node, peer.local = message["node"], message["local"]
        self._peers[peer.number] = peer
        return True

    def _take(self, peer: "_Peer", message: dict[str, Any]) -> None:
        peer.heard = time.monotonic()
        peer.left = peer.left or "bye" in message
        peer.at = message.get("at", peer.at)
        if "failed" in message:
            self._stop(peer, message["failed"] + self._silent(peer), message["code"])
        if len(self._peers) == self.count and min(peer.at for peer in self._peers.values()) > self._opened:
            self._opened += 1
            self._broadcast({"go": self._opened})
        left = [other for other in self._peers.values() if other.left]
        if left and any(other.at > self._opened for other in self._peers.values()):
            self._stop(left[0], "ended before the others")

    def _look_for_silence(self, now: float) -> None:
        for peer in list(self._peers.values()):
            if not peer.left and now - peer.heard > self.silence:
                self._stop(peer, _silent(self.silence))

    def _silent(self, failed: "_Peer") -> str:
        """Whom a failed process may have waited for in vain."""
        now = time.monotonic()
        others = [peer for peer in self._peers.values() if peer is not failed and now - peer.heard > 3 * TICK]
        return "".join(f"; no sign of life from {peer.title} for {now - peer.heard:.0f} seconds" for peer in others)

    def _stop(self, peer: "_Peer", text: str, code: int = 1) -> None:
        if not self._over:
            self._over = True  # the first cause is the cause
            verdict = Verdict(peer.number, peer.node, peer.local, f"{peer.title} {text}", code)
            self._broadcast({"stop": asdict(verdict)})

    def _broadcast(self, message: dict[str, Any]) -> None:
        for number in sorted(self._peers, reverse=True):  # process 0 is the last to hear of its own end
            _send(self._peers[number].connection, message)


class Member:
    """A process's place in the run.

    place    host and port of the hub
    number   of this process, out of `count`
    node     its machine, and `local` its number there
    silence  seconds after which a process that gives no sign of life is given up
    raises   OSError if the hub can't be reached
    """

    advice = ""
    """What the message of a stop ends with."""

    def __init__(
        self, place: tuple[str, int], token: str, number: int, count: int, node: str, local: int, silence: float
    ):
        self.number, self.node, self.local, self.silence = number, node, local, silence
        self._connection = socket.create_connection(place, timeout=LOST)
        _set_up(self._connection)
        self._lines = _Lines(self._connection)
        self._turn = self._opened = 0
        self._failing = self._to_blame = self._alone = self._left = False
        self._news = threading.Condition()
        title = f"process {number} of {count} ({socket.gethostname()}, pid {os.getpid()})"
        _send(self._connection, {"token": token, "number": number, "title": title, "node": node, "local": local})
        threading.Thread(target=self._run, name="llm2enc-member", daemon=True).start()
        _to_drop.append(self)

    def wait(self) -> None:
        """Until all processes wait. This process ends here if another one does."""
        with self._news:
            self._turn += 1
            _send(self._connection, {"at": self._turn})
            self._news.wait_for(lambda: self._opened >= self._turn or self._alone)
        if self._opened < self._turn:
            self._stop(_main("ended before the others"))

    def fail(self, text: str, code: int, after: float = 0.0) -> None:
        """Make the others stop. Returns if this process failed first, and ends it otherwise.

        code   exit code of the others
        after  seconds to wait first: the end of another process may turn out to be the cause
        """
        time.sleep(after)
        with self._news:
            self._failing = True
            _send(self._connection, {"failed": text[:1000], "code": code})
            self._news.wait_for(lambda: self._to_blame or self._alone, GRACE)

    def leave(self) -> None:
        """This process ends in order."""
        self._left = True
        _send(self._connection, {"bye": True})

    def drop(self) -> None:
        self._connection.close()

    def _run(self) -> None:
        heard = beat = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            while not self._left and not self._alone:
                if selector.select(TICK):
                    heard = time.monotonic()
                    messages = self._lines.receive()
                    if messages is None:
                        self._stop(_main("was killed, or its machine is gone"))
                        return
                    for message in messages:
                        self._take(message)
                elif time.monotonic() - heard > self.silence:
                    self._stop(_main(_silent(self.silence)))
                if time.monotonic() - beat >= TICK:
                    beat = time.monotonic()
                    _send(self._connection, {})

    def _take(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            self._stop(Verdict(**message["stop"]))
        with self._news:
            self._opened = message.get("go", self._opened)
            self._alone = "bye" in message
            self._news.notify_all()

    def _stop(self, verdict: Verdict) -> None:
        """End this process now: its main thread may be in a collective that nothing else ends."""
        if self._left:
            return
        if verdict.number == self.number and self._failing:  # it says by itself what went wrong
            with self._news:
                self._to_blame = True
                self._news.notify_all()
            return
        # One line on every machine.
        first = 1 if verdict.local == 0 and verdict.node in ("", self.node) else 0
        if self.local in (0, first) or verdict.number == self.number:  # frozen for a while, and given up by the others
            advice = f". {self.advice}" if self.advice else ""
            # Past Python's own streams: another thread, a progress bar's, may hold them and never let go.
            with suppress(OSError):
                os.write(2, f"\nstopped: {verdict.text.rstrip('.')}{advice}\n".encode())
        os._exit(verdict.code)


def _main(text: str) -> Verdict:
    return Verdict(0, "", 0, f"process 0, the main one, {text}")


def _silent(seconds: float) -> str:
    return f"gave no sign of life for {seconds / 60:g} minutes: it is stopped or hangs"


@dataclass
class _Peer:
    """A process as the hub knows it."""

    connection: socket.socket
    number: int = -1
    title: str = ""
    node: str = ""
    local: int = 0
    at: int = 0
    left: bool = False
    heard: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.lines = _Lines(self.connection)


@dataclass
class _Lines:
    """The messages of a connection."""

    connection: socket.socket
    rest: bytes = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """What has arrived since the last call; None at the end, and for a stranger's noise."""
        try:
            data = self.connection.recv(LONGEST)
            *lines, self.rest = (self.rest + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        strange = len(self.rest) > LONGEST or not all(isinstance(message, dict) for message in messages)
        return messages if data and not strange else None


def _server() -> socket.socket:
    """Listens on every address: which one the other machines reach is not known here."""
    try:
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):  # no IPv6
        return socket.create_server(("", 0))


def _set_up(connection: socket.socket) -> None:
    """Small messages leave at once, and a machine that is gone is noticed after LOST seconds."""
    connection.settimeout(LOST)
    for level, name, value in (
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 1000 * LOST),  # Linux
    ):
        if hasattr(socket, name):
            connection.setsockopt(level, getattr(socket, name), value)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # an end is noticed where it is read
        connection.sendall(json.dumps(message).encode() + b"\n")


_to_drop: list[Hub | Member] = []


def _drop_all() -> None:
    for one in _to_drop:
        one.drop()


os.register_at_fork(after_in_child=_drop_all)
