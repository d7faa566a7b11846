"""Every way to log in, and each refusal in our words: TLS up to verify-full, SCRAM, passfile, service file; never a secret shown."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fix_servers import postgres_bin
from fix_standby import ask
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable
from headrace.cdc.sources.postgres import PostgresSource
from headrace.cdc.sources.postgres_config import PostgresConfig, safe_name

SECRET = "c0rrect-horse"
_HBA = """
local   all  all                     trust
host    all  postgres  127.0.0.1/32  trust
hostssl all  secure    127.0.0.1/32  scram-sha-256
hostssl all  expired   127.0.0.1/32  scram-sha-256
hostssl all  certified 127.0.0.1/32  cert
host    all  plain     127.0.0.1/32  scram-sha-256
"""


class Authority:
    """A certificate authority of a test."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), is_authority=True)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, host: str | None = None, is_authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, folder: Path, name: str, *, host: str | None = None) -> tuple[Path, Path]:
        """Files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), host=host)
        paths = folder / f"{name}.crt", folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        paths[1].chmod(0o600)
        return paths

    def write(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path


class SecureServer:
    """A server of the distribution with TLS. parts: what a DSN is made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = Authority("the authority")
        self.server = PostgresServer(postgres_bin(15), settings={"fsync": "off"})
        self.server.create()
        certificate, key = authority.issue(folder, "server", host="localhost")
        self.client = authority.issue(folder, "certified")
        self.root = authority.write(folder / "root.crt")
        self.wrong_root = Authority("another authority").write(folder / "wrong.crt")
        data = self.server.data
        for name, path in (("server.crt", certificate), ("server.key", key), ("root.crt", self.root)):
            target = data / name
            target.write_bytes(path.read_bytes())
            if os.geteuid() == 0:
                os.chown(target, data.stat().st_uid, data.stat().st_gid)
            target.chmod(0o600)
        (data / "pg_hba.conf").write_text(_HBA)
        self.server.settings |= {"ssl": "on", "ssl_ca_file": "root.crt", "password_encryption": "scram-sha-256"}
        self.server.start()
        for role in ("secure", "plain", "expired", "certified", "nologin"):
            ask(self.server.dsn, f"create role {role} replication login superuser password '{SECRET}'")
        ask(self.server.dsn, "alter role expired valid until '2020-01-01'")
        ask(self.server.dsn, "create table t (id int primary key)")

    @property
    def place(self) -> str:
        return f"host=localhost hostaddr=127.0.0.1 port={self.server.port} dbname=postgres"

    def dsn(self, user: str, mode: str = "verify-full", **parts: object) -> str:
        parts = {"sslrootcert": self.root, **parts}
        return f"{self.place} user={user} sslmode={mode} " + " ".join(f"{key}={value}" for key, value in parts.items())


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    made = SecureServer(tmp_path_factory.mktemp("tls"))
    yield made
    made.server.remove()


async def logs_in(dsn: str, name: str) -> None:
    """By every kind of connection that a source makes."""
    source = PostgresSource(name, PostgresConfig(dsn=dsn), {})
    await source.start(None)
    try:
        assert source.status().phase in ("snapshot", "streaming")
    finally:
        await source.stop()


async def refusal(dsn: str, kind: type[SourceError] = SourceRefused) -> str:
    """The paragraph a person reads."""
    config = PostgresConfig(dsn=dsn)
    with pytest.raises(kind) as refused:
        await PostgresSource("shop", config, {}).check()
    text = refused.value.paragraph()
    assert SECRET not in text + repr(config) + str(refused.value.__cause__)
    return text


async def test_verify_full_and_scram_with_the_password_in_the_dsn(secure: SecureServer) -> None:
    await logs_in(secure.dsn("secure", password=SECRET, channel_binding="require"), "full")
    used = ask(secure.server.dsn, "select rolpassword like 'SCRAM-SHA-256%%' from pg_authid where rolname = 'secure'")
    assert used == [(True,)]


async def test_a_url_with_tls(secure: SecureServer) -> None:
    url = f"postgresql://secure:{SECRET}@localhost:{secure.server.port}/postgres?sslmode=verify-full&sslrootcert={secure.root}"
    await logs_in(url, "url")


async def test_a_client_certificate(secure: SecureServer) -> None:
    certificate, key = secure.client
    await logs_in(secure.dsn("certified", sslcert=certificate, sslkey=key), "cert")


async def test_a_passfile(secure: SecureServer, tmp_path: Path) -> None:
    passfile = tmp_path / "pass"
    passfile.write_text(f"*:*:*:secure:{SECRET}\n")
    passfile.chmod(0o600)
    await logs_in(secure.dsn("secure", passfile=passfile), "passfile")
    passfile.chmod(0o644)
    text = await refusal(secure.dsn("secure", passfile=passfile))
    assert "0600" in text
    assert str(secure.server.port) in text


async def test_a_wrong_password_in_the_passfile_names_the_file(secure: SecureServer, tmp_path: Path) -> None:
    passfile = tmp_path / "pass"
    passfile.write_text("*:*:*:secure:wr0ng-horse\n")
    passfile.chmod(0o600)
    text = await refusal(secure.dsn("secure", passfile=passfile))
    assert "password authentication failed" in text
    assert f'password retrieved from file "{passfile}"' in text
    assert "wr0ng-horse" not in text


async def test_a_service_file(secure: SecureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = tmp_path / "services"
    lines = secure.dsn("secure", password=SECRET).split()
    services.write_text("[shop]\n" + "\n".join(lines) + "\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    await logs_in("service=shop", "service")
    text = await refusal("service=shopp")
    assert 'definition of service "shopp"' in text
    assert "PGSERVICEFILE" in text
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "none"))
    assert "PGSERVICEFILE" in await refusal("service=shop")


async def test_another_authority_is_refused(secure: SecureServer) -> None:
    text = await refusal(secure.dsn("secure", password=SECRET, sslrootcert=secure.wrong_root))
    assert "certificate verify failed" in text
    assert "isn't signed by the authority in sslrootcert" in text
    assert "sources.shop.dsn" in text


async def test_a_missing_root_certificate_is_no_missing_database(secure: SecureServer) -> None:
    text = await refusal(secure.dsn("secure", password=SECRET, sslrootcert=secure.folder / "none.crt"))
    assert "none.crt" in text
    assert "authority" in text
    assert "user and database" not in text


async def test_another_host_name_is_refused_by_verify_full_alone(secure: SecureServer) -> None:
    dsn = secure.dsn("secure", password=SECRET).replace("host=localhost", "host=db.example")
    text = await refusal(dsn)
    assert "does not match host name" in text
    assert "connect by a name that the server's certificate holds" in text
    await logs_in(dsn.replace("verify-full", "verify-ca"), "byca")


async def test_no_encryption_is_told_with_sslmode(secure: SecureServer) -> None:
    assert "sslmode=require" in await refusal(secure.dsn("secure", mode="disable", password=SECRET))


@pytest.mark.parametrize("user", ["secure", "expired"])
async def test_a_wrong_password_and_an_expired_role(secure: SecureServer, user: str) -> None:
    # To a client the server says the same of both; the advice must hold both.
    password = SECRET if user == "expired" else "wr0ng-horse"
    text = await refusal(secure.dsn(user, password=password))
    assert f'password authentication failed for user "{user}"' in text
    assert "valid until" in text
    assert password not in text


async def test_no_password_at_all(secure: SecureServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    assert "give the password" in await refusal(secure.dsn("secure"))


async def test_a_role_without_login(secure: SecureServer) -> None:
    ask(secure.server.dsn, "alter role plain nologin")
    assert "alter role ... login" in await refusal(secure.dsn("plain", password=SECRET))
    ask(secure.server.dsn, "alter role plain login")


async def test_a_server_without_tls_is_named(postgres16: PostgresServer) -> None:
    text = await refusal(f"{postgres16.dsn} sslmode=require")
    assert "turn ssl on at the server" in text


async def test_no_server_of_the_asked_role_is_tried_again(secure: SecureServer) -> None:
    dsn = secure.dsn("secure", password=SECRET, target_session_attrs="standby")
    text = await refusal(dsn, SourceUnavailable)
    assert "target_session_attrs" in text


@pytest.mark.parametrize(
    "url", ["postgresql://u:se@cret@h/d", "postgresql://u:se/cret@h/d", "postgresql://u:se:cret/@h/d"]
)
async def test_a_password_that_tears_its_url_is_not_shown(url: str) -> None:
    config = PostgresConfig(dsn=url)
    with pytest.raises(ConfigError) as refused:
        await PostgresSource("shop", config, {}).check()
    assert "%40" in refused.value.paragraph()
    for text in (refused.value.paragraph(), safe_name(url), repr(config)):
        assert "cret" not in text


async def test_of_two_hosts_each_failure_is_told(secure: SecureServer) -> None:
    """One that isn't there and one that refuses."""
    dsn = f"host=127.0.0.1,localhost port=1,{secure.server.port} user=secure password=wr0ng-horse dbname=postgres"
    text = await refusal(dsn)
    assert f"secure@127.0.0.1:1,localhost:{secure.server.port}/postgres" in text
    assert "password authentication failed" in text
    assert "onnection refused" in text
    assert "wr0ng-horse" not in text
