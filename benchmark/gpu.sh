#!/usr/bin/env bash
# What the README's section Speed says about a GPU, measured within ten minutes. NOT RUN ON A GPU YET: written without one.
#
#   benchmark/gpu.sh                    # everything; results in $OUT (default: benchmark/results/gpu), summary.md first
#   benchmark/gpu.sh speed runs         # some of: speed, runs, tests, profile
#
# speed    the tables of benchmark/speed.py
# runs     the quick start with 50 iterations: torch with --cudagraphs, JAX with 1 and with 8 seeds; seconds per iteration
#          with its evaluation, a full run of 2,000 iterations extrapolated from them, memory
# tests    tests/test_compile.py: the same losses with and without --compile and --cudagraphs
# profile  the kernels that take the time
#
# Needs one NVIDIA GPU and the packages of requirements.txt and pytest, with a GPU build of jax; $PYTHON is the interpreter.
# $BUDGET (570 seconds) is the time for all steps: what does not fit is stopped and counts as failed. For a trial without a
# GPU: ALLOW_CPU=1, and $SPEED_ARGS and $RUN_ARGS (more arguments for speed.py and for both scripts) that make all small.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
repo=$PWD
OUT=$(realpath -m "${OUT:-benchmark/results/gpu}")
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-570}
ITERATIONS=${ITERATIONS:-50}
read -ra speed_args <<<"${SPEED_ARGS:-}"
read -ra run_args <<<"${RUN_ARGS:-}"
steps=("${@:-speed runs tests profile}")
read -ra steps <<<"${steps[*]}"

"$PYTHON" - "${ALLOW_CPU:-}" <<'EOF' || exit 1
import sys
from importlib.util import find_spec

names = "torch jax flax optax numpy gymnasium mujoco h5py tyro tqdm tensorboardX pytest".split()
if missing := [name for name in names if not find_spec(name)]:
    sys.exit(f"missing: {' '.join(missing)} (pip install them, or put them on PYTHONPATH)")
import jax
import torch

if not sys.argv[1] and not torch.cuda.is_available():
    sys.exit("missing: a GPU that torch sees")
if not sys.argv[1] and jax.default_backend() != "gpu":
    sys.exit('missing: a GPU that jax sees (pip install "jax[cuda13]")')
EOF

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=$work/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
graphs=(--cudagraphs)
[ -n "${ALLOW_CPU:-}" ] && graphs=()
failed=0
printf '| step | result | seconds | GPU memory, MB |\n| --- | --- | --- | --- |\n' >"$OUT/summary.md"
: >"$OUT/log.txt"

# step NAME LIMIT FILE COMMAND...: output to FILE, progress to log.txt, and the most GPU memory in use meanwhile
step() {
  local name=$1 limit=$2 file=$3 start=$SECONDS result=ok poll=
  shift 3
  limit=$((limit < BUDGET - SECONDS ? limit : BUDGET - SECONDS))
  echo "== $name: $*" >>"$OUT/log.txt"
  if [ "$limit" -le 0 ]; then
    result="no time left" failed=1
  else
    : >"$work/memory"
    if command -v nvidia-smi >/dev/null; then
      nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 500 >"$work/memory" 2>/dev/null &
      poll=$!
    fi
    timeout "$limit" "$@" >"$file" 2>>"$OUT/log.txt" || { result="failed ($?)" failed=1; }
    [ -n "$poll" ] && kill "$poll" && wait "$poll" 2>/dev/null
  fi
  echo "| $name | $result | $((SECONDS - start)) | $(sort -n "$work/memory" 2>/dev/null | tail -1) |" >>"$OUT/summary.md"
}

quick_start() { # NAME LIMIT SCRIPT ARGUMENTS...: the run folders end up in $work/NAME/runs
  local name=$1 limit=$2 script=$3
  shift 3
  mkdir -p "$work/$name"
  cd "$work/$name" || exit
  step "$name" "$limit" "$work/$name/output.txt" "$PYTHON" "$repo/$script" --env-id hopper-mini-v2 \
    --model-max-pretrain-epochs 40 --total-iterations "$ITERATIONS" --checkpoint-interval 0 "$@" "${run_args[@]}"
  cd "$repo" || exit
}

for part in "${steps[@]}"; do
  case $part in
    speed)
      step "speed.py" 240 "$OUT/speed.md" "$PYTHON" benchmark/speed.py --updates 200 --output "$OUT/speed.json" \
        "${speed_args[@]}"
      ;;
    runs)
      quick_start torch-graphs 120 rambo_continuous.py "${graphs[@]}"
      quick_start jax-1 120 rambo_continuous_jax.py
      quick_start jax-8 200 rambo_continuous_jax.py --num-seeds 8
      ;;
    tests) step "test_compile.py" 120 "$work/tests.txt" "$PYTHON" -m pytest -v -p no:cacheprovider tests/test_compile.py ;;
    profile)
      step "speed.py --profile" 100 "$OUT/profile.md" "$PYTHON" benchmark/speed.py --profile --updates 200 "${speed_args[@]}"
      ;;
    *) echo "no such step: $part" >&2 && exit 1 ;;
  esac
done

[ -f "$work/tests.txt" ] && cat "$work/tests.txt" >>"$OUT/log.txt"
find "$work" -path '*/runs/*' \( -name '*.csv' -o -name '*.json' \) -printf '%P\n' | tar czf "$OUT/runs.tar.gz" -C "$work" -T -
"$PYTHON" - "$work" "$OUT" >>"$OUT/summary.md" <<'EOF'
import csv
import json
import sys
from pathlib import Path

work, out = map(Path, sys.argv[1:])
print("\n| quick start | start and pretraining | one iteration | 2,000 iterations | last scores |\n| --- | --- | --- | --- | --- |")
for name in ("torch-graphs", "jax-1", "jax-8"):
    runs = [list(csv.DictReader(path.open())) for path in sorted((work / name).glob("runs/*/evaluations.csv"))]
    if runs and len(runs[0]) > 2:
        start, first, last = (float(runs[0][i]["seconds"]) for i in (0, 1, -1))
        one = (last - first) / (int(runs[0][-1]["iteration"]) - int(runs[0][1]["iteration"]))
        scores = " ".join(f"{float(rows[-1]['normalized_score_mean']):.1f}" for rows in runs)
        print(f"| {name} | {start:.0f} s | {one:.2f} s | {(start + 2000 * one) / 60:.0f} min | {scores} |")
if (out / "speed.json").exists():
    loops = json.loads((out / "speed.json").read_text())["loops"]
    pair = {name: loop["agent"]["seconds"] + loop["adversarial"]["seconds"] for name, loop in loops.items()}
    print("\n| loop | one update of each kind | plain torch takes so many times as long |\n| --- | --- | --- |")
    for name, seconds in pair.items():
        print(f"| {name} | {1000 * seconds:.3f} ms | {pair['torch'] / seconds:.2f} |")
EOF
cat "$OUT/summary.md"
exit "$failed"
