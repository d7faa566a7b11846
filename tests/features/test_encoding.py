"""Our bytes are Feast's bytes: compared with Feast's own serializers and protobuf messages."""

from __future__ import annotations

import importlib
import math
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.cdc.errors import DefinitionError, StoreRefused
from headrace.features.encoding import (
    ViewCodec,
    codec_of,
    decode_timestamp,
    decode_value,
    encode_timestamp,
    encode_value,
    murmur3_32,
    redis_field,
)
from headrace.features.spec import EntityKey, FeatureValue, Field, ValueType, ViewSpec

SECOND_US = 1_000_000
MIN64, MAX64 = -(1 << 63), (1 << 63) - 1
MIN32, MAX32 = -(1 << 31), (1 << 31) - 1

FIELDS = {
    ValueType.BYTES: "bytes_val",
    ValueType.STRING: "string_val",
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.FLOAT64: "double_val",
    ValueType.FLOAT32: "float_val",
    ValueType.BOOL: "bool_val",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp_val",
    ValueType.INT64_LIST: "int64_list_val",
    ValueType.FLOAT64_LIST: "double_list_val",
    ValueType.STRING_LIST: "string_list_val",
}

EXTREMES: list[tuple[ValueType, FeatureValue]] = [
    *((ValueType.INT32, value) for value in (0, 1, -1, 127, 128, MIN32, MAX32)),
    *((ValueType.INT64, value) for value in (0, 1, -1, 16383, 16384, MIN32, 1 << 53, MIN64, MAX64)),
    *(
        (ValueType.FLOAT64, value)
        for value in (0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 3, -(1 << 60))
    ),
    *(
        (ValueType.FLOAT32, value)
        for value in (0.0, -0.0, 0.1, 1e-45, 3.4028234663852886e38, math.inf, -math.inf, math.nan, 7)
    ),
    *((ValueType.STRING, value) for value in ("", "a", "naïve 🎈 \x00", "x" * 127, "y" * 128, "z" * 70_000)),
    *((ValueType.BYTES, value) for value in (b"", b"\x00", bytes(range(256)), b"b" * 20_000)),
    (ValueType.BOOL, True),
    (ValueType.BOOL, False),
    *(
        (ValueType.UNIX_TIMESTAMP, value * SECOND_US)
        for value in (0, 1, -1, 1_700_000_000, -62_135_596_800, 253_402_300_799)
    ),
    *((ValueType.INT64_LIST, value) for value in ((), (0,), (1, -1, MIN64, MAX64), tuple(range(300)))),
    *((ValueType.FLOAT64_LIST, value) for value in ((), (0.0,), (-0.0, math.inf, 5e-324), (0.1,) * 300)),
    *((ValueType.STRING_LIST, value) for value in ((), ("",), ("a", "", "naïve 🎈"), ("y" * 128,) * 3)),
]

# Feast's own warnings at import, about its coming releases and its libraries', are none of ours.
with_feast = pytest.mark.filterwarnings("ignore")
no_health = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Feast:
    """The parts of Feast that decide bytes."""

    def __init__(self) -> None:
        self.value: Any = importlib.import_module("feast.protos.feast.types.Value_pb2").Value
        self.entity_key: Any = importlib.import_module("feast.protos.feast.types.EntityKey_pb2").EntityKey
        self.keys: Any = importlib.import_module("feast.infra.key_encoding_utils")
        self.names: Any = importlib.import_module("feast.infra.online_stores.helpers")
        self.timestamp: Any = importlib.import_module("google.protobuf.timestamp_pb2").Timestamp

    def value_of(self, dtype: ValueType, value: Any) -> Any:
        if isinstance(value, tuple):
            found = self.value()
            getattr(found, FIELDS[dtype]).SetInParent()
            getattr(found, FIELDS[dtype]).val.extend(value)
            return found
        return self.value(**{FIELDS[dtype]: value // SECOND_US if dtype is ValueType.UNIX_TIMESTAMP else value})

    def key(self, view: ViewSpec, key: EntityKey) -> Any:
        parts = [self.value_of(field.dtype, value) for field, value in zip(view.join_keys, key, strict=True)]
        return self.entity_key(join_keys=[field.name for field in view.join_keys], entity_values=parts)


@pytest.fixture(scope="module")
def feast() -> Feast:
    return Feast()


def short(value: object) -> str:
    return repr(value)[:30]


def view_of(*join_keys: Field) -> ViewSpec:
    return ViewSpec("v", join_keys, (Field("f", ValueType.INT64),), "hash")


@with_feast
@pytest.mark.parametrize(("dtype", "value"), EXTREMES, ids=short)
def test_a_value_has_feasts_bytes(feast: Feast, dtype: ValueType, value: Any) -> None:
    assert encode_value(dtype, value) == feast.value_of(dtype, value).SerializeToString()


@with_feast
def test_null_is_feasts_empty_value_and_an_explicit_null_is_read_as_null(feast: Feast) -> None:
    assert encode_value(ValueType.INT64, None) == feast.value().SerializeToString() == b""
    assert decode_value(ValueType.STRING, feast.value(null_val=0).SerializeToString()) is None
    assert decode_value(ValueType.STRING, b"") is None


@pytest.mark.parametrize(("dtype", "value"), EXTREMES, ids=short)
def test_a_value_is_read_back_equal(dtype: ValueType, value: FeatureValue) -> None:
    expected = value
    if dtype is ValueType.FLOAT64:
        expected = float(value)  # type: ignore[arg-type]
    if dtype is ValueType.FLOAT32:
        expected = struct.unpack("f", struct.pack("f", value))[0]
    found = decode_value(dtype, encode_value(dtype, value))
    assert repr(found) == repr(expected)  # repr tells -0.0 from 0.0 and NaN from nothing


@pytest.mark.parametrize(("dtype", "value"), EXTREMES, ids=short)
def test_cut_bytes_are_refused_never_guessed(dtype: ValueType, value: FeatureValue) -> None:
    data = encode_value(dtype, value)
    for end in range(1, min(len(data), 40)):
        with pytest.raises(ValueError, match="cut short"):
            decode_value(dtype, data[:end])


def test_a_value_of_another_type_is_refused_when_read() -> None:
    codec = codec_of(view_of())
    with pytest.raises(StoreRefused, match="v:f"):
        codec.decode_feature(codec.field("f"), encode_value(ValueType.STRING, "1"))


@with_feast
@pytest.mark.parametrize(
    "time_us", [0, 1, -1, 999_999, SECOND_US, 1_700_000_000_123_456, -1_500_000, -62_135_596_800 * SECOND_US]
)
def test_a_time_has_protobufs_bytes(feast: Feast, time_us: int) -> None:
    theirs = feast.timestamp()
    theirs.FromMicroseconds(time_us)
    assert encode_timestamp(time_us) == theirs.SerializeToString()
    assert decode_timestamp(encode_timestamp(time_us)) == time_us


@pytest.mark.parametrize("data", [b"\x08", b"\x08\x80", b"\x1a\x00"])
def test_other_bytes_are_no_time(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut short|Timestamp"):
        decode_timestamp(data)


KEYS: list[tuple[ViewSpec, EntityKey]] = [
    (view_of(Field("customer_id", ValueType.INT64)), (MIN64,)),
    (view_of(Field("customer_id", ValueType.INT64)), (MAX64,)),
    (view_of(Field("n", ValueType.INT32)), (-1,)),
    (view_of(Field("clé", ValueType.STRING)), ("naïve 🎈",)),
    (view_of(Field("s", ValueType.STRING)), ("",)),
    (view_of(Field("b", ValueType.BYTES)), (bytes(range(256)),)),
    (view_of(Field("t", ValueType.UNIX_TIMESTAMP)), (-5 * SECOND_US,)),
    (
        view_of(
            Field("zone", ValueType.STRING),
            Field("a", ValueType.INT32),
            Field("B", ValueType.INT64),
            Field("ab", ValueType.BYTES),
        ),
        ("eu", 7, -7, b"\xff"),
    ),
]


@with_feast
@pytest.mark.parametrize(("view", "key"), KEYS, ids=short)
def test_an_entity_key_has_feasts_bytes_and_is_read_back(feast: Feast, view: ViewSpec, key: EntityKey) -> None:
    codec = ViewCodec(view)
    theirs = feast.keys.serialize_entity_key(feast.key(view, key), entity_key_serialization_version=3)
    assert codec.encode_key(key) == theirs
    assert codec.decode_key(theirs) == key
    assert codec.key_prefix == feast.keys.serialize_entity_key_prefix([field.name for field in view.join_keys])
    assert codec.encode_key(key) + b"shop" == feast.names._redis_key("shop", feast.key(view, key))


@with_feast
@no_health
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    data=st.data(),
)
def test_any_composite_key_has_feasts_bytes(feast: Feast, names: list[str], data: st.DataObject) -> None:
    values: dict[ValueType, st.SearchStrategy[Any]] = {
        ValueType.STRING: st.text(st.characters(codec="utf-8"), max_size=9),
        ValueType.BYTES: st.binary(max_size=9),
        ValueType.INT32: st.integers(MIN32, MAX32),
        ValueType.INT64: st.integers(MIN64, MAX64),
    }
    types = data.draw(st.tuples(*(st.sampled_from(list(values)) for _ in names)))
    view = view_of(*(Field(name, dtype) for name, dtype in zip(names, types, strict=True)))
    key = data.draw(st.tuples(*(values[dtype] for dtype in types)))
    theirs = feast.keys.serialize_entity_key(feast.key(view, key), entity_key_serialization_version=3)
    codec = ViewCodec(view)
    assert codec.encode_key(key) == theirs
    assert codec.decode_key(theirs) == key


@with_feast
def test_the_key_of_a_view_without_entities_is_feasts_dummy_entity(feast: Feast) -> None:
    views: Any = importlib.import_module("feast.feature_view")
    theirs = feast.entity_key(
        join_keys=[views.DUMMY_ENTITY_ID], entity_values=[feast.value(string_val=views.DUMMY_ENTITY_VAL)]
    )
    assert ViewCodec(view_of()).encode_key(()) == feast.keys.serialize_entity_key(theirs)


def test_cut_or_foreign_entity_keys_are_refused() -> None:
    view, key = KEYS[-1]
    codec = ViewCodec(view)
    data = codec.encode_key(key)
    for end in range(len(data)):
        with pytest.raises(StoreRefused):
            codec.decode_key(data[:end])
    with pytest.raises(StoreRefused):
        codec.decode_key(data + b"\x00")
    with pytest.raises(StoreRefused):
        ViewCodec(KEYS[0][0]).decode_key(data)


@pytest.mark.parametrize("dtype", [ValueType.BOOL, ValueType.FLOAT32, ValueType.FLOAT64])
def test_a_join_key_that_feast_allows_in_no_key_is_a_wrong_definition(dtype: ValueType) -> None:
    with pytest.raises(DefinitionError, match="'flag'"):
        codec_of(view_of(Field("flag", dtype)))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (ValueType.INT32, MAX32 + 1),
        (ValueType.INT32, MIN32 - 1),
        (ValueType.INT64, MAX64 + 1),
        (ValueType.INT64, MIN64 - 1),
        (ValueType.INT64, True),
        (ValueType.INT64, 1.0),
        (ValueType.FLOAT32, 1e300),
        (ValueType.FLOAT64, 1 << 1100),
        (ValueType.FLOAT64, True),
        (ValueType.FLOAT64, "1"),
        (ValueType.BOOL, 1),
        (ValueType.STRING, b"a"),
        (ValueType.STRING, "\udc80"),
        (ValueType.BYTES, "a"),
        (ValueType.UNIX_TIMESTAMP, 1.5),
        (ValueType.UNIX_TIMESTAMP, 1 << 90),
    ],
    ids=short,
)
def test_a_value_that_does_not_fit_is_refused_with_its_field_and_without_the_value(
    dtype: ValueType, value: FeatureValue
) -> None:
    codec = ViewCodec(ViewSpec("v", (), (Field("good", ValueType.INT64), Field("bad", dtype)), "hash"))
    with pytest.raises(StoreRefused, match=f"v:bad.*{dtype.value}") as refused:
        codec.encode_values((1, value))
    assert repr(value) not in refused.value.paragraph()


@with_feast
@no_health
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_redis_field_name_is_feasts(feast: Feast, name: str) -> None:
    assert redis_field("clicks", name) == feast.names._mmh3(f"clicks:{name}")


@pytest.mark.parametrize(
    ("data", "hashed"),
    [
        (b"", 0),
        (b"a", 0x3C2569B2),
        (b"ab", 0x9BBFD75F),
        (b"abc", 0xB3DD93FA),
        (b"abcd", 0x43ED676A),
        (b"hello", 0x248BFA47),
    ],
)
def test_murmur_gives_known_hashes(data: bytes, hashed: int) -> None:
    assert murmur3_32(data) == hashed
