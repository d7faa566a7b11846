"""Bodies that the Segment and RudderStack SDKs send: bytes in, calls or reasons out. No I/O, no clock.

Owns how a body is cut into calls and what of a call is readable; what a call means is process/sdkcall.py's. Follows the Segment HTTP
tracking API and Common Fields pages and RudderStack's HTTP API page, as the SDKs of 2026 speak them. A body is the call itself or
``{"batch": [...], "sentAt": ..., "writeKey": ...}``.

One bad call costs itself only. A body that JSON's own reader takes is cut by that; one that it refuses (a NaN, a lone surrogate, a call
nested ten thousand deep) is cut by its brackets and quotes, without recursion, and each piece is read alone. What isn't even balanced
is unreadable as a whole. A lone half of a surrogate pair, which JavaScript makes by cutting a text inside an emoji, becomes U+FFFD as
in every UTF-8 encoder. A key that stands twice in an object means its last value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import Raw

MAX_DEPTH: Final = 200
"""Arrays and objects inside each other in one call: consumers decode it again, with less stack left."""

MAX_CALLS: Final = 20_000
"""In one body: a call is an object of ours with its own dead letter, however few bytes it was. SDKs send some hundred."""

_LARGEST_TOKENS: Final = 2_000_000
_MANY_COMMAS: Final = 400_000
"""With fewer there can't be so many calls that cutting them out costs memory."""

Scalar: TypeAlias = str | int | float | bool | None


class SdkCall(msgspec.Struct, gc=False, rename="camel"):
    """One call as sent; fields that no SDK documents are left out. Raw fields hold JSON as it came, b"" when absent."""

    type: str | None = None
    message_id: Scalar = None
    anonymous_id: Scalar = None
    user_id: Scalar = None
    previous_id: Scalar = None
    group_id: Scalar = None
    event: str | None = None
    name: str | None = None
    category: str | None = None
    channel: str | None = None
    properties: Raw = Raw()
    traits: Raw = Raw()
    context: Raw = Raw()
    integrations: Raw = Raw()
    timestamp: Scalar = None
    original_timestamp: Scalar = None
    sent_at: Scalar = None
    write_key: Scalar = None


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a call becomes no event. reason: a code; detail: one sentence, without a value of the call."""

    reason: str
    detail: str


class Payload(msgspec.Struct, gc=False):
    """A body cut into calls, each as its own bytes, in the order of the array."""

    calls: list[Raw] | list[bytes]
    sent_at: Scalar = None
    write_key: Scalar = None
    context: bytes = b""
    integrations: bytes = b""


class UnreadableError(ValueError):
    """The body isn't JSON, nor anything that could be cut into calls. Says no value of the body."""


class TooManyError(ValueError):
    """The body has more than MAX_CALLS calls."""


class _Envelope(msgspec.Struct, gc=False, rename="camel"):
    batch: list[Raw]
    sent_at: Scalar = None
    write_key: Scalar = None
    context: Raw = Raw()
    integrations: Raw = Raw()


_read_envelope = msgspec.json.Decoder(_Envelope).decode
_read_call = msgspec.json.Decoder(SdkCall).decode
_read_scalar: Callable[[bytes], Scalar] = msgspec.json.Decoder(Scalar).decode
_read_any = msgspec.json.Decoder().decode
_read_text = msgspec.json.Decoder(str).decode

# A string is one token however long: possessive, so that nothing is remembered for backtracking. An open one takes the rest.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]},:]', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE: Final = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
_BOM: Final = b"\xef\xbb\xbf"


def read_batch(body: bytes) -> Payload:
    """Cut a batch into its calls. Raises UnreadableError, TooManyError."""
    body = body.removeprefix(_BOM)
    if body.count(b",") > _MANY_COMMAS:
        _hold_count(body)
    try:
        found = _read_envelope(body)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return _cut_batch(body)
    if len(found.batch) > MAX_CALLS:
        raise TooManyError
    return Payload(found.batch, found.sent_at, found.write_key, bytes(found.context), bytes(found.integrations))


def read_single(body: bytes) -> Payload:
    """The payload of a body that is one call, which isn't looked into here. Raises UnreadableError when it is no object."""
    body = body.removeprefix(_BOM).strip()
    if not body.startswith(b"{"):
        raise UnreadableError("the body is no JSON object" if body else "the body is empty")
    return Payload([body])


def read_calls(payload: Payload) -> Iterator[tuple[Raw | bytes, SdkCall | Refusal]]:
    """Every call's bytes (or a view of them), and the call or why there is none. An array among the calls, as analytics-js makes, is its elements.

    Raises TooManyError.
    """
    count = 0
    for raw in payload.calls:
        call = read_call(raw)
        if isinstance(call, Refusal) and bytes(raw).startswith(b"["):
            try:
                for inner in _children(bytes(raw)):
                    count += 1
                    if count > MAX_CALLS:
                        raise TooManyError
                    yield inner, read_call(inner)
            except UnreadableError:
                yield raw, call
        else:
            yield raw, call


def read_call(raw: Raw | bytes) -> SdkCall | Refusal:
    """One call; every value in it can be decoded by any consumer."""
    try:
        return _checked(raw)
    except UnicodeDecodeError:
        return Refusal("not_utf8", "the event's bytes are not UTF-8")
    except msgspec.ValidationError as error:
        return Refusal("wrong_type", f"a field is of the wrong type: {_plain(str(error))}")
    except RecursionError:
        return _TOO_DEEP
    except (msgspec.DecodeError, ValueError):
        pass
    mended = _without_lone_surrogates(bytes(raw))
    if mended is None:
        return Refusal("not_json", "the event is not valid JSON")
    return read_call(mended)


def read_value(raw: bytes) -> bytes | Refusal:
    """Any JSON value, so that every consumer can decode it: its bytes, halves of surrogate pairs mended, or why it can't be."""
    try:
        _read_any(raw)
    except UnicodeDecodeError:
        return Refusal("not_utf8", "the body's bytes are not UTF-8")
    except RecursionError:
        return _TOO_DEEP
    except (msgspec.MsgspecError, ValueError):
        mended = _without_lone_surrogates(raw)
        return Refusal("not_json", "the body is not valid JSON") if mended is None else read_value(mended)
    return _TOO_DEEP if len(raw) > 2 * MAX_DEPTH and _is_deep(raw) else raw


_TOO_DEEP: Final = Refusal("too_deep", f"the event nests arrays and objects more than {MAX_DEPTH} deep")


def _checked(raw: Raw | bytes) -> SdkCall | Refusal:
    call = _read_call(raw)
    # Decoding them is the proof that everybody can: Raw alone was only skipped over (text not looked at, numbers of any size).
    # What is shorter than its brackets would be can't be too deep.
    for part in (call.properties, call.context, call.traits, call.integrations):
        if part:
            _read_any(part)
            if len(part) > 2 * MAX_DEPTH and _is_deep(bytes(part)):
                return _TOO_DEEP
    return call


def _is_deep(part: bytes) -> bool:
    return part.count(b"{") + part.count(b"[") >= MAX_DEPTH and _depth(part) >= MAX_DEPTH


def _plain(text: str) -> str:
    """msgspec's sentence without a value: it names types and the path, and for an invalid number or key nothing else."""
    return text[:1].lower() + text[1:]


def _without_lone_surrogates(raw: bytes) -> bytes | None:
    """The bytes with U+FFFD in place of each half pair; None when there is none."""
    if _SURROGATE.search(raw) is None:
        return None
    mended = _ESCAPE.sub(lambda found: b"\\ufffd" if found[2] is not None else found[0], raw)
    return mended if mended != raw else None


def _depth(raw: bytes) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(raw):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
            deepest = max(deepest, depth)
        elif mark in (b"}", b"]"):
            depth -= 1
    return deepest


def _cut_batch(body: bytes) -> Payload:
    """read_batch by brackets and quotes."""
    body = body.strip()
    if not body.startswith(b"{"):
        raise UnreadableError("the body is no JSON object" if body else "the body is empty")
    payload = Payload([])
    calls: list[bytes] | None = None
    for key, value in _members(body):
        match key:
            case "batch":
                if not value.startswith(b"["):
                    raise UnreadableError('"batch" is no array')
                calls = []
                for call in _children(value):
                    calls.append(call)
                    if len(calls) > MAX_CALLS:
                        raise TooManyError
            case "sentAt":
                payload.sent_at = _scalar(value)
            case "writeKey":
                payload.write_key = _scalar(value)
            case "context":
                payload.context = value
            case "integrations":
                payload.integrations = value
            case _:
                pass
    if calls is None:
        raise UnreadableError('the body has no "batch"')
    payload.calls = calls
    return payload


def _hold_count(body: bytes) -> None:
    """Raises TooManyError for more elements than MAX_CALLS in an array of the outer object; builds nothing."""
    depth = commas = 0
    for token in _TOKEN.finditer(body):
        mark = body[token.start()]
        if mark in b"[{":
            depth += 1
            commas = 0 if depth == 2 else commas
        elif mark in b"]}":
            depth -= 1
        elif mark == 0x2C and depth == 2:
            commas += 1
            if commas >= MAX_CALLS:
                raise TooManyError


def _members(body: bytes) -> Iterator[tuple[str, bytes]]:
    for member in _children(body):
        token = _TOKEN.match(member)
        if token is None or not member.startswith(b'"'):
            raise UnreadableError("the body is not valid JSON")
        try:
            key = _read_text(token[0])
        except (msgspec.MsgspecError, ValueError):
            continue  # a name of nothing we know
        rest = member[token.end() :].lstrip()
        if not rest.startswith(b":"):
            raise UnreadableError("the body is not valid JSON")
        yield key, rest[1:].lstrip()


def _children(outer: bytes) -> Iterator[bytes]:
    """Members of an object or elements of an array, without the space around them. Raises UnreadableError when it isn't in balance."""
    depth = count = 0
    start = 1
    stack = bytearray()
    for token in _TOKEN.finditer(outer):
        count += 1
        if count > _LARGEST_TOKENS:
            raise UnreadableError("the body is not valid JSON, and too large to look for the events that are")
        mark = outer[token.start()]
        if mark in b"[{":
            depth += 1
            stack.append(mark + 2)  # "]" and "}" come two after their opening brackets
        elif mark in b"]}":
            if not stack or stack.pop() != mark:
                raise UnreadableError("the body is not valid JSON: its brackets don't match")
            depth -= 1
            if depth == 0:
                last = outer[start : token.start()].strip()
                if last or start > 1:
                    yield last
                if outer[token.end() :].strip():
                    raise UnreadableError("the body is not valid JSON: something stands behind its end")
                return
        elif mark == 0x2C and depth == 1:
            yield outer[start : token.start()].strip()
            start = token.end()
    raise UnreadableError("the body is not valid JSON: it ends too early")


def _scalar(value: bytes) -> Scalar:
    try:
        return _read_scalar(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
