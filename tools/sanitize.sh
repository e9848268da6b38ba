#!/usr/bin/env bash
# The C++ tests and a long stress test under AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer:
#   bash tools/sanitize.sh [ROUNDS] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-2000} seed=${2:-0}
for preset in asan-ubsan tsan; do
  cmake --preset "$preset"
  cmake --build --preset "$preset" --parallel 2
  ctest --preset "$preset" --timeout 7200
  UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 "build/$preset/test_stress" "$rounds" "$seed"
done
