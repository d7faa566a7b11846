#!/usr/bin/env bash
# Brings the servers that the default suite runs against, where it may; otherwise prints the one line to type and fails.
set -euo pipefail
cd "$(dirname "$0")/.."
line="apt-get update && apt-get install -y --no-install-recommends"
packages=()

have_postgres() {
    [ -n "${HEADRACE_PG15_BIN:-}" ] || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null
}

have_postgres || packages+=(postgresql)
command -v redis-server >/dev/null || packages+=(redis-server)
command -v mariadbd >/dev/null || [ -x /usr/sbin/mariadbd ] || packages+=(mariadb-server)
command -v nats-server >/dev/null || packages+=(nats-server)
[ ${#packages[@]} -gt 0 ] || exit 0
# .ci/venv.sh would ask next: one line to type is better than two.
if [ ! -x .venv/bin/python ] && ! command -v uv >/dev/null && ! python3 -c 'import ensurepip' >/dev/null 2>&1; then
    packages+=(python3-venv)
fi

if ! command -v apt-get >/dev/null; then
    echo "headrace: the suite needs ${packages[*]} (Debian's names): install them with your system's package manager" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then as=env
elif sudo -n true 2>/dev/null; then as="sudo -n env"
else
    echo "headrace: the suite needs real servers; run:  sudo sh -c '$line ${packages[*]}'" >&2
    exit 1
fi
echo "headrace: installing ${packages[*]}" >&2
.ci/apt.sh "$as" "${packages[@]}"
