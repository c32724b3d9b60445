#!/usr/bin/env bash
# The results on datasets of our own (datasets/README.md): RAMBO, the same without the adversary, our setting
# (runaway_values.md), SAC on the dataset alone, behaviour cloning. 100 iterations, not the paper's 2,000. The datasets are
# rebuilt first where they are missing.
#   QUALITY=medium-replay   on Hopper and HalfCheetah; full-replay: on Hopper and Walker2d; medium: on all three
#   K=5                     steps of a rollout of the first two; K=20 starts fewer, so that an iteration adds as many rows
# ENVS="hopper" takes one of them, SCRIPT=rambo_continuous.py the torch script.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
QUALITY=${QUALITY:-medium-replay}
K=${K:-5}
case $QUALITY in
  medium-replay) envs="hopper halfcheetah" ;;
  full-replay) envs="hopper walker2d" ;;
  medium) envs="hopper halfcheetah walker2d" ;;
  *) echo "error: QUALITY=$QUALITY: must be medium-replay, full-replay or medium" >&2 && exit 1 ;;
esac
ENVS=${ENVS:-$envs}
LOG=sbx_${QUALITY//-/_}-v2        # collected/ENV_$LOG.hdf5
run=$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' python "${SCRIPT:-rambo_continuous_jax.py}" \
  --exp-name METHOD --total-iterations 100 --model-max-pretrain-epochs 25 --rollout-length "$K" --rollout-batch-size $((250000 / K)) "$@")
# The first word names the runs, unless an --exp-name is given
METHODS=("rambo --adv-weight 3e-4"                                                 # RAMBO
  "frozen_model --adv-weight 0"                                                    # no adversary
  "ours --adv-weight 0 --rollout-length 20 --rollout-batch-size 12500 --halt-outside --policy-average 0.9" # our setting
  "sac --adv-weight 0 --real-ratio 1"                                              # no model data: SAC on the dataset
  "cloning --adv-weight 0 --real-ratio 1 --bc-epochs 50 --total-iterations 0")     # behaviour cloning

for env in $ENVS; do
  [ "${DRY_RUN:-0}" != 0 ] || [ -f "collected/${env}_$LOG.hdf5" ] || python benchmark/datasets/rebuild.py "benchmark/datasets/${env}_$LOG.npz"
done
for env in $ENVS; do
  if [ "$env" = hopper ]; then seeds="1 2 3 4 5"; else seeds="1 2 3"; fi
  for method in "${METHODS[@]}"; do # the longest runs first: with WORKERS=n the short ones fill the gaps
    for seed in ${SEEDS:-$seeds}; do
      echo "${run/METHOD/${method%% *}} --env-id $env-sbx-$QUALITY-v2 --seed $seed --dataset-path collected/${env}_$LOG.hdf5 ${method#* }"
    done
  done
done | python benchmark/runner.py
