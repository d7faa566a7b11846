"""What a user writes, and what every mistake says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fix_features import DEFINITIONS
from headrace.cdc.errors import DefinitionError
from headrace.features.loading import load_definitions
from headrace.features.spec import Field, ValueType

HEAD = """from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": Int64})
orders = Table("public.orders")
"""

MISTAKES = [
    ('FeatureView("v", entity=customer, source=orders, features=[])', "view 'v' has no features"),
    (
        'FeatureView("v", entity=customer, source=orders, features=[count(), count()])',
        "view 'v', feature 'count' is already the name",
    ),
    (
        'FeatureView("v", entity=customer, source=orders, features=[latest("customer_id")])',
        "feature 'customer_id' is already the name of join key",
    ),
    (
        'count(over="1 fortnight")',
        "feature 'count_1_fortnight': window '1 fortnight' is no time span|window '1 fortnight' is no time span",
    ),
    ('count(over="1h", hop="7m")', "hop 7m does not divide window 1h"),
    ('count(hop="7m")', "has a hop but no window"),
    ("count(over=[])", "names no window"),
    (
        'on_demand("x", Float64, inputs=["count"], compute=lambda a, b: a)',
        "can't take 1 inputs: missing a required argument: 'b'",
    ),
    ('on_demand("x", Float64, inputs="count", compute=len)', "needs the names of its inputs"),
    ('on_demand("x", Float64, inputs=["count"], compute=3)', "needs a function"),
    (
        'FeatureView("v", entity=customer, source=orders, features=[count()],'
        ' on_demand=[on_demand("x", Float64, inputs=["sum"], compute=float)])',
        "view 'v', on-demand feature 'x' names 'sum', which is no stored feature of the view; there are count",
    ),
    (
        'FeatureView("v", entity=customer, source=orders, features=[count()],'
        ' on_demand=[on_demand("count", Int64, inputs=["count"], compute=int)])',
        "is already the name of another feature",
    ),
    ('count(ovr="1h")', "feature 'count' has no option 'ovr'; there are over, hop"),
    ('count(by="status")', "by= and groups= go together"),
    ('count(by="status", groups=["a b", "a_b"])', "two groups would have one name"),
    ('count(where="paid")', "where must be a filter"),
    ('mean("")', "needs the name of a column"),
    ('min_("total", Bool)', "feature 'total_min': unsupported type Bool|unsupported type Bool"),
    ('last("total", 0)', "its size 0 must be a whole number from 1 to 100"),
    ('top_k("total", 3, Bytes)', "unsupported type Bytes"),
    ('latest("total", 5)', "unsupported type 5"),
    ('quantile("total", 1.5)', "level 1.5 must be a number from 0 to 1"),
    ("time_since_last()", "needs a window"),
    ('time_since_last(over="1s", hop="100ms")', "needs a hop of whole seconds"),
    ('ratio(count(), latest("status"), name="r")', "'status' can't be divided"),
    ('ratio(count(over=["1h", "1d"]), count(), name="r")', "its numerator has 2 windows and groups, its denominator 1"),
    ("count(over=5)", "window 5 is no time span"),
    ('latest("a b")', "must be letters, digits"),
    ('latest("a__b")', "single underscores"),
    ('latest("city", "String")', "unsupported type 'String'; known: Int32"),
    ('sum_("total", String)', "a sum is Float64 or Int64, not String"),
    ('Table("orders")', "must be written as schema.table"),
    ('Entity("e", join_keys={})', "at least one join key"),
    ('Entity("e", join_keys={"k": Float64})', "join key 'k' type Float64 can't be a join key"),
    ('FeatureView("v", entity=customer, source=orders, features=[count()], ttl="x")', "ttl 'x' is no time span"),
    ('FeatureView("v", entity=customer, source="public.orders", features=[count()])', "source must be a Table"),
    ('FeatureView("v", entity="customer", source=orders, features=[count()])', "entity must be an Entity"),
    (
        'FeatureView("v", entity=customer, source=orders, features=["count"])',
        "must be made by functions such as latest",
    ),
    ('FeatureView("v", entity=customer, source=orders, features=[count()], where=True)', "where must be a filter"),
    (
        'FeatureView("v", entity=customer, source=orders, features=[count()], entity_key={"id": "x"})',
        "'id', which is no join key",
    ),
    (
        'FeatureView("v", entity=customer, source=orders, features=[count()], where=col("a") == 1 and col("b") == 2)',
        "combine filters",
    ),
    ('col("a") == None', "is_null"),
    ("nonsense(1)", "NameError"),
    ("import sys; sys.exit(3)", "SystemExit"),
    ("1 +", "invalid syntax"),
]


@pytest.mark.parametrize(("line", "reason"), MISTAKES, ids=[reason[:40] for _, reason in MISTAKES])
def test_a_mistake_names_file_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(f"{HEAD}x = 0\n{'' if line.startswith('import') else 'y = '}{line}\n")
    with pytest.raises(DefinitionError, match=reason) as caught:
        load_definitions(path)
    assert caught.value.message.startswith(f"{path}:5: ")
    assert caught.value.exit_code == 2


def test_a_mistake_in_a_helper_module_names_the_line_of_that_module(tmp_path: Path) -> None:
    (tmp_path / "shop_entities.py").write_text('from headrace.features import Entity\n\nEntity("e", join_keys={})\n')
    (tmp_path / "features.py").write_text("import shop_entities\n")
    with pytest.raises(DefinitionError, match="join key") as caught:
        load_definitions(tmp_path / "features.py")
    assert caught.value.message.startswith(f"{tmp_path / 'shop_entities.py'}:3: ")


def test_two_views_of_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    view = 'FeatureView("v", entity=customer, source=orders, features=[count()])'
    path.write_text(f"{HEAD}a = {view}\nb = {view}\n")
    with pytest.raises(DefinitionError, match="already defined at") as caught:
        load_definitions(path)
    assert f"{path}:5" in caught.value.message
    assert f"{path}:4" in caught.value.message


def test_a_missing_file_and_a_file_without_views_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="does not exist"):
        load_definitions(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(DefinitionError, match="defines no feature view"):
        load_definitions(tmp_path / "empty.py")


def test_views_in_lists_and_mappings_count_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "many.py"
    path.write_text(
        HEAD
        + """
def view(name): return FeatureView(name, entity=customer, source=orders, features=[count()])
b = view("b")
more = [view("a"), b]
named = {"c": view("c")}
"""
    )
    before = (list(sys.path), set(sys.modules))
    assert [view.spec.name for view in load_definitions(path)] == ["b", "a", "c"]
    assert (list(sys.path), set(sys.modules)) == before, "loading leaves no trace"


def test_a_view_compiles_to_the_fields_that_were_asked_for(definitions: Path) -> None:
    (view,) = load_definitions(definitions)
    assert [(field.name, field.dtype.value) for field in view.spec.fields] == [
        ("orders_1m", "Int64"),
        ("orders_1h", "Int64"),
        ("total_sum_1m", "Float64"),
        ("total_sum_1h", "Float64"),
        ("amount_sum_1h", "Float64"),
        ("total_ever", "Float64"),
        ("orders_ever", "Int64"),
        ("status", "String"),
        ("note", "String"),
    ]
    assert view.spec.join_keys == (Field("customer_id", ValueType.INT64),)
    assert view.columns == ("amount", "created_at", "customer_id", "note", "status", "total")
    assert view.spec.ttl_us == 90 * 86_400_000_000


def test_the_hash_changes_with_what_decides_the_values_and_with_nothing_else(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        path = tmp_path / "f.py"
        path.write_text(text)
        return load_definitions(path)[0].spec.spec_hash

    plain = digest(DEFINITIONS)
    same = [DEFINITIONS, "# a comment\n" + DEFINITIONS, DEFINITIONS.replace('ttl="90d"', 'ttl="1d", description="x"')]
    other = [
        DEFINITIONS.replace('"cancelled"', '"open"'),
        DEFINITIONS.replace('hop="5m"', 'hop="10m"'),
        DEFINITIONS.replace("public.orders", "public.baskets"),
        DEFINITIONS.replace('latest("note", String)', 'latest("status", String, name="note")'),
        DEFINITIONS.replace("event_time=", "entity_key={'customer_id': 'buyer'}, event_time="),
        DEFINITIONS.replace('Table("public.orders")', 'Table("public.orders", source="shop")'),
    ]
    assert {digest(text) for text in same} == {plain}
    assert len({plain, *map(digest, other)}) == len(other) + 1


def test_an_edit_right_after_a_load_counts_and_no_bytecode_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "f.py"
    hashes: set[str] = set()
    for hop in ("10m", "15m"):
        path.write_text(DEFINITIONS.replace('hop="5m"', f'hop="{hop}"'))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        hashes.add(load_definitions(path)[0].spec.spec_hash)
    assert len(hashes) == 2
    assert not (tmp_path / "__pycache__").exists()
