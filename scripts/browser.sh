#!/usr/bin/env bash
# Installs a browser where there is none: Debian's chromium, in which the tests open the report. Sweeps need none.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/debian.sh
command -v chromium >/dev/null || debian_install chromium
