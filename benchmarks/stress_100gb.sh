#!/usr/bin/env bash
# Factors a 100 GB symmetric positive definite matrix in place on disk, in 16 GB of RAM and 8 GB of GPU memory, and checks the factor.
#
#   benchmarks/stress_100gb.sh [more options of `pycauset stress`]
#
# One triangle of the matrix, 51 GB, is written to FOLDER tile by tile and becomes the factor there, under a journal; FOLDER needs 53 GB
# free. Elements are functions of their indices, so that the check generates them again. On Linux the whole process tree, page cache
# included, is put under a memory limit of RAM: by a cgroup where one can be written (v2, else v1), else by systemd-run. The factor
# must not take longer than BAR times what the plan's disk bytes take at the disk's bandwidth. A run that was interrupted, by Ctrl-C or
# a kill, goes on where it stopped when it is started again in the same FOLDER; when the factor has been checked it is removed, unless
# --keep is given.
#
#   SIZE=100GB  MEMORY=14GB  GPU_MEMORY=8GB  RAM=16GB  BAR=1.5  FOLDER=one under the scratch setting  PYTHON=python3
#
# MEMORY is less than RAM: the interpreter, CUDA's context and what the kernel caches need the rest.
#
# Exit status: 0 if all passed; 1 if a check, a limit or BAR failed, or the run did; 2 for bad arguments; 3 if all passed, but nothing
# held the process to RAM.
set -uo pipefail

size=${SIZE:-100GB} memory=${MEMORY:-14GB} gpu_memory=${GPU_MEMORY:-8GB} ram=${RAM:-16GB} bar=${BAR:-1.5} folder=${FOLDER:-}
python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n '2,18p' "${BASH_SOURCE[0]}"
  exit 0
fi

bytes=$("$python" -c 'import sys; from pycauset.units import parse_bytes; print(parse_bytes(sys.argv[1]))' "$ram") || exit 2
command=("$python" -m pycauset stress --op cholesky --size "$size" --memory "$memory" --gpu-memory "$gpu_memory")
if [[ -n $folder ]]; then
  mkdir -p "$folder" || exit 2
  command+=(--folder "$folder")
fi
command+=("$@")

"$python" - "$root" "$folder" "SIZE=$size RAM=$ram MEMORY=$memory GPU_MEMORY=$gpu_memory benchmarks/stress_100gb.sh $*" <<'PYTHON' || exit 2
import argparse, sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]) / "benchmarks"))
import report
from pycauset.storage import scratch_folder

report.command_line = lambda: sys.argv[3].strip()
options = argparse.Namespace(smoke=False, output=None)
report.Report("a Cholesky factorisation larger than memory", options, folder=Path(sys.argv[2]) if sys.argv[2] else scratch_folder())
PYTHON

# The pages that a limited process writes count as its own until they are on disk; swap would hide a broken limit.
limited='' cgroup='' prefix=()
enter() { # folder of the new group, file that takes the limit, file that limits swap and what it takes, group to go back to
  mkdir "$1" || return 1
  if ! { echo "$bytes" >"$1/$2" && echo $$ >"$1/cgroup.procs"; }; then
    rmdir "$1"
    return 1
  fi
  cgroup=$1 limited="$2 $bytes of a cgroup"
  if [[ -e $1/$3 ]] && ! echo "$4" >"$1/$3"; then limited+=", swap not limited"; fi
  # shellcheck disable=SC2064
  trap "echo \$\$ >'$5/cgroup.procs'; rmdir '$1'" EXIT
}
cgroup_v2() {
  local top=/sys/fs/cgroup
  [[ -w $top/cgroup.procs ]] || return 1
  grep -qw memory $top/cgroup.subtree_control || echo +memory >$top/cgroup.subtree_control || return 1
  enter "$top/pycauset-stress-$$" memory.max memory.swap.max 0 "$top$(sed -n 's/^0:://p' /proc/self/cgroup)"
}
cgroup_v1() {
  local top=/sys/fs/cgroup/memory
  [[ -w $top/cgroup.procs ]] || return 1
  enter "$top/pycauset-stress-$$" memory.limit_in_bytes memory.memsw.limit_in_bytes "$bytes" \
    "$top$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)"
}

if cgroup_v2 2>/dev/null || cgroup_v1 2>/dev/null; then
  :
elif command -v systemd-run >/dev/null && systemd-run --scope --quiet -p MemoryMax="$bytes" true 2>/dev/null; then
  prefix=(systemd-run --scope --quiet -p "MemoryMax=$bytes" -p MemorySwapMax=0)
  limited="MemoryMax $bytes by systemd-run"
else
  limited="none: neither cgroups nor systemd-run can be used here, so that only pycauset keeps to its own limit"
fi
printf '%-34s %s\n' 'limit of the process' "$limited"
shown=${command[*]:4}
if [[ -n $folder ]]; then # reports are kept: they name no path of a machine
  shown=${shown/"--folder $folder"/"--folder $(basename "$folder")"}
fi
printf '%-34s %s\n\n' 'runs' "pycauset stress $shown"

table=$(mktemp) || exit 2
"${prefix[@]}" "${command[@]}" | tee -i "$table"
status=${PIPESTATUS[0]}
ratio=$(sed -n 's/^planned disk bytes .*the time is \([0-9.]*\) times it$/\1/p' "$table")
rm -f "$table"
if [[ -n $cgroup ]]; then
  peak=$(cat "$cgroup/memory.peak" "$cgroup/memory.max_usage_in_bytes" 2>/dev/null) # page cache included: it may fill the limit
  printf '%-34s %s of %s bytes\n' 'peak of the cgroup' "${peak:-unknown}" "$bytes"
fi
if [[ -z $ratio ]]; then
  verdict='not measured: the factorisation was not made in this run alone'
elif awk "BEGIN { exit !($ratio <= $bar) }"; then
  verdict="$ratio   bar ≤ $bar   PASS"
else
  verdict="$ratio   bar ≤ $bar   FAIL"
  ((status == 0)) && status=1
fi
printf '%-34s %s\n' 'time over planned disk bytes' "$verdict"
if [[ $limited == none* ]]; then
  ((status == 0)) && status=3
  printf 'NOT UNDER A LIMIT: nothing held the process to %s; status %s\n' "$ram" "$status"
fi
exit "$status"
