"""Makes the wire corpus: real pgoutput frames of a throwaway Postgres, with what its catalogue says about them.

    python tests/wire/capture.py 15 18

Per server two files: ``postgres<major>.frames`` holds the CopyData payloads as they came, each behind its length (int32, big-endian);
``postgres<major>.json`` says the version, the START_REPLICATION options and the two lookups a decoder is given. No row of it is
anybody's data. Object names and values are the same in every capture; LSNs, OIDs, xids and times are the server's.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import psycopg
from psycopg import pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from fix_servers import Database, postgres_bin
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.sources.postgres_config import PostgresConfig, conninfo

FOLDER = Path(__file__).parent
OPTIONS = "proto_version '1', publication_names '\"corpus\"'"

TABLES = '''
create type mood as enum ('sad', 'it''s fine');
create domain positive as int check (value > 0);
create type pair as (a int, b text);
create table item (
    id bigint primary key, small smallint, flag boolean, ratio double precision, price numeric(10, 2), note text,
    made timestamptz, mood mood, amount positive, doc jsonb, raw bytea, tags text[], pair pair, gone int, code char(4)
);
alter table item alter note set storage external, drop gone;
create table whole (a int, note text);
alter table whole replica identity full, alter note set storage external;
create table mute (a int);
alter table mute replica identity nothing;
create table indexed (id int primary key, code text not null, extra text);
create unique index indexed_code on indexed (code);
alter table indexed replica identity using index indexed_code;
create table wordy (name text primary key, hits int);
alter table wordy alter name set storage external;
create schema "Odd.Schema";
create table "Odd.Schema"."Table ""q""" ("Käse" int primary key, "select" text);
create table parent (id int, region text, primary key (id, region)) partition by list (region);
create table north partition of parent for values in ('n');
create table south (extra int, region text not null, id int not null);
alter table south drop extra;
alter table parent attach partition south for values in ('s');
create table growing (id int primary key);
create table unpublished (id int);
create publication corpus for table item, whole, mute, indexed, wordy, "Odd.Schema"."Table ""q""", parent, growing
    with (publish_via_partition_root = true);
'''

# One transaction an entry.
WORKLOAD = [
    """insert into item values
        (1, -32768, true, 0.1, 12.50, repeat('long ', 500), '2024-02-29 12:00:00.000001+01', 'sad', 7,
         '{"b": [1.10, null], "a": "ä"}', '\\x00ff', '{a,NULL,"NULL"}', '(1,"x y")', 'ab'),
        (2, null, false, 'NaN', 'NaN', E'tab\\t nl\\n \\\\N "q" 🙂', '-infinity', 'it''s fine', null, null, '\\x', '{}', null, ''),
        (9223372036854775807, 0, null, '-Infinity', -0.01, '', '0044-03-15 BC', null, 1, 'null', null, null, '(,)', null)""",
    "update item set small = 5 where id = 1",  # note lies out of line and isn't sent again
    "update item set id = 3 where id = 2",
    "delete from item where id = 3; delete from item where id = 9223372036854775807",
    """insert into whole values (1, repeat('full ', 500)), (1, null), (1, null);
       update whole set a = 2 where note is not null;
       delete from whole where ctid = (select min(ctid) from whole where note is null)""",
    "insert into mute values (null)",
    """insert into indexed values (1, 'one', null);
       update indexed set extra = 'x' where id = 1;
       update indexed set code = 'uno' where id = 1;
       delete from indexed where id = 1""",
    "insert into wordy values (repeat('key ', 600), 1); update wordy set hits = 2",  # an out-of-line key: K without a key change
    'insert into "Odd.Schema"."Table ""q""" values (-1, \'from\')',
    "insert into parent values (1, 'n'), (2, 's'); update parent set region = 's' where id = 1",
    "insert into growing values (1)",
    "alter table growing add column note text default 'old'; insert into growing values (2, 'new')",
    "alter table growing drop column note; insert into growing values (3)",
    "insert into growing values (4); savepoint s; insert into growing values (5); rollback to s; insert into growing values (6)",
    "insert into growing values (7); truncate growing; insert into growing values (8)",
    "insert into unpublished values (1)",
    "truncate item, whole restart identity cascade",
    """select pg_replication_origin_create('elsewhere');
       select pg_replication_origin_session_setup('elsewhere');
       select pg_replication_origin_xact_setup('0/ABCDEF', now());
       insert into growing values (9)""",
    "select pg_replication_origin_session_reset()",
    "insert into growing select generate_series(10, 14)",
]


def capture(major: int) -> None:
    """Run the workload on a fresh server and store what one replication connection got."""
    server = PostgresServer(postgres_bin(major), settings={"fsync": "off"})
    server.start()
    try:
        database = Database(server)
        for statement in TABLES.split(";\n"):
            if statement.strip():
                database.execute(statement)
        stream = psycopg.connect(
            conninfo(PostgresConfig(dsn=database.dsn), replication=True, source="corpus"), autocommit=True
        )
        stream.pgconn.exec_(b"CREATE_REPLICATION_SLOT corpus LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        for script in WORKLOAD:
            with database.connection.transaction():
                database.execute(script)
        ((last,),) = database.execute("select pg_current_wal_insert_lsn() - '0/0'")
        ((version,),) = database.execute("show server_version")
        frames = _stream(stream.pgconn, int(str(last)))
        described = {
            "server_version": str(version).split()[0],
            "made_by": f"python tests/wire/capture.py {major}",
            "start_replication": OPTIONS,
            "primary_keys": dict(
                database.execute("""
                select c.oid::text, array_agg(a.attname::text order by a.attnum)
                from pg_class c join pg_index i on i.indrelid = c.oid and i.indisprimary
                join pg_attribute a on a.attrelid = c.oid and a.attnum = any(i.indkey)
                where c.relnamespace::regnamespace::text in ('public', '"Odd.Schema"') group by c.oid""")
            ),
            "type_names": dict(
                database.execute("""
                select t.oid::text, t.typname::text from pg_type t where t.oid in (
                    select atttypid from pg_attribute a join pg_class c on c.oid = a.attrelid
                    where c.relnamespace::regnamespace::text in ('public', '"Odd.Schema"') and a.attnum > 0)""")
            ),
        }
        stream.close()
        database.drop()
    finally:
        server.remove()
    (FOLDER / f"postgres{major}.frames").write_bytes(
        b"".join(struct.pack(">i", len(frame)) + frame for frame in frames)
    )
    (FOLDER / f"postgres{major}.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    print(f"postgres {version}: {len(frames)} frames, {sum(map(len, frames))} bytes")


def _stream(connection: pq.abc.PGconn, last: int) -> list[bytes]:
    """Frames until a keepalive names ``last`` or a later place."""
    connection.send_query(f"START_REPLICATION SLOT corpus LOGICAL 0/0 ({OPTIONS})".encode())
    result = connection.get_result()
    assert result is not None and result.status == pq.ExecStatus.COPY_BOTH
    frames: list[bytes] = []
    while True:
        if len(frames) % 50 == 0:  # ask for a keepalive
            connection.put_copy_data(struct.pack(">cQQQqB", b"r", 0, 0, 0, 0, 1))
            connection.flush()
        length, data = connection.get_copy_data(0)
        assert length > 0, "the server ended the stream"
        frames.append(bytes(data))
        if frames[-1][:1] == b"k" and int.from_bytes(frames[-1][1:9], "big") >= last:
            return frames


if __name__ == "__main__":
    for asked in sys.argv[1:] or ["15", "18"]:
        capture(int(asked))
