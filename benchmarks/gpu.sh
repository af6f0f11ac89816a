#!/bin/sh
# Tests and measurements on a machine with one GPU and PyTorch, in some eight minutes.
#
#   sh benchmarks/gpu.sh [cpu]
#
# What the machine lacks (diffusers, bitsandbytes, ...) is taken from a folder `wheels` beside this script, or from
# $WHEELS; nothing is fetched, and what the machine has stays as it is. The results go to $OUT, or to gpu-results.
# cpu: a try of the same on a machine without a GPU.
set -u
cd "$(dirname "$0")/.." || exit 2
device="${1:-cuda}"
python="${PYTHON:-python3}"
wheels="${WHEELS:-benchmarks/wheels}"
out="${OUT:-gpu-results}"
mkdir -p "$out" || exit 2
seconds=200 minutes=4
test "$device" = cpu && seconds=7200 minutes=120 # it takes as long as it takes
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
if ls "$wheels"/*.whl >/dev/null 2>&1; then
    "$python" -m pip install --quiet --no-index --no-deps --no-cache-dir --target "$site" "$wheels"/*.whl || exit 2
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export DASH_VISION_GPU_TESTS="$device"
"$python" -c 'import platform
for name in ("torch", "diffusers", "transformers", "peft", "accelerate", "timm", "safetensors", "bitsandbytes", "pytest"):
    try:
        print(name, __import__(name).__version__)
    except ImportError as error:
        print(name, "is missing:", error)
print("python", platform.python_version())' | tee "$out/versions.txt"
# One process: two would share the GPU, and its memory is measured.
timeout "$seconds" "$python" -m pytest -n 0 -m gpu -rs --durations=15 tests/*/test_gpu.py >"$out/tests.txt" 2>&1
tests=$?
tail -n 40 "$out/tests.txt"
timeout $((60 * minutes + 60)) "$python" -m benchmarks gpu --device "$device" --minutes "$minutes" --out "$out" 2>&1 |
    tee "$out/benchmarks.txt"
test -f "$out/gpu.json" || exit 1
exit $tests
