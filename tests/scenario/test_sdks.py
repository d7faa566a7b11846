"""The makers' own SDKs, unchanged, against the collector, through a front that cuts, fails and delays: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collecting import KEY, Collecting, collecting
from faulty_front import FaultyFront
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.sqlite import SQLiteLog

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:segment"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rudderstack"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:dateutil"),
    # A connection that the front cut stays in the SDK's pool until Python collects it.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

EVENTS = 120


def segment_client(url: str, errors: list[Any]) -> Any:
    from segment.analytics.client import Client

    return Client(KEY, host=url, upload_size=5, upload_interval=0.02, on_error=lambda *error: errors.append(error))


def rudder_client(url: str, errors: list[Any]) -> Any:
    from rudderstack.analytics.client import Client

    return Client(KEY, host=url, upload_size=5, upload_interval=0.02, on_error=lambda *error: errors.append(error))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs pause a hundredth of their time between tries."""
    import time

    import backoff._sync
    import segment.analytics.consumer

    quick = SimpleNamespace(**vars(time))
    quick.sleep = lambda seconds: time.sleep(seconds / 100)
    monkeypatch.setattr(backoff._sync, "time", quick)
    for module in (segment.analytics.consumer,):
        for name in ("time", "_time"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, quick)


def said(events: list[CustomerEvent]) -> list[tuple[str, int]]:
    return [(event.user_id or "", json.loads(event.properties)["n"]) for event in events if event.kind == "track"]


@pytest.mark.parametrize("make", [segment_client, rudder_client])
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_or_doubled_between_a_python_sdk_and_the_log(
    make: Callable[[str, list[Any]], Any], seed: int, tmp_path: Path
) -> None:
    log = await SQLiteLog.open(tmp_path / "log.db")
    errors: list[Any] = []
    async with collecting(log) as here, FaultyFront(here.port, seed=seed) as front:

        def work() -> None:
            client = make(f"http://127.0.0.1:{front.port}", errors)
            for number in range(EVENTS):
                client.track(f"u{number % 7}", "Order Completed", {"n": number})
            client.flush()
            client.join()

        await asyncio.to_thread(work)
        assert errors == [], f"seed {seed}"
        assert sum(front.met.values()) - front.met["pass"] >= 5, f"seed {seed}: {front.met}"
        events = await here.events()
        assert sorted(said(events)) == sorted((f"u{number % 7}", number) for number in range(EVENTS)), f"seed {seed}"
        assert await here.letters() == []
        if front.met["cut_after"]:
            assert here.collector.intake.counts.duplicates > 0
    await log.close()


@pytest.mark.parametrize("make", [segment_client, rudder_client])
async def test_every_call_of_a_python_sdk_arrives_as_what_it_is(make: Callable[[str, list[Any]], Any]) -> None:
    async with collecting() as here:

        def work() -> None:
            client = make(here.url + "/", [])
            client.identify("u1", {"email": "a@example.com"})
            client.track("u1", "Order Completed", {"total": 9.99})
            client.page("u1", "Docs", "Start", {"url": "x"})
            client.screen("u1", "Main", "Home", {})
            client.group("u1", "g1", {"seats": 5})
            client.alias("a1", "u1")
            client.flush()
            client.join()

        await asyncio.to_thread(work)
        events = {event.kind: event for event in await here.events()}
        assert await here.letters() == []
        assert set(events) == {"identify", "track", "page", "screen", "group", "alias"}
        assert json.loads(events["identify"].properties) == {"email": "a@example.com"}
        assert (events["track"].name, events["page"].name, events["screen"].name) == (
            "Order Completed",
            "Start",
            "Home",
        )
        group, alias = events["group"].sdk, events["alias"].sdk
        assert group is not None and group.group_id == "g1"
        assert alias is not None and (alias.previous_id, events["alias"].key) == ("a1", "u1")
        for event in events.values():
            # The fixture's clock stands still in 2027; corrected, each call was made just before it.
            assert event.received_us - 60_000_000 < event.occurred_us <= event.received_us
            assert event.sdk is not None and event.sdk.message_id
            assert event.context is not None and json.loads(event.context)["library"]["version"]


NODE = Path(os.environ.get("HEADRACE_NODE_SDKS", Path.home() / ".cache" / "headrace-servers" / "node-sdks"))
PACKAGES = {"@segment/analytics-node": "3.1.0", "@rudderstack/rudder-sdk-node": "3.0.13"}

SEGMENT_JS = """
const { Analytics } = require('@segment/analytics-node')
const client = new Analytics({ writeKey: process.argv[1], host: process.argv[2], flushAt: 5, flushInterval: 50, maxRetries: 10 })
client.on('error', (error) => { console.error(error); process.exitCode = 3 })
for (let n = 0; n < 60; n++) client.track({ userId: 'u' + n % 7, event: 'Order Completed', properties: { n } })
client.closeAndFlush({ timeout: 60000 })
"""
RUDDER_JS = """
const Analytics = require('@rudderstack/rudder-sdk-node')
const client = new Analytics(process.argv[1], { dataPlaneUrl: process.argv[2], flushAt: 5, flushInterval: 50, retryCount: 10 })
for (let n = 0; n < 60; n++) client.track({ userId: 'u' + n % 7, event: 'Order Completed', properties: { n } })
client.flush().then(() => setTimeout(() => {}, 500))
"""


@pytest.mark.matrix("node")
@pytest.mark.parametrize(
    ("package", "script"), list(zip(PACKAGES, (SEGMENT_JS, RUDDER_JS), strict=True)), ids=["segment", "rudder"]
)
@pytest.mark.parametrize("has_faults", [False, True])
async def test_nothing_is_lost_or_doubled_between_a_node_sdk_and_the_log(
    package: str, script: str, has_faults: bool
) -> None:
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules" / package).exists():
        wanted = " ".join(f"{name}@{version}" for name, version in PACKAGES.items())
        pytest.skip(f"{package} is missing: apt-get install -y nodejs npm && npm install --prefix {NODE} {wanted}")
    async with collecting() as here, FaultyFront(here.port, seed=5, share=0.4 if has_faults else 0) as front:
        process = await asyncio.create_subprocess_exec(
            node, "-e", script, KEY, f"http://127.0.0.1:{front.port}", cwd=NODE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(90):
            out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        assert_all_once(await here.events(), front, out)
        assert await here.letters() == []
        assert_served(here)


def assert_all_once(events: list[CustomerEvent], front: FaultyFront, out: bytes) -> None:
    wanted = sorted((f"u{number % 7}", number) for number in range(60))
    assert sorted(said(events)) == wanted, f"{front.met}\n{out.decode()}"


def assert_served(here: Collecting) -> None:
    assert here.collector.intake.counts.requests > 1


BROWSER = Path(os.environ.get("HEADRACE_BROWSER_SDKS", Path.home() / ".cache" / "headrace-servers" / "browser-sdks"))
BROWSER_PACKAGES = {"@segment/analytics-next": "1.84.3", "@rudderstack/analytics-js": "3.34.1"}
BUNDLES = {
    "@segment/analytics-next": "dist/umd/index.js",
    "@rudderstack/analytics-js": "dist/npm/modern/bundled/umd/index.js",
}
BROWSER_EVENTS = 24
SEGMENT_PAGE = """
AnalyticsNext.AnalyticsBrowser.load({ writeKey: KEY, cdnURL: FRONT }, { integrations: { 'Segment.io': { apiHost: FRONT.slice(7) + '/v1', protocol: 'http' } } })
  .then(([client]) => { client.identify('u1', { plan: 'gold' }); client.page('Start');
    for (let n = 0; n < COUNT; n++) client.track('Order Completed', { n }) })
"""
# Of its configuration the SDK asks once; a page without it sends nothing.
RUDDER_PAGE = """
const client = new (rudderanalytics.RudderAnalytics || rudderanalytics.default || RudderAnalytics)()
client.load(KEY, FRONT, { configUrl: SERVER, plugins: ['XhrQueue', 'StorageEncryption', 'StorageMigrator'], queueOptions: { minRetryDelay: 100 } })
client.ready(() => { client.identify('u1', { plan: 'gold' }); client.page('Start');
  for (let n = 0; n < COUNT; n++) client.track('Order Completed', { n }) })
"""


@pytest.mark.matrix("chromium")
@pytest.mark.parametrize(
    ("package", "script"),
    list(zip(BROWSER_PACKAGES, (SEGMENT_PAGE, RUDDER_PAGE), strict=True)),
    ids=["segment", "rudder"],
)
@pytest.mark.parametrize("has_faults", [False, True])
async def test_nothing_is_lost_or_doubled_between_a_browser_and_the_log(
    package: str, script: str, has_faults: bool, tmp_path: Path
) -> None:
    """A page of another origin, in a real browser: preflights, settings and retries are its own."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is missing: apt-get install -y --no-install-recommends chromium")
    bundle = BROWSER / "node_modules" / package / BUNDLES[package]
    if not bundle.exists():
        wanted = " ".join(f"{name}@{version}" for name, version in BROWSER_PACKAGES.items())
        pytest.skip(f"{package} is missing: apt-get install -y nodejs npm && npm install --prefix {BROWSER} {wanted}")
    async with collecting() as here, FaultyFront(here.port, seed=7, share=0.3 if has_faults else 0) as front:
        words = f"const KEY = '{KEY}', FRONT = 'http://127.0.0.1:{front.port}', SERVER = '{here.url}', COUNT = {BROWSER_EVENTS}\n"
        page = f"<!doctype html><script>{bundle.read_text()}</script><script>{words}{script}</script>"
        async with page_server(page.encode()) as url:
            process = await asyncio.create_subprocess_exec(
                chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0", url,
                stdout=asyncio.subprocess.DEVNULL, stderr=(tmp_path / "chromium.log").open("wb"),
            )  # fmt: skip
            try:
                async with asyncio.timeout(60):
                    while len(await here.events()) < BROWSER_EVENTS + 2:
                        assert process.returncode is None, (tmp_path / "chromium.log").read_text()[-3000:]
                        await asyncio.sleep(0.05)  # another process: there is no event to wait on
            except TimeoutError:
                said_there = [
                    line for line in (tmp_path / "chromium.log").read_text().splitlines() if "CONSOLE" in line
                ]
                raise AssertionError(
                    f"{len(await here.events())} events, {front.met}\n" + "\n".join(said_there[-20:])
                ) from None
            finally:
                process.terminate()
                await process.wait()
        events = await here.events()
        tracked = [json.loads(event.properties)["n"] for event in events if event.kind == "track"]
        assert sorted(tracked) == list(range(BROWSER_EVENTS)), front.met
        assert {event.kind for event in events} == {"identify", "page", "track"}
        assert {event.user_id for event in events} == {"u1"}
        assert len({event.anonymous_id for event in events}) == 1 and events[0].anonymous_id
        assert await here.letters() == []
        if has_faults:
            assert sum(front.met.values()) > front.met["pass"], front.met


@asynccontextmanager
async def page_server(page: bytes) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # a connection that a browser opens for later
            writer.close()
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(page)
            + page
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
