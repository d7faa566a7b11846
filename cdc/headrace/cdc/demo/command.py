"""``headrace demo``: a real Postgres, a shop that commits, ``headrace run`` attached to it, and a proof at the end.

The shop's load comes from this process; capture, log and features run as ``headrace run`` in a process of their own, with the
configuration shown. Exit code 0 when every feature equals its recomputation by SQL, 7 when one differs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from rich.console import Console
from rich.syntax import Syntax

from headrace.cdc.command import Command
from headrace.cdc.demo.client import Client
from headrace.cdc.demo.embedded import PostgresServer, embedded_bin, free_port
from headrace.cdc.demo.proof import FEATURES, Proof, Rows, compare, recompute
from headrace.cdc.demo.recommender import Recommender
from headrace.cdc.demo.screen import Reading, Screen
from headrace.cdc.demo.shop import Shop, Simulator, Visitor
from headrace.cdc.errors import ConfigError, HeadraceError, SourceError
from headrace.cdc.position import parse_lsn
from headrace.cdc.sources.postgres_config import PostgresConfig, connect_error, conninfo

_FILES = ("headrace.yaml", "shop_features.py", "feature_store.yaml")
_READY_S = 60.0
_SETTLE_S = 60.0
_LOOK_EVERY_S = 0.25
_FOUND = 7
_CUSTOMERS_SHOWN = [1, 2, 3, 4, 5, 6]


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, metavar="N", help="end after N seconds (default: until Ctrl-C)")
    parser.add_argument(
        "--rate", type=float, default=100.0, metavar="N", help="transactions a second (default: %(default).0f)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the simulator (default: %(default)s)")
    parser.add_argument("--dsn", help="a Postgres of your own in place of the embedded one; wal_level must be logical")
    parser.add_argument(
        "--port", type=int, default=8080, help="of headrace's HTTP server; another when taken (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the files go and stay (default: a temporary folder, removed at the end)"
    )
    parser.add_argument("--json", action="store_true", help="only the result, as one JSON object")


class _Stop:
    """Set by the time limit or Ctrl-C; a second Ctrl-C interrupts whatever goes on."""

    def __init__(self, seconds: float | None) -> None:
        self.event = threading.Event()
        self.ends_at = None if seconds is None else time.monotonic() + seconds

    def interrupt(self, *_: object) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()

    def wait(self, seconds: float) -> bool:
        """True when it is time to end."""
        if self.ends_at is not None and time.monotonic() >= self.ends_at:
            self.event.set()
        return self.event.wait(seconds)


def _run(arguments: Namespace) -> int:
    dsn: str = arguments.dsn or ""
    if dsn:
        conninfo(PostgresConfig(dsn=dsn), source="shop")  # a DSN that can't be read is told before anything is made
    try:
        return _show(arguments)
    except psycopg.Error as error:
        raise connect_error(error, config=PostgresConfig(dsn=dsn), source="shop") from error


def _show(arguments: Namespace) -> int:
    say = Console(stderr=True, highlight=False, quiet=arguments.json)
    with ExitStack() as stack:
        folder = _folder(arguments.folder, stack)
        dsn = arguments.dsn or _embedded(say, stack)
        shop = Shop(dsn)
        shop.create()
        stack.callback(shop.drop)
        port = _port(arguments.port)
        client = Client(f"http://127.0.0.1:{port}")
        for name in _FILES:
            (folder / name).write_bytes(files("headrace.cdc.demo").joinpath("files", name).read_bytes())
        if not arguments.json:
            say.rule(f"{folder / 'headrace.yaml'}", style="dim")
            say.print(Syntax((folder / "headrace.yaml").read_text(), "yaml", background_color="default"))
            say.rule(style="dim")
        process = stack.enter_context(_headrace(folder, {"SHOP_DSN": dsn, "SHOP_LISTEN": f"127.0.0.1:{port}"}))
        with say.status("headrace run headrace.yaml: copying the tables, building the features"):
            _wait_until(client.is_ready, _READY_S, process, folder)
        simulator = Simulator(shop, rate=arguments.rate, seed=arguments.seed)
        stack.callback(simulator.stop)
        recommender = Recommender(client.url)
        stack.callback(recommender.stop)
        visitor = Visitor(
            client.url,
            shop,
            rate=arguments.rate,
            seed=arguments.seed,
            recommended=client.first,
        )
        stack.callback(visitor.close)
        stop = _Stop(arguments.seconds)
        former = signal.signal(signal.SIGINT, stop.interrupt)
        stack.callback(signal.signal, signal.SIGINT, former)
        simulator.start()
        visitor.start()
        recommender.start()
        reading = _watch(
            client,
            simulator,
            stop,
            process,
            folder,
            Screen(_how(client.url, folder, dsn), customers=_CUSTOMERS_SHOWN),
            is_quiet=arguments.json,
        )
        simulator.stop()
        visitor.stop()
        recommender.stop()
        if simulator.failure is not None:
            raise SourceError(f"the shop's database failed: {type(simulator.failure).__name__}", source="shop")
        with say.status("the shop rests; comparing every feature with SQL over its tables"):
            proof = _prove(dsn, client, process, folder, visitor.counts, recommender.counts)
        return _report(arguments, say, proof, simulator.commits, reading)


def _folder(asked: Path | None, stack: ExitStack) -> Path:
    if asked is not None:
        try:
            asked.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"folder {asked} can't be made: {error.strerror}", advice="name another with --folder"
            ) from error
        if (asked / "shop.log.db").exists():
            raise HeadraceError(
                f"{asked} holds the log of an earlier demo", advice="name another --folder, or remove that one"
            )
        return asked.resolve()
    folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _embedded(say: Console, stack: ExitStack) -> str:
    with say.status("starting an embedded Postgres 18"):
        server = PostgresServer(embedded_bin(18), settings={"max_connections": "30"})
        stack.callback(server.remove)
        server.start()
    return server.dsn


def _port(asked: int) -> int:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", asked))
        except OSError:
            return free_port()
    return asked


@contextmanager
def _headrace(folder: Path, environment: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """``headrace run headrace.yaml`` in a session of its own, so that Ctrl-C reaches only us."""
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from headrace.cdc.cli import main; sys.exit(main())",
                "run",
                "headrace.yaml",
            ],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(done: Callable[[], bool], deadline_s: float, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + deadline_s
    while not done():
        if process.poll() is not None or time.monotonic() > end:
            lines = (folder / "run.log").read_text(errors="replace").strip().splitlines() or ["no message"]
            raise HeadraceError(
                "headrace run "
                + ("stopped" if process.poll() is not None else "did not get there in time")
                + f": {lines[-1]}",
                advice='read the message; for a database of your own "headrace check" says what to change',
            )
        time.sleep(0.05)  # a poll of another process over HTTP: there is no event to wait on


def _how(url: str, folder: Path, dsn: str) -> list[tuple[str, str]]:
    programs = Path(sys.executable).parent
    feast = (
        "from feast import FeatureStore; print(FeatureStore('.').get_online_features("
        "features=['customer_orders:orders_1m', 'customer_orders:spent_ever'], "
        "entity_rows=[{'customer_id': 1}]).to_dict())"
    )
    return [
        ("one customer's features:", f"curl -s '{url}/v1/features/customer_orders?customer_id=1'"),
        ("every change as it is committed:", f"curl -sN '{url}/v1/stream'"),
        (
            f"the stock Feast SDK ({programs}/pip install 'feast>=0.67,<1' comes first):",
            f"cd {folder} && SHOP_DSN='{dsn}' {programs}/headrace features apply && {programs}/python -c \"{feast}\"",
        ),
    ]


def _watch(
    client: Client,
    simulator: Simulator,
    stop: _Stop,
    process: subprocess.Popen[bytes],
    folder: Path,
    screen: Screen,
    *,
    is_quiet: bool,
) -> Reading | None:
    began = looked = time.monotonic()
    commits = end = 0
    commit_rate = event_rate = 0.0
    reading: Reading | None = None
    with ExitStack() as stack:
        if not is_quiet:
            stack.enter_context(screen)
        while not stop.wait(_LOOK_EVERY_S):
            if process.poll() is not None:
                _wait_until(lambda: False, 0, process, folder)
            status = client.status()
            rows = client.rows("customer_orders", _CUSTOMERS_SHOWN)
            views = client.rows("customer_views", _CUSTOMERS_SHOWN)
            if status is None or rows is None or views is None or simulator.failure is not None:
                if simulator.failure is not None:
                    break
                continue
            now = time.monotonic()
            log_end = sum(partition["end"] for partition in status["log"]["partitions"])
            if now - looked >= 1.0 or reading is None:
                commit_rate = (simulator.commits - commits) / (now - looked)
                event_rate = (log_end - end) / (now - looked) if end else 0.0
                commits, end, looked = simulator.commits, log_end, now
            features: dict[str, Any] = status["consumers"]["features"]
            reading = Reading(
                now - began,
                simulator.commits,
                commit_rate,
                log_end,
                event_rate,
                features["freshness_ms"]["p50"],
                features["freshness_ms"]["p99"],
                status["sources"]["shop"]["lag_bytes"],
                features["lag_events"],
                None,
                rows,
                views,
            )
            if not is_quiet:
                screen.show(reading)
    return reading


def _prove(
    dsn: str,
    client: Client,
    process: subprocess.Popen[bytes],
    folder: Path,
    views: Mapping[int, int],
    recommendations: Mapping[int, int],
) -> Proof:
    """Wait until all that was committed is in the features, then compare both at one and the same log time."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        assert found is not None
        committed = parse_lsn(found[0])

    def has_passed() -> bool:
        status = client.status()
        return (
            status is not None
            and parse_lsn(status["sources"]["shop"]["position"]) >= committed
            and status["consumers"]["features"]["lag_events"] == 0
        )

    _wait_until(has_passed, _SETTLE_S, process, folder)
    proof: Proof | None = None

    def is_compared() -> bool:
        nonlocal proof
        before = _log_time(client)
        wanted = recompute(dsn, before, views, recommendations)
        served: dict[str, Rows] = {}
        for view in FEATURES:
            # One more than the largest id as well: a row that should not be there must be seen too.
            ids = list(range(1, max(wanted[view], default=0) + 2))
            rows = client.rows(view, ids)
            if rows is None:
                return False
            served[view] = rows
        if _log_time(client) != before:
            return False  # log time moved on while the rows were read: they are of two moments
        proof = compare(wanted, served)
        return True

    _wait_until(is_compared, _SETTLE_S, process, folder)
    assert proof is not None
    return proof


def _log_time(client: Client) -> int:
    status = client.status()
    return -1 if status is None else int(status["consumers"]["features"]["log_time_us"])


def _report(arguments: Namespace, say: Console, proof: Proof, commits: int, reading: Reading | None) -> int:
    if arguments.json:
        result: dict[str, Any] = {
            "commits": commits,
            "events": None if reading is None else reading.log_end,
            "commit_to_feature_ms": None if reading is None else {"p50": reading.p50_ms, "p99": reading.p99_ms},
            "entities": proof.entities,
            "values": proof.values,
            "differing": proof.differing,
            "examples": proof.examples,
        }
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        style = "bold green" if proof.differing == 0 else "bold red"
        say.print(
            f"{commits:,} commits; the features of {proof.entities:,} entities ({proof.values:,} values) compared with SQL over the "
            f"live tables and with what the pages sent: [{style}]{proof.differing} differ[/]"
        )
        for example in proof.examples:
            say.print(f"  {example}")
    return 0 if proof.differing == 0 else _FOUND


COMMAND = Command("a small shop on a real Postgres, its features live, and a proof at the end", _configure, _run)
