#!/usr/bin/env bash
# Makes or freshens .venv with headrace, editable, and the named extras:  .ci/venv.sh test  or  .ci/venv.sh lint,test
# Quick when nothing changed. HEADRACE_PYTHON names an interpreter to use instead of the newest one found.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
extras=$1
venv=$root/.venv
line_python="install Python 3.11, 3.12 or 3.13; on Debian or Ubuntu: apt-get install -y python3 python3-venv"

say() { printf 'headrace: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Root by itself, else sudo where it asks for no password; nothing when neither may install packages.
installer() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then echo env; elif sudo -n true 2>/dev/null; then echo "sudo -n env"; else return 1; fi
}

# An interpreter counts only if it runs (a pyenv shim may not), has a fit version and the modules headrace needs of it.
fits() {
    "$1" -c 'import sys, ssl, sqlite3, ctypes, zlib; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1 </dev/null
}

find_python() {
    local name candidate
    for name in ${HEADRACE_PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        while read -r candidate; do
            if [ -n "$candidate" ] && fits "$candidate"; then echo "$candidate"; return 0; fi
        done < <(type -aP "$name" 2>/dev/null || true)
    done
    return 1
}

make_venv() {
    local python version as
    rm -rf "$venv"
    if ! python=$(find_python); then
        [ -z "${HEADRACE_PYTHON:-}" ] || fail "HEADRACE_PYTHON=$HEADRACE_PYTHON is no working Python 3.11 to 3.13"
        command -v uv >/dev/null || fail "no working Python 3.11 to 3.13 was found: $line_python"
        say "no working Python 3.11 to 3.13 was found: uv brings one"
        uv venv --quiet --python '>=3.11,<3.14' "$venv" || fail "uv could not bring a Python: $line_python"
        return
    fi
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        "$python" -m venv "$venv"
        return
    fi
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" "$venv"
        return
    fi
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if as=$(installer); then
        say "installing python$version-venv, which $python lacks"
        .ci/apt.sh "$as" "python$version-venv" || fail "that failed; try: apt-get install -y python$version-venv"
        "$python" -m venv "$venv"
        return
    fi
    fail "$python can't make virtual environments; run: sudo apt-get install -y python$version-venv"
}

# What an install depends on: another place, another pyproject or another build hook means another install.
stamp_of() { { echo "$root"; cat pyproject.toml hatch_build.py; echo "${HEADRACE_COMPILE:-}"; } | cksum; }

# uv doesn't read pip's configuration: where a company's index or certificate stands there, uv is told of it.
pip_setting() { "$venv/bin/pip" config list 2>/dev/null | sed -nE "s/^(global|install|:env:)\\.$1='(.*)'\$/\\2/p" | tail -n 1; }

teach_uv() {
    [ -x "$venv/bin/pip" ] || return 0
    local index cert
    index=$(pip_setting index-url)
    cert=$(pip_setting cert)
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX=$index; fi
    if [ -n "$cert" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE=$cert; fi
}

install() {
    local uv
    teach_uv
    if [ -x "$venv/bin/uv" ] || { [ -x "$venv/bin/pip" ] && "$venv/bin/pip" install -q --disable-pip-version-check uv >&2; }
    then uv=$venv/bin/uv; else uv=$(command -v uv || true); fi
    say "installing headrace[$extras] into .venv"
    if [ -n "$uv" ] && VIRTUAL_ENV=$venv "$uv" pip install --quiet --editable ".[$extras]" >&2; then return; fi
    [ -x "$venv/bin/pip" ] || fail "the packages could not be installed; see the lines above"
    say "uv did not do it: trying plain pip"
    "$venv/bin/pip" install -q --disable-pip-version-check --editable ".[$extras]" >&2 ||
        fail "the packages could not be installed; see the lines above"
}

# A folder that was moved, or whose interpreter was removed, is made anew.
if ! "$venv/bin/python" -c 'import sys' >/dev/null 2>&1 || [ "$(cat "$venv/place" 2>/dev/null)" != "$root" ]; then
    make_venv
    echo "$root" >"$venv/place"
fi

stamp=$venv/stamp-$extras
if [ "$(cat "$stamp" 2>/dev/null)" != "$(stamp_of)" ] || "$venv/bin/python" .ci/hot.py stale >&2; then
    rm -f "$stamp"
    install
    "$venv/bin/python" .ci/hot.py state >&2
    stamp_of >"$stamp"
fi
