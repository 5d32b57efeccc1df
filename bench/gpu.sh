#!/usr/bin/env bash
# Everything that needs a GPU, in one command and without a network: tests, then benchmarks against cuDNN.
#
#   bench/gpu.sh            at most 9 minutes; results in ${OUT:-bench/results}: gpu.json, gpu.md, gpu-tests.txt
#
# It needs NumPy, ml_dtypes, pytest and CuPy with a GPU; PyTorch for cuDNN; it uses Numba and scikit-learn where they
# are. Nothing is installed: a copy of the checkout, laid out as a package, is put in front on PYTHONPATH.
#
#   1. compile every kernel for the GPU, on all CPUs
#   2. at the same time: the wrappers of the headers on the device; every kernel on the problems that the emulator runs,
#      against the float64 reference; the public functions, streams, graphs, training, PyTorch; compute-sanitizer
#   3. bench/gpu.py for the rest of the time
#
# Each step has its share of the time and is ended with it. What there is by then is in the files: they are written
# again as tests end and every few seconds of the benchmarks, so that a script that is ended leaves what it had.
#
# Environment: OUT; PYTHON (python3); FASTCONV_GPU_SECONDS, the whole time (540); FASTCONV_GPU_REHEARSAL=1 plays the
# script without a GPU, on the emulator and few problems. Exit status: 0 if all tests passed and all results were right.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$root/bench/results}
python=$(command -v "${PYTHON:-python3}") || { echo "bench/gpu.sh: there is no ${PYTHON:-python3}" >&2 && exit 2; }
case $python in /*) ;; *) python=$PWD/$python ;; esac   # it is called from another folder
total=${FASTCONV_GPU_SECONDS:-540}
rehearsal=${FASTCONV_GPU_REHEARSAL:-0}
compile_seconds=150
sanitizer_seconds=100
test_seconds=$((total / 2))
spare=15   # that the benchmarks leave: their last task may end late

mkdir -p "$out"
out=$(cd "$out" && pwd)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/fastconv-gpu.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

stage="$scratch/stage"   # fastconv/kernels is a folder there, as in a wheel
mkdir "$stage" "$scratch/logs"
cp -R "$root/fastconv" "$root/tests" "$root/bench" "$root/pyproject.toml" "$stage"
cp -R "$root/kernels" "$stage/fastconv/kernels"
cd "$stage" || exit 2
export PYTHONPATH="$stage${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FASTCONV_TUNING=off
export FASTCONV_CACHE_DIR="${FASTCONV_CACHE_DIR:-$scratch/cache}"

elapsed() { echo "$SECONDS s"; }

# --------------------------------------------------------------------------------------------------- what is there

"$python" - <<'PYTHON' || exit 2
import importlib, os, sys
missing = []
for name in ("numpy", "ml_dtypes", "pytest", "cupy", "torch", "numba", "sklearn", "safetensors", "matplotlib"):
    if name == "torch" and os.environ.get("FASTCONV_GPU_REHEARSAL") == "1":
        continue
    try:
        module = importlib.import_module(name)
        print(f"{name} {getattr(module, '__version__', '')}", end="; ")
    except Exception as error:  # ImportError, or what a package says of another one's version
        missing.append(name)
        print(f"no {name} ({error})", end="; ")
print(f"Python {sys.version.split()[0]}")
needed = [name for name in missing if name in ("numpy", "ml_dtypes", "pytest", "cupy")]
if needed:
    sys.exit(f"bench/gpu.sh needs {', '.join(needed)}")
if os.environ.get("FASTCONV_GPU_REHEARSAL") != "1":
    import cupy
    try:
        index = cupy.cuda.runtime.getDevice()
        print(cupy.cuda.runtime.getDeviceProperties(index)["name"].decode())
    except Exception as error:
        sys.exit(f"bench/gpu.sh needs a GPU that CuPy can use: {error}")
PYTHON

# --------------------------------------------------------------------------------------------------------- compiling

if [ "$rehearsal" = 1 ]; then
    FASTCONV_COMPILE_ONLY=2 "$python" -m tests.gpu.compile sm_90a || exit 1
else
    timeout --kill-after=5 "$compile_seconds" "$python" -m tests.gpu.compile || echo "not every kernel was compiled ahead"
fi
elapsed

# ------------------------------------------------------------------------------------------------------------- tests

# A test run of its own: NAME, environment, then pytest's arguments. The project's settings name plug-ins that may not
# be here, and its warnings are errors about its own environment; only the settings given here count. A dozen of them
# run at once: two threads each.
names=()
pids=()
tests() {
    local name=$1 setting=$2
    shift 2
    names+=("$name")
    env "$setting" FASTCONV_REQUIRE="${required:-}" OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 \
        timeout --kill-after=5 "$test_seconds" "$python" -m pytest -q -rsf --tb=short --maxfail=40 -p no:cacheprovider \
        -o addopts= -o filterwarnings=default -o faulthandler_timeout=$((test_seconds * 9 / 10)) "$@" \
        >"$scratch/logs/$name" 2>&1 &
    pids+=($!)
}

mapfile -t kernels < <(ls tests/kernels/test_cuda_*.py | grep -v -e test_cuda_compile -e test_cuda_emulator)
wrappers="copies or products or padding_shows or sixteen or activations or struct"
if [ "$rehearsal" = 1 ]; then
    tests device FASTCONV_GPU=0 tests/gpu -k "subnormal or other_ranks"
    tests wrappers FASTCONV_GPU=1 tests/kernels/test_cuda_emulator.py -k "struct or padding_shows"
    tests rows FASTCONV_GPU=1 tests/test_registry.py -k "cuda and bounds and avg_pool and channels_last"
else
    required=gpu
    tests device FASTCONV_GPU=0 tests/gpu
    tests wrappers FASTCONV_GPU=1 tests/kernels/test_cuda_emulator.py -k "$wrappers"
    tests rows FASTCONV_GPU=1 tests/test_registry.py -k cuda
    for file in "${kernels[@]}"; do
        tests "$(basename "$file" .py)" FASTCONV_GPU=1 "$file"
    done
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            names+=("$tool")
            timeout --kill-after=5 "$sanitizer_seconds" compute-sanitizer --tool "$tool" --error-exitcode 9 \
                --report-api-errors no "$python" -m tests.gpu.sample >"$scratch/logs/$tool" 2>&1 &
            pids+=($!)
        done
    else
        echo "no compute-sanitizer here"
    fi
fi

failed=()
verdict=""
record() {
    printf '%s\n' "$verdict"
    for name in "${names[@]}"; do printf '\n=== %s\n' "$name" && cat "$scratch/logs/$name"; done
}
for i in "${!pids[@]}"; do
    wait "${pids[$i]}"
    status=$?
    name=${names[$i]}
    last=$(grep -v '^$' "$scratch/logs/$name" | tail -n 1)
    if [ "$status" -ne 0 ] && grep -q "Device not supported" "$scratch/logs/$name"; then   # some virtual machines
        verdict+="absent  $name: compute-sanitizer does not support this device"$'\n'
    else
        case $status in
            0) verdict+="passed  $name: $last"$'\n' ;;
            124 | 137) verdict+="TIME    $name: not finished in time; $last"$'\n' && failed+=("$name") ;;
            *) verdict+="FAILED  $name (status $status): $last"$'\n' && failed+=("$name") ;;
        esac
    fi
    record >"$out/gpu-tests.txt"
done
for name in "${failed[@]}"; do   # the first mistakes: after an error of the device all that follows fails too
    printf '\n=== %s\n' "$name"
    grep -E '^(FAILED|ERROR) ' "$scratch/logs/$name" | head -n 15
    grep -E '^(E  |=========|[A-Za-z_.]*Error)' "$scratch/logs/$name" | head -n 15
done | cut -c -180
elapsed

# -------------------------------------------------------------------------------------------------------- benchmarks

left=$((total - SECONDS - spare))
bench=0
if [ "$left" -gt 20 ]; then
    "$python" -m bench.gpu --out "$out" --seconds "$left" || bench=1
else
    echo "no time left for the benchmarks" && bench=1
fi

printf '\n%s' "$verdict"
echo "results in $out; $(elapsed)"
if [ "${#failed[@]}" -gt 0 ] || [ "$bench" -ne 0 ]; then exit 1; fi
