"""The online store in Redis: Feast's hashes (feast 0.67, ``online_stores/redis.py``), which a stock Feast SDK reads.

Owns connections, errors and the read side; what a flush looks like on the wire is redisscript.py's. For one primary (with or
without replicas); in a Redis Cluster, where the entities of one flush lie on several servers, rediscluster.py takes its place.

An entity's hash holds the fields of all views with the same join keys, each view's ``_ts:<view>`` and, private, the engine's
state in ``_hr:<view>``. Due times, contributions and the checkpoint are in four keys a view that start with ``_hr:<project>:
<view>:``. Redis removes a hash with its last field, so a deleted entity leaves nothing.

Durability. A write returns when Redis has applied it; whether its own disk has it is the server's setting, and none is
asked for (WAITAOF would cost a sync a flush). With ``appendonly yes`` and everysec a crash of the server may lose the last second,
without it the time since the last dump: always the newest writes, as whole flushes, the checkpoint among them. The
store notices (StoreConflict, see fence.py) and the engine reads the log again from the checkpoint that is left. So the log must
keep events for longer than Redis may lose: days against seconds by default. ``maxmemory-policy noeviction``, because an
eviction would take rows at random behind the checkpoint's back.

A lost answer is harmless: the same flush again finds its own checkpoint and writes the same bytes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, cast
from urllib.parse import urlsplit

import hiredis
import msgspec
import redis.asyncio as redis_asyncio
from msgspec import Meta
from redis import exceptions

from headrace.cdc.config import Duration, Section
from headrace.cdc.errors import DefinitionError, StoreError, StoreRefused
from headrace.features.encoding import codec_of, decode_timestamp
from headrace.features.spec import EntityKey, FeatureValue, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, FeatureRow, ViewWrite, half_promoted
from headrace.features.store.fence import Fence, decode_checkpoint, encode_checkpoint, moved, went_back
from headrace.features.store.redispipe import RedisPipe
from headrace.features.store.redisscript import (
    CLEAR_FORMER,
    MOVE_DRAFT,
    MOVE_KEYS,
    READ,
    Names,
    pack_flush,
    pack_layout,
    unpack_contribution,
    unpack_layout,
)

# Any: the types these two libraries declare are partly missing and partly wrong (a tuple of exactly one argument).
_ConnectionPool: Final[Any] = redis_asyncio.ConnectionPool
_pack: Final[Any] = cast("Any", hiredis).pack_command

_TIMEOUT_S: Final = 5.0
_READ_SCRIPT: Final = READ.encode()
_READ_CHUNK: Final = 1000
"""Hashes a script reads in one go: about a millisecond in which Redis does nothing else."""

_READ_CONNECTIONS: Final = 4
"""Of readers; the engine's questions have one of their own, and wait for no reader."""

_SCAN_COUNT: Final = 1000
_MOVE_CHUNK: Final = 200
"""Hashes that one script moves: some milliseconds."""

_PASSING: Final = frozenset(
    {
        *("OOM", "LOADING", "BUSY", "MASTERDOWN", "READONLY", "MISCONF", "NOREPLICAS", "TRYAGAIN", "EXECABORT"),
        *("CLUSTERDOWN", "MOVED", "ASK"),
    }
)
"""Error replies that the server or its operator may end without any change here."""

_CODES: Final[dict[type[Exception], str]] = {
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.ExecAbortError: "EXECABORT",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.TryAgainError: "TRYAGAIN",
}
"""Code words that redis-py takes off an error's text."""

_DROPPING: Final = Checkpoint(spec_hash="", generation="", offsets=(), log_time_us=0)
"""Stored while a view is being dropped: no definition has this hash, so a drop cut short is seen and done again."""


class RedisStoreConfig(Section, frozen=True):
    """Rows in a Redis server (6 or newer), for many readers. The Feast SDK reads it directly."""

    url: Annotated[
        str,
        Meta(
            description="redis://, rediss:// (TLS) or unix:// address. Give a password as ${VAR}.",
            examples=["redis://127.0.0.1:6379/0", "rediss://feeder:${REDIS_PASSWORD}@redis.example.com:6380/0"],
        ),
    ]
    key_ttl: Annotated[
        Duration | None,
        Meta(
            description="Redis forgets an entity that got no write for so long, its state included, as Feast's"
            " key_ttl_seconds. Take more than the longest window. Default: never."
        ),
    ] = None
    cluster: Annotated[
        bool,
        Meta(description="The server is one of a Redis Cluster, which tells of the others."),
    ] = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path.strip("/")):
            raise ValueError("url must be redis://host:port/db, rediss://host:port/db or unix:///path/of/socket")
        if self.cluster and (parts.scheme == "unix" or self.database):
            raise ValueError("a cluster needs redis://host:port or rediss://host:port, and has database 0 alone")
        if self.key_ttl is not None and self.key_ttl.us < 1_000_000:
            raise ValueError("key_ttl must be 1s or more")

    def __repr__(self) -> str:
        return f"RedisStoreConfig({self.place}, key_ttl={self.key_ttl!r})"

    @property
    def place(self) -> str:
        """host:port, or the socket's path: all that messages and logs ever say of the URL."""
        parts = urlsplit(self.url)
        return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"

    @property
    def database(self) -> int:
        """Number of the database: the path of the URL or its ``db`` parameter."""
        parts = urlsplit(self.url)
        named = re.search(r"(?:^|&)db=(\d+)", parts.query)
        if named is not None:
            return int(named[1])
        number = parts.path.strip("/")
        return int(number) if parts.scheme != "unix" and number.isdigit() else 0


class RedisStore:
    """See OnlineStore for every method.

    Raises StoreError when the server doesn't answer within 5 s, is loading, full, or read-only; StoreRefused when it refuses
    the password or the command, or holds something else under our names. keys and drop scan the whole database.
    """

    config_type: ClassVar[type[RedisStoreConfig]] = RedisStoreConfig

    def __init__(self, config: RedisStoreConfig, *, project: str) -> None:
        self.project = project
        self._config = config
        self._key_ttl_s = None if config.key_ttl is None else max(1, config.key_ttl.us // 1_000_000)
        self._fence = Fence()
        self._pool: Any = None
        self._client_on_pool: Any = None
        self._own: RedisPipe | None = None
        self._readers: RedisPipe | None = None
        self._names_by_view: dict[str, Names] = {}
        self._feature_names: dict[tuple[bytes, bytes], str] = {}
        """(key prefix, hashed field) -> ``view:feature``: two features that share both would overwrite each other."""

    @classmethod
    def from_config(cls, section: RedisStoreConfig, *, project: str, folder: Path) -> Self:
        if section.cluster:
            from headrace.features.store.rediscluster import RedisClusterStore  # late: it is a kind of this one

            return cast("Self", RedisClusterStore(section, project=project))
        return cls(section, project=project)

    async def open(self) -> None:
        if self._client_on_pool is not None:
            raise RuntimeError("the store is open already")
        self._fence = Fence()
        try:
            await self._connect()
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        pool = _ConnectionPool.from_url(self._config.url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        pool.connection_kwargs["decode_responses"] = False  # the URL's parameters can't turn bytes into text
        self._pool = pool
        self._client_on_pool = redis_asyncio.Redis(connection_pool=pool)
        self._own = RedisPipe(pool, connections=1)
        self._readers = RedisPipe(pool, connections=_READ_CONNECTIONS)
        async with self._client() as client:
            await client.ping()

    async def checkpoint(self, view: ViewSpec) -> Checkpoint | None:
        async with self._client() as client:
            stored = await client.hget(self._names(view).checkpoint, "checkpoint")
        self._fence.note(view, stored)
        return None if stored is None else decode_checkpoint(view, stored)

    async def states(self, view: ViewSpec, keys: Sequence[EntityKey]) -> list[bytes | None]:
        found = await self._fields(view, keys, (self._names(view).state,))
        return [row[0] for row in found]

    async def contributions(self, view: ViewSpec, row_keys: Sequence[bytes]) -> list[Contribution | None]:
        if not row_keys:
            return []
        codec = codec_of(view)
        found = await self._many(self._names(view).rows, row_keys)
        pairs = [None if value is None else unpack_contribution(value) for value in found]
        prefix = codec.key_prefix
        return [None if pair is None else Contribution(codec.decode_key(prefix + pair[0]), pair[1]) for pair in pairs]

    async def contributions_of(self, view: ViewSpec, key: EntityKey) -> list[tuple[bytes, bytes]]:
        names = self._names(view)
        entity = codec_of(view).encode_key(key)[len(names.prefix) :]
        async with self._client() as client:
            members = await client.zrangebylex(names.of, b"[" + entity, b"(" + _after(entity))
            row_keys = [member[len(entity) :] for member in members]
            values: list[bytes | None] = await client.hmget(names.rows, row_keys) if row_keys else []
        return [
            (row_key, unpack_contribution(value)[1])
            for row_key, value in zip(row_keys, values, strict=True)
            if value is not None
        ]

    async def due(self, view: ViewSpec, until_us: int, limit: int) -> list[tuple[int, EntityKey]]:
        codec = codec_of(view)
        async with self._client() as client:
            found = await client.zrangebyscore(
                self._names(view).due, "-inf", until_us, start=0, num=limit, withscores=True
            )
        return [(int(score), codec.decode_key(codec.key_prefix + key)) for key, score in found]

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        if not writes:
            return
        names = [self._names(write.view) for write in writes]
        commands = pack_flush(writes, names, self._fence, key_ttl_s=self._key_ttl_s)
        async with self._told():
            replies = await self._run(commands)
        for reply in replies:
            if reply != b"ok":
                what, number = reply.decode().split()
                view = writes[int(number) - 1].view
                raise moved(view) if what == "moved" else went_back(view)
        for write in writes:
            self._fence.note(write.view, encode_checkpoint(write.checkpoint))

    async def read(self, view: ViewSpec, features: Sequence[str], keys: Sequence[EntityKey]) -> list[FeatureRow | None]:
        names, decoder = self._names(view), codec_of(view).decoder(features)
        fields = (names.time, *[names.field_of[name] for name in features])
        found = await self._fields(view, keys, fields, is_reader=True)
        return [
            None if row[0] is None else FeatureRow(decoder.decode(row, 1), self._time_us(view, row[0])) for row in found
        ]

    async def scrub(self, view: ViewSpec, parts: Mapping[str, FeatureValue]) -> tuple[int, int]:
        return 0, 0

    async def keys(self, view: ViewSpec) -> list[EntityKey]:
        codec, names = codec_of(view), self._names(view)
        found: set[EntityKey] = set()
        async with self._client() as client:
            async for hashes in self._scan(client, codec.key_prefix):
                keys = [codec.decode_key_start(data)[0] for data in hashes]
                for key, row in zip(keys, await self._fields(view, keys, (names.time,)), strict=True):
                    if row[0] is not None:
                        found.add(key)
        return list(found)

    async def drop(self, view: ViewSpec) -> None:
        names = self._names(view)
        prefixes, fields = {codec_of(view).key_prefix}, set(names.fields)
        async with self._client() as client:
            layout = _layout_of(await client.hget(names.checkpoint, "layout"))
            if layout is not None:
                prefixes.add(layout[0])
                fields.update(layout[1])
            await client.hset(names.checkpoint, "checkpoint", encode_checkpoint(_DROPPING))
            for prefix in prefixes:
                async for hashes in self._scan(client, prefix):
                    async with client.pipeline(transaction=False) as pipe:
                        for hash_key in hashes:
                            pipe.hdel(hash_key, *fields)
                        await pipe.execute()
            await self._forget(client, view)
            await client.unlink(names.due, names.rows, names.of)
            await client.delete(names.checkpoint)
        self._fence.note(view, None)

    async def promote(self, view: ViewSpec) -> None:
        """See OnlineStore. Two passes over the whole database; readers see entity after entity change."""
        draft, names = view.draft, self._names(view)
        drafts, prefix = self._names(draft), codec_of(view).key_prefix
        async with self._client() as client:
            if not await client.hexists(drafts.checkpoint, "checkpoint"):
                return  # done, and the answer was lost
            stored, layout = await client.hmget(names.checkpoint, "checkpoint", "layout")
            former_prefix, former = _layout_of(layout) or (prefix, names.fields)
            if stored != encode_checkpoint(half_promoted(view, 2)):
                await client.hset(names.checkpoint, "checkpoint", encode_checkpoint(half_promoted(view, 1)))
                gone: list[bytes | str] = [str(len(former)), *former, drafts.time]
                async for hashes in self._scan(client, former_prefix):
                    await self._on_hashes(client, CLEAR_FORMER, hashes, gone)
                # What is left of the former rows, and what comes now, are both a later definition's to clean up.
                fields = list(dict.fromkeys((*former, *names.fields)))
                marks = {
                    "checkpoint": encode_checkpoint(half_promoted(view, 2)),
                    "layout": pack_layout(prefix, fields),
                }
                await client.hset(names.checkpoint, mapping=marks)
            moved_fields: list[bytes | str] = [
                str(len(former)),
                *former,
                str(len(names.fields)),
                *names.fields,
                *drafts.fields,
            ]
            async for hashes in self._scan(client, prefix):
                for start in range(0, len(hashes), _MOVE_CHUNK):
                    await self._on_hashes(client, MOVE_DRAFT, hashes[start : start + _MOVE_CHUNK], moved_fields)
            await self._before_keys_move(client, view)
            keys = (*names.keys, *drafts.keys)
            checkpoint = await client.eval(MOVE_KEYS, len(keys), *keys, names.layout)
        self._fence.note(view, checkpoint)
        self._fence.note(draft, None)

    async def _on_hashes(
        self, client: Any, script: str, hashes: Sequence[bytes], arguments: Sequence[bytes | str]
    ) -> None:
        if hashes:
            await client.eval(script, len(hashes), *hashes, *arguments)

    async def _forget(self, client: Any, view: ViewSpec) -> None:
        """Remove what else is kept of a view that is being dropped."""

    async def _before_keys_move(self, client: Any, view: ViewSpec) -> None:
        """The last step of a promotion comes next."""

    async def close(self) -> None:
        self._client_on_pool = None
        for pipe in (self._own, self._readers):
            if pipe is not None:
                await pipe.close()
        self._own = self._readers = None
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.disconnect()

    async def _run(self, commands: Sequence[tuple[bytes, ...]]) -> list[bytes]:
        """Replies of the EVALs, sent as one buffer that C code packed, over a connection of its own."""
        pool = self._open_pool()
        connection = await pool.get_connection()
        try:
            if len(commands) == 1:
                await connection.send_packed_command(_pack(commands[0]))
                return [await connection.read_response()]
            packed = [_pack(command) for command in ((b"MULTI",), *commands, (b"EXEC",))]
            await connection.send_packed_command(packed)
            refusal: exceptions.ResponseError | None = None
            for _ in packed[:-1]:  # OK and QUEUED; every reply is read, so that the connection stays usable
                try:
                    await connection.read_response()
                except exceptions.ResponseError as error:
                    refusal = refusal or error
            try:
                replies = await connection.read_response()
            except exceptions.ResponseError as error:
                raise refusal or error from None
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return list(replies)
        except exceptions.ResponseError:
            raise
        except BaseException:
            # Cut off in between, by the network or by a cancellation: what comes next on it belongs to nobody.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    async def _many(self, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
        """HMGET, for the engine."""
        async with self._told():
            return list(await self._open_pipe(self._own).ask(b"HMGET", key, *fields))

    async def _fields(
        self, view: ViewSpec, keys: Sequence[EntityKey], fields: tuple[bytes, ...], *, is_reader: bool = False
    ) -> list[list[bytes | None]]:
        codec, suffix = codec_of(view), self._names(view).project
        hashes = [codec.encode_key(key) + suffix for key in keys]
        pipe = self._open_pipe(self._readers if is_reader else self._own)
        found: list[list[bytes | None]] = []
        async with self._told():
            if len(hashes) == 1:
                return [await pipe.ask(b"HMGET", hashes[0], *fields)]
            for start in range(0, len(hashes), _READ_CHUNK):
                part = hashes[start : start + _READ_CHUNK]
                found += await pipe.ask(b"EVAL", _READ_SCRIPT, b"%d" % len(part), *part, *fields)
        return found

    async def _scan(self, client: Any, prefix: bytes) -> AsyncIterator[list[bytes]]:
        """Feast's hash keys of this project that start with the join-key prefix, page by page; some may come twice."""
        project = self.project.encode()
        match = _literal(prefix) + b"*" + _literal(project)
        async for page in self._pages(client, match):
            yield [key for key in page if _ends_at(key, len(prefix), prefix) == len(key) - len(project)]

    async def _pages(self, client: Any, match: bytes) -> AsyncIterator[list[bytes]]:
        cursor = 0
        while True:
            cursor, page = await client.scan(cursor, match=match, count=_SCAN_COUNT)
            yield page
            if not cursor:
                return

    def _names(self, view: ViewSpec) -> Names:
        """The view's names, made and checked once for each definition. Raises DefinitionError as _check_names does."""
        names = self._names_by_view.get(view.name)
        if names is None or (names.view is not view and names.view != view):
            names = Names(self.project, view, is_in_cluster=self._config.cluster)
            self._check_names(names)
            self._names_by_view[view.name] = names
        return names

    def _check_names(self, names: Names) -> None:
        view, prefix = names.view, codec_of(names.view).key_prefix
        for field, hashed in zip(view.fields, names.features, strict=True):
            mine = f"{view.name}:{field.name}"
            other = self._feature_names.setdefault((prefix, hashed), mine)
            if other != mine:
                raise DefinitionError(
                    f"features {other} and {mine} have the same field name in Feast's Redis format (a 32-bit hash)",
                    advice="rename one of them",
                )

    def _time_us(self, view: ViewSpec, data: bytes) -> int:
        try:
            return decode_timestamp(data)
        except ValueError as error:
            raise StoreRefused(
                f"view {view.name!r}: a stored event time can't be read",
                advice="another program writes this view's fields: find and stop it, then drop and rebuild the view",
            ) from error

    def _open_pool(self) -> Any:
        if self._pool is None:
            raise RuntimeError("the store isn't open")
        return self._pool

    @staticmethod
    def _open_pipe(pipe: RedisPipe | None) -> RedisPipe:
        if pipe is None:
            raise RuntimeError("the store isn't open")
        return pipe

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncGenerator[Any]:
        """A client on the pool; its errors become ours."""
        if self._client_on_pool is None:
            raise RuntimeError("the store isn't open")
        async with self._told():
            yield self._client_on_pool

    @contextlib.asynccontextmanager
    async def _told(self) -> AsyncGenerator[None]:
        try:
            yield
        except (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError) as error:
            raise StoreRefused(
                f"Redis at {self._config.place} refused the user, the password or a command",
                advice="correct user and password in features.store.url; the user needs +@hash +@sortedset +@scripting +@keyspace",
            ) from error
        except exceptions.ResponseError as error:
            word = re.match(r"[A-Z]{2,}\b", str(error))
            code = _CODES.get(type(error)) or (word[0] if word else type(error).__name__)
            said = f"Redis at {self._config.place} refused a command ({code})"
            if code in _PASSING:
                raise StoreError(said, advice="look at the server: memory (maxmemory), disk, role, loading") from error
            raise StoreRefused(said, advice="look whether other programs use headrace's keys on that server") from error
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as error:
            raise StoreError(
                f"Redis at {self._config.place} doesn't answer ({type(error).__name__})",
                advice="check that the server is up and that features.store.url names it",
            ) from error


def _layout_of(data: bytes | None) -> tuple[bytes, tuple[bytes, ...]] | None:
    """(key prefix, fields) of whoever wrote the view last; None when that isn't known."""
    with contextlib.suppress(msgspec.MsgspecError):
        return None if data is None else unpack_layout(data)
    return None


def _after(prefix: bytes) -> bytes:
    """The smallest bytes above everything that starts with prefix. An entity key is never all 0xff."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,))


def _literal(text: bytes) -> bytes:
    """A text as a glob pattern that matches only itself."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", text)


def _ends_at(key: bytes, start: int, prefix: bytes) -> int:
    """Where the entity key inside a Redis key ends, walking its values by their lengths; -1 when it has none.

    Needed because "shop" is the end of "myshop": the project's name alone doesn't tell whose hash it is.
    """
    parts = int.from_bytes(prefix[:4], "little")
    for _ in range(parts):
        if start + 8 > len(key):
            return -1
        start += 8 + int.from_bytes(key[start + 4 : start + 8], "little")
    return start
