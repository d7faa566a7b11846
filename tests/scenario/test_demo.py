"""The README's path, as its reader walks it: the demo runs, its lines to copy work, the stock Feast SDK reads, the proof says 0."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cdc.demo.client import Client
from headrace.cdc.demo.embedded import free_port

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
HEADRACE = [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())"]
DEADLINE_S = 90.0


class Demo:
    """``headrace demo`` in a process of its own; ``end`` is Ctrl-C, which a terminal sends to all of the group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.process = subprocess.Popen(
            [*HEADRACE, "demo", "--json", "--folder", str(folder), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        end = time.monotonic() + DEADLINE_S
        # Several orders: a single one may be cancelled again, and the customer has no row then.
        while not (self.client.is_ready() and self._orders_ever() >= 5):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "the demo isn't ready"
            time.sleep(0.05)  # a poll of another process over HTTP: there is no event to wait on

    def _orders_ever(self) -> int:
        row = (self.client.rows("customer_orders", [1]) or {}).get(1)
        return 0 if row is None else int(row[4])

    def end(self) -> dict[str, object]:
        os.killpg(self.process.pid, signal.SIGINT)
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, out + err
        return dict(json.loads(out))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    made = Demo(tmp_path_factory.mktemp("demo"))
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def curl_lines() -> list[str]:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    return [line for line in shell.splitlines() if line.startswith("curl")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install -y curl")
@pytest.mark.parametrize("line", curl_lines())
def test_the_readmes_curl_lines_answer(demo: Demo, line: str) -> None:
    command = line.replace("127.0.0.1:8080", f"127.0.0.1:{demo.port}")
    # A stream has no end of its own; everything else ends by itself, however busy the machine is.
    limit_s = 10 if "/v1/stream" in command else 60
    answer = subprocess.run(
        ["bash", "-c", f"{command} -sS --max-time {limit_s}"], capture_output=True, text=True, check=False
    )
    assert "HTTP" not in answer.stderr, answer.stderr
    assert '"error"' not in answer.stdout, answer.stdout
    assert "orders" in answer.stdout, f"{command}: {answer.stdout[:500]} {answer.stderr}"


def test_the_readmes_feast_lines_read_what_the_server_serves(demo: Demo) -> None:
    applied = subprocess.run(
        [*HEADRACE, "features", "apply"],
        cwd=demo.folder,
        env={"SHOP_DSN": "", "PATH": "", "HOME": str(demo.folder), "FEAST_USAGE": "False"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr
    snippet = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "FeatureStore" in block)
    head, _, call = snippet.strip().partition("store.get_online_features")
    program = f"{head}\nimport json\nprint(json.dumps(store.get_online_features{call}))"
    read = subprocess.run([sys.executable, "-c", program], cwd=demo.folder, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    values = json.loads(read.stdout.splitlines()[-1])
    assert values["customer_id"] == [1]
    assert values["spent_ever"][0] > 0


def test_ctrl_c_ends_the_demo_with_a_proof(demo: Demo) -> None:
    result = demo.end()
    assert result["differing"] == 0, result["examples"]
    assert int(str(result["entities"])) > 200
    assert int(str(result["commits"])) > 10
