#!/usr/bin/env bash
# The README's results on logs that collect_dataset.py made (datasets/README.md): RAMBO, the same without the adversary, SAC on
# the log alone, behaviour cloning. 100 iterations, not the paper's 2,000.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
ENVS=${ENVS:-hopper walker2d halfcheetah}
SEEDS=${SEEDS:-1 2 3 4 5}

for env in $ENVS; do
  for seed in $SEEDS; do
    command="python ${SCRIPT:-rambo_continuous_jax.py} --env-id $env-sbx-medium-replay-v2 --seed $seed --rollout-length 5"
    command="$command --dataset-path collected/${env}_sbx_medium_replay-v2.hdf5 --total-iterations 100 --model-max-pretrain-epochs 25 $*"
    echo "$command --adv-weight 3e-4"                                            # RAMBO
    echo "$command --adv-weight 0"                                               # no adversary
    echo "$command --adv-weight 0 --real-ratio 1"                                # no model data: SAC on the log
    echo "$command --adv-weight 0 --real-ratio 1 --bc-epochs 50 --total-iterations 0" # behaviour cloning
  done
done | python benchmark/runner.py
