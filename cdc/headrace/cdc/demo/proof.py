"""The demo's proof: every entity's features, as a reader gets them, against a recomputation by SQL over the live tables.

The SQL knows nothing of headrace but what a window is: at log time t a window of length W that moves in hops of h holds the rows whose
time lies in ``[(floor((t - W) / h) + 1) * h, (floor(t / h) + 1) * h)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import psycopg

_SECOND_US = 1_000_000
_WINDOWS = {"1m": (60 * _SECOND_US, _SECOND_US), "10m": (600 * _SECOND_US, 10 * _SECOND_US)}

Rows: TypeAlias = dict[int, tuple[Any, ...]]

FEATURES: Mapping[str, tuple[str, Sequence[str]]] = {
    "customer_profile": ("customer_id", ("city", "tier")),
    "customer_orders": (
        "customer_id",
        ("orders_1m", "orders_10m", "spent_1m", "spent_10m", "orders_ever", "spent_ever", "last_status"),
    ),
    "customer_views": ("customer_id", ("views_ever",)),
    "customer_recommendations": ("customer_id", ("recommended_ever",)),
    "product_sales": ("product_id", ("units_1m", "units_ever")),
}
"""View -> its join key, and its features in the order of the rows compared."""

_PROFILE = "select id, city, tier from shop.customers"
_ORDERS = """
select customer_id,
       count(*) filter (where placed_at >= %(lo_1m)s and placed_at < %(hi_1m)s),
       count(*) filter (where placed_at >= %(lo_10m)s and placed_at < %(hi_10m)s),
       coalesce(sum(total) filter (where placed_at >= %(lo_1m)s and placed_at < %(hi_1m)s), 0)::float8,
       coalesce(sum(total) filter (where placed_at >= %(lo_10m)s and placed_at < %(hi_10m)s), 0)::float8,
       count(*), coalesce(sum(total), 0)::float8
  from shop.orders where status <> 'cancelled' group by customer_id
"""
_LATEST = """
select customer_id, array_agg(status) from (
    select customer_id, status, rank() over (partition by customer_id order by placed_at desc) place
      from shop.orders where status <> 'cancelled') newest
 where place = 1 group by customer_id
"""
_SALES = """
select product_id, coalesce(sum(quantity) filter (where added_at >= %(lo_1m)s and added_at < %(hi_1m)s), 0), sum(quantity)
  from shop.order_items group by product_id
"""


class Proof(msgspec.Struct):
    """entities: how many were compared; differing: how many differ, with at most ten named in examples."""

    entities: int
    values: int
    differing: int
    examples: list[str]


def recompute(
    dsn: str, log_time_us: int, views: Mapping[int, int] | None = None, recommendations: Mapping[int, int] | None = None
) -> dict[str, Rows]:
    """Every view's rows as of a log time, by SQL: view -> entity -> values. A last_status holds all that tie for newest.

    views: how many products each customer has viewed, as their browsers know it, recommendations: how many of each customer the
    recommender knows of; no table has these.
    """
    bounds: dict[str, Any] = {}
    for name, (length_us, hop_us) in _WINDOWS.items():
        bounds[f"lo_{name}"] = ((log_time_us - length_us) // hop_us + 1) * hop_us
        bounds[f"hi_{name}"] = (log_time_us // hop_us + 1) * hop_us
    stamps = {name: f"to_timestamp({us // _SECOND_US})" for name, us in bounds.items()}
    with psycopg.connect(dsn) as connection:
        connection.execute("set transaction isolation level repeatable read read only")
        latest = {row[0]: row[1] for row in connection.execute(_LATEST).fetchall()}
        return {
            "customer_profile": {row[0]: row[1:] for row in connection.execute(_PROFILE).fetchall()},
            "customer_orders": {
                row[0]: (*row[1:], latest[row[0]]) for row in connection.execute((_ORDERS % stamps).encode()).fetchall()
            },
            "customer_views": {customer: (count,) for customer, count in (views or {}).items()},
            "customer_recommendations": {customer: (count,) for customer, count in (recommendations or {}).items()},
            "product_sales": {row[0]: row[1:] for row in connection.execute((_SALES % stamps).encode()).fetchall()},
        }


def compare(wanted: Mapping[str, Rows], served: Mapping[str, Rows]) -> Proof:
    """Compare view by view, entity by entity, value by value; floats must be equal to the last bit.

    An entity without a row on one side counts as rows of zeros and nulls: "no orders" may be said either way.
    """
    proof = Proof(0, 0, 0, [])
    for view, (join_key, features) in FEATURES.items():
        for entity in sorted(wanted[view].keys() | served[view].keys()):
            proof.entities += 1
            proof.values += len(features)
            want = wanted[view].get(entity, (None,) * len(features))
            have = served[view].get(entity, (None,) * len(features))
            wrong = [
                f"{feature} is {have_value!r}, SQL says {want_value!r}"
                for feature, want_value, have_value in zip(features, want, have, strict=True)
                if not _is_same(want_value, have_value)
            ]
            if wrong:
                proof.differing += 1
                if len(proof.examples) < 10:
                    proof.examples.append(f"{view} {join_key}={entity}: " + "; ".join(wrong))
    return proof


def _is_same(want: Any, have: Any) -> bool:
    if isinstance(want, list):
        return have in want
    return want == have or (not want and not have)
