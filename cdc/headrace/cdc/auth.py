"""Who may ask the HTTP server: bearer tokens, and without tokens only this machine's own programs.

Follows RFC 6750 (Bearer) and RFC 7617 (Basic, with the token as password: what a browser or ``curl -u`` can send). Tokens are kept
as SHA-256 digests and compared in constant time, every one of them each time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.cdc.errors import ConfigError
from headrace.cdc.listen import is_loopback

ADMIN: Final = "admin"


class Tokens:
    """The tokens of ``server.tokens``; ``bool()`` is False when there are none, and then everyone is let in."""

    def __init__(self, tokens: Mapping[str, str], scopes: Mapping[str, Sequence[str]] | None = None) -> None:
        """scopes: what a token may, by name; one that isn't there may everything. Raises ConfigError for a token that is empty or that no header can carry."""
        problems = tuple(
            f"server.tokens.{name}: {reason}"
            for name, token in tokens.items()
            if (reason := _unusable(token)) is not None
        )
        if problems:
            raise ConfigError(
                "the tokens of the HTTP server can't be used",
                problems=problems,
                advice='make a token with "openssl rand -hex 24" and give it by ${VARIABLE}',
            )
        self._digests = [_digest(token) for token in tokens.values()]
        self._scopes = [frozenset((scopes or {}).get(name, (ADMIN,))) for name in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, header: str | None) -> frozenset[str] | None:
        """What the token in an Authorization header may; None when it is none of these."""
        given = _digest(_credential(header or ""))
        found: frozenset[str] | None = None
        for digest, scopes in zip(self._digests, self._scopes, strict=True):
            if hmac.compare_digest(given, digest):
                found = scopes
        return found


def scope_of(method: str, path: str) -> str:
    """What a token must be allowed for a route."""
    parts = path.split("/")
    if parts[1] == "v1" and parts[2:3] in (["stream"], ["events"], ["ws"], ["subscriptions"]):
        return "events"
    if path in ("/get-online-features", "/features") or (method == "GET" and parts[1:3] == ["v1", "features"]):
        return "features"
    if method == "GET" and path in ("/", "/metrics", "/v1/status"):
        return "status"
    return ADMIN


def is_local_host(host: str) -> bool:
    """True when a Host header names loopback (any port).

    A web page can have its own name resolve to 127.0.0.1 and then read whatever answers there (DNS rebinding); its name
    stays in the Host header.
    """
    if host.startswith("["):
        return is_loopback(host[1:].partition("]")[0])
    return is_loopback(host.partition(":")[0])


def _unusable(token: str) -> str | None:
    if not token:
        return "is empty"
    if not (token.isascii() and token.isprintable()) or " " in token:
        return "holds a character that a header can't carry; use letters, digits and -._~+/="
    return None


def _credential(header: str) -> str:
    scheme, _, rest = header.partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
