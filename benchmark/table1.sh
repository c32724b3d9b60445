#!/usr/bin/env bash
# The preprint's Table 1: 12 datasets, the pair (k, lambda) of its Table 3 that did best on each, 5 seeds.
# SCRIPT=rambo_continuous_jax.py takes the JAX script; on a GPU, SEEDS=1 and --num-seeds 5 trains its five side by side.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
DATASETS=${DATASETS:-$(echo {halfcheetah,hopper,walker2d}-{random,medium,medium-replay,medium-expert}-v2)}
SEEDS=${SEEDS:-1 2 3 4 5}
run=$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' python "${SCRIPT:-rambo_continuous.py}" "$@")

for env in $DATASETS; do
  for seed in $SEEDS; do
    echo "$run --env-id $env --seed $seed" # (k, lambda): the defaults of the script
  done
done | python benchmark/runner.py
