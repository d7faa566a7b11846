"""Bodies of the SDKs: one bad event costs itself only, and whatever comes in is a call, a reason or an UnreadableError."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cdc.decode.sdkpayload import (
    MAX_CALLS,
    MAX_DEPTH,
    Payload,
    Refusal,
    SdkCall,
    TooManyError,
    UnreadableError,
    read_batch,
    read_calls,
    read_single,
)


def calls(body: bytes) -> list[SdkCall | Refusal]:
    return [call for _, call in read_calls(read_batch(body))]


def reasons(body: bytes) -> list[str]:
    return ["" if isinstance(call, SdkCall) else call.reason for call in calls(body)]


GOOD = b'{"type":"track","userId":"u1","event":"A","properties":{"n":1}}'


def batch(*elements: bytes, rest: bytes = b"") -> bytes:
    return b'{"batch":[' + b",".join(elements) + b"]" + rest + b"}"


def test_a_batch_is_its_calls_in_order_with_what_they_share() -> None:
    payload = read_batch(
        batch(GOOD, b'{"userId":7}', rest=b',"sentAt":"2026-01-01","writeKey":"k","context":{"a":1},"integrations":{}')
    )
    found = list(read_calls(payload))
    assert [bytes(raw) for raw, _ in found] == [GOOD, b'{"userId":7}']
    assert [call.user_id for _, call in found if isinstance(call, SdkCall)] == ["u1", 7]
    assert (payload.sent_at, payload.write_key) == ("2026-01-01", "k")
    assert (payload.context, payload.integrations) == (b'{"a":1}', b"{}")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"userId":"u","properties":{"n":NaN}}', "not_json"),
        (b'{"userId":"u","properties":{"n":-Infinity}}', "not_json"),
        (b'{"userId":"u","properties":{"n":1e999}}', "wrong_type"),
        (b'{"userId":"u","properties":{"n":01}}', "not_json"),
        (b'{"userId":"u","properties":{"n":"\x01"}}', "not_json"),
        (b'{"userId":"u","properties":{"n":"\\x"}}', "not_json"),
        (b'{"userId":"u","properties":{"n":"\xff\xfe"}}', "not_utf8"),
        (b'{"userId":"u","properties":{"\xc3":1}}', "not_utf8"),
        (b'{"userId":"u" "event":"A"}', "not_json"),
        (b'{"userId":{"id":1}}', "wrong_type"),
        (b'{"userId":"u","event":5}', "wrong_type"),
        (b'"a text"', "wrong_type"),
        (b"null", "wrong_type"),
        (b"5", "wrong_type"),
        (b'{"userId":"u","properties":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}", "too_deep"),
        (b'{"userId":"u","properties":' + b"[" * 300 + b"]" * 300 + b"}", "too_deep"),
    ],
)
def test_a_bad_call_costs_itself_only(bad: bytes, reason: str) -> None:
    assert reasons(batch(GOOD, bad, GOOD, rest=b',"writeKey":"k"')) == ["", reason, ""]
    assert read_batch(batch(GOOD, bad, rest=b',"writeKey":"k"')).write_key == "k"


def test_a_reason_holds_no_value_of_the_call() -> None:
    for bad in (b'{"userId":{"mail":"secret@example.com"}}', b'{"event":["secret"]}', b'{"secret":tru}', b'"secret"'):
        (call,) = calls(batch(bad))
        assert isinstance(call, Refusal)
        assert "secret" not in call.detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[]",
        b"null",
        b'"batch"',
        b"{",
        b"{}",
        b'{"batch":{}}',
        b'{"batch":[{"userId":"u"}',
        b'{"batch":[{"userId":"u"]}',
        b'{"batch":[{"userId":"u}]}',
        b'{"batch":[NaN]} x',
        b'{"batch" [NaN]}',
        b"\xff\xfe",
        b"[" * 10_000,
        b"{" * 10_000,
    ],
)
def test_a_body_that_cannot_be_cut_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableError):
        read_batch(body)


def test_a_lone_half_of_a_surrogate_pair_becomes_the_replacement_character() -> None:
    (call,) = calls(batch(rb'{"userId":"\ud83d","event":"\ud83d\ude00","properties":{"a":"\\ud800 \udc00\uD800x"}}'))
    assert isinstance(call, SdkCall)
    assert (call.user_id, call.event) == ("�", "😀")
    assert msgspec.json.decode(call.properties) == {"a": "\\ud800 ��x"}


def test_what_other_readers_trip_over_is_read() -> None:
    many = b'{"a":' * (MAX_DEPTH - 1) + b"1" + b"}" * (MAX_DEPTH - 1)
    for good in (
        b'{"userId":"u","properties":{"a":"\\u0000"}}',
        b'{"userId":"u","properties":{"a":1,"a":2}}',
        b'{"userId":"u","properties":{"a":123456789012345678901234567890}}',
        b'{"userId":"u","properties":' + many + b"}",
        b'{"userId":"u","properties":{"a":"' + b"[{" * 500 + b'"}}',
        b'{"userId":"u","userId":"v","unknown":[1,{"x":null}]}',
        b'{"userId":"u","anonymousId":null,"timestamp":1700000000}',
        b'{ "userId" : "u" , "traits" : { } }',
    ):
        assert reasons(batch(good)) == [""], good
        assert isinstance(next(read_calls(read_single(b"\xef\xbb\xbf " + good)))[1], SdkCall)


def test_an_array_among_the_calls_is_its_elements() -> None:
    assert reasons(batch(b"[" + GOOD + b"," + GOOD + b"]", GOOD, b"[]")) == ["", "", ""]


def test_a_batch_with_a_byte_order_mark_and_space_is_read() -> None:
    assert reasons(b"\xef\xbb\xbf \n" + batch(b" " + GOOD + b"\n", b'\t{"userId":NaN} ')) == ["", "not_json"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)
sdk_calls = st.fixed_dictionaries(
    {"userId": st.text(min_size=1), "event": st.text(min_size=1)},
    optional={"properties": st.dictionaries(st.text(), json_values, max_size=4), "messageId": st.text()},
)


@settings(deadline=None)
@given(st.lists(sdk_calls, max_size=5), st.integers(0, 4))
def test_any_calls_come_back_and_a_nan_beside_them_changes_none(made: list[dict[str, Any]], place: int) -> None:
    """By both ways of cutting: JSON's own reader takes the first body and refuses the second."""
    pieces = [json.dumps(call, ensure_ascii=False).encode("utf-8", "surrogatepass") for call in made]
    pieces = [piece for piece in pieces if _is_utf8(piece)]
    plain = calls(batch(*pieces))
    spoilt = calls(batch(*pieces[:place], b'{"a":NaN}', *pieces[place:]))
    del spoilt[min(place, len(pieces))]
    assert [_said(call) for call in plain] == [_said(call) for call in spoilt]
    assert [call.user_id for call in plain if isinstance(call, SdkCall)] == [
        json.loads(piece)["userId"] for piece in pieces
    ]


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _said(call: SdkCall | Refusal) -> Any:
    assert isinstance(call, SdkCall), call
    return call.user_id, call.event, bytes(call.properties)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_no_bytes_do_more_than_be_refused(data: st.DataObject) -> None:
    body = bytearray(
        data.draw(
            st.sampled_from([GOOD, batch(GOOD, GOOD), batch(rb'{"userId":"\ud83d\ude00"}', b"[1,{}]", b'{"a":NaN}')])
        )
    )
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(body)))
        match data.draw(st.sampled_from(("insert", "delete", "set", "cut"))):
            case "insert":
                body[at:at] = data.draw(
                    st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\xff", b"\\ud8"])
                )
            case "delete":
                del body[at : at + data.draw(st.integers(1, 4))]
            case "set" if at < len(body):
                body[at] = data.draw(st.integers(0, 255))
            case _:
                del body[at:]
    for read in (read_batch, read_single):
        try:
            payload: Payload = read(bytes(body))
        except UnreadableError:
            continue
        for raw, call in read_calls(payload):
            assert bytes(raw) in body or not isinstance(call, SdkCall)
            if isinstance(call, SdkCall):
                for part in (call.properties, call.traits, call.context, call.integrations):
                    assert not part or msgspec.json.decode(part) is not ...


@pytest.mark.parametrize(
    "body",
    [
        b'{"batch":[' + b"1," * MAX_CALLS + b"1]}",
        b'{"batch":[' + b"1," * 3_000_000 + b"1]}",
        b'{"batch":[' + b"{}," * 1_000_000 + b"{}]}",
        b'{"batch":[' + b"[" + b"1," * MAX_CALLS + b"1]]}",
        b'{"batch":[' + b"NaN," * MAX_CALLS + b"1]}",
        b'{"batch":[' + b'{"type":"track","userId":"u","event":"A"},' * MAX_CALLS + b"{}]}",
    ],
)
def test_a_body_of_very_many_calls_is_refused_before_they_cost_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooManyError):
            list(read_calls(read_batch(body)))
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


def test_a_body_with_many_commas_inside_its_calls_is_read() -> None:
    call = b'{"type":"track","userId":"u","event":"A","properties":{"v":[' + b"1," * 2000 + b"1]}}"
    body = b'{"batch":[' + b",".join([call] * 300) + b'],"context":{}}'
    assert body.count(b",") > 400_000
    assert len(read_batch(body).calls) == 300
