#!/usr/bin/env bash
# D4RL's medium and random datasets, recorded again (datasets/README.md, "Resampled"): RAMBO with the script's own (k, lambda),
# which are the paper's, with our setting (runaway_values.md), and behaviour cloning. The files, collected/resampled/hopper_medium-v2.hdf5 and so on, are made first
# where they are missing: medium from a D4RL file of that body with its policy (two episodes of it are enough), found in
# $D4RL_DATASET_DIR or ~/.d4rl/datasets as hopper_medium-v2.hdf5; random from nothing.
#   ITERATIONS=300, EPOCHS=150   of training; of pretraining, at most
#   SHARE_ENSEMBLE=1             the seeds of a dataset share one pretrained ensemble, seed 1's; 0: each has its own (a finished run of either kind counts)
# DATASETS="hopper-medium-v2" takes one of them, SEEDS="1 2 3" the seeds (default: these; hopper-random, walker2d-random: 1),
# SCRIPT=rambo_continuous.py the torch script.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
export SHARE_ENSEMBLE=${SHARE_ENSEMBLE:-1}
DATASETS=${DATASETS:-hopper-medium-v2 walker2d-medium-v2 halfcheetah-medium-v2 halfcheetah-random-v2 hopper-random-v2 walker2d-random-v2}
SOURCES=${D4RL_DATASET_DIR:-$HOME/.d4rl/datasets}
run=$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' python "${SCRIPT:-rambo_continuous_jax.py}" \
  --total-iterations "${ITERATIONS:-300}" --model-max-pretrain-epochs "${EPOCHS:-150}" "$@")
METHODS=("" # the paper's setting, ours, behaviour cloning
  "--rollout-length 20 --rollout-batch-size 12500 --adv-weight 0 --halt-outside --policy-average 0.9 --total-iterations 100"
  "--real-ratio 1 --bc-epochs 50 --total-iterations 0")

file_of() { # ENV_ID: the name that D4RL gives its file
  local name=${1%-v2}
  echo "${name//-/_}-v2.hdf5"
}

for env in $DATASETS; do
  file=$(file_of "$env")
  case $env in
    *-random-v2) source=$env ;;
    *-medium-v2) source=$SOURCES/$file ;;
    *) echo "error: DATASETS=$env: must be {hopper,walker2d,halfcheetah}-{medium,random}-v2" >&2 && exit 1 ;;
  esac
  [ "${DRY_RUN:-0}" != 0 ] || [ -f "collected/resampled/$file" ] ||
    python benchmark/datasets/resample.py "$source" --output "collected/resampled/$file"
done
for env in $DATASETS; do
  case $env in hopper-random-v2 | walker2d-random-v2) seeds=1 ;; *) seeds="1 2 3" ;; esac
  for method in "${METHODS[@]}"; do # the longest runs first: with WORKERS=n the short ones fill the gaps
    for seed in ${SEEDS:-$seeds}; do
      echo "$run --env-id $env --seed $seed --dataset-path collected/resampled/$(file_of "$env") $method"
    done
  done
done | python benchmark/runner.py
