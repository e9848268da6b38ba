#!/usr/bin/env bash
# The native core under libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, each of the targets for so long:
#   bash tools/fuzz_core.sh [SECONDS [FOLDER [OPTION OF LIBFUZZER ...]]]
# It builds them in FOLDER (build/fuzz) and needs clang++ with its runtimes (Debian: clang, libclang-rt-14-dev). Inputs
# that reach something new gather in FOLDER/corpus, and what was found in FOLDER/found; a target repeats such a file:
#   FOLDER/fuzz_search FOLDER/found/fuzz_search-crash-...
# The limit of two minutes an input is by the clock, which other work on the machine stretches.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-3600} folder=${2:-build/fuzz} options=("${@:3}")
cmake --preset fuzz -B "$folder" > /dev/null
cmake --build "$folder" --parallel 2
mkdir -p "$folder/found"
failed=0
for target in fuzz_search fuzz_steps fuzz_hypotheses; do
  mkdir -p "$folder/corpus/$target"
  "$folder/$target" "$folder/corpus/$target" "csrc/fuzz/corpus/$target" -max_total_time="$seconds" -max_len=2048 \
    -len_control=0 -timeout=120 -rss_limit_mb=2048 -malloc_limit_mb=512 -print_final_stats=1 -print_funcs=0 -verbosity=0 \
    -artifact_prefix="$folder/found/$target-" "${options[@]}" || failed=1
  echo "== $target: $(ls "$folder/corpus/$target" | wc -l) inputs in $folder/corpus"
done
exit "$failed"
