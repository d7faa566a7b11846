"""The demo's shop: a schema, its first rows, and a simulator that commits as real customers do.

Everything stands in the schema ``shop``, so that the demo can run in a server of one's own (--dsn) and leave nothing behind.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from headrace.cdc.errors import HeadraceError

SCHEMA = "shop"
SLOT = PUBLICATION = "headrace_demo"

_TABLES = """
create schema shop;
create table shop.customers (
    id bigint primary key, name text not null, city text, tier text not null, created_at timestamptz not null default now());
create table shop.products (id bigint primary key, name text not null, price numeric(10,2) not null);
create table shop.orders (
    id bigint primary key, customer_id bigint not null references shop.customers, status text not null,
    total numeric(12,2) not null default 0, placed_at timestamptz not null default now());
create index on shop.orders (customer_id);
create table shop.order_items (
    order_id bigint references shop.orders on delete cascade, line int, product_id bigint not null references shop.products,
    quantity int not null, price numeric(10,2) not null, added_at timestamptz not null default now(),
    primary key (order_id, line));
"""

_CITIES = ("Bern", "Lyon", "Turin", "Ghent", "Graz", "Porto", "Malmö", "Kraków")
_TIERS = ("basic", "silver", "gold")
_PRODUCTS = ("lamp", "chair", "desk", "shelf", "rug", "vase", "clock", "stool", "mirror", "bench")
_STATUSES = ("paid", "packed", "shipped", "delivered")

_Connection = psycopg.Connection[tuple[Any, ...]]


class ShopExists(HeadraceError):
    """The server already has a schema of that name, which may be somebody's."""

    exit_code = 3
    advice = "drop it if it is an earlier demo's (drop schema shop cascade), or name another database in --dsn"


class Shop:
    """Creates, fills and drops the shop. dsn: a role that may create schemas and read replication streams."""

    def __init__(self, dsn: str, *, customers: int = 200, products: int = 40) -> None:
        self.dsn = dsn
        self.customers = customers
        self.products = products

    def create(self) -> None:
        """Tables, customers, products and a few orders. Raises ShopExists."""
        with psycopg.connect(self.dsn) as connection:
            found = connection.execute(
                "select true from pg_catalog.pg_namespace where nspname = %s", [SCHEMA]
            ).fetchone()
            if found is not None:
                raise ShopExists(f'the database already has a schema "{SCHEMA}"')
            connection.execute(_TABLES)
            rng = random.Random(0)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "insert into shop.customers values (%s, %s, %s, %s)",
                    [
                        (number, f"Customer {number}", rng.choice(_CITIES), rng.choice(_TIERS))
                        for number in range(1, self.customers + 1)
                    ],
                )
                cursor.executemany(
                    "insert into shop.products values (%s, %s, %s)",
                    [
                        (number, f"{_PRODUCTS[number % len(_PRODUCTS)]} {number}", rng.randrange(100, 20_000) / 100)
                        for number in range(1, self.products + 1)
                    ],
                )

    def drop(self) -> None:
        """Remove schema, slot and publication. The reader of the slot must have stopped."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots"
                " where slot_name = %s and active_pid is null",
                [SLOT],
            )
            connection.execute(f"drop publication if exists {PUBLICATION}")
            connection.execute(f"drop schema if exists {SCHEMA} cascade")


class Visitor:
    """The shop's pages: customers look at products, told by Segment's own SDK for Python. counts: views of each customer so far."""

    def __init__(
        self, url: str, shop: Shop, *, rate: float, seed: int, recommended: Callable[[int], int | None]
    ) -> None:
        """recommended: what the page of a customer shows first, if anything."""
        from segment.analytics.client import Client  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

        self._client: Any = Client("demo", host=url, upload_interval=0.02, upload_size=50, max_retries=10)
        self._shop = shop
        self._rate = rate
        self._rng = random.Random(seed)
        self._recommended = recommended
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="visitor", daemon=True)
        self.counts: dict[int, int] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Everything is sent and answered then. Waits as long as the SDK tries again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.shutdown()  # its join alone leaves unsent what came while the last request was on its way

    def close(self) -> None:
        """Stop at once; what isn't sent yet is left, as when nobody takes it any more. Closing what is stopped is fine."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.join()

    def _run(self) -> None:
        while not self._stopping.wait(1 / self._rate):
            customer = min(int(self._rng.paretovariate(0.6)), self._shop.customers)
            # Every fifth customer follows what the page recommends.
            shown = self._recommended(customer) if self._rng.random() < 0.2 else None
            product = shown or self._rng.randrange(1, self._shop.products + 1)
            self._client.track(str(customer), "Product Viewed", {"product_id": product})
            self.counts[customer] = self.counts.get(customer, 0) + 1


class Simulator:
    """Commits transactions at a steady rate from a thread of its own until ``stop``.

    rate: transactions a second wished for; commits: how many were made. A few customers buy most (Zipf), as in life.
    """

    def __init__(self, shop: Shop, *, rate: float, seed: int) -> None:
        self._shop = shop
        self._rate = rate
        self._rng = random.Random(seed)
        self._next_customer = shop.customers + 1
        self._next_order = 1
        self._open: list[int] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)
        self.commits = 0
        self.failure: psycopg.Error | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the transaction under way. Stopping twice is fine."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._shop.dsn) as connection:
                due = time.monotonic()
                while not self._stopping.is_set():
                    self._transaction(connection)
                    due += 1 / self._rate
                    # Behind its own schedule it doesn't hurry after it: the wished rate is a ceiling.
                    due = max(due, time.monotonic() - 0.1)
                    self._stopping.wait(max(0.0, due - time.monotonic()))
        except psycopg.Error as error:
            self.failure = error

    def _transaction(self, connection: _Connection) -> None:
        draw = self._rng.random()
        if draw < 0.60 or not self._open:
            self._order(connection)
        elif draw < 0.82:
            order = self._rng.choice(self._open)
            status = self._rng.choice((*_STATUSES, "cancelled"))
            connection.execute("update shop.orders set status = %s where id = %s", [status, order])
        elif draw < 0.88:
            connection.execute(
                "update shop.customers set city = %s, tier = %s where id = %s",
                [self._rng.choice(_CITIES), self._rng.choice(_TIERS), self._customer()],
            )
        elif draw < 0.92:
            self._delete(connection)
        elif draw < 0.95:
            # Somebody else pays: the row leaves one customer's features and joins another's.
            order = self._rng.choice(self._open)
            connection.execute("update shop.orders set customer_id = %s where id = %s", [self._customer(), order])
        elif draw < 0.97:
            connection.execute(
                "insert into shop.customers values (%s, %s, %s, 'basic')",
                [self._next_customer, f"Customer {self._next_customer}", self._rng.choice(_CITIES)],
            )
            self._next_customer += 1
        elif draw < 0.98:
            connection.execute(
                "update shop.products set price = price * 1.01 where id = %s",
                [self._rng.randrange(1, self._shop.products + 1)],
            )
        else:
            # A payment that failed: nothing of it may ever be seen.
            order = self._rng.choice(self._open)
            connection.execute("update shop.orders set total = total * 1000 where id = %s", [order])
            connection.rollback()
            return
        connection.commit()
        self.commits += 1

    def _customer(self) -> int:
        return min(int(self._rng.paretovariate(0.6)), self._next_customer - 1)

    def _order(self, connection: _Connection) -> None:
        number = self._next_order
        self._next_order += 1
        connection.execute(
            "insert into shop.orders (id, customer_id, status) values (%s, %s, 'placed')", [number, self._customer()]
        )
        for line in range(self._rng.randrange(1, 4)):
            connection.execute(
                "insert into shop.order_items (order_id, line, product_id, quantity, price)"
                " select %s, %s, id, %s, price from shop.products where id = %s",
                [number, line, self._rng.randrange(1, 5), self._rng.randrange(1, self._shop.products + 1)],
            )
        connection.execute(
            "update shop.orders set total = (select sum(quantity * price) from shop.order_items where order_id = id)"
            " where id = %s",
            [number],
        )
        self._open.append(number)

    def _delete(self, connection: _Connection) -> None:
        place = self._rng.randrange(len(self._open))
        connection.execute("delete from shop.orders where id = %s", [self._open[place]])
        self._open[place] = self._open[-1]
        self._open.pop()
