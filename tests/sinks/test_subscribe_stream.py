"""GET /v1/stream over the real server: resume, filters, slow readers, endings."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import aiohttp
import msgspec
import pytest

from headrace.cdc.errors import LogUnavailable
from headrace.cdc.log.base import LogBatch
from headrace.sinks.subscribe import SubscribeConfig
from serving import DEADLINE_S, Served, sent_events, serving, take, until
from shop_log import ShopLog, heartbeat, order_event


async def opened(served: Served, query: str = "", **headers: str) -> aiohttp.ClientResponse:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await served.http.get(f"{served.url}/v1/stream{query}", headers=sent)
    assert response.status == 200, await response.text()
    return response


async def test_an_event_appended_after_the_answer_began_arrives() -> None:
    log = ShopLog()
    await log.append([order_event(1)])
    async with serving(log) as served:
        response = await opened(served)
        assert response.content_type == "text/event-stream"
        await log.append([order_event(2)])
        (sent,) = await take(sent_events(response), 1)
        assert (sent.id, sent.event) == ("g1.2", "track")
        assert sent.data["id"] == "shop-2"
        assert sent.data["after"] == {"id": 2, "total": "9.90"}
        assert (sent.data["partition"], sent.data["offset"]) == (0, 1)
        response.close()


@pytest.mark.parametrize(
    ("start", "expected"), [("earliest", [0, 1, 2, 3]), ("latest", [3]), ("2", [2, 3]), ("g1.1", [1, 2, 3])]
)
async def test_a_stream_begins_where_from_says(start: str, expected: list[int]) -> None:
    log = ShopLog()
    await log.append([order_event(number) for number in range(3)])
    async with serving(log) as served:
        response = await opened(served, f"?from={start}")
        await log.append([order_event(3)])
        assert [sent.data["offset"] for sent in await take(sent_events(response), len(expected))] == expected
        response.close()


class BusyLog(ShopLog):
    """Lets others run while it reads, as a log on a disk does."""

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().read(partition, offset, max_bytes=max_bytes, wait_s=wait_s)


async def test_readers_that_catch_up_together_read_the_log_once() -> None:
    reads: list[int] = []
    for count in (1, 20):
        log = BusyLog()
        await log.append_one_by_one([order_event(number) for number in range(3_000)])
        async with serving(log) as served:
            responses = await asyncio.gather(*(opened(served, "?from=earliest") for _ in range(count)))
            taken = await asyncio.gather(*(take(sent_events(response), 3_000) for response in responses))
            assert all([sent.data["offset"] for sent in each] == list(range(3_000)) for each in taken)
            reads.append(log.reads)
            for response in responses:
                response.close()
    assert reads[1] < 2 * reads[0], "20 readers need about the reads of one"


async def test_the_last_event_id_outweighs_from() -> None:
    log = ShopLog()
    await log.append([order_event(number) for number in range(5)])
    async with serving(log) as served:
        response = await opened(served, "?from=earliest", Last_Event_ID="g1.3")
        assert [sent.data["offset"] for sent in await take(sent_events(response), 2)] == [3, 4]
        response.close()


@pytest.mark.parametrize("seed", range(6))
async def test_reconnecting_at_any_moment_loses_and_doubles_nothing(seed: int) -> None:
    rng = random.Random(seed)
    partitions = rng.choice([1, 1, 3])
    log = ShopLog(partitions)
    total = 1_500
    async with serving(log) as served:

        async def write() -> None:
            number = 0
            while number < total:
                count = min(rng.randint(1, 60), total - number)
                await log.append([order_event(n, key=str(n % 17)) for n in range(number, number + count)])
                number += count
                await asyncio.sleep(rng.choice([0, 0, 0.001]))

        writer = asyncio.create_task(write())
        seen: list[tuple[int, int]] = []
        last_id = ""
        connections = 0
        async with asyncio.timeout(DEADLINE_S * 2):
            while len(seen) < total:
                connections += 1
                response = await opened(served, "?from=earliest", **({"Last_Event_ID": last_id} if last_id else {}))
                events = sent_events(response)
                for sent in await take(events, min(rng.randint(1, 300), total - len(seen))):
                    seen.append((sent.data["partition"], sent.data["offset"]))
                    last_id = sent.id
                response.close()
        await writer
        for partition in range(partitions):
            lane = [offset for at, offset in seen if at == partition]
            assert lane == list(range((await log.bounds(partition)).end)), f"seed {seed}, {connections} connections"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("kind=identify", [1]),
        ("kind=identify&kind=page", [1, 2]),
        ("name=Order+Completed", [3]),
        ("table=public.customers", [4]),
        ("table=customers&table=orders&kind=track", [0, 3, 4]),
        ("key=42", [0, 5]),
        ("key=42&heartbeats=1&kind=track", [0, 5]),
        ("kind=heartbeat&heartbeats=1", [6]),
        ("heartbeats=1", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("", [0, 1, 2, 3, 4, 5, 7]),
    ],
)
async def test_filters_are_alternatives_in_one_parameter_and_conditions_over_several(
    query: str, expected: list[int]
) -> None:
    log = ShopLog()
    await log.append(
        [
            order_event(0, key="42"),
            order_event(1, kind="identify", table="people"),
            order_event(2, kind="page", table="visits"),
            order_event(3, name="Order Completed"),
            order_event(4, table="customers"),
            order_event(5, key="42", table="baskets"),
            heartbeat(6),
            order_event(7, table="last"),
        ]
    )
    async with serving(log) as served:
        response = await opened(served, f"?from=earliest&{query}")
        assert [sent.data["offset"] for sent in await take(sent_events(response), len(expected))] == expected
        pulled = await served.http.get(f"{served.url}/v1/events?{query}")
        lines = [msgspec.json.decode(line) for line in (await pulled.read()).splitlines()]
        assert [line["offset"] for line in lines] == expected
        response.close()


async def test_an_idle_stream_gets_a_comment_and_a_cursor_past_what_was_filtered() -> None:
    log = ShopLog()
    async with serving(log, keepalive_s=0.02) as served:
        response = await opened(served, "?kind=page")
        await log.append([order_event(1), order_event(2)])
        received = b""
        async with asyncio.timeout(DEADLINE_S):
            while b": keepalive\nid: g1.2\n\n" not in received:
                received += await response.content.readany()
        assert b"data:" not in received
        response.close()


async def test_a_long_filtered_stretch_moves_the_cursor_without_waiting() -> None:
    log = ShopLog()
    await log.append([order_event(number) for number in range(12_000)])
    async with serving(log) as served:
        response = await opened(served, "?from=earliest&kind=page")
        received = b""
        async with asyncio.timeout(DEADLINE_S):
            while b": keepalive\n" not in received:
                received += await response.content.readany()
        cursor = int(received.partition(b": keepalive\nid: g1.")[2].split(b"\n")[0])
        assert cursor >= 10_000
        response.close()


async def test_a_reader_that_stops_reading_costs_one_buffer_and_others_go_on() -> None:
    log = ShopLog()
    async with serving(log) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, (host, int(port)))
        await loop.sock_sendall(stalled, f"GET /v1/stream HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        reader = await opened(served)
        await until(lambda: len(served.subscriptions._readers) == 2)
        body = b'{"text":"%b"}' % (b"x" * 4000)
        taken = 0
        events = sent_events(reader)
        for _ in range(40):
            await log.append([order_event(taken + n, properties=body) for n in range(250)])
            taken += len(await take(events, 250))
        lags = [served.subscriptions._end(each, 0) - each.place.offsets[0] for each in served.subscriptions._readers]
        # 40 MB went by. What the stalled one holds is its socket's buffers in the kernel and one write in the process.
        assert max(lags) > 5_000
        transports = [each.request.transport for each in served.subscriptions._readers]
        assert max(each.get_write_buffer_size() for each in transports if each is not None) < 512 << 10
        assert served.subscriptions.status()["cached_bytes"] <= 16 << 20
        reader.close()
        stalled.close()
        await until(lambda: not served.subscriptions._readers)


async def test_readers_at_the_same_place_share_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.sinks import frames

    encoded: list[int] = []
    original = frames.encode

    def counting(envelope: object, event: object, place: tuple[int, int]) -> bytes:
        encoded.append(place[1])
        return original(envelope, event, place)  # type: ignore[arg-type]

    monkeypatch.setattr(frames, "encode", counting)
    log = ShopLog()
    async with serving(log) as served:
        responses = [await opened(served) for _ in range(20)]
        await log.append([order_event(number) for number in range(50)])
        for response in responses:
            assert len(await take(sent_events(response), 50)) == 50
            response.close()
        assert sorted(encoded) == list(range(50))


async def test_without_readers_the_log_is_left_alone() -> None:
    log = ShopLog()
    async with serving(log) as served:
        response = await opened(served)
        await log.append([order_event(1)])
        await take(sent_events(response), 1)
        response.close()
        await until(lambda: not served.subscriptions._readers)
        await log.append([order_event(2)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        before = log.reads
        for number in range(20):
            await log.append([order_event(number)])
            await asyncio.sleep(0)
        assert log.reads <= before + 1
        # And the next one still sees everything.
        response = await opened(served, "?from=earliest")
        assert len(await take(sent_events(response), 22)) == 22
        response.close()


async def test_a_trimmed_place_ends_the_stream_with_an_event_that_says_where_to_go_on() -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(10)])
    await log.trim(0, 4)
    async with serving(log) as served:
        response = await opened(served, "?from=1")
        text = await response.text()
        assert "event: error\n" in text
        body = msgspec.json.decode(text.partition("data: ")[2])
        assert (body["reason"], body["first_offset"], body["earliest"]) == ("trimmed", 4, "g1.4")
        assert body["advice"]
        response = await opened(served, f"?from={body['earliest']}")
        assert len(await take(sent_events(response), 6)) == 6
        response.close()


async def test_cloud_events_name_source_subject_and_time() -> None:
    log = ShopLog()
    await log.append([order_event(1, key="c1"), heartbeat(2), order_event(3)])
    async with serving(log) as served:
        response = await opened(served, "?from=earliest&envelope=cloudevents")
        first, _ = await take(sent_events(response), 2)
        data = first.data.pop("data")
        assert first.data == {
            "specversion": "1.0",
            "id": "shop-1",
            "source": "/headrace/shop",
            "type": "headrace.track",
            "subject": "c1",
            "time": "2023-11-14T22:13:21Z",
            "datacontenttype": "application/json",
            "hrpos": "0/1:0",
            "hrpart": 0,
            "hroffset": "0",
        }
        assert data["after"]["total"] == "9.90"
        response.close()


async def test_json_spread_over_lines_stays_one_data_line() -> None:
    log = ShopLog()
    await log.append([order_event(1, properties=b'{\r\n "a": "x\\ny"\n}')])
    async with serving(log) as served:
        response = await opened(served, "?from=earliest")
        (sent,) = await take(sent_events(response), 1)
        assert sent.data["after"] == {"a": "x\ny"}
        response.close()


async def test_one_partition_of_several_is_followed_and_resumed_alone() -> None:
    log = ShopLog(partitions=3)
    await log.append([order_event(number) for number in range(60)])
    async with serving(log) as served:
        response = await opened(served, "?from=0&partition=2")
        sent = await take(sent_events(response), 5)
        assert {each.data["partition"] for each in sent} == {2}
        assert sent[-1].id == "g1.2@5"
        response.close()
        response = await opened(served, Last_Event_ID=sent[-1].id)
        (more,) = await take(sent_events(response), 1)
        assert (more.data["partition"], more.data["offset"]) == (2, 5)
        response.close()


async def test_more_readers_than_admitted_get_503_and_a_time_to_come_back() -> None:
    async with serving(ShopLog(), subscribe=SubscribeConfig(max_subscribers=2)) as served:
        held = [await opened(served) for _ in range(2)]
        refused = await served.http.get(f"{served.url}/v1/stream")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert "subscribe.max_subscribers" in (await refused.json())["error"]
        held.pop().close()
        await until(lambda: len(served.subscriptions._readers) == 1)
        (await opened(served)).close()
        held.pop().close()


async def test_open_streams_end_within_a_second_of_a_stop() -> None:
    loop = asyncio.get_running_loop()
    async with serving(ShopLog()) as served:
        response = await opened(served)
        began = loop.time()
        served.following.cancel()
        await served.server.stop()
        assert loop.time() - began < 1.0
        # The end is a proper one: the last chunk was sent, so the client knows that nothing was cut.
        async with asyncio.timeout(DEADLINE_S):
            assert b"id: g1.0" in await response.read()


async def test_a_stream_that_takes_nothing_does_not_hold_up_a_stop() -> None:
    loop = asyncio.get_running_loop()
    log = ShopLog()
    async with serving(log) as served:
        response = await opened(served)
        body = b'{"text":"%b"}' % (b"x" * 60_000)
        await log.append([order_event(number, properties=body) for number in range(400)])
        await until(lambda: any(each.writing_since is not None for each in served.subscriptions._readers))
        began = loop.time()
        served.following.cancel()
        await served.server.stop()
        assert loop.time() - began < 1.0
        response.close()


async def test_a_failed_log_ends_streams_with_words_and_stops_the_consumer() -> None:
    log = ShopLog()
    await log.append([order_event(1)])
    async with serving(log) as served:
        response = await opened(served)
        log.failure = LogUnavailable("the log can't be read: disk gone")
        await log.append([order_event(2)])
        async with asyncio.timeout(DEADLINE_S):
            text = await response.text()
        assert text.startswith("retry: 1000\nid: g1.1\n\n")
        with pytest.raises(LogUnavailable):
            await served.following
        assert not next(iter(served.subscriptions.health())).is_ready


async def test_a_client_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    log = ShopLog()
    async with serving(log) as served:
        for _ in range(3):
            response = await opened(served)
            response.close()
            await until(lambda: all(reader.is_gone for reader in served.subscriptions._readers))
            await log.append([order_event(1)])
            await until(lambda: not served.subscriptions._readers)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_shared_bytes_never_reach_a_reader_whose_filter_they_do_not_pass() -> None:
    log = ShopLog()
    await log.append([order_event(1), order_event(2, kind="page"), heartbeat(3), order_event(4)])
    async with serving(log) as served:
        for query, expected in (("", [0, 1, 3]), ("&kind=page", [1]), ("&heartbeats=1", [0, 1, 2, 3]), ("", [0, 1, 3])):
            response = await opened(served, f"?from=earliest{query}")
            taken = await take(sent_events(response), len(expected))
            assert [sent.data["offset"] for sent in taken] == expected
            response.close()


async def fallen_behind(served: Served, log: ShopLog, query: str) -> aiohttp.ClientResponse:
    """A reader that was at the end, and takes nothing while 40 MB come, far more than its socket's buffers hold."""
    response = await opened(served, f"?{query}")
    await log.append([order_event(0)])
    await take(sent_events(response), 1)
    socket_of(response).pause_reading()
    body = b'{"text":"%b"}' % (b"x" * 4000)
    for start in range(1, 10_001, 250):
        await log.append([order_event(number, properties=body) for number in range(start, start + 250)])
    return response


def socket_of(response: aiohttp.ClientResponse) -> asyncio.Transport:
    assert response.connection is not None
    transport = response.connection.transport
    assert isinstance(transport, asyncio.Transport)
    return transport


async def test_a_reader_that_would_rather_skip_is_told_of_the_gap_and_goes_on_at_the_end() -> None:
    log = ShopLog()
    async with serving(log) as served:
        response = await fallen_behind(served, log, "slow=skip&behind=1000")
        socket_of(response).resume_reading()
        events = sent_events(response)
        offsets: list[int] = []
        async for sent in events:
            if sent.event == "gap":
                break
            offsets.append(sent.data["offset"])
        assert offsets == list(range(1, len(offsets) + 1)), "whole and in order up to the gap"
        assert sent.data == {"from": f"g1.{len(offsets) + 1}", "to": "g1.10001", "events": 10_000 - len(offsets)}
        assert sent.id == "g1.10001"
        await log.append([order_event(10_001)])
        (sent,) = await take(events, 1)
        assert sent.data["offset"] == 10_001
        response.close()


async def test_a_reader_that_would_rather_be_cut_off_is_and_can_resume() -> None:
    log = ShopLog()
    async with serving(log) as served:
        response = await fallen_behind(served, log, "slow=disconnect&behind=1000")
        await until(lambda: not served.subscriptions._readers)
        socket_of(response).resume_reading()
        seen: list[int] = []
        with contextlib.suppress(aiohttp.ClientError):  # a cut, or its words where there was room for them
            async for sent in sent_events(response):
                if sent.event == "error":
                    assert sent.data["reason"] == "slow"
                    break
                seen.append(sent.data["offset"])
        assert seen == list(range(1, len(seen) + 1)) and len(seen) < 9_000
        response = await opened(served, "?slow=disconnect&behind=1000", Last_Event_ID=f"g1.{len(seen) + 1}")
        rest = await take(sent_events(response), 10_000 - len(seen))
        assert [sent.data["offset"] for sent in rest] == list(range(len(seen) + 1, 10_001)), (
            "catching up is no slowness"
        )
        response.close()


async def test_one_that_begins_far_back_is_not_slow() -> None:
    log = ShopLog()
    await log.append([order_event(number) for number in range(3_000)])
    async with serving(log) as served:
        response = await opened(served, "?from=earliest&slow=skip&behind=10")
        assert [sent.data["offset"] for sent in await take(sent_events(response), 3_000)] == list(range(3_000))
        response.close()
