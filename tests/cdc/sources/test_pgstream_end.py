"""How the server's last words on a stream are taken: most mean try again, one means that a person must act."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from psycopg import pq

from headrace.cdc.errors import SourceError, SourceRefused, SourceUnavailable
from headrace.cdc.sources.pgstream import ReplicationStream


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b'ERROR:  could not map filenumber "base/16384/16498" to relation OID\n', SourceRefused),
        (b'ERROR:  could not map filenode "base/16384/16498" to relation OID\n', SourceRefused),
        (b"FATAL:  terminating connection due to administrator command\n", SourceUnavailable),
    ],
)
def test_what_the_server_can_never_decode_is_not_tried_again(said: bytes, kind: type[SourceError]) -> None:
    result = SimpleNamespace(status=pq.ExecStatus.FATAL_ERROR, error_message=said)
    pg = SimpleNamespace(get_result=lambda: result)
    stream = ReplicationStream(SimpleNamespace(pgconn=pg), source="s")  # type: ignore[arg-type]
    error = stream._ended()
    assert type(error) is kind
    assert said.decode().strip() in error.message
