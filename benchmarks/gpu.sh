#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under eight minutes: builds for the GPU at hand, runs the parity suite, and
# measures. Needs nvcc, a C++ compiler, cmake, and a Python with torch for CUDA; what else is missing is installed, so
# that a machine without network needs numpy, scipy, the package's dependencies, pytest, hypothesis, scikit-build-core
# and nanobind. Usage: bash benchmarks/gpu.sh [FOLDER for the results, default build/gpu] [arguments of gpu.py]
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/gpu}")
python=${PYTHON:-python3}
mkdir -p "$out/site"
export PIP_DISABLE_PIP_VERSION_CHECK=1

echo "== device"
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm --format=csv | tee "$out/device.csv"
capability=$("$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"
print("%d%d" % torch.cuda.get_device_capability())')

missing=$("$python" - << 'PYTHON'
from importlib.util import find_spec
needed = {"numpy": "numpy", "scipy": "scipy", "trimesh": "trimesh", "lzf": "python-neo-lzf", "click": "click",
          "tqdm": "tqdm", "safetensors": "safetensors", "pytest": "pytest", "hypothesis": "hypothesis",
          "scikit_build_core": "scikit-build-core", "nanobind": "nanobind"}
print(*(package for module, package in needed.items() if find_spec(module) is None))
PYTHON
)
if [[ -n $missing ]]; then
  echo "== installing $missing"
  # shellcheck disable=SC2086 # a list of names
  timeout 60 "$python" -m pip install -q $missing
fi

echo "== build for sm_$capability"
CUDAARCHS="$capability-real" DLC_REG_CUDA=ON timeout 150 "$python" -m pip install -q --no-build-isolation --no-deps \
  --no-index --upgrade --target "$out/site" .
export PYTHONPATH="$out/site${PYTHONPATH:+:$PYTHONPATH}"

echo "== parity: device against host against reference"
# away from the checkout, whose own dlc_reg has no module
tests=$PWD/tests benchmarks=$PWD/benchmarks
cd "$out"
status=0
timeout 100 "$python" -m pytest -q -m gpu -p no:cacheprovider -c "$tests/../pyproject.toml" "$tests"/test_ops_cuda*.py \
  "$tests"/test_ops_library.py "$tests"/test_geometry.py 2>&1 | tee "$out/parity.txt" || status=$?

echo "== timings"
timeout 165 "$python" "$benchmarks/gpu.py" --seconds 125 --out "$out/gpu.json" "${@:2}" || status=$?
exit "$status"
