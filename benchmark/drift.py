"""Do the model's rollouts lead where the simulator's do not, and what is it worth? `python benchmark/drift.py RUN_DIR ...`

Reads a run's last checkpoint and starts from dataset states, as training does. The policy acts, once in the model and once in
the simulator, for more steps than training's k. A row of the table is a depth, with averages over the rollouts still alive:

    V model, V simulator   min_i Q_i(s, mode of pi(s)) of the states reached: mean, and the largest but 1 % (p99)
    optimism               of one model step: its r + gamma V(s') minus the simulator's, from the same imagined (s, a)
    error, sigma           of that step: mean absolute error of its next state, and the standard deviation the model admits to
    disagreement           standard deviation over the elites of their predicted mean
    worst, by              the observation (counted from 0) with the largest mean absolute error, and that error

States are in units of the dataset's std. Hopper, HalfCheetah and Walker2d only, whose observations are all positions but x,
and the velocities; a velocity that the observation cut off at 10 enters the simulator as 10.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))
from value_gap import load_run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rambo_continuous import D4RL_ENVS, InputError, termination_rule

COLUMNS = ("depth", "alive", "V model", "p99", "V simulator", "p99 ", "optimism", "error", "sigma", "disagreement")
COLUMNS += ("worst", "by")


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders that hold a checkpoint, of either script"""
    dynamics: Path | None = None
    """the model to roll out instead of the checkpoint's: a dynamics*.npz of the same dataset"""
    depth: int = 10
    """steps of the rollouts"""
    starts: int = 2000
    """dataset states to start from; a multiple of num_elites"""


def simulate(env: gym.Env, observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of the simulator from each observation [B, O] with the environment's action [B, A]: next observations [B, O],
    rewards [B] and terminals [B]. The robot's x, which no observation holds, is 0."""
    simulator, steps = env.unwrapped, []
    num_positions = simulator.model.nq - 1
    for observation, action in zip(observations, actions, strict=True):
        simulator.set_state(np.append(0.0, observation[:num_positions]), observation[num_positions:])
        steps.append(simulator.step(action)[:3])
    return tuple(np.array(column) for column in zip(*steps, strict=True))


@torch.no_grad()
def rollouts(folder: Path, starts: int, depth: int, dynamics_path: Path | None = None) -> tuple[int, list[dict[str, float]]]:
    """The checkpoint's iteration, and COLUMNS at each depth. Raises InputError."""
    args, iteration, agent, dynamics, env, dataset = load_run(folder, dynamics_path)
    if args.env_id.split("-")[0] not in D4RL_ENVS:
        raise InputError(f"{folder}: only for {', '.join(D4RL_ENVS)}: observations of {args.env_id} do not give its state")
    if starts < 1 or starts % args.num_elites:
        raise InputError(f"--starts must be a multiple of {args.num_elites}, the number of elites")
    rule = termination_rule(env)
    obs_mean, obs_std = torch.tensor(dataset.obs_mean), torch.tensor(dataset.obs_std)
    low, high = env.action_space.low, env.action_space.high
    generator = torch.Generator().manual_seed(args.seed)
    members, rows = torch.arange(starts) % args.num_elites, torch.arange(starts)  # one elite for each rollout, as in training

    def value(states: torch.Tensor) -> torch.Tensor:
        return agent.critic(states, agent.actor.mode(states)).min(0).values

    def act(states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, log_std = agent.actor(states)
        return torch.tanh(mean + log_std.exp() * noise)

    def step(states: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The simulator's step in normalised states."""
        actions = low + (actions.numpy() + 1) / 2 * (high - low)
        following, rewards, terminals = simulate(env, (states * obs_std + obs_mean).double().numpy(), actions)
        return (torch.tensor(following).float() - obs_mean) / obs_std, torch.tensor(rewards).float(), torch.tensor(terminals)

    choice = torch.randint(len(dataset.rows), (starts,), generator=generator)
    imagined = simulated = torch.tensor(dataset.rows[choice.numpy(), : dataset.obs_dim])
    alive, alive_simulated = torch.ones(2, starts, dtype=torch.bool)
    table = []
    for i in range(depth + 1):
        noise = torch.randn(starts, dataset.action_dim, generator=generator)
        actions = act(imagined, noise)
        mean, log_var = dynamics(*(x.expand(args.num_elites, -1, -1) for x in (imagined, actions)))
        sigma = torch.exp(0.5 * log_var[members, rows])
        sample = mean[members, rows] + sigma * torch.randn(sigma.shape, generator=generator)
        following, reward = imagined + sample[:, :-1], sample[:, -1]
        terminal = rule(following * obs_std + obs_mean)
        truth, true_reward, true_terminal = step(imagined, actions)
        optimism = reward - true_reward + args.gamma * (value(following) * ~terminal - value(truth) * ~true_terminal)
        values, values_simulated = value(imagined)[alive], value(simulated)[alive_simulated]
        errors, disagreement = (following - truth).abs()[alive].mean(0), mean.std(0)[alive].mean()
        numbers = [alive.float().mean(), values.mean(), values.quantile(0.99), values_simulated.mean()]
        numbers += [values_simulated.quantile(0.99), optimism[alive].mean(), errors.mean(), sigma[alive].mean()]
        numbers += [disagreement, errors.argmax(), errors.max()]
        table.append(dict(zip(COLUMNS, [i, *map(float, numbers)], strict=True)))
        simulated, _, fallen = step(simulated, act(simulated, noise))
        imagined, alive, alive_simulated = following, alive & ~terminal, alive_simulated & ~fallen
    return iteration, table


def main(args: Args) -> None:
    for folder in args.runs:
        iteration, table = rollouts(folder, args.starts, args.depth, args.dynamics)
        model = f", the model of {args.dynamics}" if args.dynamics else ""
        print(f"{folder.resolve().name}, iteration {iteration}{model}\n")
        print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
        for row in table:
            digits = {"depth": 0, "worst": 0} | dict.fromkeys(("alive", "error", "sigma", "disagreement", "by"), 3)
            print("| " + " | ".join(f"{row[key]:.{digits.get(key, 1)}f}" for key in COLUMNS) + " |")
        print()


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
