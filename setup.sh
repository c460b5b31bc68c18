#!/usr/bin/env bash
# Installs what Tycho needs from Debian's packages, builds it, trains a small network with Tycho attached
# and writes the report of that run. For Debian 12 and 13, as root or with sudo.
#
#   ./setup.sh [PRESET]       PRESET: a configure preset of CMakePresets.json; default release
#   ./setup.sh --packages     only install the packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

packages=(
  g++ cmake ninja-build ccache git
  libtorch-dev libopenblas0-openmp                          # LibTorch and the BLAS that shares its threads
  libprotobuf-dev protobuf-compiler libzstd-dev zlib1g-dev  # the trace
  libfmt-dev libcli11-dev nlohmann-json3-dev                # the command
  libcpp-httplib-dev                                        # tycho serve
  libeigen3-dev libboost-math-dev libjs-dygraphs            # the analyzer and its report
  libgtest-dev libgmock-dev libbenchmark-dev                # tests and benchmarks
)

say() { printf '\n== %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "setup.sh: this needs root or sudo: $*" >&2
    return 1
  fi
}

missing_packages() {
  local name
  for name in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
  done
}

# LibTorch takes whichever BLAS is the system's libblas.so.3. The reference BLAS is tens of times slower, and
# OpenBLAS with threads of its own fights with LibTorch's.
select_blas() {
  local triplet library chosen
  triplet=$(gcc -print-multiarch)
  for library in libblas.so.3 liblapack.so.3; do
    chosen="/usr/lib/$triplet/openblas-openmp/$library"
    [ "$(readlink -f "/usr/lib/$triplet/$library")" = "$(readlink -f "$chosen")" ] && continue
    as_root update-alternatives --set "$library-$triplet" "$chosen"
  done
}

install_packages() {
  local missing
  read -r -a missing <<<"$(missing_packages | tr '\n' ' ')"
  if [ "${#missing[@]}" -gt 0 ]; then
    say "Installing ${#missing[@]} packages: ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
  fi
  select_blas
}

if [ "${1:-}" = --packages ]; then
  install_packages
  exit
fi
preset=${1:-release}

install_packages

say "Building (preset $preset)"
cmake --preset "$preset"
cmake --build --preset "$preset" --target tycho_command mlp_digits

run="runs/mlp_digits-$(date +%Y%m%d-%H%M%S)"
say "Training a network on digits with Tycho attached"
"build/$preset/bin/mlp_digits" --run "$run"

say "What Tycho has to say about it"
"build/$preset/bin/tycho" report "$run" --format text
"build/$preset/bin/tycho" report "$run" -o "$run/report.html"

say "Done. Open $PWD/$run/report.html"
