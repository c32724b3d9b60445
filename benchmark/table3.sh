#!/usr/bin/env bash
# The preprint's Table 3: 12 datasets, four pairs (k, lambda), 5 seeds (the preprint: 3). Runs of table1.sh count: they are
# one of the four pairs. SCRIPT=rambo_continuous_jax.py takes the JAX script.
# DRY_RUN=1 shows the commands, WORKERS=n runs n at once, further arguments go to every run; see runner.py.
set -euo pipefail
cd "$(dirname "$0")/.."
DATASETS=${DATASETS:-$(echo {halfcheetah,hopper,walker2d}-{random,medium,medium-replay,medium-expert}-v2)}
SEEDS=${SEEDS:-1 2 3 4 5}
run=$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' python "${SCRIPT:-rambo_continuous.py}" "$@")

for env in $DATASETS; do
  for seed in $SEEDS; do
    for pair in "1 3e-4" "2 3e-4" "5 3e-4" "5 0"; do
      read -r k lambda <<<"$pair"
      echo "$run --env-id $env --seed $seed --rollout-length $k --adv-weight $lambda"
    done
  done
done | python benchmark/runner.py
