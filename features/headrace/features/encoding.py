"""Feast's bytes, written and read by hand: entity keys (serialization version 3), values, times, Redis field names.

Owns the layouts and the checks of what fits a declared type; knows no store and never imports Feast, whose import alone
costs seconds. Follows feast 0.67: ``infra/key_encoding_utils.py``, ``infra/online_stores/helpers.py`` and the messages
``feast.types.Value`` and ``google.protobuf.Timestamp``; tests/features/test_encoding.py compares byte by byte.

::

    entity key   u32 n | n x (u32 2, u32 len, name) | n x (u32 type, u32 len, bytes)     little-endian, sorted by name
    value        one field of feast.types.Value: tag, then varint, fixed or length and bytes; null is no byte at all
    time         tag 08 varint seconds, tag 10 varint nanos; a part that is zero isn't written
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from headrace.cdc.errors import DefinitionError, StoreRefused
from headrace.features.protovalue import decode_row, encode_row, varint
from headrace.features.spec import EntityKey, FeatureValue, Field, ValueType, ViewSpec

_U32: Final = struct.Struct("<I")
_U32_PAIR: Final = struct.Struct("<II")
_I32: Final = struct.Struct("<i")
_I64: Final = struct.Struct("<q")
_PLAIN_DOUBLE: Final = struct.Struct("<d")

_US_PER_S: Final = 1_000_000
_ALL: Final = 0xFFFFFFFFFFFFFFFF
_STRING_TYPE: Final = 2

_KEY_TYPES: Final = {
    ValueType.BYTES: 1,
    ValueType.STRING: _STRING_TYPE,
    ValueType.INT32: 3,
    ValueType.INT64: 4,
    ValueType.UNIX_TIMESTAMP: 8,
}
"""Feast's numbers of the types that may stand in an entity key; it refuses all others, and so do we."""

_NO_JOIN_KEY: Final = Field("__dummy_id", ValueType.STRING)
"""What Feast keys the one row of a view without entities by; its value is the empty text."""

_MISFITS: Final = (TypeError, ValueError, OverflowError, struct.error)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, next index) of the varint at start, as a signed 64-bit integer. Raises IndexError when cut short."""
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    value &= _ALL
    return (value - (1 << 64) if value >> 63 else value), start


# Lists are messages of their own inside Value, with one repeated field 1: numbers packed, texts one by one.


def _encode_list(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body


def _encode_int64_list(value: FeatureValue) -> bytes:
    if type(value) is not tuple:
        raise TypeError
    if not value:
        return b"\x72\x00"
    return _encode_list(
        b"\x72", _encode_list(b"\x0a", b"".join([encode_value(ValueType.INT64, item)[1:] for item in value]))
    )


def _encode_float64_list(value: FeatureValue) -> bytes:
    if type(value) is not tuple:
        raise TypeError
    if not value:
        return b"\x7a\x00"
    return _encode_list(
        b"\x7a", _encode_list(b"\x0a", b"".join([encode_value(ValueType.FLOAT64, item)[1:] for item in value]))
    )


def _encode_string_list(value: FeatureValue) -> bytes:
    if type(value) is not tuple:
        raise TypeError
    return _encode_list(b"\x62", b"".join([b"\x0a" + encode_value(ValueType.STRING, item)[1:] for item in value]))


def _decode_list(dtype: ValueType, body: bytes) -> FeatureValue:
    """Inverse, of the bytes inside the list's message. Raises IndexError or struct.error when cut short."""
    texts: list[str] = []
    numbers: list[int] = []
    doubles: list[float] = []
    start = 0
    while start < len(body):
        if body[start] != 0x0A:
            raise ValueError("another type is stored")
        length, start = read_varint(body, start + 1)
        part, end = body[start : start + length], start + length
        if len(part) != length:
            raise IndexError
        if dtype is ValueType.STRING_LIST:
            texts.append(part.decode())
        elif dtype is ValueType.FLOAT64_LIST:
            doubles += [item[0] for item in _PLAIN_DOUBLE.iter_unpack(part)]
        else:
            at = 0
            while at < length:
                number, at = read_varint(part, at)
                numbers.append(number)
        start = end
    if dtype is ValueType.STRING_LIST:
        return tuple(texts)
    return tuple(doubles) if dtype is ValueType.FLOAT64_LIST else tuple(numbers)


_LIST_ENCODERS: Final[dict[ValueType, Callable[[FeatureValue], bytes]]] = {
    ValueType.INT64_LIST: _encode_int64_list,
    ValueType.FLOAT64_LIST: _encode_float64_list,
    ValueType.STRING_LIST: _encode_string_list,
}

_KINDS: Final = {
    ValueType.BYTES: 0x0A,
    ValueType.STRING: 0x12,
    ValueType.INT32: 0x18,
    ValueType.INT64: 0x20,
    ValueType.FLOAT64: 0x29,
    ValueType.FLOAT32: 0x35,
    ValueType.BOOL: 0x38,
    ValueType.UNIX_TIMESTAMP: 0x40,
    ValueType.STRING_LIST: 0x62,
    ValueType.INT64_LIST: 0x72,
    ValueType.FLOAT64_LIST: 0x7A,
}


def _no_list(value: FeatureValue) -> bytes:
    raise TypeError


def encode_value(dtype: ValueType, value: FeatureValue) -> bytes:
    """Bytes of ``feast.types.Value``; b"" for None.

    Raises TypeError, OverflowError, ValueError or struct.error when the value doesn't fit dtype; ViewCodec turns these
    into a StoreRefused that names the field.
    """
    return encode_row(bytes((_KINDS[dtype],)), (value,), (_LIST_ENCODERS.get(dtype, _no_list),))[0]


def decode_value(dtype: ValueType, data: bytes) -> FeatureValue:
    """Inverse of encode_value; an UNIX_TIMESTAMP comes back in microseconds, whole seconds only.

    Raises ValueError when the bytes hold another type or are cut short.
    """
    value: FeatureValue = decode_row(bytes((_KINDS[dtype],)), (data,), 0)[0]
    return value if value is None or dtype not in _LIST_ENCODERS else _list_of(dtype, data)


def _list_of(dtype: ValueType, data: bytes) -> FeatureValue:
    """A list, of all its bytes. Raises ValueError when they are cut short."""
    try:
        length, start = read_varint(data, 1)
        if len(data) - start != length:
            raise IndexError
        return _decode_list(dtype, data[start:])
    except (IndexError, struct.error) as error:
        raise ValueError("cut short") from error


def encode_timestamp(time_us: int) -> bytes:
    """``google.protobuf.Timestamp`` of microseconds since 1970 UTC; b"" for 1970 itself."""
    seconds, rest_us = divmod(time_us, _US_PER_S)
    out = b"\x08" + varint(seconds & _ALL) if seconds else b""
    return out + b"\x10" + varint(rest_us * 1000) if rest_us else out


def decode_timestamp(data: bytes) -> int:
    """Inverse of encode_timestamp; nanoseconds are rounded down. Raises ValueError on other bytes."""
    seconds = nanos = start = 0
    try:
        while start < len(data):
            tag = data[start]
            number, start = read_varint(data, start + 1)
            if tag == 0x08:
                seconds = number
            elif tag == 0x10:
                nanos = number
            else:
                raise ValueError("not a Timestamp")
    except IndexError as error:
        raise ValueError("cut short") from error
    return seconds * _US_PER_S + nanos // 1000


def murmur3_32(data: bytes) -> int:
    """MurmurHash3, 32 bits, seed 0 (Austin Appleby's public reference), unsigned."""
    mask = 0xFFFFFFFF
    hashed = 0
    for start in range(0, len(data) & ~3, 4):
        hashed ^= _murmur_mix(_U32.unpack_from(data, start)[0])
        hashed = (hashed << 13 | hashed >> 19) & mask
        hashed = (hashed * 5 + 0xE6546B64) & mask
    tail = data[len(data) & ~3 :]
    if tail:
        hashed ^= _murmur_mix(int.from_bytes(tail, "little"))
    hashed ^= len(data)
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & mask
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & mask
    return hashed ^ hashed >> 16


def _murmur_mix(block: int) -> int:
    block = block * 0xCC9E2D51 & 0xFFFFFFFF
    block = (block << 15 | block >> 17) & 0xFFFFFFFF
    return block * 0x1B873593 & 0xFFFFFFFF


def redis_field(view: str, feature: str) -> bytes:
    """Name of a feature's field in Feast's Redis hash: four bytes, little-endian."""
    return _U32.pack(murmur3_32(f"{view}:{feature}".encode()))


class ViewCodec:
    """Encodes and decodes the keys and rows of one view. Made once a view: see codec_of.

    key_prefix: the bytes every entity key of these join keys starts with. A view without join keys has the one key ().
    """

    def __init__(self, view: ViewSpec) -> None:
        self.view = view
        self._fields = {field.name: field for field in view.fields}
        self._kinds = bytes([_KINDS[field.dtype] for field in view.fields])
        self._encoders = tuple([_LIST_ENCODERS.get(field.dtype, _no_list) for field in view.fields])
        for field in view.join_keys:
            if field.dtype not in _KEY_TYPES:
                raise DefinitionError(
                    f"view {view.name!r}: join key {field.name!r} has type {field.dtype.value}, which Feast allows in no key",
                    advice="use Int32, Int64, String, Bytes or UnixTimestamp",
                )
        self._join_keys = view.join_keys or (_NO_JOIN_KEY,)
        names = [field.name for field in self._join_keys]
        self._order = sorted(range(len(names)), key=names.__getitem__)
        """Declared index of each part in the order of the bytes."""
        prefix = _U32.pack(len(names))
        for index in self._order:
            name = names[index].encode()
            prefix += _U32_PAIR.pack(_STRING_TYPE, len(name)) + name
        self.key_prefix = prefix

    def encode_key(self, key: EntityKey) -> bytes:
        """Feast's entity key. key: join key values in declared order.

        Raises StoreRefused, naming the join key, for None, another type, a number out of range, or a time that isn't a
        whole second (Feast's key has no fraction: two entities would become one).
        """
        declared = len(self.view.join_keys)
        if len(key) != declared:
            raise StoreRefused(
                f"view {self.view.name!r}: an entity key of {len(key)} parts was given, {declared} are declared",
                advice="give one value for each join key, in the declared order",
            )
        given = key or ("",)
        out = self.key_prefix
        for index in self._order:
            field = self._join_keys[index]
            try:
                part = _encode_key_part(field.dtype, given[index])
            except _MISFITS:
                raise self._misfit("join key", field) from None
            out += _U32_PAIR.pack(_KEY_TYPES[field.dtype], len(part)) + part
        return out

    def decode_key(self, data: bytes) -> EntityKey:
        """Inverse of encode_key. Raises StoreRefused for a key of other join keys or types."""
        key, end = self.decode_key_start(data)
        if end != len(data):
            raise self._foreign_key()
        return key

    def decode_key_start(self, data: bytes) -> tuple[EntityKey, int]:
        """The entity key that data starts with, and where it ends. Raises StoreRefused as decode_key does."""
        if not data.startswith(self.key_prefix):
            raise self._foreign_key()
        parts: list[FeatureValue] = [None] * len(self._order)
        start = len(self.key_prefix)
        try:
            for index in self._order:
                number, length = _U32_PAIR.unpack_from(data, start)
                dtype = self._join_keys[index].dtype
                part = data[start + 8 : start + 8 + length]
                if number != _KEY_TYPES[dtype] or len(part) != length:
                    raise ValueError
                parts[index] = _decode_key_part(dtype, part)
                start += 8 + length
        except (ValueError, struct.error):
            raise self._foreign_key() from None
        return (tuple(parts) if self.view.join_keys else ()), start

    def encode_values(self, values: Sequence[FeatureValue]) -> list[bytes]:
        """Value bytes in the order of ViewSpec.fields. Raises StoreRefused, naming the feature, for one that doesn't fit."""
        if len(values) != len(self._encoders):
            raise StoreRefused(
                f"view {self.view.name!r}: a row of {len(values)} values was given, {len(self._encoders)} are declared",
                advice="this is a defect of headrace: please report it",
            )
        try:
            return encode_row(self._kinds, values, self._encoders)
        except _MISFITS:
            for field, value in zip(self.view.fields, values, strict=True):
                try:
                    encode_value(field.dtype, value)
                except _MISFITS:
                    raise self._misfit("feature", field) from None
            raise

    def field(self, name: str) -> Field:
        """A declared feature. Raises KeyError for an unknown one."""
        return self._fields[name]

    def decode_feature(self, field: Field, data: bytes | None) -> FeatureValue:
        """A stored value; None (no such field stored) is null. Raises StoreRefused when another type is stored."""
        return RowDecoder(self.view, [field]).decode((data,))[0]

    def decoder(self, names: Sequence[str]) -> RowDecoder:
        """Of rows of these features. Raises KeyError for an unknown one."""
        return RowDecoder(self.view, [self._fields[name] for name in names])

    def _misfit(self, what: str, field: Field) -> StoreRefused:
        return StoreRefused(
            f"{what} {self.view.name}:{field.name}: a value doesn't fit the declared type {field.dtype.value}",
            advice="declare a type that holds every value of the column (Int64 for Int32, Float64 for Float32, String for text)",
        )

    def _foreign_key(self) -> StoreRefused:
        return StoreRefused(
            f"view {self.view.name!r}: a stored entity key has other join keys or types than declared",
            advice="the row was written under another definition: apply the features again, or rename the view",
        )


class RowDecoder:
    """Decodes rows of some features of a view."""

    def __init__(self, view: ViewSpec, fields: Sequence[Field]) -> None:
        self.fields = fields
        self._view = view
        self._kinds = bytes([_KINDS[field.dtype] for field in fields])
        self._lists = [(place, field.dtype) for place, field in enumerate(fields) if field.dtype in _LIST_ENCODERS]

    def decode(self, row: Sequence[bytes | None], start: int = 0) -> tuple[FeatureValue, ...]:
        """Values of ``row[start:]``; None (nothing stored) is null. Raises StoreRefused, naming the feature, when another type is stored."""
        try:
            values = decode_row(self._kinds, row, start)
        except ValueError as error:
            raise self._other_type(*error.args) from error
        for place, dtype in self._lists:
            if values[place] is not None:
                try:
                    values[place] = _list_of(dtype, values[place])
                except ValueError as error:
                    raise self._other_type(place, str(error)) from error
        return tuple(values)

    def _other_type(self, place: int, reason: str) -> StoreRefused:
        field = self.fields[place]
        return StoreRefused(
            f"feature {self._view.name}:{field.name}: the stored value is no {field.dtype.value} ({reason})",
            advice="the row is of another definition: wait until its view is built anew (headrace status), or rename the feature",
        )


def _encode_key_part(dtype: ValueType, value: FeatureValue) -> bytes:
    if dtype is ValueType.STRING and type(value) is str:
        return value.encode()
    if dtype is ValueType.BYTES and type(value) is bytes:
        return value
    if type(value) is int:
        if dtype is ValueType.INT64:
            return _I64.pack(value)
        if dtype is ValueType.INT32:
            return _I32.pack(value)
        if dtype is ValueType.UNIX_TIMESTAMP and value % _US_PER_S == 0:
            return _I64.pack(value // _US_PER_S)
    raise TypeError


def _decode_key_part(dtype: ValueType, part: bytes) -> FeatureValue:
    if dtype is ValueType.STRING:
        return part.decode()
    if dtype is ValueType.BYTES:
        return part
    if dtype is ValueType.INT32:
        return int(_I32.unpack(part)[0])
    number = int(_I64.unpack(part)[0])
    return number * _US_PER_S if dtype is ValueType.UNIX_TIMESTAMP else number


# By identity, since hashing a spec of ten fields costs more than encoding a row of it. A codec holds its view, so
# the id of a view in here can't be given to another one.
_codecs: Final[dict[int, ViewCodec]] = {}


def codec_of(view: ViewSpec) -> ViewCodec:
    """The view's codec, made once. Raises DefinitionError for a join key of a type that no Feast key may hold."""
    codec = _codecs.get(id(view))
    if codec is None:
        if len(_codecs) >= 1024:
            _codecs.clear()
        codec = _codecs[id(view)] = ViewCodec(view)
    return codec
