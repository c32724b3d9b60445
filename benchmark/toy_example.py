"""RAMBO in miniature: one state, one action, one reward, and a log with a gap between two clusters of actions.

    python benchmark/toy_example.py          # with rambo_continuous.py; seconds on a CPU
    python benchmark/toy_example.py --jax    # the same with rambo_continuous_jax.py

In the gap the true reward is bad, but the rewards logged on either side rise towards it: a maximum likelihood model draws
a bridge across, and the policy learned in this model walks onto it. The script under test runs unchanged, once with
lambda = 0 (the maximum likelihood model stays as it is) and once with lambda > 0 (RAMBO). Draws one figure.
"""

import contextlib
import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import gymnasium as gym
import h5py
import matplotlib
import numpy as np
import torch
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rambo_continuous import Actor, Dynamics, mixture_log_prob

CLUSTERS, CLUSTER_STD, REWARD_STD = (-0.6, 0.6), 0.1, 0.1
GAP = 0.3  # |action| below this: at least three standard deviations from either cluster
NUM_ELITES, HIDDEN_DIM = 5, 64
FLAGS = f"""
    --env-id OneStep-v0 --no-cuda --save-model --checkpoint-minutes 0 --eval-interval 1000 --eval-workers 0
    --rollout-length 1 --rollout-batch-size 1000 --updates-per-iteration 100 --batch-size 128
    --num-models {NUM_ELITES} --num-elites {NUM_ELITES} --model-hidden-dim {HIDDEN_DIM} --model-lr 1e-3
    --model-max-pretrain-epochs 40 --policy-lr 3e-3 --q-lr 1e-3 --no-autotune --alpha 0.02
"""


@dataclass
class Args:
    jax: bool = False
    """run rambo_continuous_jax.py instead of rambo_continuous.py"""
    output: Path = Path(__file__).resolve().parent / "figures" / "toy.png"
    """the figure"""
    adv_weight: float = 0.5
    """lambda of the second run (the first has 0)"""
    iterations: int = 10
    """iterations of 100 agent and 100 model updates"""
    rows: int = 2000
    """logged transitions"""
    seed: int = 1
    """seed of the log and of both runs"""


def true_reward(actions: np.ndarray) -> np.ndarray:
    """The mean reward: a gentle hill with a hole in its middle, where nothing was logged."""
    return 1 - actions**2 + 0.15 * actions - 2 * np.exp(-((actions / 0.2) ** 2))


class OneStep(gym.Env):
    """One state, one action in [-1, 1], one reward, the end."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = true_reward(action[0]) + REWARD_STD * self.np_random.normal()
        return np.zeros(1, np.float32), float(reward), True, False, {}


gym.register("OneStep-v0", OneStep)


def sample_log(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions [N] from two clusters and their noisy rewards [N]."""
    rng = np.random.default_rng(seed)
    actions = (rng.choice(CLUSTERS, rows) + CLUSTER_STD * rng.normal(size=rows)).clip(-1, 1).astype(np.float32)
    return actions, (true_reward(actions) + REWARD_STD * rng.normal(size=rows)).astype(np.float32)


def write_log(path: Path, actions: np.ndarray, rewards: np.ndarray) -> None:
    """The log as a D4RL-style HDF5 file."""
    states, yes, no = np.zeros((len(actions), 1), np.float32), np.ones(len(actions), bool), np.zeros(len(actions), bool)
    with h5py.File(path, "w") as file:
        columns = dict(observations=states, actions=actions[:, None], rewards=rewards, next_observations=states)
        for key, column in dict(**columns, terminals=yes, timeouts=no).items():
            file[key] = column


class Solution(NamedTuple):
    """What a run ends with; the arrays hold a value for each action of the grid."""

    model_mean: np.ndarray  # the model's expected reward
    model_std: np.ndarray  # and the standard deviation of its reward, noise and disagreement of the elites
    log_likelihood: float  # mean log-density of the logged rewards
    policy_density: np.ndarray
    policy_reward: float  # the true mean reward of the policy

    @property
    def best_action(self) -> float:
        """The action that maximises the model's expected reward."""
        return float(GRID[self.model_mean.argmax()])


GRID = np.linspace(-1, 1, 401)[1:-1]


@torch.no_grad()
def read_solution(folder: Path, actions: np.ndarray, rewards: np.ndarray) -> Solution:
    """Reads a run folder; both scripts save the same files."""
    dynamics, actor = Dynamics(NUM_ELITES, 1, 1, HIDDEN_DIM), Actor(1, 1)
    for name, module in {"dynamics.npz": dynamics, "policy.npz": actor}.items():
        with np.load(folder / name) as arrays:
            module.load_state_dict({key: torch.as_tensor(arrays[key]) for key in module.state_dict()})

    def predict(a: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.as_tensor(a, dtype=torch.float32)[:, None].expand(NUM_ELITES, -1, -1)
        mean, log_var = dynamics(torch.zeros_like(inputs), inputs)
        return mean[..., -1:], log_var[..., -1:]  # the reward; the next state never changes

    log_likelihood = mixture_log_prob(*predict(actions), torch.as_tensor(rewards)[:, None]).mean().item()
    mean, log_var = predict(GRID)
    std = (mean.var(0, correction=0) + log_var.exp().mean(0)).sqrt()
    center, log_std = (x.item() for x in actor(torch.zeros(1, 1)))
    pre_tanh = np.arctanh(GRID)
    density = np.exp(-0.5 * ((pre_tanh - center) / np.exp(log_std)) ** 2) / (1 - GRID**2)
    density /= density.sum() * (GRID[1] - GRID[0])
    policy_reward = float((density * true_reward(GRID)).sum() * (GRID[1] - GRID[0]))
    return Solution(mean.mean(0)[:, 0].numpy(), std[:, 0].numpy(), log_likelihood, density, policy_reward)


def solve(args: Args) -> tuple[Solution, Solution]:
    """Runs the script with lambda = 0, then from the same pretrained model with lambda > 0."""
    script = importlib.import_module("rambo_continuous_jax" if args.jax else "rambo_continuous")
    actions, rewards = sample_log(args.rows, args.seed)
    flags = [*FLAGS.split(), "--total-iterations", str(args.iterations), "--seed", str(args.seed)]
    solutions = []
    every_episode_ends_at_once = {"OneStep": lambda x: x[..., 0] == x[..., 0]}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        mock.patch.dict(script.TERMINATION_RULES, every_episode_ends_at_once),
    ):
        write_log(Path("log.hdf5"), actions, rewards)
        flags += ["--dataset-path", "log.hdf5"]
        for name, adv_weight in {"likelihood": 0, "rambo": args.adv_weight}.items():
            with contextlib.redirect_stdout(None):
                script.main(script.parse_args([*flags, "--adv-weight", str(adv_weight), "--exp-name", name]))
            (run,) = Path("runs").glob(f"*__{name}__*")
            solutions.append(read_solution(run, actions, rewards))
            if adv_weight == 0:
                flags += ["--load-model", str(run / "dynamics_pretrained.npz")]
    return solutions[0], solutions[1]


def draw(solutions: tuple[Solution, Solution], args: Args) -> None:
    """Two panels: the maximum likelihood model and RAMBO's, with the truth, the log and the policy."""
    actions, rewards = sample_log(args.rows, args.seed)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained", facecolor="white")
    titles = ("Maximum likelihood (λ = 0)", f"RAMBO (λ = {args.adv_weight:g})")
    for axis, title, solution in zip(axes, titles, solutions, strict=True):
        axis.axvspan(-GAP, GAP, color="#eeeeee", label="gap in the log")
        shown = slice(0, 400)
        axis.plot(actions[shown], rewards[shown], ".", color="#999999", markersize=3, label="log")
        axis.plot(GRID, true_reward(GRID), "k--", linewidth=1.2, label="true mean reward")
        axis.plot(GRID, solution.model_mean, color="#c0392b", linewidth=2, label="model, mean ± 2 std")
        low, high = (solution.model_mean + k * solution.model_std for k in (-2, 2))
        axis.fill_between(GRID, low, high, color="#c0392b", alpha=0.2, linewidth=0)
        floor = -1.9
        density = 0.6 * solution.policy_density / solution.policy_density.max()
        axis.fill_between(GRID, floor, floor + density, color="#2471a3", alpha=0.6, linewidth=0, label="policy (density)")
        best = solution.best_action
        axis.plot(best, solution.model_mean.max(), "v", color="#c0392b", markersize=9, markeredgecolor="white")
        axis.plot(best, true_reward(best), "ko", markersize=6, markerfacecolor="white")
        axis.plot([best, best], [solution.model_mean.max(), true_reward(best)], "k:", linewidth=1)
        axis.set(title=title, xlabel="action", xlim=(-1, 1), ylim=(floor, 1.6))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("reward")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120)
    plt.close(figure)


def main(args: Args) -> tuple[Solution, Solution]:
    solutions = solve(args)
    draw(solutions, args)
    print("                    best action in the model   promised   true    log-likelihood of the log   policy's true reward")
    for name, solution in zip(("maximum likelihood", "RAMBO"), solutions, strict=True):
        best, promised = solution.best_action, solution.model_mean.max()
        print(f"{name:18s}  {best:24.2f} {promised:10.2f} {true_reward(best):6.2f}", end="")
        print(f"{solution.log_likelihood:29.3f} {solution.policy_reward:22.2f}")
    print(f"Figure: {os.path.relpath(args.output)}")
    return solutions


if __name__ == "__main__":
    main(tyro.cli(Args))
