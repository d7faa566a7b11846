"""headrace.yaml: every problem at once with its path and a cure; what the parser takes, the JSON Schema takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.cdc.config import Config, Duration, EventConfig, Size, json_schema, load, parse, plugins
from headrace.cdc.errors import ConfigError
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.sources.postgres import PostgresSource

SHOP = 'sources: {shop: {type: postgres, dsn: "host=db"}}\n'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "headrace.yaml"
        path.write_text(text)
        return path

    return write


def _parsed(text: str, **environ: str) -> Config:
    return parse(yaml.safe_load(text), folder=Path("/etc/headrace"), environ=environ)


def _problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(yaml.safe_load(text), folder=Path("/etc/headrace"), environ=environ or {})
    return list(raised.value.problems)


def test_a_source_with_a_dsn_is_enough() -> None:
    config = _parsed(SHOP)
    assert config.sources["shop"].kind is PostgresSource
    assert config.sources["shop"].section.tables == ["public.*"]
    assert (config.log.type, config.log.kind, config.log.section.path) == ("sqlite", SQLiteLog, "headrace.log.db")
    assert (config.events, config.sections, config.server.listen) == ({}, {}, "127.0.0.1:8080")


def test_a_whole_file_becomes_one_tree() -> None:
    config = _parsed(
        """
        log: {type: sqlite, path: shop.db, retention: 36h, max_size: 1.5GiB}
        sources: {shop: {type: postgres, dsn: "${DSN}", tables: [public.a, "public.b*"], heartbeat: 500ms, snapshot: never}}
        events:
          public.customers: {kind: identify, key: id}
          public.orders: {key: [region, customer_id], insert: Order Completed, occurred_at: made}
        features: {definitions: shop.py, store: {type: redis, url: "redis://r:1"}}
        server: {listen: "127.0.0.1:0", tokens: {reader: "${TOKEN:-none}"}}
        """,
        DSN="host=${not a variable} password='x'",
    )
    assert (config.log.section.retention.us, config.log.section.max_size.bytes) == (36 * 3_600_000_000, 3 << 29)
    source = config.sources["shop"].section
    assert (source.dsn, source.heartbeat.us) == ("host=${not a variable} password='x'", 500_000)
    assert config.events["public.orders"] == EventConfig(
        key=["region", "customer_id"], insert="Order Completed", occurred_at="made"
    )
    features = config.sections["features"]
    assert (features.store.type, features.store.section.url) == ("redis", "redis://r:1")
    assert config.server.tokens == {"reader": "none"}
    assert config.path("shop.db") == Path("/etc/headrace/shop.db")
    assert config.path("/var/shop.db") == Path("/var/shop.db")


@pytest.mark.parametrize("empty", ["log:", "events:", "server:", "features:"])
def test_a_heading_with_nothing_under_it_has_all_its_defaults(empty: str) -> None:
    config = _parsed(SHOP + empty)
    assert (config.log.type, config.events, config.server.tokens, config.sections) == ("sqlite", {}, {}, {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("log: {}", "sources: at least one source is needed, as name: {type: postgres, dsn: ...}"),
        ("sources: {}", "sources: at least one source is needed, as name: {type: postgres, dsn: ...}"),
        ("sources: [a]", "sources: at least one source is needed, as name: {type: postgres, dsn: ...}"),
        ("sources: {shop: }", "sources.shop: must be a mapping with a type"),
        ("sources: {shop: {dsn: x}}", "sources.shop.type: is missing; known: http, mysql, postgres, pull, webhook"),
        ("sources: {shop: {type: mysgl}}", "sources.shop.type: 'mysgl' is unknown; known: http, mysql, postgres, pull, webhook"),
        ("sources: {shop: {type: [postgres]}}", "sources.shop.type: ['postgres'] is unknown; known: http, mysql, postgres, pull, webhook"),
        ("sources: {shop: {type: postgres}}", "sources.shop.dsn: is required"),
        (
            "sources: {Shop-1: {type: postgres, dsn: x}}",
            "sources.Shop-1: a source's name is 1 to 40 of a-z, 0-9 and _, starting with a letter",
        ),
        (SHOP + "sorces: {}", 'sorces: unknown key; did you mean "sources"?'),
        (SHOP + "zzz: {}", "zzz: unknown key; known: checks, events, features, log, pipeline, privacy, processes, server, sinks, sources, subscribe"),
        (
            "sources: {shop: {type: postgres, dsn: x, tabels: []}}",
            'sources.shop.tabels: unknown key; did you mean "tables"?',
        ),
        (
            "sources: {shop: {type: postgres, dsn: x, tables: [public.a, 5]}}",
            "sources.shop.tables[1]: expected `str`, got `int`",
        ),
        (
            "sources: {shop: {type: postgres, dsn: x, tables: []}}",
            "sources.shop.tables: expected `array` of length >= 1",
        ),
        ("sources: {shop: {type: postgres, dsn: x, snapshot: maybe}}", "sources.shop.snapshot: invalid enum value 'maybe'; known: initial, never"),
        (
            "sources: {shop: {type: postgres, dsn: x, heartbeat: 5}}",
            "sources.shop.heartbeat: '5' is no duration; write a number with a unit, such as \"500ms\", \"5s\" or \"7d\"",
        ),
        (
            SHOP + "log: {max_size: 10GB}",
            "log.max_size: '10GB' is no size; write a number with a unit, such as \"64MiB\" or \"10GiB\"",
        ),
        (SHOP + "log: {type: kafka}", "log.type: 'kafka' is unknown; known: memory, sqlite"),
        (SHOP + "log: 0", "log: must be a mapping with a type"),
        (SHOP + "log: []", "log: must be a mapping with a type"),
        (SHOP + "server: false", "server: must be a mapping"),
        (SHOP + "events: []", "events: must be a mapping"),
        (SHOP + "events: {public.a: identify}", "events.public.a: must be a mapping"),
        (
            SHOP + "events: {public.a: {kind: person}}",
            "events.public.a.kind: expected `str` matching regex '^(identify|track|group|record)$'",
        ),
        (SHOP + "events: {public.a: {keys: id}}", 'events.public.a.keys: unknown key; did you mean "key"?'),
        (SHOP + "server: {tokens: {reader: 5}}", "server.tokens.reader: expected `str`, got `int`"),
        (SHOP + "features: {}", "features.definitions: is required"),
        (SHOP + "features: {definitions: f.py, project: Shop}", "features.project: expected `str` matching regex '^[a-z][a-z0-9_]*$'"),
        (
            SHOP + "features: {definitions: f.py, store: {type: dynamo}}",
            "features.store.type: 'dynamo' is unknown; known: memory, redis, sqlite",
        ),
        (SHOP + "features: {definitions: f.py, store: {type: redis}}", "features.store.url: is required"),
        (
            SHOP + "features: {definitions: f.py, store: {type: redis, url: ftp://x}}",
            "features.store: url must be redis://host:port/db, rediss://host:port/db or unix:///path/of/socket",
        ),
        (SHOP + "processes: 0", "processes: expected `int` >= 1"),
        (SHOP + "processes: '65'", "processes: expected `int` <= 64"),
        (SHOP + "processes: many", "processes: invalid enum value 'many'; known: auto"),
        (SHOP + "server: {listen: '${PORT}'}", "server.listen: environment variable PORT is not set"),
        (SHOP + "events: {public.a: {key: ['${A}', '${B:-b}']}}", "events.public.a.key[0]: environment variable A is not set"),
    ],
)  # fmt: skip
def test_each_problem_has_its_path_and_what_is_wrong(text: str, problem: str) -> None:
    assert _problems(text) == [problem]


def test_all_problems_are_told_at_once_in_the_order_of_their_paths() -> None:
    assert _problems(
        """
        lgo: {}
        log: {type: sqlite, retention: soon, path: 5}
        sources: {shop: {type: postgres, dsn: "${SHOP_DSN}", slot: "Bad Slot", what: 1}, web: {type: nothing}}
        events: {public.orders: {kind: nobody, insrt: X}}
        features: {store: {type: nothing}}
        """
    ) == [
        "events.public.orders.insrt: unknown key; did you mean \"insert\"?",
        "events.public.orders.kind: expected `str` matching regex '^(identify|track|group|record)$'",
        "features.definitions: is required",
        "features.store.type: 'nothing' is unknown; known: memory, redis, sqlite",
        'lgo: unknown key; did you mean "log"?',
        "log.path: expected `str`, got `int`",
        "log.retention: 'soon' is no duration; write a number with a unit, such as \"500ms\", \"5s\" or \"7d\"",
        "sources.shop.dsn: environment variable SHOP_DSN is not set",
        "sources.shop.slot: expected `str` matching regex '^[a-z0-9_]{1,63}$'",
        "sources.shop.what: unknown key; known: column_lists, dsn, exclude, failover, heartbeat, messages, on_gap, primary_dsn, publication, slot, snapshot, snapshot_workers, spill_folder, standby_dsn, tables, wal_budget",
        "sources.web.type: 'nothing' is unknown; known: http, mysql, postgres, pull, webhook",
    ]  # fmt: skip


def test_the_message_counts_and_the_paragraph_lists() -> None:
    with pytest.raises(ConfigError) as raised:
        parse({"a": 1, "b": 2, "sources": {}}, folder=Path(), name="shop.yaml", environ={})
    assert raised.value.message == "shop.yaml has 3 problems"
    assert raised.value.paragraph().startswith("shop.yaml has 3 problems:\n  a: unknown key")
    with pytest.raises(ConfigError, match=r"has 1 problem$"):
        parse({"sources": {}}, folder=Path(), environ={})


@pytest.mark.parametrize(
    ("text", "environ", "value"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("-${A}${B}-", {"A": "x", "B": "y"}, "-xy-"),
        ("${A:-d}", {}, "d"),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A:-d}", {"A": "x"}, "x"),
        ("${A:-}", {}, ""),
        ("${A}", {"A": ""}, ""),
        ("${A}", {"A": "${B}: {c}"}, "${B}: {c}"),
        ("$A ${} ${1} $ {A}", {}, "$A ${} ${1} $ {A}"),
    ],
)
def test_variables_stand_for_text_and_are_not_read_again(text: str, environ: dict[str, str], value: str) -> None:
    tree = {"sources": {"shop": {"type": "postgres", "dsn": text}}}
    assert parse(tree, folder=Path(), environ=environ).sources["shop"].section.dsn == value


def test_a_key_may_be_a_variable() -> None:
    assert _parsed(SHOP + "server: {tokens: {'${WHO}': t}}", WHO="me").server.tokens == {"me": "t"}


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("5us", 5),
        ("1.5ms", 1500),
        ("5s", 5_000_000),
        ("10m", 600_000_000),
        (" 2 h ", 7_200_000_000),
        ("7d", 604_800_000_000),
    ],
)
def test_durations_have_units(text: str, us: int) -> None:
    assert Duration.parse(text).us == us
    assert Duration.parse(text).s == us / 1_000_000


@pytest.mark.parametrize(
    ("text", "size"), [("0B", 0), ("1KiB", 1024), ("64MiB", 64 << 20), ("0.5 GiB", 1 << 29), ("2TiB", 2 << 40)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert Size.parse(text).bytes == size


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 weeks", "5S", "1e3s", "5s5s", "\u0665s"])
def test_a_number_without_a_known_unit_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        Duration.parse(text)
    with pytest.raises(ValueError, match="is no size"):
        Size.parse(text)


def test_a_file_is_read_and_its_folder_is_where_its_paths_start(write: Write) -> None:
    path = write(SHOP)
    assert load(path, {}).path("x") == path.parent / "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "is not valid YAML, line 1, column 6"),
        ("a: &x {b: *y}", "found undefined alias 'y'"),
        ("a: 1\n\tb: 2", "line 2, column 1"),
        ("a: \x01", "is not valid YAML"),
        ("a: 2024-02-30", "is not valid YAML: day is out of range"),
        ("? [a]\n: b", "unhashable key"),
        ("sources: {}\nlog: {}\nsources: {}", 'line 3, column 1: "sources" is there twice'),
        ("sources: {a: {type: postgres, dsn: x, dsn: y}}", 'line 1, column 39: "dsn" is there twice'),
        ("[" * 3000, "is nested too deeply"),
        ("a: &x {b: *x}", "is nested too deeply"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("", "is not a mapping"),
        ("- a", "is not a mapping"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_says_where(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert said in raised.value.message
    assert str(path) in raised.value.message
    assert "report it" not in raised.value.advice


def test_merge_keys_and_anchors_are_no_doubles(write: Write) -> None:
    text = "x: &x {type: postgres, dsn: a}\nsources: {a: {<<: *x, dsn: b}, b: {<<: *x}}"
    with pytest.raises(ConfigError) as raised:
        load(write(text), {})
    assert list(raised.value.problems) == [
        "x: unknown key; known: checks, events, features, log, pipeline, privacy, processes, server, sinks, sources, subscribe"
    ]


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: ä".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "latin.yaml")


# The schema. Valid and invalid files as trees; both the parser and the schema must say the same of each.

GOOD: list[dict[str, Any]] = [
    {"sources": {"shop": {"type": "postgres", "dsn": "x"}}},
    {
        "sources": {"shop": {"type": "postgres", "dsn": "x", "slot": None, "heartbeat": "1.5s"}},
        "log": None,
        "events": None,
    },
    {"sources": {"a": {"type": "postgres", "dsn": "x"}, "b_2": {"type": "postgres", "dsn": "y", "tables": ["a.*"]}}},
    {"log": {"type": "memory"}},
    {"log": {"retention": "7d", "max_size": "10GiB", "partitions": 4}},
    {"log": {"type": "sqlite", "retention": None, "max_size": None}},
    {"events": {"public.a": {"key": "id"}, "public.b": {"key": ["a", "b"], "kind": "group", "insert": None}}},
    {"server": {"listen": "127.0.0.1:0", "tokens": {"a": "b"}}, "features": None},
    {"server": None, "features": {"definitions": "f.py"}},
    {"features": {"definitions": "f.py", "store": {"type": "redis", "url": "redis://x"}, "feast": None}},
    {"features": {"definitions": "f.py", "store": {}}},
    {"features": {"definitions": "f.py", "store": {"type": "memory"}, "project": "shop"}},
]
BAD: list[dict[str, Any]] = [
    {"sources": {}},
    {"sources": []},
    {"sources": None},
    {"sources": {"shop": None}},
    {"sources": {"shop": {"dsn": "x"}}},
    {"sources": {"shop": {"type": "nothing", "dsn": "x"}}},
    {"sources": {"shop": {"type": "postgres"}}},
    {"sources": {"shop": {"type": "postgres", "dsn": 5}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "other": 1}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "tables": []}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "tables": [""]}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "slot": "A"}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "snapshot": "later"}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "heartbeat": "5"}}},
    {"sources": {"shop": {"type": "postgres", "dsn": "x", "heartbeat": 5}}},
    {"sources": {"Shop": {"type": "postgres", "dsn": "x"}}},
    {"sources": {"s" * 41: {"type": "postgres", "dsn": "x"}}},
    {"log": {"type": "kafka"}},
    {"log": {"type": None}},
    {"log": False},
    {"log": {"type": "memory", "path": "x"}},
    {"log": {"partitions": 0}},
    {"log": {"partitions": "4"}},
    {"log": {"max_size": "10GB"}},
    {"events": []},
    {"events": {"public.a": None}},
    {"events": {"public.a": {"kind": "person"}}},
    {"events": {"public.a": {"key": [1]}}},
    {"events": {"public.a": {"kye": "id"}}},
    {"server": {"listen": 8080}},
    {"server": {"tokens": {"a": None}}},
    {"server": []},
    {"features": {}},
    {"features": {"definitions": "f.py", "store": None}},
    {"features": {"definitions": "f.py", "store": {"type": "dynamo"}}},
    {"features": {"definitions": "f.py", "store": {"type": "redis"}}},
    {"features": {"definitions": "f.py", "store": {"type": "sqlite", "url": "x"}}},
    {"features": {"definitions": "f.py", "project": "Shop"}},
    {"other": {}},
]
BASE = GOOD[0]


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    described = msgspec.json.decode(msgspec.json.encode(json_schema()))
    jsonschema.Draft202012Validator.check_schema(described)
    return jsonschema.Draft202012Validator(described)


def _takes(tree: Any) -> bool:
    try:
        parse(tree, folder=Path(), environ={})
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("tree", GOOD, ids=str)
def test_the_schema_takes_what_the_parser_takes(schema: jsonschema.Draft202012Validator, tree: dict[str, Any]) -> None:
    assert _takes(BASE | tree)
    assert [error.message for error in schema.iter_errors(BASE | tree)] == []


@pytest.mark.parametrize("tree", BAD, ids=str)
def test_the_schema_refuses_what_the_parser_refuses(
    schema: jsonschema.Draft202012Validator, tree: dict[str, Any]
) -> None:
    assert not _takes(BASE | tree)
    assert not schema.is_valid(BASE | tree)


_scalars = st.sampled_from(
    [None, True, 0, 1, 1.5, "", "x", "5s", "64MiB", "postgres", "sqlite", "memory", "redis", "id"]
)
_wrong = (
    _scalars
    | st.lists(_scalars, max_size=2)
    | st.dictionaries(st.sampled_from(["type", "dsn", "key", "x"]), _scalars, max_size=2)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data(), tree=st.sampled_from(GOOD))
def test_parser_and_schema_agree_after_any_value_is_replaced(
    schema: jsonschema.Draft202012Validator, data: st.DataObject, tree: dict[str, Any]
) -> None:
    changed = msgspec.json.decode(msgspec.json.encode(BASE | tree))
    place = changed
    for depth in range(4):
        key = data.draw(st.sampled_from(sorted(place)), label=f"key {depth}")
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(_wrong)
        break
    # Checks in code, such as a URL's form, are the one thing that a schema doesn't say.
    assert _takes(changed) == schema.is_valid(changed) or "url" in str(changed)


def test_every_field_that_a_file_may_have_is_described(schema: jsonschema.Draft202012Validator) -> None:
    described = schema.schema["$defs"]
    for group in ("logs", "sources", "stores", "sinks"):
        for kind in plugins(f"headrace.{group}").values():
            for field in msgspec.structs.fields(kind.config_type):
                found = described[kind.config_type.__name__]["properties"][field.encode_name]
                # A section inside is described by its own struct.
                assert found.get("description") or "#/$defs/" in str(found), field.name


def test_no_problem_of_a_write_key_names_the_key() -> None:
    text = 'sources: {web: {type: http, write_keys: {"${WEB_KEY}": 5, "${OTHER}": site}}}'
    assert _problems(text, {"WEB_KEY": "s3cret-key", "OTHER": "o"}) == [
        "sources.web.write_keys[0]: expected `str`, got `int`"
    ]
    for keys, words in (
        ({"WEB_KEY": "s3cret key", "OTHER": "o"}, "write key number 1 is empty, or holds a character"),
        ({"WEB_KEY": "", "OTHER": "o"}, "write key number 1 is empty"),
    ):
        (problem,) = _problems('sources: {web: {type: http, write_keys: {"${WEB_KEY}": site}}}', keys)
        assert problem.startswith(f"sources.web: {words}")
        assert "s3cret" not in problem
    config = _parsed('sources: {web: {type: http, write_keys: {"${WEB_KEY}": site}}}', WEB_KEY="s3cret")
    assert config.sources["web"].section.write_keys == {"s3cret": "site"}
    assert "s3cret" not in repr(config.sources["web"].section)


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "ftp://shop.example", "https://"])
def test_an_origin_is_scheme_and_host(origin: str) -> None:
    (problem,) = _problems(f'sources: {{web: {{type: http, origins: ["{origin}"]}}}}')
    assert problem.startswith(f'sources.web: "{origin}" is no origin')


@pytest.mark.parametrize(
    ("text", "processes"),
    [("", 1), ("processes:", 1), ("processes: 3", 3), ("processes: ${N}", 3), ("processes: auto", "auto")],
)
def test_processes_are_a_number_also_from_the_environment(write: Write, text: str, processes: int | str) -> None:
    assert load(write(SHOP + text), {"N": "3"}).processes == processes
