"""The table and the transactions that every benchmark on a real Postgres uses, ours and the rivals' alike.

A row has 8 columns (3 bigint or int, numeric, 2 text, timestamptz, jsonb of about 110 bytes), about 200 bytes as pgoutput sends it.
"""

from __future__ import annotations

import psycopg

TABLE = "public.orders"
PUBLICATION = "bench"
ROWS_A_TRANSACTION = 100

_CREATE = """
create table public.orders (
    id bigint primary key,
    customer_id bigint not null,
    total numeric(12,2) not null,
    status text not null,
    note text not null,
    quantity int not null,
    placed_at timestamptz not null default clock_timestamp(),
    details jsonb not null
);
create publication bench for table public.orders;
"""

# Each third transaction updates the rows of the one before it; all have 100 rows.
_LOAD = """
do $$
declare
    first bigint := 0;
begin
    for turn in 1 .. {transactions} loop
        if turn % 3 = 0 then
            update public.orders set status = 'paid', total = total + 1 where id >= first - 100 and id < first;
        else
            insert into public.orders
            select n, n % 5000, (n % 100000)::numeric / 100, 'created', 'left at the door of number ' || n, n % 7, default_at, {details}
              from generate_series(first, first + 99) n, clock_timestamp() default_at;
            first := first + 100;
        end if;
        commit;
    end loop;
end $$
"""

DETAILS_SQL = (
    "jsonb_build_object('channel', 'web', 'campaign', 'spring-' || n % 40, 'basket', jsonb_build_array(n % 97, n % 89, n % 83),"
    " 'agent', 'Mozilla/5.0 (X11)')"
)

INSERT = """
insert into public.orders (id, customer_id, total, status, note, quantity, details)
values (%s, %s, %s, 'created', %s, 2, '{"agent": "Mozilla/5.0 (X11)", "basket": [17, 4, 52], "channel": "web", "campaign": "spring-12"}')
"""
"""One row: id, customer, total, note."""


def create(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Table and publication; the connection is in autocommit."""
    connection.execute(_CREATE)


def load(connection: psycopg.Connection[tuple[object, ...]], rows: int) -> int:
    """Commit that many row changes, rounded up to whole transactions; result: how many."""
    transactions = -(-rows // ROWS_A_TRANSACTION)
    connection.execute(_LOAD.format(transactions=transactions, details=DETAILS_SQL).encode())
    return transactions * ROWS_A_TRANSACTION
