"""Partial JSON updates: hand-made differences on any server's machine, and MySQL's own against its SELECT."""

from __future__ import annotations

import json
import random

import pymysql
import pytest

from cdc.decode.test_binlog import Watched, db, texts
from headrace.cdc.decode.jsondiff import patched
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNDECODABLE

__all__ = ["db", "texts"]  # fixtures

REPLACE, INSERT, REMOVE = 0, 1, 2
TRUE = b"\x04\x01"
DOCUMENT = '{"a": 1.50, "bb": [1, 2, {"x": "y"}], "c d": "é"}'


def difference(operation: int, path: str, value: bytes = b"") -> bytes:
    text = path.encode()
    return bytes([operation, len(text)]) + text + (b"" if operation == REMOVE else bytes([len(value)]) + value)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (difference(REPLACE, "$.a", TRUE), '{"a": true, "bb": [1, 2, {"x": "y"}], "c d": "é"}'),
        (difference(REPLACE, "$", TRUE), "true"),
        (difference(INSERT, "$.bb[1]", TRUE), '{"a": 1.50, "bb": [1, true, 2, {"x": "y"}], "c d": "é"}'),
        (difference(INSERT, "$.bb[3]", TRUE), '{"a": 1.50, "bb": [1, 2, {"x": "y"}, true], "c d": "é"}'),
        (difference(INSERT, "$.aa", TRUE), '{"a": 1.50, "aa": true, "bb": [1, 2, {"x": "y"}], "c d": "é"}'),
        (difference(REMOVE, '$."c d"'), '{"a": 1.50, "bb": [1, 2, {"x": "y"}]}'),
        (difference(REMOVE, "$.bb[2].x") + difference(REMOVE, "$.bb[0]"), '{"a": 1.50, "bb": [2, {}], "c d": "é"}'),
        (b"", DOCUMENT),
    ],
)
def test_differences_make_the_new_document(changes: bytes, wanted: str) -> None:
    assert patched(DOCUMENT, changes) == wanted


@pytest.mark.parametrize(
    "changes",
    [
        difference(REPLACE, "$.nothing", TRUE),
        difference(REPLACE, "$.bb[7]", TRUE),
        difference(REMOVE, "$.nothing"),
        difference(REMOVE, "$"),
        difference(3, "$.a", TRUE),
        difference(REPLACE, "a", TRUE),
        difference(REPLACE, "$..a", TRUE),
        difference(REPLACE, "$.a", TRUE)[:-1],
        difference(REPLACE, "$.a.b", TRUE),
    ],
)
def test_differences_that_do_not_fit_are_an_error_and_never_a_value(changes: bytes) -> None:
    with pytest.raises(DecodeError, match="partial JSON"):
        patched(DOCUMENT, changes)


KEYS = ["a", "bb", "c d", 'q"t', "ünï", "a.b", "$", "x[1]", "", "back\\slash"]


def value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(9 if depth < 2 else 6)
    if kind == 0:
        return rng.randrange(-(2**63), 2**63)
    if kind == 1:
        return rng.choice([True, False, None])
    if kind == 2:
        return rng.choice([0.1, -2.5e300, 1e-7, 3.0, 1e15, 1234567890123456.75, -1e-15, 1e-16, 1e22])
    if kind < 6:
        return rng.choice(["", "é", "a\nb", '"', "x" * rng.randrange(300)])
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def path(rng: random.Random) -> str:
    steps = [rng.choice([f".{json.dumps(rng.choice(KEYS), ensure_ascii=False)}", f"[{rng.randrange(4)}]"]) for _ in range(rng.randrange(1, 4))]  # fmt: skip
    return "$" + "".join(steps)


@pytest.mark.parametrize("image", ["FULL", "MINIMAL"])
@pytest.mark.parametrize("seed", range(4))
def test_random_updates_are_what_select_says(db: Watched, seed: int, image: str) -> None:
    if not db.is_mysql:
        pytest.skip("MariaDB has no partial JSON")
    print(f"seed {seed}")
    rng = random.Random(seed)
    db.run(f"set session binlog_row_value_options = 'PARTIAL_JSON', session binlog_row_image = '{image}'")
    db.run("create table t (id int primary key, j json, n int, k json, l json)")
    wanted: list[tuple[object, ...]] = []
    documents = [json.dumps(value(rng) if each else {name: value(rng) for name in KEYS}) for each in range(3)]
    db.run("insert into t values (1, %s, 0, %s, %s)", *documents)
    while len(wanted) < 60:
        column = rng.choice("jkl")
        function = rng.choice(["json_set", "json_replace", "json_remove", "json_array_insert", "json_array_append"])
        try:
            if function == "json_remove":
                db.run(f"update t set {column} = json_remove({column}, %s), n = n + 1", path(rng))
            else:
                db.run(
                    f"update t set {column} = {function}({column}, %s, cast(%s as json), %s, 'ü'), n = n + 1",
                    path(rng), json.dumps(value(rng)), path(rng),
                )  # fmt: skip
        except pymysql.err.MySQLError as error:
            if "path" not in str(error).lower():
                raise
            continue
        wanted += db.run("select j, k, l from t")
    updates = [change for change in db.changes() if change.op == "update" and change.after is not None]
    assert len(updates) == len(wanted)
    patches = 0
    for change, said in zip(updates, wanted, strict=True):
        assert change.after is not None
        found = (change.after[1], change.after[3], change.after[4])
        for new, text in zip(found, said, strict=True):
            if image == "MINIMAL" and (new is UNDECODABLE or not isinstance(new, str)):
                patches += new is UNDECODABLE
            else:
                assert new == text, f"seed {seed}"
    assert image == "FULL" or patches > 5
