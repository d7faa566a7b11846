#!/usr/bin/env bash
# Installs Debian packages quietly; the whole of apt's words only if it fails.  .ci/apt.sh "sudo -n env" postgresql ...
set -euo pipefail
as=$1
shift
words=$(mktemp)
trap 'rm -f "$words"' EXIT
{
    $as apt-get -q update &&
        $as DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@"
} >"$words" 2>&1 </dev/null || { code=$?; cat "$words" >&2; exit "$code"; }
