#!/usr/bin/env bash
# The GPU tests, then the GPU benchmarks, each with its own timeout; reports and logs go to the folder given.
#
#   benchmarks/run_gpu.sh OUTPUT_FOLDER [FOLDER_ON_THE_DISK_UNDER_TEST]
#
# A step that fails or runs out of time does not stop the next. PYTHON names the interpreter (default: python3).
set -uo pipefail

if (($# < 1)); then
  sed -n '2,6p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
python=${PYTHON:-python3}
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
disk=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

step() { # name, seconds, command...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  printf '\n== %s\n' "$name"
  timeout --kill-after=20 "$limit" "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  printf '   %s: status %s after %s s\n' "$name" "$status" "$((SECONDS - start))" | tee -a "$out/steps.txt"
  if ((status != 0)); then failed=1; fi
}

bench() { # script, seconds, options...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" "benchmarks/$name.py" --output "$out/$name.txt" "$@"
}

: >"$out/steps.txt"
step audit 60 "$python" -c "
import sys, time
from pathlib import Path
from pycauset import cuda
from pycauset.devices.audit import scratch_folder
from pycauset.hardware.machine import describe_machine
start = time.perf_counter()
profile = cuda.benchmark(force=True)
print(f'audit {time.perf_counter() - start:.2f} s, of it measuring {profile.audit_seconds:.2f} s')
describe_machine(sys.argv[1], profile, scratch_folder())
" "$out/profile.json"
PYCAUSET_REQUIRE_GPU=1 step tests 240 "$python" -m pytest -q -p no:cacheprovider tests/gpu
bench gpu_matmul_pinned 150
bench gpu_matmul_pageable 180
bench gpu_matmul_disk 200 ${disk:+--folder "$disk"}
bench gpu_cholesky_pinned 240
bench gpu_eigsh_pinned 120
bench gpu_eigsh_resident 60
FOLDER=$disk PYTHON=$python step stress_100gb 580 benchmarks/stress_100gb.sh --backend gpu --no-progress
bench regret 420
bench small_overhead 60
bench async_vs_sync 180 ${disk:+--folder "$disk"}

printf '\n'
cat "$out/steps.txt"
exit "$failed"
