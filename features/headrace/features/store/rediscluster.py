"""The online store in a Redis Cluster: the same hashes and fields as in one Redis, over many servers.

A cluster changes keys of one slot in one step, and no others. So a flush has two parts, view by view. DECIDE, in the slot of the view's
private keys, looks at the fence and takes checkpoint, contributions, due times and, as ``pending``, the entities' rows: from then on the
flush is decided. Then each entity's hash is written, one command each, server by server. A crash in between is finished by whoever opens
the view next: ``checkpoint`` writes the pending rows again, the same bytes. The next flush replaces them.

Loss. A server that fails over may lose its newest writes, and the others don't. Therefore each flush ends on each server with a mark,
the checkpoint, after that server's rows. A mark that is neither the newest nor the one before says that rows are gone
which nobody can name: the view is then told as one of another definition, and is built anew beside its rows.

Not covered: slots that move to another server between a start and the loss; a process that is frozen inside a flush, is replaced by
another one on another copy of the log, and wakes again. The lock of the log keeps two processes from the same log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec
import redis.asyncio.cluster as redis_cluster
from redis import exceptions
from redis.crc import key_slot

from headrace.cdc.errors import StoreError
from headrace.features.encoding import codec_of, encode_timestamp
from headrace.features.spec import EntityKey, ViewSpec
from headrace.features.store.base import Checkpoint, ViewWrite, is_half_promoted
from headrace.features.store.fence import decode_checkpoint, encode_checkpoint, moved, went_back
from headrace.features.store.redis import RedisStore
from headrace.features.store.redisscript import DECIDE, MARK, Names, expected_checkpoint, pack_contribution

_RedisCluster: Final[Any] = redis_cluster.RedisCluster

_TIMEOUT_S: Final = 5.0
_READ_CHUNK: Final = 1000
"""Commands of one pipeline."""

_SCAN_COUNT: Final = 1000


class _Row(msgspec.Struct, array_like=True, gc=False):
    """An entity's hash and the values of all fields; None removes them."""

    hash: bytes
    values: list[bytes] | None


class _Pending(msgspec.Struct, array_like=True, gc=False):
    """The entities of one flush. fields: of the definition that it was of."""

    fields: Sequence[bytes]
    rows: list[_Row]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_pending: Final = msgspec.msgpack.Decoder(_Pending).decode
_decode_marks: Final = msgspec.msgpack.Decoder(list[bytes]).decode


class RedisClusterStore(RedisStore):
    """See OnlineStore and RedisStore. Of several views' writes each is atomic by itself."""

    _marks: tuple[bytes, ...] = ()
    """Hash tags, one in a slot of each server."""

    async def _connect(self) -> None:
        parts = urlsplit(self._config.url)
        # The URL's parameters (of TLS above all) count, but none can turn bytes into text.
        kept = [each for each in parts.query.split("&") if not each.startswith("decode_responses=")]
        url = urlunsplit(parts._replace(query="&".join(kept)))
        client = _RedisCluster.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        self._client_on_pool = client
        try:
            async with self._told():
                await client.initialize()
        except StoreError as error:
            if not isinstance(error.__cause__, exceptions.RedisClusterException):
                raise
            raise StoreError(
                f"no Redis Cluster answers at {self._config.place}",
                advice="check that the server is up and runs in cluster mode; for a Redis by itself leave features.store.cluster out",
            ) from error
        self._marks = _tags(client)

    async def close(self) -> None:
        client, self._client_on_pool = self._client_on_pool, None
        if client is not None:
            await client.aclose()

    async def checkpoint(self, view: ViewSpec) -> Checkpoint | None:
        names = self._names(view)
        async with self._client() as client:
            fields = ("checkpoint", "pending", "former", "marks")
            stored, pending, former, marks = await client.hmget(names.checkpoint, *fields)
            if stored is None:
                self._fence.note(view, None)
                return None
            found = decode_checkpoint(view, stored)
            if is_half_promoted(found):
                pass  # promote knows what is left to do
            elif pending is not None and not await self._has_all(client, names, _decode_marks(marks), (stored, former)):
                found = Checkpoint(spec_hash="", generation=found.generation, offsets=(), log_time_us=0)
            else:
                rows = _Pending((), []) if pending is None else _decode_pending(pending)
                await self._carry_out(client, names, rows, stored, None)
        self._fence.note(view, stored)
        return found

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        packed: list[tuple[ViewWrite, Names, _Pending, list[bytes]]] = []
        for write in writes:
            names = self._names(write.view)
            pending, arguments = _packed(write, names)
            expected = expected_checkpoint(write.view, self._fence)
            packed.append((write, names, pending, [expected, _encode(self._marks), *arguments]))
        async with self._client() as client:
            if len(writes) > 1:
                # What DECIDE would refuse of one view is found before anything of another one is decided.
                for write, names, _, _ in packed:
                    stored = await client.hget(names.checkpoint, "checkpoint")
                    self._fence.check(write.view, stored, write.checkpoint)
            for write, names, pending, arguments in packed:
                is_known = self._fence.knows(write.view)
                reply = await client.eval(DECIDE, len(names.keys), *names.keys, *arguments)
                if isinstance(reply, bytes):
                    raise moved(write.view) if reply.startswith(b"moved") else went_back(write.view)
                new = encode_checkpoint(write.checkpoint)
                self._fence.note(write.view, new)
                # Without a checkpoint that was looked at nobody has compared the marks with it.
                await self._carry_out(client, names, pending, new, reply[1] if is_known and reply[1] else None)

    async def _carry_out(
        self, client: Any, names: Names, pending: _Pending, checkpoint: bytes, former: bytes | None
    ) -> None:
        """Write the rows, and then the marks. former: what the marks must be, None for anything. Raises StoreConflict when one isn't."""
        fields, rows = pending.fields, pending.rows
        for start in range(0, len(rows), _READ_CHUNK):
            pipe = client.pipeline(transaction=False)
            for row in rows[start : start + _READ_CHUNK]:
                if row.values is None:
                    pipe.hdel(row.hash, *fields)
                else:
                    pipe.hset(row.hash, mapping=dict(zip(fields, row.values, strict=True)))
                    if self._key_ttl_s is not None:
                        pipe.expire(row.hash, self._key_ttl_s)
            await pipe.execute()
        pipe = client.pipeline(transaction=False)
        for tag in self._marks:
            if former is None:
                pipe.set(_mark(names, tag), checkpoint)
            else:
                pipe.eval(MARK, 1, _mark(names, tag), former, checkpoint)
        replies = await pipe.execute()
        if b"lost" in replies:
            raise moved(names.view)

    async def _has_all(
        self, client: Any, names: Names, tags: Sequence[bytes], wanted: tuple[bytes | None, ...]
    ) -> bool:
        found = [await client.get(_mark(names, tag)) for tag in tags]
        return all(mark in wanted or (mark is None and not wanted[1]) for mark in found)

    async def _many(self, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
        async with self._client() as client:
            return list(await client.hmget(key, list(fields)))

    async def _fields(
        self, view: ViewSpec, keys: Sequence[EntityKey], fields: tuple[bytes, ...], *, is_reader: bool = False
    ) -> list[list[bytes | None]]:
        codec, suffix = codec_of(view), self._names(view).project
        found: list[list[bytes | None]] = []
        async with self._client() as client:
            for start in range(0, len(keys), _READ_CHUNK):
                pipe = client.pipeline(transaction=False)
                for key in keys[start : start + _READ_CHUNK]:
                    pipe.hmget(codec.encode_key(key) + suffix, fields)
                found += await pipe.execute()
        return found

    async def _on_hashes(
        self, client: Any, script: str, hashes: Sequence[bytes], arguments: Sequence[bytes | str]
    ) -> None:
        if hashes:
            pipe = client.pipeline(transaction=False)
            for each in hashes:
                pipe.eval(script, 1, each, *arguments)
            await pipe.execute()

    async def _forget(self, client: Any, view: ViewSpec) -> None:
        names = self._names(view)
        marks = await client.hget(names.checkpoint, "marks")
        for tag in {*self._marks, *(() if marks is None else _decode_marks(marks))}:
            await client.delete(_mark(names, tag))

    async def _before_keys_move(self, client: Any, view: ViewSpec) -> None:
        checkpoint = await client.hget(self._names(view.draft).checkpoint, "checkpoint")
        for tag in self._marks:
            await client.set(_mark(self._names(view), tag), checkpoint)
            await client.delete(_mark(self._names(view.draft), tag))

    async def _pages(self, client: Any, match: bytes) -> AsyncIterator[list[bytes]]:
        for node in client.get_primaries():
            cursor = b"0"
            while True:
                cursor, page = await node.execute_command("SCAN", cursor, "MATCH", match, "COUNT", _SCAN_COUNT)
                yield page
                if int(cursor) == 0:
                    break


def _packed(write: ViewWrite, names: Names) -> tuple[_Pending, list[bytes]]:
    """The entities' rows, and what DECIDE is told of the write. Raises StoreRefused for a value or key that doesn't fit its declared type."""
    codec, start = codec_of(write.view), len(names.prefix)
    rows: list[_Row] = []
    due: list[bytes] = []
    for entity in write.entities:
        key = codec.encode_key(entity.key)
        values = None
        if entity.values is not None:
            time = encode_timestamp(entity.event_time_us)
            values = [*codec.encode_values(entity.values), time, entity.state]
        rows.append(_Row(key + names.project, values))
        due_us = None if entity.values is None else entity.due_us
        due += (key[start:], b"" if due_us is None else b"%d" % due_us)
    contributions: list[bytes] = []
    for row_key, given in write.contributions.items():
        value = b"" if given is None else pack_contribution(codec.encode_key(given.entity)[start:], given.blob)
        contributions += (row_key, value)
    pending = _Pending(names.fields, rows)
    arguments = [encode_checkpoint(write.checkpoint), names.layout, _encode(pending), b"%d" % len(rows), *due]
    return pending, [*arguments, b"%d" % len(write.contributions), *contributions]


def _mark(names: Names, tag: bytes) -> bytes:
    return b"_hr:{%b}:mark:%b:%b" % (tag, names.project, names.view.name.encode())


def _tags(client: Any) -> tuple[bytes, ...]:
    """The smallest numbers, as texts, that lie in slots of the primaries, one each."""
    slots: dict[int, list[Any]] = client.nodes_manager.slots_cache
    wanted = {node.name for node in client.get_primaries() if any(owners[0] is node for owners in slots.values())}
    found: dict[str, bytes] = {}
    number = 0
    while len(found) < len(wanted):
        tag = b"%d" % number
        owners = slots.get(key_slot(tag))
        if owners and owners[0].name in wanted:
            found.setdefault(owners[0].name, tag)
        number += 1
    return tuple(found.values())


__all__ = ["RedisClusterStore"]
