"""Commits small transactions at their times: a process of its own, so that no other part slows the load down.

    python -m rig.writer DSN FIRST_ID RATE SECONDS BEGIN_AT HOT_EVERY THREADS [ROWS]

Open loop: transaction n is due at BEGIN_AT + n / RATE whatever became of the one before; a late one is sent at once. ROWS: in each
transaction, 1 unless told; RATE is that of transactions. Prints a JSON array: for each row, [id, due, COMMIT answered] in
microseconds since 1970.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from decimal import Decimal

import psycopg

from rig.workload import INSERT

HOT_CUSTOMER = 0
CUSTOMERS = 5000


def customer_of(row_id: int, hot_every: int) -> int:
    """Each hot_every-th row belongs to the hot customer, the others to random ones; the same for the same id."""
    return HOT_CUSTOMER if row_id % hot_every == 0 else random.Random(row_id).randrange(1, CUSTOMERS)


def _write(
    dsn: str, numbers: range, first: int, rate: float, begin: float, hot_every: int, rows: int, told: list[list[int]]
) -> None:
    head, _, values = INSERT.partition("values ")
    insert = f"{head}values {', '.join([values.strip()] * rows)}".encode()
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        for number in numbers:
            ids = range(first + number * rows, first + (number + 1) * rows)
            parameters: list[object] = []
            for row_id in ids:
                parameters += (
                    row_id,
                    customer_of(row_id, hot_every),
                    Decimal(row_id % 9973) / 100,
                    f"ring twice, house {row_id % 300}",
                )
            due = begin + number / rate
            if (early := due - time.time()) > 0:
                time.sleep(early)
            connection.execute(insert, parameters)
            answered_us = time.time_ns() // 1000
            told += [[row_id, int(due * 1e6), answered_us] for row_id in ids]


def main() -> None:
    dsn = sys.argv[1]
    first, rate, seconds, begin = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
    hot_every, threads = int(sys.argv[6]), int(sys.argv[7])
    rows = int(sys.argv[8]) if len(sys.argv) > 8 else 1
    told: list[list[list[int]]] = [[] for _ in range(threads)]
    count = int(rate * seconds)
    workers = [
        threading.Thread(
            target=_write, args=(dsn, range(n, count, threads), first, rate, begin, hot_every, rows, told[n])
        )
        for n in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    json.dump(sorted(line for lines in told for line in lines), sys.stdout)


if __name__ == "__main__":
    main()
