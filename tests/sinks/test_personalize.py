"""The Personalize sink: what events become, what answers mean, and delivery against a stub (personalize_stub.py) that fails by seed."""

from __future__ import annotations

import asyncio
import random
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("botocore")

from headrace.cdc.config import Duration
from headrace.cdc.errors import SinkError
from headrace.cdc.event import CustomerEvent, Kind
from headrace.cdc.sources.ending import end
from headrace.sinks.awscredentials import CredentialSource, from_environment, from_profile
from headrace.sinks.base import Unfit, WhenConfig
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.delivery import LogCursors
from headrace.sinks.dispatcher import Dispatcher
from headrace.sinks.personalize import (
    EntityMapping,
    InteractionMapping,
    PersonalizeConfig,
    PersonalizeSink,
)
from headrace.sinks.sigv4 import Credentials
from headrace.sinks.transport import Reply
from headrace.sinks.verdict import Fault, FaultKind
from personalize_stub import ACCESS_KEY, POISON_ITEM, REGION, SECRET_KEY, TRACKER
from shop_log import ShopLog, order_event

STATIC = CredentialSource(Credentials(ACCESS_KEY, SECRET_KEY))
USERS = "arn:aws:personalize:eu-west-1:123456789012:dataset/shop/USERS"
ITEMS = "arn:aws:personalize:eu-west-1:123456789012:dataset/shop/ITEMS"
CONFIG = PersonalizeConfig(
    region=REGION,
    tracking_id=TRACKER,
    events=(
        InteractionMapping(
            when=WhenConfig(kind=("track", "page")),
            item_id="{properties.product}",
            value="{properties.total}",
            properties={"price": "{properties.price:number}"},
        ),
    ),
    users=EntityMapping(when=WhenConfig(kind=("identify",)), dataset=USERS, properties={"plan": "{properties.plan}"}),
    items=EntityMapping(when=WhenConfig(kind=("record",)), dataset=ITEMS),
)


def sdk_event(
    number: int, kind: Kind = "track", *, user: str | None = None, anonymous: str | None = None, **more: Any
) -> CustomerEvent:
    """An event as an SDK sends it: its key is the user, before a login the visitor."""
    at_us = 1_700_000_000_123_456 + number * 1_000_000
    context = more.pop("context", None)
    return CustomerEvent(
        f"web-{number}", kind, "Product Viewed", user or anonymous, at_us, at_us, at_us, "web", str(number),
        msgspec.json.encode(more), None, user, anonymous, None if context is None else msgspec.json.encode(context),
    )  # fmt: skip


def _sink(**changes: Any) -> PersonalizeSink:
    return PersonalizeSink(msgspec.structs.replace(CONFIG, **changes), STATIC)


def _made(event: CustomerEvent) -> tuple[Any, Any]:
    item = _sink().prepare(event, 0, "k")
    assert item is not None
    head, record = item.payload
    return (msgspec.json.decode(head) if head else None), msgspec.json.decode(record)


def test_an_interaction_has_its_event_id_seconds_and_exact_numbers() -> None:
    head, record = _made(sdk_event(7, user="u1", product=12, total="9.90", price="1.50"))
    assert head == {"trackingId": TRACKER, "userId": "u1", "sessionId": "u1"}
    assert record == {
        "eventId": "web-7",
        "eventType": "Product Viewed",
        "eventValue": 9.9,
        "itemId": "12",
        "properties": '{"price":1.5}',
        "sentAt": 1_700_000_007,
    }


def test_a_session_stays_the_same_over_a_login() -> None:
    before, _ = _made(sdk_event(1, anonymous="visitor"))
    after, _ = _made(sdk_event(2, anonymous="visitor", user="u1"))
    assert before == {"trackingId": TRACKER, "sessionId": "visitor"}, "no user is known yet"
    assert after == {"trackingId": TRACKER, "userId": "u1", "sessionId": "visitor"}
    given, _ = _made(sdk_event(3, anonymous="visitor", user="u1", context={"sessionId": "s9"}))
    assert given["sessionId"] == "s9"


def test_rows_become_users_and_items() -> None:
    assert _made(sdk_event(1, "identify", user="u1", plan="gold")) == (
        None, {"userId": "u1", "properties": '{"plan":"gold"}'},
    )  # fmt: skip
    assert _made(order_event(5, kind="record")) == (None, {"itemId": "5"})
    assert _sink().prepare(order_event(5, kind="record", op="delete"), 0, "k") is None
    assert _sink().prepare(sdk_event(1, "group", user="u"), 0, "k") is None


def test_an_event_without_customer_is_refused_with_the_reason() -> None:
    with pytest.raises(Unfit, match="it has no session id"):
        _sink().prepare(sdk_event(1), 0, "k")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tracking_id": ""}, "need tracking_id"),
        ({"events": (), "users": None, "items": None}, "nothing is mapped"),
        ({"access_key": "a"}, "belong together"),
        ({"session_id": "{propertys.x}"}, "{propertys} is no field"),
    ],
)
def test_a_configuration_that_can_not_work_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        msgspec.structs.replace(CONFIG, **changes).__post_init__()


def test_reserved_property_names_and_odd_arns_are_refused() -> None:
    with pytest.raises(ValueError, match="reserved"):
        InteractionMapping(properties={"userId": "x"})
    with pytest.raises(ValueError, match="no ARN"):
        EntityMapping(dataset="users")


def test_no_secret_is_ever_shown() -> None:
    config = msgspec.structs.replace(CONFIG, access_key="AKIASECRET1234", secret_key="hush")
    assert "hush" not in repr(config) and "AKIASECRET" not in repr(Credentials("AKIASECRET1234", "hush"))


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (400, {"x-amzn-errortype": "InvalidInputException:http://x/"}, b"{}", FaultKind.BAD_BATCH),
        (400, {}, b'{"__type":"com.amazon.coral#ThrottlingException"}', FaultKind.THROTTLED),
        (429, {"retry-after": "7"}, b"", FaultKind.THROTTLED),
        (403, {}, b'{"__type":"UnrecognizedClientException"}', FaultKind.DENIED),
        (403, {}, b'{"__type":"ExpiredTokenException"}', FaultKind.OUTAGE),
        (404, {}, b'{"code":"ResourceNotFoundException"}', FaultKind.DENIED),
        (409, {"x-amzn-errortype": "ResourceInUseException"}, b"", FaultKind.OUTAGE),
        (500, {}, b"<html>", FaultKind.OUTAGE),
        (503, {}, b"", FaultKind.OUTAGE),
        (413, {}, b"", FaultKind.TOO_LARGE),
    ],
)
def test_each_error_has_its_meaning(status: int, headers: dict[str, str], body: bytes, kind: FaultKind) -> None:
    answer = _sink()._read(Reply(status, headers, body), 3)
    assert isinstance(answer, Fault) and answer.kind is kind
    assert answer.after_s == (7.0 if status == 429 else None)


async def test_credentials_come_from_the_environment_then_from_a_profile(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = A\naws_secret_access_key = B\n")
    (tmp_path / "config").write_text(
        "[profile other]\naws_access_key_id = C\naws_secret_access_key = D\naws_session_token = E\n"
    )
    environ = {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    assert from_environment(environ) is None
    assert await CredentialSource(environ=environ).current() == Credentials("A", "B")
    assert await CredentialSource(profile="other", environ=environ).current() == Credentials("C", "D", "E")
    keys = environ | {"AWS_ACCESS_KEY_ID": "X", "AWS_SECRET_ACCESS_KEY": "Y", "AWS_SESSION_TOKEN": "Z"}
    assert await CredentialSource(environ=keys).current() == Credentials("X", "Y", "Z")
    assert from_profile("nobody", environ) is None
    (tmp_path / "credentials").write_text("no ini file")
    with pytest.raises(SinkError, match="can't be read"):
        from_profile("default", environ)


async def test_what_is_in_no_file_comes_from_botocore_and_is_asked_again_when_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = '{"Version": 1, "AccessKeyId": "P", "SecretAccessKey": "Q", "SessionToken": "%s"}'
    (tmp_path / "keys").write_text(keys % "R")
    (tmp_path / "config").write_text(f"[profile role]\ncredential_process = cat {tmp_path}/keys\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    source = CredentialSource(profile="role")
    assert await source.current() == Credentials("P", "Q", "R")
    (tmp_path / "keys").write_text(keys % "S")
    assert await source.current() == Credentials("P", "Q", "R"), "kept for a minute"
    source.forget()
    assert await source.current() == Credentials("P", "Q", "S")


@contextmanager
def stub(seed: int, trouble: float) -> Iterator[str]:
    import subprocess

    program = Path(__file__).parent.parent / "personalize_stub.py"
    process = subprocess.Popen([sys.executable, str(program), str(seed), str(trouble)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _state(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/state", timeout=10) as answer:
        return msgspec.json.decode(answer.read())


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_stub_that_fails_in_every_way_ends_with_each_customers_events_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    events = [
        sdk_event(n, user=f"u{int(chance.expovariate(0.3))}", product=POISON_ITEM if chance.random() < 0.01 else n)
        for n in range(600)
    ]
    log, store = ShopLog(), MemorySinkStore()
    await log.append(events)
    with stub(seed, trouble=0.15) as url:
        section = msgspec.structs.replace(CONFIG, endpoint=url, timeout=Duration(300_000))
        work = Dispatcher(
            "recs", PersonalizeSink(section, STATIC), section, log=log, cursors=LogCursors(log, "recs"), letters=store,
            chance=lambda: chance.random() * 0.05,
        )  # fmt: skip
        running = asyncio.create_task(work.run())
        try:
            async with asyncio.timeout(60):
                while work.offsets != [len(events)]:
                    assert not running.done() or await running
                    await asyncio.sleep(0.01)
        finally:
            await end(running)
        state = await asyncio.to_thread(_state, url)
    assert state["wrong"] == [] and "bad signature" not in state["counts"]
    wanted: dict[str, list[str]] = {}
    dead = {letter.event.id for letter in await store.letters("recs")}
    for event in events:
        if event.id not in dead:
            wanted.setdefault(str(event.user_id), []).append(event.id)
    assert state["lanes"] == wanted
    assert dead == {event.id for event in events if POISON_ITEM.encode() in event.properties}
    # Which fault meets which request hangs on timing; that there were some, and some after the stub had applied, doesn't.
    counts = state["counts"]
    assert counts.get("cut after", 0) + counts.get("silent after", 0) >= 1
    assert sum(counts.get(name, 0) for name in ("429", "500", "503", "409", "cut before", "silent before")) >= 3


async def test_check_says_whether_the_credentials_are_known() -> None:
    with stub(0, trouble=0.0) as url:
        for credentials, is_fine in ((STATIC, True), (CredentialSource(Credentials("A", "B")), False)):
            sink = PersonalizeSink(msgspec.structs.replace(CONFIG, endpoint=url), credentials)
            await sink.open()
            found = await sink.check()
            await sink.close()
            assert [finding.is_fine for finding in found] == [is_fine] * 3, found
        assert await asyncio.to_thread(_state, url) | {"counts": {}} == {
            "lanes": {}, "records": {"userId": {}, "itemId": {}, "actionId": {}}, "counts": {}, "wrong": [],
        }  # fmt: skip
