"""The processes of one run watch each other: when one dies, all stop within seconds and say which one it was, and why.

    supervisor  in process 0: knows all processes, and passes on what happens to one of them
    client      in every process: one TCP connection to the supervisor

torchrun ends the other processes of its own machine only, and an env:// launcher none. So those of the other machines
would stay in a collective until its timeout, or, while process 0 works alone for hours (evaluation, export), wait for a
process that is gone. Here the operating system closes the connections of a process that dies, in whatever way, and
waiting for process 0 is a message without a timeout. A process that is stopped keeps its connections; it is given up
after `silence` seconds without a sign of life.

Messages are lines of JSON, but for the first, the token:

    client -> supervisor   {"rank", "title", "node", "local_rank"} first; {} alive; {"at": n} waits for the n-th time;
                           {"failed": text, "code": exit code}; {"bye": true}
    supervisor -> client   {} alive; {"go": n} all wait for the n-th time; {"stop": failure}; {"bye": true}
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

TICK = 1.0  # seconds between signs of life
LOST = 60  # seconds until a machine that answers nothing counts as gone
GRACE = 5.0  # seconds in which the true cause of a broken collective becomes known: the end of another process
LONGEST = 2**16  # bytes of a message


@dataclass(frozen=True)
class PeerFailure:
    """Why all stop."""

    rank: int
    """Of the process that failed."""
    node: str
    """Its machine; empty if that is not known."""
    local_rank: int
    text: str
    code: int = 1
    """Exit code of the others."""


class Supervisor:
    """Knows all processes of a run. Its threads end with the process that has it."""

    def __init__(self, count: int, silence: float):
        self.count, self.silence = count, silence
        self.token = secrets.token_hex(16)
        self._server = _server()
        self.port = self._server.getsockname()[1]
        self._peers: dict[int, _Peer] = {}
        self._opened = 0
        self._end: dict[str, Any] = {}
        """The last message, once it is sent: those that join later need it too."""
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._close)
        for work in (self._accept, self._beat):
            threading.Thread(target=work, name="llm2enc-supervisor", daemon=True).start()

    def leave(self) -> None:
        """This process ends in order: the others are on their own."""
        with self._lock:
            self._end = {"bye": True}
            self._broadcast(self._end)

    def _close(self) -> None:
        """Close what a forked child has inherited: a copy would keep the connections of a dead process open."""
        for connection in [self._server, *(peer.connection for peer in self._peers.values())]:
            connection.close()

    def _accept(self) -> None:
        while True:
            with suppress(OSError):  # gone again
                connection, _ = self._server.accept()
                _set_up(connection, self.silence)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Take what a process sends until it ends."""
        peer, end = None, "was killed, or its machine is gone"
        with connection:
            try:
                for message in _messages(connection, self.token):
                    with self._lock:
                        if peer is None:
                            peer = self._peers[message["rank"]] = _Peer(connection, **message)
                            if self._end:
                                _send(connection, self._end)
                        else:
                            self._take(peer, message)
            except TimeoutError:
                end = _silent(self.silence)
            with self._lock:
                if peer is not None and not peer.left:
                    self._stop(peer, end)

    def _take(self, peer: "_Peer", message: dict[str, Any]) -> None:
        peer.left = peer.left or "bye" in message
        peer.at = message.get("at", peer.at)
        if "failed" in message:
            self._stop(peer, message["failed"], message["code"])
        peers = self._peers.values()
        if len(peers) == self.count and min(other.at for other in peers) > self._opened:
            self._opened += 1
            self._broadcast({"go": self._opened})
        left = [other for other in peers if other.left]
        if left and any(other.at > self._opened for other in peers):
            self._stop(left[0], "ended before the others")

    def _beat(self) -> None:
        while not self._end:
            self._broadcast({})
            time.sleep(TICK)

    def _stop(self, peer: "_Peer", text: str, code: int = 1) -> None:
        if not self._end:  # the first cause is the cause
            failure = PeerFailure(peer.rank, peer.node, peer.local_rank, f"{peer.title} {text}", code)
            self._end = {"stop": asdict(failure)}
            self._broadcast(self._end)

    def _broadcast(self, message: dict[str, Any]) -> None:
        with self._lock:
            for rank in sorted(self._peers, reverse=True):  # process 0 is the last to hear of its own end
                _send(self._peers[rank].connection, message)


class Client:
    """A process's place in the run.

    place    host and port of the supervisor
    rank     of this process, out of `count`
    node     its machine, and `local_rank` its number there
    silence  seconds after which a process that gives no sign of life is given up
    raises   OSError if the supervisor cannot be reached
    """

    advice = ""
    """What the message of a stop ends with."""

    def __init__(
        self, place: tuple[str, int], token: str, rank: int, count: int, node: str, local_rank: int, silence: float
    ):
        self.rank, self.node, self.local_rank, self.silence = rank, node, local_rank, silence
        self._connection = socket.create_connection(place, timeout=LOST)
        _set_up(self._connection, silence)
        self._turn = self._opened = 0
        self._failing = self._to_blame = self._alone = self._left = False
        self._news = threading.Condition()
        os.register_at_fork(after_in_child=self._connection.close)  # as in Supervisor._close
        self._connection.sendall(f"{token}\n".encode())
        title = f"process {rank} of {count} ({socket.gethostname()}, pid {os.getpid()})"
        _send(self._connection, {"rank": rank, "title": title, "node": node, "local_rank": local_rank})
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name="llm2enc-client", daemon=True).start()

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
        with self._news:
            _send(self._connection, {"bye": True})

    def _beat(self) -> None:
        """Send signs of life: a machine that is gone is noticed by what it does not answer."""
        while not (self._left or self._alone):
            with self._news:
                _send(self._connection, {})
            time.sleep(TICK)

    def _listen(self) -> None:
        end = "was killed, or its machine is gone"
        try:
            for message in _messages(self._connection):
                self._take(message)
        except TimeoutError:
            end = _silent(self.silence)
        if not self._alone:
            self._stop(_main(end))

    def _take(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            self._stop(PeerFailure(**message["stop"]))
        with self._news:
            self._opened = message.get("go", self._opened)
            self._alone = self._alone or "bye" in message
            self._news.notify_all()

    def _stop(self, failure: PeerFailure) -> None:
        """End this process now: its main thread may be in a collective that nothing else ends."""
        if self._left or self._to_blame:
            return
        if failure.rank == self.rank and self._failing:  # it says by itself what went wrong
            with self._news:
                self._to_blame = True
                self._news.notify_all()
            return
        # One line on every machine.
        first = 1 if failure.local_rank == 0 and failure.node in ("", self.node) else 0
        if self.local_rank in (0, first) or failure.rank == self.rank:  # frozen for a while, and given up by the others
            advice = f". {self.advice}" if self.advice else ""
            # Past Python's own streams: another thread, a progress bar's, may hold them and never let go.
            with suppress(OSError):
                os.write(2, f"\nstopped: {failure.text.rstrip('.')}{advice}\n".encode())
        os._exit(failure.code)


@dataclass
class _Peer:
    """A process as the supervisor knows it."""

    connection: socket.socket
    rank: int
    title: str
    node: str
    local_rank: int
    at: int = 0
    left: bool = False


def _main(text: str) -> PeerFailure:
    return PeerFailure(0, "", 0, f"process 0, the main one, {text}")


def _silent(seconds: float) -> str:
    return f"gave no sign of life for {seconds / 60:g} minutes: it is stopped or hangs"


def _messages(connection: socket.socket, token: str = "") -> Iterator[dict[str, Any]]:
    """Yield what arrives until the other side ends; nothing from a stranger, whose first line is not the token.

    raises  TimeoutError if nothing arrives for as long as the connection's timeout
    """
    rest = b""
    while len(rest) < LONGEST:
        try:
            data = connection.recv(LONGEST)
        except OSError as error:
            if error.errno is None:  # Python's own timeout, not TCP's
                raise
            return
        *lines, rest = (rest + data).split(b"\n")
        if token and lines:
            if lines.pop(0) != token.encode():
                return
            token = ""
        if not data:
            return
        yield from map(json.loads, lines)


def _server() -> socket.socket:
    """Listen on every address: which one the other machines reach is not known here."""
    try:
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):  # no IPv6
        return socket.create_server(("", 0))


def _set_up(connection: socket.socket, silence: float) -> None:
    """Small messages leave at once, and a machine that is gone is noticed after LOST seconds."""
    connection.settimeout(silence)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; there is always a sign of life that waits for its answer
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * LOST)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # an end is noticed where it is read
        connection.sendall(json.dumps(message).encode() + b"\n")
