#!/usr/bin/env bash
# All that concerns a GPU, in ten minutes. Without one: ALLOW_CPU=1 and small settings.
#
#   benchmark/gpu.sh                    # everything; results in $OUT (default: benchmark/results/gpu), summary.md first
#   benchmark/gpu.sh tests speed kernels runs long
#
# tests  the GPU tests of tests/test_compile.py
# speed, kernels  benchmark/speed.py: torch's and JAX's updates by themselves and the card's float32 speed; the instructions in
#        JAX's loops
# runs   $ITERATIONS iterations on the Hopper log by each of $PATHS: time of one, all included, and memory. There are torch-graphs
#        and, for the patient, with 50 updates an iteration, torch and torch-compile as well
# long   the rest of the time: a paper-length run of JAX on each of $DATASETS, with $NUM_SEEDS seeds; their checkpoints come
#        back in $OUT, a file for each seed, and RESUME=folder-with-these-files goes on from there in the next ten minutes
#
# $BUDGET (570) seconds are for all steps: what does not fit is stopped. $PYTHON is the interpreter. $SPEED_ARGS, $RUN_ARGS and
# $LONG_ARGS go to speed.py and to the scripts (fastest: --matmul-precision tensorfloat32 --no-torch-deterministic).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
repo=$PWD
OUT=$(realpath -m "${OUT:-benchmark/results/gpu}")
if [ -n "${RESUME:-}" ]; then
  ls "$RESUME"/*__*.tar.gz >/dev/null || exit 1 # says what is not there
  RESUME=$(realpath "$RESUME")
fi
PYTHON=${PYTHON:-python3}
[[ $PYTHON != */* ]] || PYTHON=$(realpath -s "$PYTHON") # steps run in other folders
BUDGET=${BUDGET:-570}
PATHS=${PATHS:-jax-1 jax-8 torch-compile-graphs}
ITERATIONS=${ITERATIONS:-30}
DATASETS=${DATASETS:-halfcheetah-sbx-medium-v2 hopper-sbx-full-replay-v2}
NUM_SEEDS=${NUM_SEEDS:-2}
read -ra speed_args <<<"${SPEED_ARGS:-}"
read -ra run_args <<<"${RUN_ARGS:-}"
read -ra long_args <<<"${LONG_ARGS:-}"
[ $# -gt 0 ] || set -- tests speed kernels runs long

"$PYTHON" - "${ALLOW_CPU:-}" <<'END' || exit 1
import sys
from importlib.util import find_spec

names = "torch jax flax optax numpy gymnasium mujoco h5py filelock tyro tqdm tensorboardX pytest".split()
if missing := [name for name in names if not find_spec(name)]:
    sys.exit(f"missing: {' '.join(missing)} (pip install them, or put them on PYTHONPATH)")
if not sys.argv[1]:
    import jax
    import torch

    if not torch.cuda.is_available() or jax.default_backend() != "gpu":
        sys.exit('missing: a GPU that torch and jax see (pip install "jax[cuda13]")')
END

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT" "$work/logs" "$work/long"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/jax} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
printf '| step | result | seconds | GPU memory, MB |\n| --- | --- | --- | --- |\n' >"$work/steps.md"
failed=0

# note NAME: that it failed, and its last words
note() {
  failed=1
  for file in "$work/logs/$1".txt "$work/logs/$1".err.txt; do
    [ -s "$file" ] && printf '\n%s failed:\n```\n%s\n```\n' "$1" "$(tr '\r' '\n' <"$file" | tail -5)" >>"$work/failures.md"
  done
}

# step NAME LIMIT COMMAND...: what it prints goes to logs/NAME.txt; notes the most GPU memory in use meanwhile
step() {
  local name=$1 limit=$2 start=$SECONDS result=ok poll=
  shift 2
  limit=$((limit < BUDGET - SECONDS ? limit : BUDGET - SECONDS))
  : >"$work/memory"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 500 >"$work/memory" 2>/dev/null &
    poll=$!
  fi
  if [ "$limit" -le 0 ]; then
    result="no time left" failed=1
  else
    timeout "$limit" "$@" >"$work/logs/$name.txt" 2>"$work/logs/$name.err.txt" || result="failed ($?)"
    [ "$result" = "failed (124)" ] && result="stopped" # its time was up: what it has measured counts
    [[ $result == failed* ]] && note "$name"
  fi
  [ -n "$poll" ] && kill "$poll" && wait "$poll" 2>/dev/null
  echo "| $name | $result | $((SECONDS - start)) | $(sort -n "$work/memory" | tail -1) |" >>"$work/steps.md"
}

log_of() { # ENV_ID: the file of its dataset
  local name=${1%-v2}
  name=${name//-/_}-v2.hdf5
  [ -f "benchmark/datasets/$name" ] && echo "$repo/benchmark/datasets/$name" || echo "$repo/collected/$name"
}

# The logs are rebuilt meanwhile, on the CPU
declare -A rebuilds
if [[ " $* " == *" long "* ]]; then
  for env_id in $DATASETS; do
    log=$(log_of "$env_id")
    [ -f "$log" ] && continue
    "$PYTHON" benchmark/datasets/rebuild.py "benchmark/datasets/$(basename "$log" .hdf5).npz" &>"$work/logs/rebuild-$env_id.txt" &
    rebuilds[$env_id]=$!
  done
fi

for part in "$@"; do
  case $part in
    tests) step tests 120 "$PYTHON" -m pytest -v -p no:cacheprovider -k "gpu or graph" tests/test_compile.py ;;
    speed) step speed 240 "$PYTHON" benchmark/speed.py --loops torch jax-1 --updates 100 --repeats 3 --output "$work/speed.json" \
      "${speed_args[@]}" ;;
    kernels) step kernels 120 "$PYTHON" benchmark/speed.py "${speed_args[@]}" --count-kernels --loops jax-1 ;;
    runs)
      for path in $PATHS; do
        case $path in
          jax-*) script="rambo_continuous_jax.py --num-seeds ${path#jax-}" ;;
          torch-compile-graphs) script="rambo_continuous.py --compile --cudagraphs" ;;
          torch-graphs) script="rambo_continuous.py --cudagraphs" ;;
          torch-compile) script="rambo_continuous.py --compile --no-cudagraphs --updates-per-iteration 50" ;;
          torch) script="rambo_continuous.py --no-cudagraphs --updates-per-iteration 50" ;;
          *) echo "no such path: $path" >&2 && exit 1 ;;
        esac
        model=$(find "$work" -name dynamics_pretrained.npz | head -1) # pretrained by the first run only
        mkdir "$work/$path"
        cd "$work/$path" || exit
        # shellcheck disable=SC2086 # the script and its flags
        step "$path" 180 "$PYTHON" "$repo"/$script --env-id hopper-mini-v2 --total-iterations "$ITERATIONS" \
          --checkpoint-interval 0 --save-model ${model:+--load-model "$model"} "${run_args[@]}"
        cd "$repo" || exit
      done
      ;;
    long)
      for env_id in "${!rebuilds[@]}"; do wait "${rebuilds[$env_id]}" || note "rebuild-$env_id"; done
      for file in ${RESUME:+"$RESUME"/*__*.tar.gz}; do tar xzf "$file" -C "$work/long"; done
      cd "$work/long" || exit
      declare -A pids
      for env_id in $DATASETS; do # at the same time; each leaves a checkpoint every 20 iterations, whenever it is stopped
        first=$(find . -path "./runs/${env_id}__*/seeds.json" -exec dirname {} \; | sort | tail -1) # the newest
        timeout $((BUDGET - SECONDS > 20 ? BUDGET - SECONDS - 20 : 1)) "$PYTHON" "$repo/rambo_continuous_jax.py" \
          --env-id "$env_id" --dataset-path "$(cd "$repo" && log_of "$env_id")" --num-seeds "$NUM_SEEDS" \
          --no-checkpoint-buffer --checkpoint-interval 20 ${first:+--resume "$first"} "${long_args[@]}" \
          &>"$work/logs/long-$env_id.txt" &
        pids[$env_id]=$!
      done
      for env_id in $DATASETS; do
        result=finished
        wait "${pids[$env_id]}" || { [ $? -eq 124 ] && result=stopped; } || { result=failed && note "long-$env_id"; }
        echo "| long $env_id | $result | $SECONDS since the start | |" >>"$work/steps.md"
      done
      cd "$repo" || exit
      ;;
    *) echo "no such step: $part" >&2 && exit 1 ;;
  esac
done

# A file for each checkpoint, one for all the rest: many small files are slow to carry
for folder in "$work"/long/runs/*/; do
  [ -d "$folder" ] && tar czf "$OUT/$(basename "$folder").tar.gz" --exclude 'events*' --exclude .lock -C "$work/long" "runs/$(basename "$folder")"
done
(cd "$work" && find . \( -name '*.csv' -o -name '*.json' -o -name '*.txt' \) ! -path './jax/*' | tar czf "$OUT/measurements.tar.gz" -T -)
"$PYTHON" benchmark/gpu_summary.py "$work" >"$OUT/summary.md" || failed=1
[ -f "$work/failures.md" ] && cat "$work/failures.md" >>"$OUT/summary.md"
cat "$OUT/summary.md"
exit "$failed"
