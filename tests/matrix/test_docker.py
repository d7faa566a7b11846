"""The image builds from its Dockerfile and runs as an ordinary user; the compose file says what the fixtures do.

No container engine is needed: buildah builds with chroot isolation on a base of our own, made by debootstrap, because a public
base image may be out of reach. The base is kept in ~/.cache/headrace-servers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from fix_servers import Database
from headrace.cdc import __version__, config
from headrace.cdc.demo.embedded import PostgresServer, embedded_bin
from headrace.cdc.demo.shop import Shop
from headrace.features.loading import load_definitions

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DEMO = ROOT / "cdc" / "headrace" / "cdc" / "demo" / "files"
CACHE = Path.home() / ".cache" / "headrace-servers"
LINE = "apt-get install -y --no-install-recommends buildah debootstrap"

# pip inside the build sees what pip outside sees: this machine's certificates and package index.
SHARED = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf", "/etc/resolv.conf"]


class Buildah:
    """buildah with storage of its own, so that nothing on the machine is touched."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--storage-driver", "vfs", "--root", str(folder / "st"), "--runroot", str(folder / "rr")]

    def __call__(self, *words: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            ["buildah", *self._options, *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, f"buildah {words[0]}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def _base_archive() -> Path:
    """A Debian with Python, as a tar file; about 40 s the first time."""
    archive = CACHE / "bookworm-python-rootfs.tar"
    if archive.exists():
        return archive
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="headrace-rootfs-") as folder:
        packages = "python3,python3-venv,ca-certificates"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if made.returncode != 0:
            pytest.skip(
                f"debootstrap reaches no Debian mirror: {(made.stderr or made.stdout).strip().splitlines()[-1:]}"
            )
        Path(folder).chmod(0o755)  # becomes the image's root
        unfinished = archive.with_suffix(".part")
        subprocess.run(["tar", "-C", folder, "-cf", unfinished, "."], check=True)
        unfinished.rename(archive)
    return archive


@pytest.fixture(scope="module")
def image() -> Iterator[tuple[Buildah, str]]:
    """buildah, and the name of the image that docker/Dockerfile gave."""
    if shutil.which("buildah") is None or shutil.which("debootstrap") is None:
        pytest.skip(f"building the image needs: {LINE}")
    if os.geteuid() != 0:
        pytest.skip("debootstrap works as root only")
    if os.environ.get("HEADRACE_MATRIX") != "1":
        pytest.skip("building the image takes a minute or two: make matrix")
    archive = _base_archive()
    folder = Path(tempfile.mkdtemp(prefix="headrace-buildah-"))
    buildah = Buildah(folder)
    try:
        base = folder / "base"
        base.mkdir()
        os.link(archive, base / "rootfs.tar") if archive.stat().st_dev == folder.stat().st_dev else shutil.copy(
            archive, base / "rootfs.tar"
        )
        (base / "Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        buildah("bud", "-q", "-t", "localhost/headrace-base", ".", cwd=base)
        shared = [word for path in SHARED if Path(path).exists() for word in ("-v", f"{path}:{path}:ro")]
        buildah(
            *["bud", "-q", "--isolation", "chroot", "--network", "host", "--pull-never", *shared],
            *["--build-arg", "BASE=localhost/headrace-base", "--ignorefile", "docker/Dockerfile.dockerignore"],
            *["--format", "docker", "-f", "docker/Dockerfile", "-t", "localhost/headrace", "."],
        )
        yield buildah, "localhost/headrace"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.matrix("buildah")
def test_the_image_runs_headrace_as_an_ordinary_user_without_a_compiler(image: tuple[Buildah, str]) -> None:
    buildah, name = image
    container = buildah("from", "--pull-never", name).strip()

    def run(*words: str) -> str:
        return buildah("run", "--isolation", "chroot", container, "--", *words).strip()

    assert run("headrace", "--version") == f"headrace {__version__}"
    assert run("id", "-u") == "10001"
    assert run("sh", "-c", "command -v gcc cc pip || echo none") == "none"
    assert run("sh", "-c", "touch /var/lib/headrace/x && stat -c %a /var/lib/headrace") == "700"
    compiled = run("sh", "-c", "find /opt/headrace -name 'pgoutput.*.so' | wc -l")
    assert compiled == "1", "the image's hot modules are compiled"


@pytest.mark.matrix("buildah")
def test_the_image_is_checked_and_stopped_as_its_users_expect(image: tuple[Buildah, str]) -> None:
    buildah, name = image
    made: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]
    assert made["User"] == "10001:10001"
    assert made["Entrypoint"] == ["headrace"]
    assert made["StopSignal"] in ("SIGTERM", "15")
    assert "/var/lib/headrace" in made["Volumes"]
    assert "healthz" in " ".join(made["Healthcheck"]["Test"])


COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.mark.matrix("docker")
def test_the_compose_file_is_valid_for_the_docker_client() -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("checking it needs docker's client with its compose plugin")
    done = subprocess.run(
        [docker, "compose", "-f", str(DOCKER / "compose.yaml"), "config", "--quiet"],
        env={**os.environ, "READ_TOKEN": "t"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_composed_postgres_runs_with_the_settings_the_fixtures_prove() -> None:
    words: list[str] = COMPOSE["services"]["postgres"]["command"]
    assert words[0] == "postgres"
    given = dict(word.split("=", 1) for flag, word in zip(words[1::2], words[2::2], strict=True) if flag == "-c")
    proved = PostgresServer(embedded_bin(18), folder=Path("/nonexistent")).settings
    assert given == {key: value for key, value in proved.items() if key != "listen_addresses"}


def _mounts() -> dict[str, str]:
    """Place in the container -> what stands there, of the service headrace."""
    return {
        target: source
        for source, target, *_ in (mount.split(":") for mount in COMPOSE["services"]["headrace"]["volumes"])
    }


def test_composed_paths_and_variables_meet_their_configuration() -> None:
    mounts = _mounts()
    for target, source in mounts.items():
        assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), source
        assert target.startswith(("/var/lib/headrace", "/etc/headrace/")), target
    environment = dict.fromkeys(COMPOSE["services"]["headrace"]["environment"], "x")
    parsed = config.load(DOCKER / "headrace.yaml", environ=environment)
    assert parsed.server.tokens == {"reader": "x"}
    definitions = DOCKER / mounts[f"/etc/headrace/{parsed.sections['features'].definitions}"]
    assert load_definitions(definitions)


def test_the_composed_shop_is_configured_as_the_demos() -> None:
    ours = yaml.safe_load((DOCKER / "headrace.yaml").read_text())
    demos = yaml.safe_load((DEMO / "headrace.yaml").read_text())
    assert ours["events"] == demos["events"]
    assert ours["sources"]["shop"]["tables"] == demos["sources"]["shop"]["tables"]
    assert [ours["features"][key] for key in ("definitions", "project")] == [
        demos["features"][key] for key in ("definitions", "project")
    ]
    assert Path(_mounts()["/etc/headrace/shop_features.py"]).parts[-2:] == ("files", "shop_features.py")


def _columns(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "select table_name, column_name, ordinal_position, data_type, numeric_precision, is_nullable, column_default"
            " from information_schema.columns where table_schema = 'shop' order by 1, 3"
        ).fetchall()


def test_the_seed_makes_the_demos_tables(database: Database) -> None:
    database.connection.execute((DOCKER / "seed.sql").read_text())
    seeded = _columns(database.dsn)
    assert database.execute("select count(*), min(total) > 0 from shop.orders") == [(1000, True)]
    database.execute("drop schema shop cascade")
    Shop(database.dsn).create()
    assert seeded == _columns(database.dsn)
