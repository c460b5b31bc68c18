#!/usr/bin/env bash
# Builds everything and runs the tests. After ./setup.sh.
#
#   ./test.sh [PRESET [CTEST ARGUMENT...]]     for example  ./test.sh release -L oracle
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
preset=${1:-release}
shift || true
cmake --preset "$preset"
cmake --build --preset "$preset"
ctest --preset "$preset" --parallel "$(nproc)" "$@"
