"""The wire corpus (tests/wire/) and both builds of the hot decoder, for the decoders' tests.

``pgoutput.py`` runs compiled where a compiler was found and as plain Python elsewhere: tests take the fixture ``pgoutput`` and run on
both, so that the two can't drift apart.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

import headrace.cdc.decode.pgoutput as installed
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import Change

WIRE = Path(__file__).parent / "wire"
MAJORS = (15, 18)

_SOURCE = Path(str(installed.__file__)).with_name("pgoutput.py")


def _loaded(loader: SourceFileLoader | ExtensionFileLoader) -> ModuleType:
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _compiled() -> ModuleType | None:
    """The compiled build, also where the run chose the other one (HEADRACE_PURE=1); None when there is none."""
    if not str(installed.__file__).endswith(".py"):
        return installed
    built = [path for suffix in EXTENSION_SUFFIXES for path in _SOURCE.parent.glob(f"pgoutput{suffix}")]
    return _loaded(ExtensionFileLoader(installed.__name__, str(built[0]))) if built else None


compiled: ModuleType | None = _compiled()
pure: ModuleType = _loaded(SourceFileLoader("headrace_pgoutput_pure", str(_SOURCE)))


@pytest.fixture(params=["compiled", "pure"])
def pgoutput(request: pytest.FixtureRequest) -> ModuleType:
    """headrace.cdc.decode.pgoutput in one of its two builds."""
    if request.param == "pure":
        return pure
    if compiled is None:
        pytest.skip("pgoutput isn't compiled here: install with a C compiler and without HEADRACE_COMPILE=0")
    return compiled


class Corpus(msgspec.Struct, frozen=True):
    """One captured stream and what the server's catalogue says about it."""

    version: str
    frames: list[bytes]
    primary_keys: dict[int, tuple[str, ...]]
    type_names: dict[int, str]


def corpus(major: int) -> Corpus:
    """The stored stream of a Postgres major version."""
    described = json.loads((WIRE / f"postgres{major}.json").read_text())
    data = (WIRE / f"postgres{major}.frames").read_bytes()
    frames: list[bytes] = []
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at)
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return Corpus(
        described["server_version"],
        frames,
        {int(oid): tuple(names) for oid, names in described["primary_keys"].items()},
        {int(oid): name for oid, name in described["type_names"].items()},
    )


class Decoded(msgspec.Struct):
    """All that a decoder tells after frames were fed; comparable between the builds."""

    transactions: list[tuple[int, int, int, int, list[Change]]]
    error: str
    seen: dict[str, Any]

    @property
    def changes(self) -> list[Change]:
        return [change for transaction in self.transactions for change in transaction[4]]


def decode(module: ModuleType, source: Corpus, frames: list[bytes], *, gulp: int = 1 << 30) -> Decoded:
    """Feed frames, ``gulp`` at a time. Any exception but DecodeError passes through: it is a defect."""
    decoder = module.PgOutputDecoder("t-", dict(source.type_names), {}, {})
    error = ""
    try:
        for first in range(0, len(frames), gulp):
            feed_all(decoder, frames[first : first + gulp], source)
    except DecodeError as failed:
        error = str(failed)
    names = ("wal_end", "server_time_us", "reply_requested", "in_transaction", "versions", "type_names", "primary_keys")
    return Decoded(
        [(t.xid, t.end_lsn, t.commit_us, t.size_bytes, list(t.changes)) for t in decoder.transactions],
        error,
        {name: getattr(decoder, name) for name in names} | {"relations": sorted(decoder.relations)},
    )


def feed_all(decoder: Any, frames: list[bytes], source: Corpus) -> None:
    """Feed as the source does: look the primary key up when asked, and go on where the decoder stopped."""
    at = 0
    while True:
        at = decoder.feed(frames, at)
        oid = decoder.wants_key_of
        if not oid:
            assert at == len(frames)
            return
        assert oid not in decoder.primary_keys, "asked twice for one key"
        decoder.wants_key_of = 0
        decoder.primary_keys[oid] = source.primary_keys.get(oid, ())
