"""How fast RAMBO runs on this machine, part by part, next to the loop that a good engineer writes first.

    python benchmark/speed.py                # every loop this machine can run, the tables of the README's section Speed
    python benchmark/speed.py --iterations 1 # the same with whole iterations timed instead of added up from their parts
    python benchmark/speed.py --scaling      # how cost grows with batch size, ensemble, rows, rollout length and seeds
    python benchmark/speed.py --profile      # which operations take the time
    python benchmark/speed.py --loading      # time and memory of loading a dataset of two million rows

The loops: yardstick (below), torch (rambo_continuous.py), torch-compile, torch-graphs and torch-compile-graphs (the same with
--compile, --cudagraphs), jax-N (rambo_continuous_jax.py with --num-seeds N). Every loop is warmed up, then they take turns,
round after round, so that whatever else the machine does hits all alike. Figures are medians over the rounds with the lowest
and the highest; ratios are medians of the ratios within a round. The data is made up, in the dimensions of --env-id.
"""

import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import h5py
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import rambo_continuous as rambo  # noqa: E402


@dataclass
class Args:
    scaling: bool = False
    """show how cost grows with batch size, ensemble size, rows, rollout length and seeds instead"""
    profile: bool = False
    """show which operations take the time instead"""
    loading: bool = False
    """measure time and memory of loading a dataset of --loading-rows rows instead"""
    loops: tuple[str, ...] = ()
    """yardstick, torch, torch-compile, torch-graphs, torch-compile-graphs, jax-1, jax-4, ...; default: all that run here"""
    iterations: int = 0
    """time so many whole iterations of each loop; 0 adds the iteration up from its parts"""
    repeats: int = 5
    """rounds in which the loops take turns"""
    updates: int = 50
    """updates in each timed block of a round, at least 5"""
    matrix_gflop: float | None = None
    """arithmetic in each timed block of plain matrix products; default: 20 on a CPU, 500 on a GPU"""
    cuda: bool = True
    """measure on the GPU if there is one; --no-cuda measures on the CPU"""
    output: Path | None = None
    """also write the figures to this JSON file"""

    # What is timed: the defaults are those of the scripts
    env_id: str = "hopper-medium-v2"
    """gives the dimensions and the environment of the evaluation"""
    rows: int = 1_000_000
    """transitions in the synthetic dataset"""
    batch_size: int = 256
    updates_per_iteration: int = 1000
    rollout_length: int = 5
    rollout_batch_size: int = 50_000
    rollout_retain_iterations: int = 5
    num_models: int = 7
    num_elites: int = 5
    model_hidden_dim: int = 200
    eval_episodes: int = 10
    loading_rows: int = 2_000_000
    """transitions in the file of --loading: 17-dimensional observations, 6-dimensional actions"""


PARTS = {"agent": "agent update", "adversarial": "adversarial update", "pretraining": "pretraining update"}
PARTS |= {"rollout": "rollouts", "evaluation": "evaluation"}
UPDATES = ("agent", "adversarial", "pretraining")  # a timed block of these holds --updates of them, of the others one
SCALES = {  # what grows, how far, and which parts it touches
    "batch_size": ((64, 128, 256, 512, 1024), UPDATES),
    "ensemble": ((1, 3, 5, 7, 10), ("adversarial", "pretraining", "rollout")),
    "rows": ((10_000, 100_000, 1_000_000, 2_000_000), UPDATES),
    "rollout_length": ((1, 2, 5, 10), ("agent", "rollout")),
    "seeds": ((1, 2, 4, 8, 16), ("agent", "adversarial", "pretraining", "rollout")),
}


class Problem(NamedTuple):
    """What every loop works on."""

    args: rambo.Args  # the scripts' arguments
    rows: np.ndarray  # float32 [N, 2O + A + 2]
    obs_dim: int
    action_dim: int
    obs_mean: np.ndarray  # [O]
    obs_std: np.ndarray  # [O]
    rule: Callable  # the environment's termination rule
    updates: int  # in each timed block
    device: str  # cpu or cuda


class Loop(NamedTuple):
    seeds: int
    blocks: dict[str, Callable[[], None]]  # part: runs one timed block and waits until the device has done it
    iteration: Callable[[], None]  # a whole iteration without its evaluation, likewise
    policy: Callable  # un-normalised observations [n, O] -> actions [n, A]


def make_problem(args: Args, **changes) -> Problem:
    """The synthetic dataset and the scripts' arguments; `changes` replaces fields of the arguments."""
    args = replace(args, **changes)
    env = rambo.make_env(args.env_id)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((args.rows, 2 * obs_dim + action_dim + 2), np.float32)
    rows[:, obs_dim : obs_dim + action_dim] = rng.uniform(-1, 1, (args.rows, action_dim))
    rows[:, -1] = 0
    shared = {field.name for field in fields(Args)} & {field.name for field in fields(rambo.Args)}
    script_args = rambo.Args(adv_weight=3e-4, **{name: getattr(args, name) for name in shared})
    obs_mean, obs_std = np.zeros(obs_dim, np.float32), np.full(obs_dim, 0.01, np.float32)
    obs_mean[0] = 1.25  # hopper and walker2d stand: no rollout terminates, so that every loop has the same to do
    device = "cuda" if args.cuda and torch.cuda.is_available() else "cpu"
    return Problem(
        script_args, rows, obs_dim, action_dim, obs_mean, obs_std, rambo.termination_rule(env), args.updates, device
    )


# Arithmetic: 2mnk floating-point operations for a product of an m x n and an n x k matrix, counted from the dimensions
def mlp_flop(*widths: int) -> int:
    """Of one row's forward pass through linear layers of these widths."""
    return 2 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def count_flop(part: str, problem: Problem, is_yardstick: bool = False) -> float:
    """Matrix arithmetic of one update of a part, or of the rollouts of one iteration, for one seed.

    With p, q, d for one row's forward pass through the actor, one critic, one dynamics model, and p1, q1, d1 for the first
    layer of each: backward costs a forward pass for the weights, and one for the inputs, without the first layer if
    nothing asks for the gradient of its input.

    agent        B (4p - p1 + 12q - 2q1): actions at s' p, targets 2q, values 2q, their backward 4q - 2q1; actions p, their
                 values 2q, backward through the critics 2q and through the actor 2p - p1
    adversarial  2B E (3d - d1): B imagined and B dataset rows for each of E elites; B (2p + 4q): action, and advantage
    pretraining  B M (3d - d1) for M models
    rollout      N k (p + d): every row by one elite
    The yardstick: B (5p - p1 + 14q - 2q1) (CleanRL samples anew for the temperature, and lets the actor's loss reach the
    critics' weights); M for E; N k (p + Md).
    """
    a, obs_dim, action_dim = problem.args, problem.obs_dim, problem.action_dim
    p, p1 = mlp_flop(obs_dim, 256, 256, 2 * action_dim), mlp_flop(obs_dim, 256)
    q, q1 = mlp_flop(obs_dim + action_dim, 256, 256, 1), mlp_flop(obs_dim + action_dim, 256)
    d1 = mlp_flop(obs_dim + action_dim, a.model_hidden_dim)
    d = d1 + mlp_flop(*[a.model_hidden_dim] * 4, 2 * (obs_dim + 1))
    members = a.num_models if is_yardstick else a.num_elites
    counts = {
        "agent": a.batch_size * ((5 * p - p1 + 14 * q - 2 * q1) if is_yardstick else (4 * p - p1 + 12 * q - 2 * q1)),
        "adversarial": 2 * a.batch_size * members * (3 * d - d1) + a.batch_size * (2 * p + 4 * q),
        "pretraining": a.batch_size * a.num_models * (3 * d - d1),
        "rollout": a.rollout_batch_size * a.rollout_length * (p + (members * d if is_yardstick else d)),
    }
    return counts[part]


# The yardstick: CleanRL's SAC, an ensemble in batched products, and RAMBO's two terms as two passes through the ensemble
class SoftQNetwork(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(obs_dim + action_dim, 256), nn.Linear(256, 256), nn.Linear(256, 1)

    def forward(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat([x, a], 1))))))


class SoftActor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(obs_dim, 256), nn.Linear(256, 256)
        self.fc_mean, self.fc_logstd = nn.Linear(256, action_dim), nn.Linear(256, action_dim)

    def get_action(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        mean, log_std = self.fc_mean(x), -5 + 0.5 * 7 * (torch.tanh(self.fc_logstd(x)) + 1)
        normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)  # validation waits for the device
        x_t = normal.rsample()
        action = torch.tanh(x_t)
        log_prob = normal.log_prob(x_t) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(1, keepdim=True), torch.tanh(mean)


class Ensemble(nn.Module):
    def __init__(self, num_models: int, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        widths = [obs_dim + action_dim, *[hidden_dim] * 4, 2 * (obs_dim + 1)]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.weights = nn.ParameterList(torch.randn(num_models, *pair) / (2 * math.sqrt(pair[0])) for pair in pairs)
        self.biases = nn.ParameterList(torch.zeros(num_models, 1, width) for width in widths[1:])
        self.max_logvar, self.min_logvar = (nn.Parameter(torch.full((obs_dim + 1,), x)) for x in (1.0, -6.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.silu(torch.baddbmm(bias, x, weight))
        mean, logvar = torch.baddbmm(self.biases[-1], x, self.weights[-1]).chunk(2, -1)
        logvar = self.max_logvar - F.softplus(self.max_logvar - logvar)
        return mean, self.min_logvar + F.softplus(logvar - self.min_logvar)

    def loss(self, observations: torch.Tensor, actions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mean, logvar = self(torch.cat([observations, actions], -1))
        nll = ((mean - targets) ** 2 * torch.exp(-logvar) + logvar).mean((1, 2)).sum()
        bounds = 1e-3 * (self.max_logvar.sum() - self.min_logvar.sum())
        return nll + bounds + sum(0.5 * c * (w**2).sum() for c, w in zip(rambo.DECAYS, self.weights, strict=True))


def yardstick_loop(problem: Problem) -> Loop:
    """Everything on the device, no waiting for it, torch's Adam as it comes: nothing silly, nothing clever."""
    args, obs_dim, action_dim, device = problem.args, problem.obs_dim, problem.action_dim, problem.device
    torch.manual_seed(1)
    actor = SoftActor(obs_dim, action_dim).to(device)
    qf1, qf2, qf1_target, qf2_target = (SoftQNetwork(obs_dim, action_dim).to(device) for _ in range(4))
    qf1_target.load_state_dict(qf1.state_dict())
    qf2_target.load_state_dict(qf2.state_dict())
    log_alpha = torch.zeros(1, requires_grad=True, device=device)
    ensemble = Ensemble(args.num_models, obs_dim, action_dim, args.model_hidden_dim).to(device)
    q_optimizer = torch.optim.Adam([*qf1.parameters(), *qf2.parameters()], lr=args.q_lr)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=args.policy_lr)
    a_optimizer = torch.optim.Adam([log_alpha], lr=args.policy_lr)
    model_optimizer = torch.optim.Adam(ensemble.parameters(), lr=args.model_lr)
    rows, obs_mean, obs_std = (torch.as_tensor(x, device=device) for x in (problem.rows, problem.obs_mean, problem.obs_std))
    buffer = torch.zeros(
        args.rollout_retain_iterations * args.rollout_length * args.rollout_batch_size, rows.shape[1], device=device
    )
    elites, pointer = torch.randperm(args.num_models, device=device)[: args.num_elites], 0

    def sample(source: torch.Tensor, *shape: int) -> tuple[torch.Tensor, ...]:
        batch = source[torch.randint(len(source), shape, device=device)]
        return batch.split([obs_dim, action_dim, 1, obs_dim, 1], -1)

    def terminated(observations: torch.Tensor) -> torch.Tensor:
        return problem.rule(observations * obs_std + obs_mean)

    def agent(n: int) -> None:
        num_real = round(args.real_ratio * args.batch_size)
        for _ in range(n):
            halves = sample(rows, num_real), sample(buffer, args.batch_size - num_real)
            obs, actions, rewards, next_obs, dones = (torch.cat(pair) for pair in zip(*halves, strict=True))
            with torch.no_grad():
                next_actions, next_log_pi, _ = actor.get_action(next_obs)
                qf1_next, qf2_next = qf1_target(next_obs, next_actions), qf2_target(next_obs, next_actions)
                next_value = torch.min(qf1_next, qf2_next) - log_alpha.exp() * next_log_pi
                target = rewards + (1 - dones) * args.gamma * next_value
            qf_loss = F.mse_loss(qf1(obs, actions), target) + F.mse_loss(qf2(obs, actions), target)
            q_optimizer.zero_grad()
            qf_loss.backward()
            q_optimizer.step()

            pi, log_pi, _ = actor.get_action(obs)
            actor_loss = (log_alpha.exp().detach() * log_pi - torch.min(qf1(obs, pi), qf2(obs, pi))).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()

            with torch.no_grad():
                _, log_pi, _ = actor.get_action(obs)
            alpha_loss = (-log_alpha.exp() * (log_pi - action_dim)).mean()
            a_optimizer.zero_grad()
            alpha_loss.backward()
            a_optimizer.step()

            for network, target_network in ((qf1, qf1_target), (qf2, qf2_target)):
                for param, target_param in zip(network.parameters(), target_network.parameters(), strict=True):
                    target_param.data.copy_(args.tau * param.data + (1 - args.tau) * target_param.data)

    def adversarial(n: int) -> None:
        obs = sample(rows, args.batch_size)[0]
        for i in range(n):
            restarts = sample(rows, args.batch_size)[0]
            obs = restarts if i % args.rollout_length == 0 else obs
            with torch.no_grad():
                actions, _, _ = actor.get_action(obs)
            mean, logvar = ensemble(torch.cat([obs, actions], -1).expand(args.num_models, -1, -1))
            mean, logvar = mean[elites], logvar[elites]
            with torch.no_grad():
                members = torch.randint(args.num_elites, (args.batch_size,), device=device)
                everyone = torch.arange(args.batch_size, device=device)
                outcome = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
                outcome = outcome[members, everyone]
                next_obs, rewards = obs + outcome[:, :-1], outcome[:, -1:]
                dones = terminated(next_obs).unsqueeze(-1)
                next_actions = actor.get_action(next_obs)[2]
                next_value = torch.min(qf1(next_obs, next_actions), qf2(next_obs, next_actions))
                value = torch.min(qf1(obs, actions), qf2(obs, actions))
                advantage = rewards + (1 - dones.float()) * args.gamma * next_value - value
                advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-6)).squeeze(-1)
            normal = torch.distributions.Normal(mean, torch.exp(0.5 * logvar), validate_args=False)
            log_prob = torch.logsumexp(normal.log_prob(outcome).sum(-1), 0) - math.log(args.num_elites)
            real_obs, real_actions, real_rewards, real_next_obs, _ = sample(rows, args.num_models, args.batch_size)
            targets = torch.cat([real_next_obs - real_obs, real_rewards], -1)
            loss = ensemble.loss(real_obs, real_actions, targets) + args.adv_weight * (advantage * log_prob).mean()
            model_optimizer.zero_grad()
            loss.backward()
            model_optimizer.step()
            obs = torch.where(dones, restarts, next_obs)

    def pretraining(n: int) -> None:
        for _ in range(n):
            obs, actions, rewards, next_obs, _ = sample(rows, args.num_models, args.batch_size)
            loss = ensemble.loss(obs, actions, torch.cat([next_obs - obs, rewards], -1))
            model_optimizer.zero_grad()
            loss.backward()
            model_optimizer.step()

    @torch.no_grad()
    def rollout() -> None:
        nonlocal pointer
        obs = sample(rows, args.rollout_batch_size)[0]
        for _ in range(args.rollout_length):
            actions, _, _ = actor.get_action(obs)
            mean, logvar = ensemble(torch.cat([obs, actions], -1).expand(args.num_models, -1, -1))
            outcomes = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            members = elites[torch.randint(args.num_elites, (len(obs),), device=device)]
            outcome = outcomes[members, torch.arange(len(obs), device=device)]
            next_obs = obs + outcome[:, :-1]
            dones = terminated(next_obs)
            where = torch.arange(pointer, pointer + len(obs), device=device) % len(buffer)
            buffer[where] = torch.cat([obs, actions, outcome[:, -1:], next_obs, dones.float().unsqueeze(-1)], -1)
            pointer = (pointer + len(obs)) % len(buffer)
            obs = next_obs[~dones]

    @torch.no_grad()
    def policy(observations: np.ndarray) -> np.ndarray:
        observations = torch.as_tensor(observations, dtype=torch.float32, device=device)
        return actor.get_action((observations - obs_mean) / obs_std)[2].cpu().numpy()

    functions = dict(agent=agent, adversarial=adversarial, pretraining=pretraining, rollout=rollout)
    return make_torch_loop(functions, policy, problem, deterministic=False)


def make_torch_loop(functions: dict[str, Callable], policy: Callable, problem: Problem, deterministic: bool) -> Loop:
    """The timed blocks of a torch loop; `deterministic` is torch's switch, on by default in the script, not in CleanRL."""

    def block(function: Callable, *arguments: int) -> None:
        torch.use_deterministic_algorithms(deterministic)
        function(*arguments)
        if problem.device == "cuda":
            torch.cuda.synchronize()

    def iteration() -> None:
        functions["rollout"]()
        for part in ("agent", "adversarial"):
            functions[part](problem.args.updates_per_iteration)

    blocks = {part: partial(block, functions[part], problem.updates) for part in UPDATES}
    return Loop(1, blocks | {"rollout": partial(block, functions["rollout"])}, partial(block, iteration), policy)


def torch_loop(problem: Problem, compile: bool, cudagraphs: bool) -> Loop:
    """rambo_continuous.py: its functions, called as its main does."""
    args = replace(problem.args, compile=compile, cudagraphs=cudagraphs)
    obs_dim, action_dim, device = problem.obs_dim, problem.action_dim, problem.device
    torch.manual_seed(1)
    agent = rambo.Agent(obs_dim, action_dim, args.alpha).to(device)
    models, elites = (
        rambo.Dynamics(n, obs_dim, action_dim, args.model_hidden_dim).to(device) for n in (args.num_models, args.num_elites)
    )
    options = dict(fused=True, capturable=cudagraphs)
    model_optimizer = torch.optim.Adam(models.parameters(), lr=args.model_lr, **options)
    optimizers = rambo.Optimizers(
        actor=torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr, **options),
        critic=torch.optim.Adam(agent.critic.parameters(), lr=args.q_lr, **options),
        alpha=torch.optim.Adam([agent.log_alpha], lr=args.policy_lr, **options),
        model=torch.optim.Adam(elites.parameters(), lr=args.model_lr, **options),
    )
    rows, obs_mean, obs_std = (torch.as_tensor(x, device=device) for x in (problem.rows, problem.obs_mean, problem.obs_std))
    buffer = torch.zeros(
        args.rollout_retain_iterations * args.rollout_length * args.rollout_batch_size, rows.shape[1], device=device
    )
    num_real, rollouts = round(args.real_ratio * args.batch_size), 0
    num_updates = max(problem.updates, args.updates_per_iteration)
    agent_history = torch.zeros(num_updates, len(rambo.AGENT_METRICS), device=device)
    model_history = torch.zeros(num_updates, len(rambo.MODEL_METRICS), device=device)

    def terminated(observations: torch.Tensor) -> torch.Tensor:
        return problem.rule(observations * obs_std + obs_mean)

    def agent_step(batch: torch.Tensor) -> torch.Tensor:
        return rambo.agent_update(agent, optimizers, rambo.split_rows(batch, obs_dim, action_dim), args)

    def model_step(observations: torch.Tensor, restarts: torch.Tensor, real_rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        real = rambo.split_rows(real_rows, obs_dim, action_dim)
        return rambo.adversarial_update(agent, elites, optimizers.model, observations, restarts, real, terminated, args)

    def pretraining_step(batch_rows: torch.Tensor) -> None:
        batch = rambo.split_rows(batch_rows, obs_dim, action_dim)
        mean, log_var = models(batch.observations, batch.actions)
        loss = rambo.supervised_loss(models, mean, log_var, rambo.model_targets(batch))
        model_optimizer.zero_grad()
        loss.backward()
        model_optimizer.step()

    agent_step, model_step, pretraining_step = (
        rambo.accelerate(step, args) for step in (agent_step, model_step, pretraining_step)
    )
    imagine_step = rambo.accelerate(partial(rambo.rollout_step, agent, elites, rows, terminated), args)

    def agent_updates(n: int) -> None:
        for i in range(n):
            batch = rambo.sample_rows(rows, num_real), rambo.sample_rows(buffer, args.batch_size - num_real)
            agent_history[i] = agent_step(torch.cat(batch))

    def adversarial_updates(n: int) -> None:
        observations = None
        for i in range(n):
            restarts = rambo.sample_rows(rows, args.batch_size)[:, :obs_dim]
            observations = restarts if i % args.rollout_length == 0 else observations
            real = rambo.sample_rows(rows, args.num_elites, args.batch_size)
            observations, model_history[i] = model_step(observations, restarts, real)

    def pretraining_updates(n: int) -> None:
        for _ in range(n):
            pretraining_step(rambo.sample_rows(rows, args.num_models, args.batch_size))

    def rollout() -> None:
        nonlocal rollouts
        rambo.rollout_models(agent, elites, rows, buffer, rollouts, terminated, args, imagine_step)
        rollouts += 1

    @torch.no_grad()
    def policy(observations: np.ndarray) -> np.ndarray:
        observations = torch.as_tensor(observations, dtype=torch.float32, device=device)
        return agent.actor.mode((observations - obs_mean) / obs_std).cpu().numpy()

    functions = dict(agent=agent_updates, adversarial=adversarial_updates, pretraining=pretraining_updates, rollout=rollout)
    return make_torch_loop(functions, policy, problem, deterministic=args.torch_deterministic)


def import_jax(device: str):
    """jax, set up as rambo_continuous_jax.py does, beside torch: without taking three quarters of the GPU's memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    jax.config.update("jax_default_matmul_precision", "float32")
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    return jax


def jax_loop(problem: Problem, seeds: int) -> Loop:
    """rambo_continuous_jax.py: its functions in scans as in its train_iteration, which is the iteration here."""
    jax = import_jax(problem.device)
    import jax.numpy as jnp
    from flax import nnx

    import rambo_continuous_jax as twin

    names = {field.name for field in fields(twin.Args)}
    args = twin.Args(**{name: value for name, value in asdict(problem.args).items() if name in names})
    obs_dim, action_dim, num_real = problem.obs_dim, problem.action_dim, round(args.real_ratio * args.batch_size)
    steps = jnp.arange(problem.updates)

    def terminated(observations):
        return problem.rule(observations * problem.obs_std + problem.obs_mean)

    def init(key):
        agent = twin.init_agent(key, obs_dim, action_dim, args.alpha)
        models = twin.Dynamics(args.num_models, obs_dim, action_dim, args.model_hidden_dim, nnx.Rngs(key))
        elites = jax.tree.map(jnp.copy, models).keep(jnp.arange(args.num_elites))
        optimizers = twin.Optimizers(*map(twin.adam_init, (agent.actor, agent.critic, agent.log_alpha, elites)))
        ring_size = args.rollout_retain_iterations * args.rollout_length * args.rollout_batch_size
        state = twin.TrainState(agent, elites, optimizers, jnp.zeros((ring_size, problem.rows.shape[1])), key)
        return state, (models, twin.adam_init(models), key)

    def agent_updates(state, data):
        def step(carry, i):
            real_key, model_key, update_key = jax.random.split(jax.random.fold_in(state.key, i), 3)
            batch = [twin.sample_rows(real_key, data.rows, (num_real,))]
            batch.append(twin.sample_rows(model_key, state.buffer, (args.batch_size - num_real,)))
            batch = twin.split_rows(jnp.concatenate(batch), obs_dim, action_dim)
            return twin.agent_update(*carry, batch, update_key, args)

        (agent, optimizers), history = jax.lax.scan(step, (state.agent, state.optimizers), steps)
        return state._replace(agent=agent, optimizers=optimizers, key=jax.random.split(state.key)[0]), history.mean(0)

    def adversarial_updates(state, data):
        def step(carry, i):
            restart_key, real_key, update_key = jax.random.split(jax.random.fold_in(state.key, i), 3)
            restarts = twin.sample_rows(restart_key, data.rows, (args.batch_size,))[:, :obs_dim]
            observations = jnp.where(i % args.rollout_length == 0, restarts, carry[2])
            real = data.batch(twin.sample_rows(real_key, data.train, (args.num_elites, args.batch_size)))
            return twin.adversarial_update(
                state.agent, *carry[:2], observations, restarts, real, update_key, terminated, args
            )

        carry = state.dynamics, state.optimizers.model, jnp.zeros((args.batch_size, obs_dim))
        (dynamics, optimizer, _), history = jax.lax.scan(step, carry, steps)
        optimizers, key = state.optimizers._replace(model=optimizer), jax.random.split(state.key)[0]
        return state._replace(dynamics=dynamics, optimizers=optimizers, key=key), history.mean(0)

    def pretraining_updates(state, data):
        def loss(models, batch):
            return twin.supervised_loss(models, *models(batch.observations, batch.actions), twin.model_targets(batch))

        def step(carry, i):
            key = jax.random.fold_in(state[2], i)
            batch = data.batch(twin.sample_rows(key, data.train, (args.num_models, args.batch_size)))
            return twin.adam_step(*carry, jax.grad(loss)(carry[0], batch), args.model_lr), None

        carry, _ = jax.lax.scan(step, state[:2], steps)
        key = jax.random.split(state[2])[0]
        return (*carry, key), key

    def rollout(state, data):
        rollout_args = state.agent, state.dynamics, data.rows, state.buffer, state.key, jnp.int32(0), terminated, args
        buffer, history = twin.rollout_models(*rollout_args)
        return state._replace(buffer=buffer, key=jax.random.split(state.key)[0]), history.mean(0)

    def iteration(state, data):
        return twin.train_iteration(state, data, jnp.int32(args.rollout_retain_iterations), terminated, args)

    holdout = twin.split_rows(np.broadcast_to(problem.rows[:1000], (seeds, *problem.rows[:1000].shape)), obs_dim, action_dim)
    train = np.broadcast_to(np.arange(len(problem.rows), dtype=np.int32), (seeds, len(problem.rows)))
    data = twin.Data(*jax.tree.map(jnp.asarray, (problem.rows, train, holdout)))
    state, pretraining = jax.jit(jax.vmap(init))(jnp.stack([jax.random.PRNGKey(seed) for seed in range(seeds)]))
    states, compiled = {"pretraining": pretraining, "training": state}, {}

    def block(function: Callable, name: str) -> None:
        """Runs function(state, data) for all seeds, compiled at the first call, on the state of this name."""
        if function not in compiled:
            compiled[function] = twin.compile_ahead(jax.vmap(function, (0, twin.DATA_AXES)), args, states[name], data)
        states[name], result = compiled[function](states[name], data)
        jax.block_until_ready(result)

    @jax.jit
    def mode(actor, observations):
        observations = ((observations - problem.obs_mean) / problem.obs_std).reshape(seeds, -1, obs_dim)
        return jax.vmap(lambda actor, x: actor.mode(x))(actor, observations).reshape(-1, action_dim)

    def policy(observations: np.ndarray) -> np.ndarray:
        return np.asarray(mode(states["training"].agent.actor, observations))

    functions = dict(agent=agent_updates, adversarial=adversarial_updates, rollout=rollout)
    blocks = {part: partial(block, function, "training") for part, function in functions.items()}
    blocks["pretraining"] = partial(block, pretraining_updates, "pretraining")
    return Loop(seeds, blocks, partial(block, iteration, "training"), policy)


def build_loop(name: str, problem: Problem) -> Loop:
    """The loop of this name, with the block of its evaluation: episodes that last to the time limit, all seeds' at once."""
    kind, _, options = name.partition("-")
    if kind == "yardstick":
        loop = yardstick_loop(problem)
    elif kind == "torch" and set(options.split("-")) <= {"", "compile", "graphs"}:
        loop = torch_loop(problem, "compile" in options, "graphs" in options)
    elif kind == "jax" and options.isdecimal():
        loop = jax_loop(problem, int(options))
    else:
        raise rambo.InputError(f"--loops {name}: no such loop, see --help")
    endless = {} if problem.rule is rambo.never_terminates else {"terminate_when_unhealthy": False}
    make, envs = partial(rambo.make_env, problem.args.env_id, **endless), []

    def evaluation() -> None:
        if not envs:
            envs.append(gym.vector.SyncVectorEnv([make] * (loop.seeds * problem.args.eval_episodes)))
        rambo.evaluate(loop.policy, envs[0], 1, problem.args.gamma)

    return loop._replace(blocks=loop.blocks | {"evaluation": evaluation})


def available_loops(device: str) -> tuple[list[str], list[str]]:
    """The loops that this machine can run, and why the others are left out."""
    loops, left_out = ["yardstick", "torch"], []
    can_compile = find_spec("triton") if device == "cuda" else any(map(shutil.which, ("g++", "clang++")))
    if can_compile:
        loops.append("torch-compile")
    else:
        left_out.append(f"torch-compile: no {'triton' if device == 'cuda' else 'C++ compiler'}")
    if device == "cuda":
        loops += ["torch-graphs"] + ["torch-compile-graphs"] * bool(can_compile)
    else:
        left_out.append("torch-graphs: no GPU")
    missing = [name for name in ("jax", "flax", "optax") if not find_spec(name)]
    if missing:
        left_out.append(f"jax: {', '.join(missing)} not installed")
    elif device == "cuda" and import_jax(device).default_backend() != "gpu":
        left_out.append("jax: it sees no GPU")
    else:
        loops += ["jax-1", "jax-4", "jax-8"]
    return loops, left_out


# The machine's matrix speed: plain products of the shapes that the parts are made of, and large ones
def matrix_shapes(problem: Problem) -> dict[str, tuple[int, int, int, bool]]:
    """part: number of products side by side, rows, width, and whether backward products belong to it."""
    a = problem.args
    return {
        "agent": (2, a.batch_size, 256, True),
        "adversarial": (a.num_elites, 2 * a.batch_size, a.model_hidden_dim, True),
        "pretraining": (a.num_models, a.batch_size, a.model_hidden_dim, True),
        "rollout": (a.num_elites, a.rollout_batch_size // a.num_elites, a.model_hidden_dim, False),
        "large": (1, 8192, 8192, False) if problem.device == "cuda" else (1, 2048, 2048, False),
    }


def torch_products(x: np.ndarray, w: np.ndarray, backward: bool, count: int, device: str) -> Callable:
    """A block of `count` products x W; with `backward` also (x W) W^T and (x W)^T x, a layer's two backward products.

    Each works on the result of the one before. W [n, K, K] is orthogonal, so that x [n, R, K] does not grow, and moves by next
    to nothing, so that no compiler takes a product out of the loop.
    """
    inputs = [torch.as_tensor(array, device=device) for array in (x, w)]

    def chain(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(count):
            y = torch.bmm(x, w)
            x = torch.bmm(y, w.mT) if backward else y
            w = torch.baddbmm(w, y.mT, x, alpha=1e-9) if backward else w
        return x, w

    chain = rambo.CudaGraph(chain) if device == "cuda" else chain

    @torch.no_grad()
    def block() -> None:
        chain(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    return block


def xla_products(x: np.ndarray, w: np.ndarray, backward: bool, count: int, device: str) -> Callable:
    """The same through XLA."""
    jax = import_jax(device)

    def step(_, carry):
        x, w = carry
        y = x @ w
        x = y @ w.mT if backward else y
        return x, (w + 1e-9 * (y.mT @ x) if backward else w)

    chain = jax.jit(lambda x, w: jax.lax.fori_loop(0, count, step, (x, w)))
    inputs = [jax.numpy.asarray(array) for array in (x, w)]
    return lambda: jax.block_until_ready(chain(*inputs))


def matrix_blocks(problem: Problem, gflop: float, with_jax: bool) -> dict[tuple[str, str], tuple[Callable, float]]:
    """(library, part or "large"): a block of such products, and its arithmetic in GFLOP, about `gflop`."""
    blocks, rng = {}, np.random.default_rng(1)
    for name, (n, rows, width, backward) in matrix_shapes(problem).items():
        flop = 2 * n * rows * width * width * (3 if backward else 1)
        count = max(1, round(1e9 * gflop / flop))
        x, v = rng.standard_normal((n, rows, width), np.float32), rng.standard_normal((n, width, 1), np.float32)
        w = np.eye(width, dtype=np.float32) - 2 * v @ v.mT / (v**2).sum(1, keepdims=True)
        for library, products in [("torch", torch_products)] + [("XLA", xla_products)] * with_jax:
            blocks[library, name] = products(x, w, backward, count, problem.device), count * flop / 1e9
    return blocks


# Memory: in bytes, what is in use and the most that was since the last reset. None where the system does not tell.
def resident_memory() -> tuple[int, int] | None:
    """Of this process; getrusage's high-water mark would include that of the process which started this one."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return 1024 * int(values["VmRSS"]), 1024 * int(values["VmHWM"])


def loop_memory(name: str, device: str) -> tuple[int, int] | None:
    if device == "cpu":
        return resident_memory()
    if name.startswith("jax"):
        stats = import_jax(device).devices()[0].memory_stats()
        return stats["bytes_in_use"], stats["peak_bytes_in_use"]
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def reset_peak_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # JAX's cannot be reset; each of its loops needs more than the one before
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


class Prepared(NamedTuple):
    loop: Loop
    warmup: float  # seconds to build the loop and to run every block once, compilation included
    memory: float | None  # MB that this took at its highest


def prepare(name: str, problem: Problem, parts: tuple[str, ...], with_iteration: bool = False) -> Prepared:
    """Builds a loop and warms it up."""
    reset_peak_memory(problem.device)
    start, before = time.perf_counter(), loop_memory(name, problem.device)
    loop = build_loop(name, problem)
    for block in [*(loop.blocks[part] for part in parts), *[loop.iteration] * with_iteration]:
        block()
    after = loop_memory(name, problem.device)
    memory = (after[1] - before[0]) / 1e6 if before and after and after[1] > before[1] else None
    return Prepared(loop, time.perf_counter() - start, memory)


def take_turns(blocks: dict[tuple, Callable], repeats: int) -> dict[tuple, list[float]]:
    """Seconds of every block in every round."""
    times = {key: [] for key in blocks}
    for _ in tqdm(range(repeats), desc="Rounds", unit="round"):
        for key, block in blocks.items():
            start = time.perf_counter()
            block()
            times[key].append(time.perf_counter() - start)
    return times


def summarize(seconds: list[float], reference: list[float] | None, seeds: int = 1, count: int = 1) -> dict[str, float | None]:
    """Of rounds of `count` updates each: median, lowest, highest seconds of one, and the ratio to the reference's rounds.

    The ratio is taken within each round and for each seed; then the median of these.
    """
    one = [s / count for s in seconds]
    ratios = [s / seeds / r for s, r in zip(seconds, reference, strict=True)] if reference else None
    result = {"seconds": statistics.median(one), "low": min(one), "high": max(one)}
    return result | {"ratio": statistics.median(ratios) if ratios else None}


def machine(device: str, loops: list[str], left_out: list[str]) -> dict:
    """Whatever the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    libraries = ["torch"] + ["jax", "flax"] * any(name.startswith("jax") for name in loops)
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "versions": {"Python": platform.python_version()} | {library: metadata.version(library) for library in libraries},
        "left_out": left_out,
    }


def describe_machine(m: dict) -> str:
    where = [m["gpu"]] * bool(m["gpu"]) + [f"{m['cores']} cores of {m['cpu']}", f"torch on {m['torch_threads']} threads"]
    versions = ", ".join(f"{library} {version}" for library, version in m["versions"].items())
    text = f"{', '.join(where)}; {versions}; load average before the start {m['load_before']:.1f}."
    return text + (f" Left out: {'; '.join(m['left_out'])}." if m["left_out"] else "")


def table(header: str, rows: list[list]) -> str:
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in lines)


def figure(value: float | None, unit: str = "") -> str:
    """Three significant digits."""
    if value is None:
        return ""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}{unit}"


def measure_parts(args: Args) -> tuple[str, dict]:
    """The main tables: every part of every loop, whole iterations, and the machine's matrix speed."""
    problem = make_problem(args)
    names, left_out = available_loops(problem.device)
    names = list(args.loops) or names
    results = {"machine": machine(problem.device, names, left_out), "arguments": asdict(args), "loops": {}}

    loops = {}
    for name in tqdm(names, desc="Warm-up", unit="loop"):
        loops[name] = prepare(name, problem, tuple(PARTS), args.iterations > 0)
        results["loops"][name] = {"warmup_seconds": loops[name].warmup, "memory_mb": loops[name].memory}
    gflop = args.matrix_gflop or (500 if problem.device == "cuda" else 20)
    products = matrix_blocks(problem, gflop, any(name.startswith("jax") for name in names))
    for _ in range(5 if problem.device == "cuda" else 1):  # a CUDA graph is captured at its fourth call
        for block, _ in products.values():
            block()
    blocks = {("product", *key): block for key, (block, _) in products.items()}
    blocks |= {(part, name): loops[name].loop.blocks[part] for part in PARTS for name in names}
    times = take_turns(blocks, args.repeats)
    speeds = {key: work / statistics.median(times["product", *key]) for key, (_, work) in products.items()}  # GFLOP/s
    best = {shape: max(speed for (_, s), speed in speeds.items() if s == shape) for _, shape in speeds}
    results["matrix_gflops"] = {f"{library} {shape}": speed for (library, shape), speed in speeds.items()}

    for part in PARTS:
        for name in names:
            seeds, count = loops[name].loop.seeds, problem.updates if part in UPDATES else 1
            result = summarize(times[part, name], times.get((part, "yardstick")), seeds, count)
            if part in best:
                result["gflop"] = seeds * count_flop(part, problem, name == "yardstick") / 1e9
                result["gflops"] = result["gflop"] / result["seconds"]
                result["share_of_shape"] = result["gflops"] / best[part]
                result["share_of_large"] = result["gflops"] / best["large"]
            results["loops"][name][part] = result

    whole = take_turns({name: loops[name].loop.iteration for name in names}, args.iterations) if args.iterations else {}
    for name, result in results["loops"].items():
        if args.iterations:
            seconds = statistics.median(whole[name])
        else:
            updates = args.updates_per_iteration * (result["agent"]["seconds"] + result["adversarial"]["seconds"])
            seconds = result["rollout"]["seconds"] + updates
        evaluation = result["evaluation"]["seconds"]
        result["iteration"] = {"seconds": seconds + evaluation, "evaluation_share": evaluation / (seconds + evaluation)}
    for name, result in results["loops"].items():
        reference = results["loops"].get("yardstick", {}).get("iteration")
        seconds = result["iteration"]["seconds"] / loops[name].loop.seeds
        result["iteration"]["ratio"] = seconds / reference["seconds"] if reference else None
    return describe_parts(args, problem, results), results


def describe_parts(args: Args, problem: Problem, results: dict) -> str:
    """The results of measure_parts as Markdown."""
    part_rows, iteration_rows, product_rows = [], [], []
    for part, title in PARTS.items():
        scale, unit = (1000, " ms") if part in UPDATES else (1, " s")
        for name, loop in results["loops"].items():
            r = loop[part]
            spread = f"{figure(scale * r['low'])} to {figure(scale * r['high'])}"
            row = [title, name, figure(scale * r["seconds"], unit), spread]
            row += [figure(r["ratio"]), *(figure(r.get(key)) for key in ("gflop", "gflops"))]
            part_rows.append(row + [f"{r[key]:.0%}" if key in r else "" for key in ("share_of_shape", "share_of_large")])
    for name, loop in results["loops"].items():
        r = loop["iteration"]
        row = [name, figure(r["seconds"], " s"), figure(r["ratio"]), f"{r['evaluation_share']:.1%}"]
        row += [figure(2000 * r["seconds"] / 3600, " h"), figure(loop["memory_mb"], " MB")]
        iteration_rows.append([*row, figure(loop["warmup_seconds"], " s")])
    for part, (n, rows, width, backward) in matrix_shapes(problem).items():
        shape = f"{n} × [{rows}, {width}] [{width}, {width}]" + (" and backward" if backward else "")
        speeds = (results["matrix_gflops"].get(f"{library} {part}") for library in ("torch", "XLA"))
        product_rows.append([shape, PARTS.get(part, part), *map(figure, speeds)])

    header = "part | loop | time | lowest to highest | ratio to yardstick | GFLOP | GFLOP/s"
    header += " | of this shape's matrix speed | of the large product's"
    how = f"median of {args.iterations} whole ones" if args.iterations else "added up from its parts"
    return f"""{describe_machine(results["machine"])}

{args.env_id}: batch {args.batch_size}, {args.num_elites} of {args.num_models} models, {args.rows:,} rows,
rollouts {args.rollout_batch_size:,} × {args.rollout_length}. Medians of {args.repeats} rounds.
jax-N trains N seeds: time and arithmetic are of all of them, the ratio is per seed. Memory: the most that building
and warming up a loop takes, compilation included.

{table(header, part_rows)}

One iteration: rollouts, {args.updates_per_iteration:,} updates of each kind ({how}), and an evaluation of
{args.eval_episodes} episodes that all last to the time limit.

{table("loop | seconds | ratio to yardstick | evaluation | 2,000 iterations | memory | build and warm-up", iteration_rows)}

Matrix speed in GFLOP/s; the shares above are of the faster library's.

{table("products | part | torch | XLA", product_rows)}"""


def measure_scaling(args: Args) -> tuple[str, dict]:
    """One dimension at a time; in brackets the cost relative to the scripts' default."""
    base = make_problem(args)
    available, left_out = available_loops(base.device)
    names = list(args.loops) or [name for name in ("torch-graphs", "torch", "jax-1") if name in available]
    names = [name for name in names if name != "torch" or "torch-graphs" not in names]
    results, rows = {"machine": machine(base.device, names, left_out), "arguments": asdict(args), "scaling": []}, []
    defaults = {"ensemble": args.num_elites, "seeds": 1} | asdict(args)
    for dimension, (values, parts) in SCALES.items():
        loops = {}
        for value in tqdm(sorted({*values, defaults[dimension]}), desc=f"Warm-up for {dimension}", unit="value"):
            changes = {} if dimension == "seeds" else {dimension: value}
            if dimension == "ensemble":
                changes = dict(num_models=value, num_elites=value, rollout_batch_size=args.rollout_batch_size // value * value)
            problem = make_problem(args, **changes) if changes else base
            for name in names:
                if dimension != "seeds":
                    loops[value, name] = prepare(name, problem, parts).loop
                elif name.startswith("jax"):
                    loops[value, name] = prepare(f"jax-{value}", problem, parts).loop
        times = take_turns({(part, *key): loop.blocks[part] for part in parts for key, loop in loops.items()}, args.repeats)
        for value, name in loops:
            row, result = [dimension, f"{value:,}", name], {"dimension": dimension, "value": value, "loop": name}
            for part in (*UPDATES, "rollout"):
                if part not in parts:
                    row.append("")
                    continue
                count, reference = args.updates if part in UPDATES else 1, times[part, defaults[dimension], name]
                result[part] = summarize(times[part, value, name], reference, count=count)
                scale, unit = (1000, " ms") if part in UPDATES else (1, " s")
                row.append(f"{figure(scale * result[part]['seconds'], unit)} ({figure(result[part]['ratio'])})")
            results["scaling"].append(result)
            rows.append(row)
    header = "what grows | value | loop | agent update | adversarial update | pretraining update | rollouts"
    note = "In brackets: relative to the default. ensemble: so many models, all elites. seeds: time of all together."
    return f"{describe_machine(results['machine'])}\n\n{note}\n\n{table(header, rows)}", results


def torch_operations(block: Callable, device: str) -> dict[str, tuple[int, float]]:
    """operation (on a GPU: kernel): calls and seconds, of one block."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        block()
    events = profiler.key_averages()
    if device == "cuda":
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        return {event.key: (event.count, event.self_device_time_total / 1e6) for event in kernels}
    return {event.key: (event.count, event.self_cpu_time_total / 1e6) for event in events}


def jax_operations(block: Callable, device: str) -> dict[str, tuple[int, float]]:
    """The same of a JAX block, without what only contains other operations."""
    jax = import_jax(device)
    counts, seconds = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            block()
        path = next(Path(folder).rglob("*.xplane.pb"))
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                if not (line.name.startswith("Stream") if device == "cuda" else line.name.startswith("tf_XLA")):
                    continue
                for event in line.events:
                    if not event.name.startswith(("ThunkExecutor", "while", "call", "end: ")):
                        counts[event.name] += 1
                        seconds[event.name] += event.duration_ns / 1e9
    return {name: (counts[name], seconds[name]) for name in counts}


def measure_profile(args: Args) -> tuple[str, dict]:
    """The ten operations of each part and loop that take the most time."""
    problem = make_problem(args)
    available, left_out = available_loops(problem.device)
    names = list(args.loops) or [name for name in ("torch", "torch-graphs", "jax-1") if name in available]
    results, rows = {"machine": machine(problem.device, names, left_out), "arguments": asdict(args), "profile": []}, []
    parts = (*UPDATES, "rollout")
    for name in names:
        loop = prepare(name, problem, parts).loop
        for part in parts:
            operations = (jax_operations if name.startswith("jax") else torch_operations)(loop.blocks[part], problem.device)
            start, count = time.perf_counter(), problem.updates if part in UPDATES else 1
            loop.blocks[part]()
            wall = (time.perf_counter() - start) / count
            for operation, (calls, seconds) in sorted(operations.items(), key=lambda item: -item[1][1])[:10]:
                result = {"loop": name, "part": part, "operation": operation, "calls": calls / count}
                results["profile"].append(result | {"seconds": seconds / count, "share": seconds / count / wall})
                row = [name, PARTS[part], operation[:80].replace("|", "/"), figure(calls / count)]
                rows.append([*row, figure(1000 * seconds / count, " ms"), f"{seconds / count / wall:.0%}"])
    header = "loop | part | operation | calls | time per update, or in all rollouts | of the wall time"
    return f"{describe_machine(results['machine'])}\n\n{table(header, rows)}", results


def write_log(path: Path, num_rows: int) -> int:
    """A made-up D4RL-style file for HalfCheetah, written in pieces. Returns the size of its arrays in bytes."""
    rng, size = np.random.default_rng(1), 0
    widths = {"observations": (17,), "next_observations": (17,), "actions": (6,)}
    widths |= {"rewards": (), "terminals": (), "timeouts": ()}
    with h5py.File(path, "w") as file:
        for key, width in widths.items():
            dtype = bool if key in ("terminals", "timeouts") else np.float32
            column = file.create_dataset(key, (num_rows, *width), dtype)
            size += column.size * column.dtype.itemsize
            for start in range(0, num_rows, 100_000):
                shape = (min(100_000, num_rows - start), *width)
                column[start : start + shape[0]] = np.zeros(shape, bool) if dtype is bool else rng.uniform(-1, 1, shape)
        file["timeouts"][999::1000] = True
    return size


LOADER = """
import json, sys, time
import numpy as np
sys.path[:0] = sys.argv[1:3]
import rambo_continuous as rambo, speed
env = rambo.make_env("halfcheetah-medium-v2")
before, start = speed.high_water_mark(), time.perf_counter()
dataset = rambo.load_dataset("halfcheetah-medium-v2", sys.argv[3], env)
result = {"load_seconds": time.perf_counter() - start, "load_bytes": speed.high_water_mark() - before}
rows = dataset.rows[np.random.default_rng(1).permutation(len(dataset.rows))]
result |= {"total_seconds": time.perf_counter() - start, "total_bytes": speed.high_water_mark() - before}
print(json.dumps(result))
"""


def high_water_mark() -> int:
    """The most memory that this process has had, in bytes."""
    memory = resident_memory()
    unit = 1 if sys.platform == "darwin" else 1024
    return memory[1] if memory else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_loading(args: Args) -> tuple[str, dict]:
    """load_dataset, and the shuffled copy that the script then makes of its rows, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.hdf5"
        size = write_log(path, args.loading_rows)
        command = [sys.executable, "-c", LOADER, str(ROOT), str(Path(__file__).resolve().parent), str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1]) | {"rows": args.loading_rows, "array_bytes": size}
    rows = []
    for key, title in (("load", "load_dataset"), ("total", "and the rows in random order")):
        times_size = result[f"{key}_bytes"] / size
        row = [title, figure(result[f"{key}_seconds"], " s"), figure(result[f"{key}_bytes"] / 1e6, " MB")]
        rows.append([*row, figure(times_size)])
    note = f"{args.loading_rows:,} rows of 17-dimensional observations and 6-dimensional actions, {size / 1e6:,.0f} MB in all:"
    text = table("step | time since the start | most memory | times the size of the arrays", rows)
    return f"{note}\n\n{text}", {"arguments": asdict(args), "loading": result}


def main(args: Args) -> None:
    if args.updates < 5 or args.repeats < 1:
        raise rambo.InputError("--updates must be at least 5 (a CUDA graph is captured at the fourth), --repeats positive")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the script sets it; read when CUDA starts
    if args.loading:
        text, results = measure_loading(args)
    elif args.scaling:
        text, results = measure_scaling(args)
    elif args.profile:
        text, results = measure_profile(args)
    else:
        text, results = measure_parts(args)
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except rambo.InputError as problem:
        sys.exit(f"error: {problem}")
