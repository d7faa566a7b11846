"""librdkafka's mock cluster as a program: prints its brokers, then makes each topic that a line names and prints it again.

In a process of its own, for it can be killed: destroying one hung for good once, at the end of a whole suite.
"""

from __future__ import annotations

import sys

from confluent_kafka import Producer

host = Producer({"test.mock.num.brokers": "2", "log_level": 0})
found = host.list_topics(timeout=10)
print(",".join(f"{each.host}:{each.port}" for each in found.brokers.values()), flush=True)
for line in sys.stdin:
    # The mock has no administration: a topic is made by the first message to it.
    host.produce(line.strip(), b"", headers=[("id", b"made")])
    host.flush(10)
    print(line.strip(), flush=True)
