"""Requests over HTTP for every sink that speaks it: one client, no redirects, bounded answers; trouble becomes a Fault's reason.

Knows no destination and no event. A reason names host and kind of trouble, never a URL's path or query, a header or a body: those hold
secrets and personal data.
"""

from __future__ import annotations

import email.utils
import math
import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from headrace.cdc import __version__

_MOST_ANSWER_BYTES: Final = 4 << 20


class Reply(msgspec.Struct, frozen=True):
    """What came back. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoReply(Exception):
    """No answer came: the text says why, for people. Whether the request was applied isn't known."""


class HttpClient:
    """Made by ``open``, in the loop that uses it. connections: at once at most."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Touches no network."""
        self._session = aiohttp.ClientSession(
            # Servers close idle connections after 5 s and more; a POST that meets the closing one has to be sent again.
            connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=4),
            # The dispatcher's time limit covers the whole request; a host that doesn't even answer the first packet is told sooner.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"headrace/{__version__}"},
        )

    async def close(self) -> None:
        """Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        """One request, once. Raises NoReply."""
        assert self._session is not None, "opened first"
        host = urlsplit(url).hostname or "the destination"
        try:
            # The URL is sent as it is spelled: a signature over it would not survive another spelling.
            async with self._session.request(
                method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            ) as response:
                found = await response.content.read(_MOST_ANSWER_BYTES)
                while not response.content.at_eof():
                    more = await response.content.read(_MOST_ANSWER_BYTES - len(found))
                    found += more
                    if len(found) >= _MOST_ANSWER_BYTES:
                        raise NoReply(f"{host} answered with more than {_MOST_ANSWER_BYTES >> 20} MiB")
                return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, found)
        except aiohttp.ClientConnectorDNSError as error:
            raise NoReply(f"the name {host} isn't known") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise NoReply(f"the certificate of {host} can't be verified") from error
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno  # the loop's own text repeats the address
            why = type(error.os_error).__name__ if number is None else os.strerror(number)
            raise NoReply(f"{host} can't be reached: {why}") from error
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise NoReply(f"{host} broke the connection off ({type(error).__name__})") from error


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number of seconds, a date, or a time since 1970 (as rate limit headers have).

    None when there is none or it makes no sense. now_s: seconds since 1970. At most an hour is believed.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now_s
        except (ValueError, TypeError):
            return None
    else:
        if seconds > 1_000_000_000:
            seconds -= now_s
    return min(3_600.0, max(0.0, seconds)) if math.isfinite(seconds) else None


__all__ = ["HttpClient", "NoReply", "Reply", "retry_after_s"]
