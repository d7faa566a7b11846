"""Signatures of webhooks: whether a request comes from whoever shares a secret with us, and is fresh. Pure: no I/O, no clock.

Covers what webhooks do in practice: an HMAC (RFC 2104) of the body, or of a text made of body, time and headers, in one header, as
hexadecimal digits or base64, behind a prefix, once or several times while a secret is replaced; or the secret itself as a token. The
schemes of Stripe (``Stripe-Signature``), GitHub (``X-Hub-Signature-256``), Shopify (``X-Shopify-Hmac-SHA256``) and Standard Webhooks
(``webhook-signature``) are values of Signing (webhook_presets/). Every secret is compared with every signature, in constant time.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from headrace.cdc.config import Duration, Section
from headrace.cdc.decode.sdkpayload import Refusal

_REFERENCE: Final = re.compile(r"\{(body|timestamp|header:[A-Za-z0-9-]+)\}")
_MOST_SIGNATURES: Final = 20
"""Of one request: more than any scheme sends, and few enough to compare."""


class Signing(Section, frozen=True):
    """How a webhook proves who sent it."""

    header: Annotated[
        str, Meta(description="Header that holds the signature.", pattern="^[A-Za-z0-9-]+$", examples=["X-Signature"])
    ]
    hash: Annotated[
        Literal["sha256", "sha512", "sha1", "none"],
        Meta(description="Hash of the HMAC; none: the header holds the secret itself, as a token."),
    ] = "sha256"
    encoding: Annotated[Literal["hex", "base64"], Meta(description="How the signature is written.")] = "hex"
    prefix: Annotated[
        str, Meta(description="What stands before the signature in its header.", examples=["sha256="])
    ] = ""
    separator: Annotated[
        str, Meta(description="What stands between signatures, where a header may hold several.", examples=[" "])
    ] = ""
    timestamp: Annotated[
        str,
        Meta(
            description="Where the time of sending stands, in seconds since 1970: a header's name, or a prefix among the pieces of the"
            " signature's header, ending in =.",
            examples=["X-Request-Timestamp", "t="],
        ),
    ] = ""
    over: Annotated[
        str,
        Meta(
            description="What is signed, of {body}, {timestamp} and {header:NAME}. Default: the body, after the timestamp and a dot where"
            " there is one.",
            examples=["v0:{timestamp}:{body}"],
        ),
    ] = ""
    tolerance: Annotated[
        Duration,
        Meta(description="How far a request's timestamp may be from our clock before it is refused. Default: 5m."),
    ] = msgspec.field(default_factory=lambda: Duration(300_000_000))
    secret_encoding: Annotated[
        Literal["text", "hex", "base64"],
        Meta(description="How the secrets are written. base64: also behind whsec_, as Standard Webhooks gives them."),
    ] = "text"

    def __post_init__(self) -> None:
        if self.hash == "none" and (self.timestamp or self.over):
            raise ValueError("hash: none compares the header with the secret; timestamp and over need a hash")
        if self.over and "{body}" not in self.over:
            raise ValueError("over leaves the body out, which anybody could then change; put {body} into it")
        if self.timestamp and self.over and "{timestamp}" not in self.over:
            raise ValueError(
                "over leaves the timestamp out, which anybody could then change; put {timestamp} into it, or take timestamp out"
            )
        if "{timestamp}" in self.over and not self.timestamp:
            raise ValueError("over names {timestamp}; say with timestamp where it stands")
        if self.timestamp.endswith("=") and not self.separator:
            raise ValueError(f'the piece "{self.timestamp}" needs a separator, such as ","')


class Verifier:
    """Checks requests against one scheme and the secrets of now and of before."""

    def __init__(self, signing: Signing, secrets: Sequence[str]) -> None:
        """Raises ValueError for a secret that isn't written as secret_encoding says."""
        self._signing = signing
        self._header = signing.header.lower()
        self._keys = [_key(secret, signing.secret_encoding, number) for number, secret in enumerate(secrets)]
        self._over = signing.over or ("{timestamp}.{body}" if signing.timestamp else "{body}")

    def refusal(self, headers: Mapping[str, str], body: bytes, now_us: int) -> Refusal | None:
        """Why the request isn't to be trusted; None when it is. headers: names in lower case. body: as it came."""
        signing = self._signing
        value = headers.get(self._header, "")
        if not value:
            return Refusal("unsigned", f"the header {signing.header} is missing")
        pieces = value.split(signing.separator) if signing.separator else [value]
        pieces = [piece.strip() for piece in pieces]
        given = [piece.removeprefix(signing.prefix) for piece in pieces if piece.startswith(signing.prefix)]
        if signing.hash == "none":
            tokens = [each.encode("utf-8", "surrogateescape") for each in given[:_MOST_SIGNATURES]]
            return None if _is_any(tokens, self._keys) else _WRONG
        timestamp = self._timestamp(headers, pieces)
        if signing.timestamp:
            if timestamp is None:
                return Refusal("no_timestamp", f"the timestamp ({signing.timestamp}) is missing or no number")
            # Told apart from a wrong signature, since another clock is another cure; both are refused alike.
            if abs(now_us - int(timestamp) * 1_000_000) > signing.tolerance.us:
                return Refusal("stale", "the timestamp is further from this machine's clock than the tolerance")
        signatures = [found for each in given[:_MOST_SIGNATURES] if (found := self._decoded(each)) is not None]
        message = b"".join(self._message(headers, timestamp or "", body))
        made = [hmac.digest(key, message, signing.hash) for key in self._keys]
        return None if _is_any(signatures, made) else _WRONG

    def _timestamp(self, headers: Mapping[str, str], pieces: Sequence[str]) -> str | None:
        name = self._signing.timestamp
        if name.endswith("="):
            value = next((piece.removeprefix(name) for piece in pieces if piece.startswith(name)), "")
        else:
            value = headers.get(name.lower(), "") if name else ""
        return value if value.isascii() and value.isdigit() and len(value) <= 12 else None

    def _decoded(self, text: str) -> bytes | None:
        try:
            if self._signing.encoding == "hex":
                return bytes.fromhex(text)
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None

    def _message(self, headers: Mapping[str, str], timestamp: str, body: bytes) -> Iterator[bytes]:
        for number, part in enumerate(_REFERENCE.split(self._over)):
            if number % 2 == 0:
                yield part.encode()
            elif part == "body":
                yield body
            elif part == "timestamp":
                yield timestamp.encode()
            else:
                yield headers.get(part.removeprefix("header:").lower(), "").encode("utf-8", "surrogateescape")


_WRONG: Final = Refusal("wrong_signature", "no signature fits any of the secrets")


def _is_any(given: Sequence[bytes], wanted: Sequence[bytes]) -> bool:
    """Whether any of given is any of wanted; takes as long whichever it is."""
    is_found = False
    for one in given:
        for other in wanted:
            is_found |= hmac.compare_digest(one, other)
    return is_found


def _key(secret: str, encoding: str, number: int) -> bytes:
    try:
        match encoding:
            case "hex":
                key = bytes.fromhex(secret)
            case "base64":
                key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
            case _:
                key = secret.encode()
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"secrets[{number}] isn't written in {encoding}, as signature.secret_encoding says") from error
    if not key:
        raise ValueError(f"secrets[{number}] is empty: anybody could sign with it")
    return key


__all__ = ["Signing", "Verifier"]
