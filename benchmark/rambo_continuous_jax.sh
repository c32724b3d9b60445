#!/usr/bin/env bash
# The same as rambo_continuous.sh with the JAX script. On a GPU, SEEDS=1 and --num-seeds 5 trains the five side by side.
SCRIPT=rambo_continuous_jax.py exec "$(dirname "$0")/rambo_continuous.sh" "$@"
