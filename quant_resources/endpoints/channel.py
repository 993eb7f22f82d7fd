"""HTTP/1.1 to one process that answers, over connections that are kept.

Belongs here: bytes out, reply in, and which connections are open. Does not belong here: which process is asked, and what a reply
means (`router.py`).

Made by hand on asyncio and httptools (which uvicorn brings along), because a general client costs more than everything else that the
router does: a request through `httpx.AsyncClient` takes about half a millisecond of its process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httptools

HOST = "127.0.0.1"
# uvicorn closes a connection that was idle for 5 s; one that may be closing is not worth a try.
KEPT_SECONDS = 4.0


class ChannelBroken(ConnectionError):
    """The process refused, reset or closed the connection before it had answered, or spoke something else than HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        headers: by name in lower case.
        body: as it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def request_bytes(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {HOST}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self.idle_since = 0.0
        self.heard = False
        self.reusable = True

    async def exchange(self, request: bytes) -> Reply:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self.heard = {}, [], False
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def abort(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()
        # uvloop tells of the loss only later; whoever waits shall not wait for that.
        self._fail("the connection was given up")

    def _fail(self, why: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ChannelBroken(why))

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._channel.opened.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._channel.opened.discard(self)
        self._fail(f"the connection was closed before the answer ({error or 'end of stream'})")

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._waiting is None or self._parser is None:  # nobody asked: what follows is out of step
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the answer is no HTTP ({error!r})")
            self.abort()

    # --- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(
                Reply(self._parser.get_status_code(), self._headers, b"".join(self._body))
            )


class Channel:
    """Connections to one process.

    Args:
        port: that it listens at on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened: set[_Connection] = set()
        self._kept: list[_Connection] = []
        self._given_up = 0

    async def ask(self, request: bytes, timeout_seconds: float) -> Reply:
        """Send a request and wait for the whole answer.

        Raises:
            ChannelBroken: there is none.
            TimeoutError: there is none yet.
        """
        given_up = self._given_up
        async with asyncio.timeout(timeout_seconds):
            connection = self._take()
            if connection is not None:
                try:
                    return await self._exchange(connection, request)
                except ChannelBroken:
                    # The process may close a kept connection at the moment it is used. That says nothing about the process.
                    if connection.heard or self._given_up != given_up:
                        raise
            try:
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self), HOST, self.port
                )
            except OSError as error:
                raise ChannelBroken(f"nobody listens at port {self.port} ({error.strerror})") from error
            if self._given_up != given_up:
                connection.abort()
                raise ChannelBroken("the process ended")
            return await self._exchange(connection, request)

    def _take(self) -> _Connection | None:
        while self._kept:
            connection = self._kept.pop()
            if connection.reusable and time.monotonic() - connection.idle_since < KEPT_SECONDS:
                return connection
            connection.abort()
        return None

    async def _exchange(self, connection: _Connection, request: bytes) -> Reply:
        try:
            reply = await connection.exchange(request)
        except BaseException:
            # Also when the time is over: the answer would come in the place of the next one.
            connection.abort()
            raise
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._kept.append(connection)
        else:
            connection.abort()
        return reply

    def abort(self) -> None:
        """Give up all connections; whoever waits for an answer gets `ChannelBroken`."""
        self._given_up += 1
        self._kept.clear()
        for connection in list(self.opened):
            connection.abort()
