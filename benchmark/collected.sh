#!/usr/bin/env bash
# The README's results on logs that collect_dataset.py made (datasets/README.md): RAMBO, the same without the adversary, SAC on
# the log alone, behaviour cloning. 100 iterations, not the paper's 2,000. The logs are rebuilt first where they are missing.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
QUALITY=${QUALITY:-medium-replay} # or full-replay, medium
case $QUALITY in full-replay) envs="hopper walker2d" ;; medium) envs="hopper halfcheetah walker2d" ;; *) envs="hopper halfcheetah" ;; esac
ENVS=${ENVS:-$envs}
LOG=sbx_${QUALITY//-/_}-v2        # collected/ENV_$LOG.hdf5
METHODS=("--adv-weight 3e-4"                                               # RAMBO
  "--adv-weight 0"                                                         # no adversary
  "--adv-weight 0 --real-ratio 1"                                          # no model data: SAC on the log
  "--adv-weight 0 --real-ratio 1 --bc-epochs 50 --total-iterations 0")     # behaviour cloning

for env in $ENVS; do
  [ "${DRY_RUN:-0}" != 0 ] || [ -f "collected/${env}_$LOG.hdf5" ] || python benchmark/rebuild_dataset.py "benchmark/datasets/${env}_$LOG.npz"
done
for env in $ENVS; do
  if [ "$env" = hopper ]; then seeds="1 2 3 4 5"; else seeds="1 2 3"; fi
  for method in "${METHODS[@]}"; do # the longest runs first: with WORKERS=n the short ones fill the gaps
    for seed in ${SEEDS:-$seeds}; do
      command="python ${SCRIPT:-rambo_continuous_jax.py} --env-id $env-sbx-$QUALITY-v2 --seed $seed --rollout-length 5"
      command="$command --dataset-path collected/${env}_$LOG.hdf5 --total-iterations 100"
      echo "$command --model-max-pretrain-epochs 25 $* $method"
    done
  done
done | python benchmark/runner.py
