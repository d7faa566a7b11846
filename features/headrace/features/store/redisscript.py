"""The Redis store's flush as one command: the Lua that runs inside Redis, and the packing of its arguments.

Owns the argument layout, both ends of it; knows no connection. One EVAL is one atomic step with one reply, and half the
bytes of separate HSETs: field names are sent once a view. A flush too large for one EVAL becomes several inside
MULTI/EXEC, each of which looks at the fence of all views, and only the last of which stores the checkpoints; since nothing
runs between them, all of them pass or none.

EVAL and not EVALSHA: hashing this text costs Redis some microseconds a flush, while a server that restarted or failed over
has forgotten every script at just the time when a plain retry should work.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.features.encoding import codec_of, encode_timestamp, redis_field
from headrace.features.spec import EntityKey, ViewSpec
from headrace.features.store.base import ViewWrite
from headrace.features.store.fence import Fence, encode_checkpoint

MAX_ARGS: Final = 50_000
MAX_BYTES: Final = 16 << 20
"""Of one EVAL: it blocks Redis for some 50 ms at most, and stays far below the server's own limits (1,048,576 arguments,
512 MiB a value)."""

_UNKNOWN: Final = b""
_ABSENT: Final = b"-"
"""Expected checkpoints besides a real one: this process never looked; there must be none."""

_FENCE: Final = """
  if stored ~= new then
    if expected ~= '' and stored ~= expected and not (expected == '-' and not stored) then
      return 'moved ' .. v
    end
    if stored then
      local was, now = cjson.decode(stored), cjson.decode(new)
      if was[1] == now[1] and was[2] == now[2] then
        for i = 1, #was[3] do
          if not now[3][i] or now[3][i] < was[3][i] then return 'back ' .. v end
        end
      end
    end
  end
"""
"""Of view v: may ``new`` replace what is ``stored``, when ``expected`` should be?"""

_CONTRIBUTIONS: Final = """
  local contributions = tonumber(ARGV[a])
  a = a + 1
  for _ = 1, contributions do
    local source, value = ARGV[a], ARGV[a + 1]
    a = a + 2
    local entity = value ~= '' and string.sub(value, 5, 4 + struct.unpack('<I4', value))
    local old = redis.call('HGET', rows, source)
    local former = old and string.sub(old, 5, 4 + struct.unpack('<I4', old))
    if former and former ~= entity then redis.call('ZREM', of, former .. source) end
    if entity then
      redis.call('HSET', rows, source, value)
      if former ~= entity then redis.call('ZADD', of, 0, entity .. source) end
    elseif old then
      redis.call('HDEL', rows, source)
    end
  end
"""
"""From ARGV[a] on, into ``rows`` and ``of``."""

# KEYS   per view: checkpoint, due, rows, of; then the Feast hash of each entity, view by view
# ARGV   length of the project's name; 1 in the last EVAL of a flush; key TTL in seconds or nothing; number of views
#        per view: expected checkpoint, new checkpoint, layout
#        per view: length of what all entity keys begin with, and which the private keys leave out; number of fields, the
#                  fields; number of entities, and for each "x" (remove) or "s", due, the values; number of contributions,
#                  and for each its row key and u32le length of entity key, entity key, blob (or nothing: remove)
# Reply  ok | moved <view> | back <view>
WRITE: Final = f"""
local project, final, ttl, views = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3], tonumber(ARGV[4])
local a = 5
for v = 1, views do
  local stored = redis.call('HGET', KEYS[4 * v - 3], 'checkpoint')
  local expected, new = ARGV[a], ARGV[a + 1]
{_FENCE}
  a = a + 3
end
local k = 4 * views + 1
for v = 1, views do
  local due, rows, of = KEYS[4 * v - 2], KEYS[4 * v - 1], KEYS[4 * v]
  local start = tonumber(ARGV[a]) + 1
  a = a + 1
  local count = tonumber(ARGV[a])
  local names, row = {{}}, {{}}
  for i = 1, count do
    names[i] = ARGV[a + i]
    row[2 * i - 1] = ARGV[a + i]
  end
  a = a + count + 1
  local entities = tonumber(ARGV[a])
  a = a + 1
  for _ = 1, entities do
    local hash = KEYS[k]
    local entity = string.sub(hash, start, -1 - project)
    k = k + 1
    if ARGV[a] == 'x' then
      redis.call('HDEL', hash, unpack(names))
      redis.call('ZREM', due, entity)
      a = a + 1
    else
      local at = ARGV[a + 1]
      a = a + 2
      for i = 1, count do row[2 * i] = ARGV[a + i - 1] end
      redis.call('HSET', hash, unpack(row))
      if at == '' then redis.call('ZREM', due, entity) else redis.call('ZADD', due, at, entity) end
      if ttl ~= '' then redis.call('EXPIRE', hash, ttl) end
      a = a + count
    end
  end
{_CONTRIBUTIONS}
end
if final then
  for v = 1, views do
    redis.call('HSET', KEYS[4 * v - 3], 'checkpoint', ARGV[3 * v + 3], 'layout', ARGV[3 * v + 4])
  end
end
return 'ok'
"""

# A flush in a cluster, the part in the view's own slot: all but the entities' hashes, which stand in ``pending`` until the next flush.
# KEYS   the view's checkpoint, due, rows, of
# ARGV   expected checkpoint, marks, new checkpoint, layout, pending; number of entities, and for each its key and due or nothing;
#        contributions as above
# Reply  ok, and the checkpoint before this one | moved 1 | back 1
DECIDE: Final = f"""
local v = 1
local expected, new = ARGV[1], ARGV[3]
local stored = redis.call('HGET', KEYS[1], 'checkpoint')
{_FENCE}
local due, rows, of = KEYS[2], KEYS[3], KEYS[4]
local a = 7
for _ = 1, tonumber(ARGV[6]) do
  if ARGV[a + 1] == '' then redis.call('ZREM', due, ARGV[a]) else redis.call('ZADD', due, ARGV[a + 1], ARGV[a]) end
  a = a + 2
end
{_CONTRIBUTIONS}
local former = redis.call('HGET', KEYS[1], 'former') or ''
if stored ~= new then former = stored or '' end
redis.call('HSET', KEYS[1], 'marks', ARGV[2], 'checkpoint', new, 'layout', ARGV[4], 'pending', ARGV[5], 'former', former)
return {{'ok', former}}
"""

# The last command of a flush on each server of a cluster. KEYS the server's mark. ARGV the checkpoint before, the new one.
MARK: Final = """
local stored = redis.call('GET', KEYS[1])
if stored ~= ARGV[1] and stored ~= ARGV[2] then return 'lost' end
redis.call('SET', KEYS[1], ARGV[2])
return 'ok'
"""

# One round trip and one reply for many hashes. KEYS: hashes. ARGV: fields. Reply: the fields' values, hash by hash.
READ: Final = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HMGET', key, unpack(ARGV)) end
return found
"""

# A draft takes the place of a view in two passes over the hashes; between them the view's checkpoint says how far it is. The first one removes
# former fields where the draft has no row, the second one moves the draft's over the former ones, hash by hash. So a hash that was moved is
# never taken for a former one, also when a pass is run again.
# KEYS hashes. ARGV number of former fields, the former fields, the draft's time field.
CLEAR_FORMER: Final = """
local count = tonumber(ARGV[1])
local former = {}
for i = 1, count do former[i] = ARGV[1 + i] end
for _, hash in ipairs(KEYS) do
  if redis.call('HEXISTS', hash, ARGV[count + 2]) == 0 then redis.call('HDEL', hash, unpack(former)) end
end
return 'ok'
"""

# KEYS hashes. ARGV number of former fields, the former fields, number of fields, the view's fields, the draft's; the time's is the last but one.
MOVE_DRAFT: Final = """
local a = tonumber(ARGV[1])
local former = {}
for i = 1, a do former[i] = ARGV[1 + i] end
local count = tonumber(ARGV[a + 2])
local draft = {}
for i = 1, count do draft[i] = ARGV[a + 2 + count + i] end
for _, hash in ipairs(KEYS) do
  if redis.call('HEXISTS', hash, draft[count - 1]) == 1 then
    local found = redis.call('HMGET', hash, unpack(draft))
    local row = {}
    for i = 1, count do
      if found[i] then
        row[#row + 1] = ARGV[a + 2 + i]
        row[#row + 1] = found[i]
      end
    end
    if a > 0 then redis.call('HDEL', hash, unpack(former)) end
    redis.call('HSET', hash, unpack(row))
    redis.call('HDEL', hash, unpack(draft))
  end
end
return 'ok'
"""

# KEYS the view's checkpoint, due, rows, of; the draft's. ARGV the view's layout. Reply: the checkpoint.
MOVE_KEYS: Final = """
local checkpoint = redis.call('HGET', KEYS[5], 'checkpoint')
for i = 2, 4 do
  redis.call('UNLINK', KEYS[i])
  if redis.call('EXISTS', KEYS[4 + i]) == 1 then redis.call('RENAME', KEYS[4 + i], KEYS[i]) end
end
redis.call('HDEL', KEYS[1], 'pending', 'former', 'marks')
redis.call('HSET', KEYS[1], 'checkpoint', checkpoint, 'layout', ARGV[1])
redis.call('DEL', KEYS[5])
return checkpoint
"""

_LENGTH: Final = struct.Struct("<I")


class Names:
    """Every Redis name that belongs to one view of one project.

    fields: in Feast's hash, in the order of WRITE's values: the features, ``_ts:<view>``, ``_hr:<view>`` (the engine's state,
    which no Feast reader asks for). The four private keys start with ``_hr:``, while Feast's start with a key count.
    """

    def __init__(self, project: str, view: ViewSpec, *, is_in_cluster: bool = False) -> None:
        """is_in_cluster: the private keys of a view and of its draft lie in one slot."""
        self.view = view
        self.project = project.encode()
        self.features = tuple(redis_field(view.name, field.name) for field in view.fields)
        self.field_of = {field.name: hashed for field, hashed in zip(view.fields, self.features, strict=True)}
        self.time = f"_ts:{view.name}".encode()
        self.state = f"_hr:{view.name}".encode()
        self.fields = (*self.features, self.time, self.state)
        private = f"_hr:{project}:{view.name}:".encode()
        if is_in_cluster:
            private = f"_hr:{{{project}:{view.shown}}}:{view.name}:".encode()
        self.checkpoint = private + b"checkpoint"
        """Hash: ``checkpoint`` (JSON array) and ``layout`` (see layout)."""
        self.prefix = codec_of(view).key_prefix
        """What all entity keys of the view begin with; in the next three they stand without it."""
        self.due = private + b"due"
        """Sorted set: entity key by due_us."""
        self.rows = private + b"rows"
        """Hash: source row key -> u32le length of the entity key, entity key, blob."""
        self.of = private + b"of"
        """Sorted set, all scores 0: entity key + source row key, for ZRANGEBYLEX. No entity key is another one's start."""
        self.keys = (self.checkpoint, self.due, self.rows, self.of)
        self.layout = pack_layout(self.prefix, self.fields)
        """What a later definition needs to clean up after this one: msgpack [key prefix, [field, ...]]."""


def pack_layout(prefix: bytes, fields: Sequence[bytes]) -> bytes:
    """What unpack_layout takes apart."""
    return msgspec.msgpack.encode((prefix, fields))


def unpack_layout(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """(key prefix, fields). Raises msgspec.MsgspecError on other bytes."""
    return _layout_decoder.decode(data)


_layout_decoder: Final = msgspec.msgpack.Decoder(tuple[bytes, tuple[bytes, ...]])


def pack_contribution(entity_key: bytes, blob: bytes) -> bytes:
    """A contribution as the ``rows`` hash keeps it."""
    return _LENGTH.pack(len(entity_key)) + entity_key + blob


def unpack_contribution(data: bytes) -> tuple[bytes, bytes]:
    """(entity key, blob) of a value of the ``rows`` hash."""
    end = 4 + _LENGTH.unpack_from(data)[0]
    return data[4:end], data[end:]


def pack_flush(
    writes: Sequence[ViewWrite], names: Sequence[Names], fence: Fence, *, key_ttl_s: int | None
) -> list[tuple[bytes, ...]]:
    """The EVAL commands of one flush, to be run in order inside one MULTI/EXEC when there are several.

    names: of each write's view, all of one project.
    Raises StoreRefused, naming the field, for a value or key that doesn't fit its declared type.
    """
    heads = [_ViewHead(write, own, fence) for write, own in zip(writes, names, strict=True)]
    chunks = [_Chunk(len(heads))]
    for place, write in enumerate(writes):
        codec = codec_of(write.view)
        suffix, start = heads[place].names.project, len(heads[place].names.prefix)
        keys: dict[EntityKey, bytes] = {}
        for entity in write.entities:
            key = keys[entity.key] = codec.encode_key(entity.key)
            hash_key = key + suffix
            if entity.values is None:
                chunks[-1].add_entity(place, hash_key, [b"x"])
            else:
                due = b"" if entity.due_us is None else b"%d" % entity.due_us
                values = codec.encode_values(entity.values)
                time = encode_timestamp(entity.event_time_us)
                chunks[-1].add_entity(place, hash_key, [b"s", due, *values, time, entity.state])
            if chunks[-1].is_full():
                chunks.append(_Chunk(len(heads)))
        for row_key, given in write.contributions.items():
            value = b""
            if given is not None:
                key = keys.get(given.entity) or codec.encode_key(given.entity)
                value = pack_contribution(key[start:], given.blob)
            chunks[-1].add_contribution(place, row_key, value)
            if chunks[-1].is_full():
                chunks.append(_Chunk(len(heads)))
    project = b"%d" % len(names[0].project)
    ttl = b"" if key_ttl_s is None else b"%d" % key_ttl_s
    return [
        chunk.command(heads, (project, b"1" if chunk is chunks[-1] else b"0", ttl, b"%d" % len(heads)))
        for chunk in chunks
    ]


def expected_checkpoint(view: ViewSpec, fence: Fence) -> bytes:
    """What the scripts take for it."""
    if not fence.knows(view):
        return _UNKNOWN
    known = fence.expected(view)
    return _ABSENT if known is None else known


class _ViewHead:
    """What every EVAL of a flush says of one view."""

    def __init__(self, write: ViewWrite, names: Names, fence: Fence) -> None:
        self.names = names
        self.fence = (expected_checkpoint(write.view, fence), encode_checkpoint(write.checkpoint), names.layout)
        self.fields = (b"%d" % len(names.prefix), b"%d" % len(names.fields), *names.fields)


class _Chunk:
    """The part of a flush that one EVAL takes."""

    def __init__(self, views: int) -> None:
        self._hashes: list[list[bytes]] = [[] for _ in range(views)]
        self._entities: list[list[bytes]] = [[] for _ in range(views)]
        self._contributions: list[list[bytes]] = [[] for _ in range(views)]
        self._args = 0
        self._bytes = 0

    def is_full(self) -> bool:
        return self._args >= MAX_ARGS or self._bytes >= MAX_BYTES

    def add_entity(self, place: int, hash_key: bytes, args: list[bytes]) -> None:
        self._hashes[place].append(hash_key)
        self._entities[place] += args
        self._args += len(args) + 1
        self._bytes += len(args[-1]) + 16 * len(args)  # the state is the one value that may be large without any limit

    def add_contribution(self, place: int, row_key: bytes, value: bytes) -> None:
        self._contributions[place] += (row_key, value)
        self._args += 2
        self._bytes += len(row_key) + len(value)

    def command(self, heads: list[_ViewHead], start: tuple[bytes, ...]) -> tuple[bytes, ...]:
        keys = [name for head in heads for name in head.names.keys]
        args = [*start, *(part for head in heads for part in head.fence)]
        for head, hashes, entities, contributions in zip(
            heads, self._hashes, self._entities, self._contributions, strict=True
        ):
            keys += hashes
            args += head.fields
            args.append(b"%d" % len(hashes))
            args += entities
            args.append(b"%d" % (len(contributions) // 2))
            args += contributions
        return (b"EVAL", _WRITE_BYTES, b"%d" % len(keys), *keys, *args)


_WRITE_BYTES: Final = WRITE.encode()
