"""``headrace run`` as several processes: the same answers as one gives, and whichever is killed, nothing is lost, doubled or reordered."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hook_server import Hook, hook_server
from running import RunningHeadrace

DEFINITIONS = """
from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": String})
views = FeatureView("views", entity=customer, source=Events("Viewed"), entity_key={"customer_id": "event.key"}, features=[
    count(over="1d", name="n"), sum_("n", Int64, over="1d", name="sum"),
])
"""
CONFIGURATION = """
log: {{path: shop.log.db}}
processes: {processes}
sources: {{web: {{type: http}}}}
features: {{definitions: shop_features.py, store: {{type: sqlite}}}}
sinks:
  crm: {{type: http, destination: {{url: "{url}"}}}}
  other: {{type: http, destination: {{url: "{url}?other"}}}}
"""


class Shop(RunningHeadrace):
    """With a page's tracker, a reader of features, and a destination."""

    def __init__(self, folder: Path, hook: Hook, *, processes: int | str) -> None:
        (folder / "shop_features.py").write_text(DEFINITIONS)
        super().__init__(folder, CONFIGURATION.format(processes=processes, url=hook.url))
        self.sent: dict[str, list[int]] = {}
        self.hook = hook

    def track(self, customer: str, number: int) -> None:
        """Raises OSError when it wasn't heard; it may have been then."""
        self._ask(
            "/v1/track",
            {
                "type": "track",
                "event": "Viewed",
                "userId": customer,
                "messageId": f"m{number}",
                "properties": {"n": number},
            },
        )

    def until_tracked(self, customer: str, number: int) -> None:
        self.sent.setdefault(customer, []).append(number)

        def heard() -> bool:
            try:
                self.track(customer, number)
            except OSError:
                return False
            return True

        self.wait_until(heard, f"event {number}")

    def features(self) -> dict[str, tuple[Any, Any]] | None:
        """By customer: how many, and their sum. None when nobody answers."""
        customers = sorted(self.sent)
        try:
            told = self._ask(
                "/get-online-features", {"features": ["views:n", "views:sum"], "entities": {"customer_id": customers}}
            )
        except OSError:
            return None
        by_name = dict(zip(told["metadata"]["feature_names"], told["results"], strict=True))
        return {
            customer: (by_name["n"]["values"][place], by_name["sum"]["values"][place])
            for place, customer in enumerate(customers)
        }

    def wanted(self) -> dict[str, tuple[int, int]]:
        return {customer: (len(numbers), sum(numbers)) for customer, numbers in self.sent.items()}

    def other_processes(self) -> list[dict[str, Any]]:
        status = self.client.status()
        return [] if status is None else status["processes"]

    def _ask(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Basic azo="},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            told = answer.read()
        return json.loads(told) if told[:1] == b"{" else None

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def effects(self) -> dict[str, list[int]]:
        """What the first destination has of each customer, repetitions of an id left out."""
        found: dict[str, list[int]] = {}
        known: set[str] = set()
        for body in [body for body in self.hook.got if "other" not in body]:
            if body["id"] not in known:
                known.add(body["id"])
                found.setdefault(body["customer_key"], []).append(body["properties"]["n"])
        return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hook_server() as made:
        yield made


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_answer_as_one_does(tmp_path: Path, hook: Hook, processes: int) -> None:
    shop = Shop(tmp_path, hook, processes=processes)
    shop.start()
    try:
        shop.wait_until(lambda: shop.get("/readyz")[0] == 200, "ready")
        for number in range(60):
            shop.until_tracked(f"c{number % 7}", number)
        shop.wait_until(lambda: shop.features() == shop.wanted(), "features")
        shop.wait_until(lambda: len(hook.got) == 120, "deliveries")
        assert shop.effects() == shop.sent
        status = shop.client.status()
        assert status is not None
        kept = [each["consumers"] for each in status["processes"]]
        assert kept == (
            [["features", "sinks/crm", "sinks/other"]]
            if processes == 2
            else [["features"], ["sinks/crm", "sinks/other"]]
        )
        assert {name: each.get("process") for name, each in status["consumers"].items()} == {
            "features": 1, "sinks/crm": processes - 1, "sinks/other": processes - 1, "subscribe": None,
        }  # fmt: skip
        assert all(each["is_ready"] for each in status["consumers"].values())
        shop.wait_until(lambda: _lags(shop) == [0, 0, 0], "no lag")
        metrics = shop.get("/metrics")[1]
        # A family that two processes have, or a part of one process and this one, is told once.
        assert metrics.count("# TYPE headrace_sink_delivered_events_total ") <= 1
        helped = [line.split()[2] for line in metrics.splitlines() if line.startswith("# HELP")]
        assert len(helped) == len(set(helped))
        assert "headrace_features_freshness_seconds_count 60.0" in metrics
        assert f'headrace_further_cpu_seconds_total{{process="{processes - 1}"}}' in metrics
        assert all(each["cpu_s"] > 0 and each["peak_bytes"] > 1 << 20 for each in status["processes"])
        assert status["compiled"].keys() >= {"headrace.features.kernel"}
        assert shop.get("/v1/features/views/nothere")[0] == 404
        assert shop.get("/nothere") == (
            404,
            '{"error":"there is nothing at this path","advice":"see / for a console, /v1/stream and /v1/events for events"}\n',
        )
        assert shop.get("/features")[0] == 200
        pids = [each["pid"] for each in status["processes"]]
        assert all(is_alive(pid) for pid in pids)
        shop.terminate()
        assert not any(is_alive(pid) for pid in pids), shop.said()
        assert "Traceback" not in shop.said()
    finally:
        shop.end()


def _lags(shop: Shop) -> list[int | None]:
    status = shop.client.status()
    assert status is not None
    return [status["consumers"][name]["lag_events"] for name in ("features", "sinks/crm", "sinks/other")]


@pytest.mark.parametrize("seed", [11])
def test_whichever_process_is_killed_nothing_is_lost_doubled_or_reordered(
    tmp_path: Path, hook: Hook, seed: int
) -> None:
    kill_any(tmp_path, hook, seed=seed, kills=6)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [61, 62, 63])
def test_dozens_of_kills_of_any_process(tmp_path: Path, hook: Hook, seed: int) -> None:
    kill_any(tmp_path, hook, seed=seed, kills=60)


def kill_any(folder: Path, hook: Hook, *, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    print(f"seed {seed}")
    shop = Shop(folder, hook, processes=3)
    hook.answer = lambda body: 503 if chance.random() < 0.05 else 200
    shop.start()
    number = 0
    try:
        for turn in range(kills):
            for _ in range(chance.randrange(5, 40)):
                shop.until_tracked(f"c{chance.randrange(9)}", number)
                number += 1
            others = shop.other_processes()
            pids = [each["pid"] for each in others if each["pid"] is not None]
            # The first turns have one of each.
            choice = turn % 3 if turn < 3 else chance.randrange(3)
            if choice < len(pids):
                os.kill(pids[choice], signal.SIGKILL)
            else:
                shop.kill()
                # What the first process starts ends with it, before its successor reads the stores.
                end = time.monotonic() + 20
                while any(is_alive(pid) for pid in pids):
                    assert time.monotonic() < end, f"seed {seed}: a process outlives the first one"
                    time.sleep(0.01)  # another process: there is no event to wait on
                shop.start()
        hook.answer = lambda body: 200
        shop.wait_until(lambda: shop.features() == shop.wanted(), f"seed {seed}: features {shop.wanted()}")
        shop.wait_until(lambda: _counts(shop.effects()) == _counts(shop.sent), f"seed {seed}: deliveries")
        assert shop.effects() == shop.sent, f"seed {seed}"
        shop.terminate()
        assert "Traceback" not in (folder / "run.log").read_text(errors="replace"), f"seed {seed}: {shop.said()}"
    finally:
        shop.end()


def _counts(numbers: dict[str, list[int]]) -> dict[str, int]:
    return {customer: len(found) for customer, found in numbers.items()}


def test_what_is_wrong_in_another_process_is_told_as_if_it_were_here(tmp_path: Path, hook: Hook) -> None:
    shop = Shop(tmp_path, hook, processes=2)
    (tmp_path / "shop_features.py").write_text(DEFINITIONS.replace("Int64", "Int65"))
    shop.start()
    assert shop.process is not None
    try:
        assert shop.process.wait(60) == 2, shop.said()
    finally:
        shop.end()
    assert "Int65" in shop.said() and "To mend it" in shop.said() and "Traceback" not in shop.said()


def test_a_definition_that_broke_meanwhile_stops_its_process_alone(tmp_path: Path, hook: Hook) -> None:
    shop = Shop(tmp_path, hook, processes=3)
    shop.start()
    try:
        shop.wait_until(lambda: shop.get("/readyz")[0] == 200, "ready")
        (tmp_path / "shop_features.py").write_text(DEFINITIONS.replace("Int64", "Int65"))
        os.kill(shop.other_processes()[0]["pid"], signal.SIGKILL)
        shop.wait_until(lambda: "Int65" in shop.get("/readyz")[1], "the reason")
        parts = {part["part"]: part["is_ready"] for part in json.loads(shop.get("/readyz")[1])["parts"]}
        assert not parts["features"] and parts["sinks/crm"] and parts["source web"]
        shop.until_tracked("c1", 1)
        shop.wait_until(lambda: shop.effects() == {"c1": [1]}, "a delivery")
        assert shop.get("/v1/features/views?customer_id=c1")[0] == 503
        shop.terminate()
    finally:
        shop.end()
    assert "stopped: " in shop.said() and "Traceback" not in shop.said()


def test_a_log_in_memory_belongs_to_one_process(tmp_path: Path, hook: Hook) -> None:
    shop = Shop(tmp_path, hook, processes=2)
    shop.config.write_text(shop.config.read_text().replace("log: {path: shop.log.db}", "log: {type: memory}"))
    told = subprocess.run(
        [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())", "run", "headrace.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.returncode == 2, told.stderr
    assert "processes: the log of type memory belongs to one process alone" in told.stderr


def test_a_connection_is_answered_whole_wherever_its_first_request_took_it(tmp_path: Path, hook: Hook) -> None:
    shop = Shop(tmp_path, hook, processes=2)
    shop.config.write_text(
        shop.config.read_text().replace(
            "server: {listen", 'server: {tokens: {reader: "secret", ops: "other"}, scopes: {reader: [features]}, listen'
        )
    )
    shop.start()
    reads = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    may_all = reads | {"Authorization": "Bearer other"}
    features = json.dumps({"features": ["views:n"], "entities": {"customer_id": ["c1"]}}).encode()

    def asked(
        link: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, bytes]:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        return answer.status, answer.read()

    def is_ready() -> bool:
        link = http.client.HTTPConnection("127.0.0.1", shop.port, timeout=20)
        try:
            return asked(link, "GET", "/readyz", {})[0] == 200
        except OSError:
            return False
        finally:
            link.close()

    try:
        shop.wait_until(is_ready, "ready")
        shop.track("c1", 1)
        link = http.client.HTTPConnection("127.0.0.1", shop.port, timeout=20)
        # The first request takes the connection to the features' process ...
        status, told = asked(link, "POST", "/get-online-features", reads, features)
        assert status == 200
        local = link.sock.getsockname() if link.sock else None
        assert asked(link, "POST", "/get-online-features", {"Content-Type": "application/json"}, features)[0] == 401
        assert asked(link, "GET", "/v1/status", reads)[0] == 403, "a token of readers only"
        # ... and what that one doesn't know is asked of the first.
        status, told = asked(link, "GET", "/v1/status", may_all)
        assert status == 200 and json.loads(told)["processes"][0]["consumers"][0] == "features"
        assert asked(link, "GET", "/-/report", may_all)[0] == 404, "only the first process may ask that"
        link.request("GET", "/v1/stream?from=earliest", headers=may_all)
        answer = link.getresponse()
        piece = b""
        while b'"Viewed"' not in piece:
            piece += answer.read1(4096)
        assert link.sock is None or link.sock.getsockname() == local, "one connection all the time"
        link.close()
        # A body that comes late, byte by byte, after the connection was handed on.
        head = (
            b"POST /get-online-features HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nContent-Length: %d\r\n\r\n"
            % len(features)
        )
        with socket.create_connection(("127.0.0.1", shop.port), timeout=20) as slow:
            for piece in (head[:9], head[9:60], head[60:]):
                slow.sendall(piece)
                time.sleep(0.05)  # so that it isn't one packet
            for place in range(0, len(features), 20):
                slow.sendall(features[place : place + 20])
            found = b""
            while b'"values"' not in found:
                found += slow.recv(4096)
            assert found.startswith(b"HTTP/1.1 200")
            slow.sendall(
                b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer other\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            while b"421" not in found:
                piece = slow.recv(4096)
                assert piece, found
                found += piece
        shop.terminate()
        assert "Traceback" not in shop.said()
    finally:
        shop.end()
