#!/usr/bin/env bash
# The settings of the authors' final code (NeurIPS 2022): their pairs (k, lambda), 50 epochs of behaviour cloning first.
# SCRIPT=rambo_continuous_jax.py takes the JAX script.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
SEEDS=${SEEDS:-1 2 3 4 5}
run=$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' python "${SCRIPT:-rambo_continuous.py}" --bc-epochs 50 "$@")

while read -r env k lambda; do
  for seed in $SEEDS; do
    echo "$run --env-id $env --seed $seed --rollout-length $k --adv-weight $lambda"
  done
done <<EOT | python benchmark/runner.py
halfcheetah-random-v2 5 0
halfcheetah-medium-v2 5 3e-4
halfcheetah-medium-replay-v2 5 3e-4
halfcheetah-medium-expert-v2 5 3e-4
hopper-random-v2 2 3e-4
hopper-medium-v2 5 3e-4
hopper-medium-replay-v2 2 3e-4
hopper-medium-expert-v2 5 3e-4
walker2d-random-v2 5 0
walker2d-medium-v2 5 0
walker2d-medium-replay-v2 5 0
walker2d-medium-expert-v2 2 3e-4
EOT
