"""Servers that streams live on: nats-server; librdkafka's own mock cluster, which is no broker; a real Kafka where its jars are installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.cdc.demo.embedded import free_port

KAFKA = "4.1.0"


class NatsServer:
    """A throwaway nats-server with JetStream, messages of at most 64 KiB."""

    def __init__(self, *words: str) -> None:
        binary = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
        if binary is None:
            pytest.fail("NATS is needed by the default suite: apt-get install -y --no-install-recommends nats-server")
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-nats-"))
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        config = self.folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nmax_payload: 65536\njetstream {{ store_dir: "{self.folder}/js" }}\n'
            + "\n".join(words)
        )
        self.command = [binary, "-c", str(config), "-l", str(self.folder / "log")]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)
        end = time.monotonic() + 10
        log = self.folder / "log"
        while not log.exists() or "Server is ready" not in log.read_text():
            assert time.monotonic() < end, "nats-server doesn't get ready"
            time.sleep(0.01)  # a readiness poll of a foreign process

    def remove(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    server = NatsServer()
    yield server
    server.remove()


class MockKafka:
    """librdkafka's mock cluster of two brokers, on real sockets, in a process of its own (kafka_mock.py)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kafka_mock.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.brokers = tuple(self._answer().split(","))

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the mock of Kafka has ended"
        return line

    def add_topic(self, name: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\n")
        assert self._answer() == name

    def remove(self) -> None:
        self.process.kill()
        self.process.communicate()


class RealKafka:
    """One throwaway broker that is its own controller. Topics have three partitions and take messages of at most 300 kB."""

    def __init__(self, libraries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-kafka-"))
        port, controller = free_port(), free_port()
        self.brokers: tuple[str, ...] = (f"127.0.0.1:{port}",)
        settings = self.folder / "server.properties"
        settings.write_text(
            "process.roles=broker,controller\nnode.id=1\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
            f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n"
            f"log.dirs={self.folder}/data\noffsets.topic.replication.factor=1\nauto.create.topics.enable=false\n"
            "message.max.bytes=300000\n"
        )
        java = ["java", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-cp", f"{libraries}/*"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder}
        words = ["kafka.tools.StorageTool", "format", "-t", "A" * 22, "-c", str(settings)]
        subprocess.run([*java, *words], check=True, **quiet)
        self.process = subprocess.Popen([*java, "kafka.Kafka", str(settings)], **quiet)
        self._admin = AdminClient(
            {"bootstrap.servers": self.brokers[0], "log_level": 0, "error_cb": lambda error: None}
        )
        end = time.monotonic() + 60
        while True:
            try:
                self._admin.list_topics(timeout=2)
                break
            except KafkaException:
                assert time.monotonic() < end, "Kafka doesn't get ready"

    def add_topic(self, name: str) -> None:
        self._admin.create_topics([NewTopic(name, 3, 1)])[name].result(20)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[MockKafka]:
    made = MockKafka()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def real_kafka() -> Iterator[RealKafka]:
    """HEADRACE_KAFKA_LIBS, or the jars of ~/.cache/headrace-servers/kafka; skips where there are none."""
    folder = Path.home() / ".cache" / "headrace-servers" / "kafka"
    libraries = Path(os.environ.get("HEADRACE_KAFKA_LIBS", folder / "libs"))
    if shutil.which("java") is None or not list(libraries.glob("kafka_*.jar")):
        pom = "a pom.xml that depends on org.apache.kafka:kafka_2.13:" + KAFKA
        pytest.skip(
            f"Kafka is missing: mvn dependency:copy-dependencies -DoutputDirectory={folder}/libs with {pom}; and a JRE 17"
        )
    server = RealKafka(libraries)
    yield server
    server.remove()
