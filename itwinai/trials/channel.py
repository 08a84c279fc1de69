"""A line from the process in which a trial trains to the one that the search talks to.

Messages are lines of JSON, so that nothing is executed that comes over the network. Who connects has to know the key,
which travels with the address.
"""

from __future__ import annotations

import json
import secrets
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from itwinai.errors import ItwinaiError

Message = dict[str, Any]

_CONNECT_WITHIN = 30.0
_KEY_WITHIN = 5.0


class ChannelClosedError(ItwinaiError, ConnectionError):
    """The other end of a connection is gone."""


@dataclass(frozen=True)
class Address:
    """Where an `ChannelServer` listens.

    Attributes:
        host: name or IP address.
        port: TCP port.
        key: shared secret.
    """

    host: str
    port: int
    key: str


class Channel:
    """One end of a connection.

    Args:
        connection: the connected socket, which belongs to the line from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = b""

    @classmethod
    def to(cls, address: Address) -> Channel:
        """Connect to a server.

        Raises:
            ChannelClosedError: no server listens there.
        """
        try:
            connection = socket.create_connection((address.host, address.port), timeout=_CONNECT_WITHIN)
        except OSError as error:
            raise ChannelClosedError(
                f"The search at {address.host}:{address.port} cannot be reached: {error}."
            ) from error
        connection.settimeout(None)
        # An answer is waited for after each message.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = cls(connection)
        line.send({"key": address.key})
        return line

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            ChannelClosedError: the other end is gone.
        """
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ChannelClosedError(f"The connection to the search is broken: {error}.") from error

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message.

        Args:
            timeout: seconds to wait; None waits until there is one.

        Returns:
            The message, or None if there was none in time.

        Raises:
            ChannelClosedError: the other end is gone.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._received:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.connection], [], [], left)[0]:
                return None
            try:
                data = self.connection.recv(65536)
            except OSError as error:
                raise ChannelClosedError(f"The connection to the search is broken: {error}.") from error
            if not data:
                raise ChannelClosedError("The search closed the connection.")
            self._received += data
        message, _, self._received = self._received.partition(b"\n")
        received: Message = json.loads(message)
        return received

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class ChannelServer:
    """The end that listens. It talks to one caller at a time: who comes later has taken the earlier one's place.

    Args:
        host: address to listen at.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._listener = socket.create_server((host, 0))
        self.address = Address(host, self._listener.getsockname()[1], secrets.token_hex(16))
        self._channel: Channel | None = None

    def receive(self, timeout: float) -> Message | None:
        """Return the next message of the present caller, or None if none came in time."""
        deadline = time.monotonic() + timeout
        while True:
            if self._channel is not None:
                try:
                    if (message := self._channel.receive(0)) is not None:
                        return message
                except ChannelClosedError:
                    self._hang_up()
            left = deadline - time.monotonic()
            waiting: list[Any] = [self._listener, *([] if self._channel is None else [self._channel.connection])]
            ready = select.select(waiting, [], [], max(0.0, left))[0]
            if self._listener in ready:
                self._accept()
            elif not ready:
                return None

    def reply(self, message: Message) -> None:
        """Answer the present caller; one that has disconnected gets no answer."""
        if self._channel is not None:
            with suppress(ChannelClosedError):
                self._channel.send(message)

    def close(self) -> None:
        """Hang up, and listen no longer."""
        self._hang_up()
        self._listener.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = Channel(connection)
        try:
            first = line.receive(_KEY_WITHIN)
        except (ChannelClosedError, ValueError):
            first = None
        key = first.get("key") if isinstance(first, dict) else None
        if not isinstance(key, str) or not secrets.compare_digest(key, self.address.key):
            line.close()
            return
        self._hang_up()
        self._channel = line

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
