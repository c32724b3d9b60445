#!/usr/bin/env bash
# What each part of RAMBO does, one change at a time from k = 5, lambda = 3e-4.
# DATASETS="hopper-mini-v2" takes the bundled log, SCRIPT=rambo_continuous_jax.py the JAX script.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
DATASETS=${DATASETS:-hopper-medium-replay-v2 walker2d-medium-replay-v2 halfcheetah-medium-replay-v2}
SEEDS=${SEEDS:-1 2 3 4 5}
run=$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' python "${SCRIPT:-rambo_continuous.py}" --exp-name METHOD --rollout-length 5 "$@")
# The first word names the runs, unless an --exp-name is given
METHODS=("rambo --adv-weight 3e-4"                                                 # RAMBO
  "hardly_adversarial --adv-weight 1e-9"                                           # the model trained on, in effect without an adversary
  "frozen_model --adv-weight 0"                                                    # the model frozen, no adversary
  "strong --adv-weight 3e-3"                                                       # a strong one
  "stronger --adv-weight 3e-2"                                                     # a stronger one
  "one_model --adv-weight 3e-4 --num-models 1 --num-elites 1"                      # one model, no mixture
  "no_norm_adv --adv-weight 3e-4 --no-norm-adv"                                    # advantages of Eq. 5 not normalised
  "sac --adv-weight 0 --real-ratio 1"                                              # no model data: SAC on the log
  "cloning --adv-weight 0 --real-ratio 1 --bc-epochs 50 --total-iterations 0")     # behaviour cloning

for env in $DATASETS; do
  for seed in $SEEDS; do
    for method in "${METHODS[@]}"; do
      echo "${run/METHOD/${method%% *}} --env-id $env --seed $seed ${method#* }"
    done
  done
done | python benchmark/runner.py
