"""The way to Alpha Vantage: an httpx client whose requests get their key below the place where they are logged.

Belongs here: transport, time-outs, proxy, keeping the key to itself. Does not belong here: what is asked (`alpha_vantage.py`) and what an
answer means (`alpha_vantage_wire.py`).

The vendor takes its key as a parameter of the address, and httpx logs addresses. So the client knows an address without it, and the
transport sends another one.
"""

from __future__ import annotations

import logging
import urllib.parse
import urllib.request

import httpx

CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 10.0, 60.0
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")


def open_client(url: str, key: str, secrets: tuple[str, ...], read_timeout_seconds: float) -> httpx.Client:
    """A client for `url` whose requests get the key on their way out.

    Args:
        url: of the service; decides about the environment's proxy.
        key: of the account.
        secrets: texts that must not be logged.
        read_timeout_seconds: longest silence of the service.
    """
    if secrets:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_BlotKey(secrets))
    # httpx reads the proxy of the environment only for transports of its own.
    address = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if urllib.request.proxy_bypass(address.netloc):
        proxy = None
    return httpx.Client(
        transport=_KeyTransport(key, httpx.HTTPTransport(proxy=proxy)),
        timeout=httpx.Timeout(read_timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS),
        follow_redirects=False,
        headers={"Accept": "application/json"},
    )


class _KeyTransport(httpx.BaseTransport):
    """Adds the key to a request after the client has logged it, and before it is sent.

    Args:
        key: of the account.
        inner: sends.
    """

    def __init__(self, key: str, inner: httpx.BaseTransport) -> None:
        self._key, self._inner = key, inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a copy of the request that has the key; the response belongs to the request without it."""
        url = request.url.copy_merge_params({"apikey": self._key})
        return self._inner.handle_request(
            httpx.Request(request.method, url, headers=request.headers, extensions=request.extensions)
        )

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class _BlotKey(logging.Filter):
    """Blots keys out of what httpx's layers log: a server that redirects repeats the address, key included, in a header."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; every record passes."""
        text = record.getMessage()
        for secret in self._secrets:
            text = text.replace(secret, "(key)")
        record.msg, record.args = text, ()
        return True
