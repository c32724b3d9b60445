"""Why is the value too high, or too low: the model or the critic? `python benchmark/value_gap.py RUN_DIR ...`

Reads a run's last checkpoint and runs its policy in the real environment, from the first states of its last evaluation. At
step t the critic says Q_t, the environment gives (r, s')_t, and the model would have given (r^, s^')_t. Then, exactly,

    Q_0 - sum gamma^t r_t  =  sum gamma^t [(r^ + gamma V(s^')) - (r + gamma V(s'))]_t     the model's optimism
                              + sum gamma^t [Q - (r^ + gamma V(s^'))]_t                   the critic's error in the model
                              + gamma^T V(s_T)                                            cut off by the time limit

with V(s) = min_i Q_i(s, mode of pi(s)), 0 after a terminal. A pessimistic model, what RAMBO is after, has an optimism below 0.
"""

import contextlib
import json
import pickle
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rambo_continuous import (
    Agent,
    Dataset,
    Dynamics,
    InputError,
    load_dataset,
    make_env,
    model_targets,
    split_rows,
    termination_rule,
)
from rambo_continuous import Args as TrainingArgs

COLUMNS = ("return", "value gap", "model's optimism", "critic's error", "time limit", "error on the log", "on its own way")


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders that hold a checkpoint, of either script"""
    episodes: int = 5
    """episodes of the policy's mode in the real environment"""
    model_samples: int = 4
    """samples of each elite at each step"""


def load_checkpoint(folder: Path) -> tuple[TrainingArgs, int, dict[str, torch.Tensor]]:
    """The run's arguments, the iteration, and the arrays of agent and dynamics. Raises InputError."""
    try:
        args = json.loads((folder / "args.json").read_text())
        args = TrainingArgs(**{key: value for key, value in args.items() if key in TrainingArgs.__dataclass_fields__})
        if (folder / "checkpoint.npz").exists():
            with np.load(folder / "checkpoint.npz", allow_pickle=False) as file:
                names = [name for name in file if name.startswith(("agent.", "dynamics."))]
                return args, int(file["iteration"]), {name: torch.tensor(file[name]) for name in names}
        checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        parts = zip(("agent", "dynamics"), checkpoint["states"], strict=False)
        return args, checkpoint["iteration"], {f"{part}.{key}": x for part, state in parts for key, x in state.items()}
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise InputError(f"{folder}: no usable args.json and checkpoint there ({error})".replace("\n", " ")) from error


def load_modules(args: TrainingArgs, arrays: dict[str, torch.Tensor]) -> tuple[Agent, Dynamics]:
    """The agent and the elites, as torch modules whichever script trained them."""
    obs_dim = len(arrays["dynamics.max_log_var"]) - 1
    action_dim = len(arrays["dynamics.input_mean"]) - obs_dim
    modules = Agent(obs_dim, action_dim, args.alpha), Dynamics(args.num_elites, obs_dim, action_dim, args.model_hidden_dim)
    for name, module in zip(("agent", "dynamics"), modules, strict=True):
        module.load_state_dict({key: arrays[f"{name}.{key}"] for key in module.state_dict()})
    return modules


class LoadedRun(NamedTuple):
    args: TrainingArgs
    iteration: int  # of the checkpoint
    agent: Agent
    dynamics: Dynamics  # the elites
    env: gym.Env
    dataset: Dataset


def load_run(folder: Path, dynamics_path: Path | None = None) -> LoadedRun:
    """A run from its last checkpoint, or with the model of a dynamics*.npz of the same dataset. Raises InputError."""
    args, iteration, arrays = load_checkpoint(folder)
    if args.real_ratio == 1:
        raise InputError(f"{folder}: SAC on the log alone, there is no model")
    env = make_env(args.env_id, args.d4rl_physics)
    with contextlib.redirect_stdout(sys.stderr):
        dataset = load_dataset(args.env_id, args.dataset_path, env)
    if dynamics_path is not None:
        try:
            with np.load(dynamics_path, allow_pickle=False) as file:
                if not np.array_equal(file["obs_mean"], dataset.obs_mean):
                    raise ValueError("it was trained on another dataset")
                arrays |= {name: torch.tensor(file[name[9:]]) for name in arrays if name.startswith("dynamics.")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"--dynamics {dynamics_path}: not a model for this run ({error})".replace("\n", " ")) from error
    return LoadedRun(args, iteration, *load_modules(args, arrays), env, dataset)


@torch.no_grad()
def analyse(folder: Path, episodes: int, model_samples: int) -> dict[str, float]:
    """The iteration and COLUMNS, means over the episodes. The last two are mean absolute errors of the model's next state, in
    units of the dataset's std, on the log and at the states and actions of these episodes. Raises InputError."""
    args, iteration, agent, dynamics, env, dataset = load_run(folder)
    rule = termination_rule(env)
    obs_mean, obs_std = torch.tensor(dataset.obs_mean), torch.tensor(dataset.obs_std)
    low, high = env.action_space.low, env.action_space.high
    generator = torch.Generator().manual_seed(args.seed)

    def normalize(observations: list[np.ndarray]) -> torch.Tensor:
        return (torch.as_tensor(np.array(observations), dtype=torch.float32) - obs_mean) / obs_std

    def value(observations: torch.Tensor) -> torch.Tensor:
        return agent.critic(observations, agent.actor.mode(observations)).min(0).values

    parts, own_errors = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=args.seed + 1000 * iteration + episode)  # as in the run's own evaluation
        observations, rewards, terminal, timeout = [observation], [], False, False
        while not (terminal or timeout):
            action = agent.actor.mode(normalize([observation]))[0].numpy()
            observation, reward, terminal, timeout, _ = env.step(low + (action + 1) / 2 * (high - low))
            observations.append(observation)
            rewards.append(reward)
        states, reward = normalize(observations), torch.tensor(np.array(rewards), dtype=torch.float64)
        discounts = args.gamma ** torch.arange(len(reward) + 1, dtype=torch.float64)
        values = value(states).double()
        values[-1] *= not terminal

        inputs = (x.expand(args.num_elites, -1, -1) for x in (states[:-1], agent.actor.mode(states[:-1])))
        mean, log_var = dynamics(*inputs)
        noise = torch.randn(model_samples, *mean.shape, generator=generator)
        samples = mean + torch.exp(0.5 * log_var) * noise
        imagined = states[:-1] + samples[..., :-1]
        imagined_values = value(imagined.flatten(0, -2)).view(imagined.shape[:-1]) * ~rule(imagined * obs_std + obs_mean)
        backup = (samples[..., -1] + args.gamma * imagined_values).mean((0, 1)).double()

        optimism = (discounts[:-1] * (backup - reward - args.gamma * values[1:])).sum()
        critic = (discounts[:-1] * (values[:-1] - backup)).sum()
        cut_off = discounts[-1] * values[-1]
        gap = values[0] - (discounts[:-1] * reward).sum()
        parts.append(torch.stack([reward.sum(), gap, optimism, critic, cut_off]))
        own_errors.append((mean[..., :-1] - (states[1:] - states[:-1])).abs().mean())

    log = split_rows(torch.tensor(dataset.rows[:: max(1, len(dataset.rows) // 10_000)]), dataset.obs_dim, dataset.action_dim)
    mean, _ = dynamics(*(x.expand(args.num_elites, -1, -1) for x in (log.observations, log.actions)))
    log_error = (mean - model_targets(log))[..., :-1].abs().mean()
    numbers = [*torch.stack(parts).mean(0), log_error, torch.stack(own_errors).mean()]
    return {"iteration": iteration} | dict(zip(COLUMNS, map(float, numbers), strict=True))


def main(args: Args) -> None:
    rows = [(folder, analyse(folder, args.episodes, args.model_samples)) for folder in args.runs]
    header = ["run", "iteration", *COLUMNS]
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for folder, row in rows:
        shown = [f"{row[key]:.3f}" if key in COLUMNS[-2:] else f"{row[key]:.1f}" for key in COLUMNS]
        print(f"| {folder.resolve().name} | {row['iteration']} | {' | '.join(shown)} |")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
