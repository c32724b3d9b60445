# RAMBO: Robust Adversarial Model-Based Offline RL (Rigter, Lacerda, Hawes 2022), https://arxiv.org/abs/2204.12581v1
# Usage, metrics, results, deviations from the paper: README.md. The twins: rambo_continuous.py, rambo_continuous_jax.py
import os
import sys

if __name__ == "__main__":  # before the other imports, which take seconds
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait spinning starve all others on their cores
    sys.excepthook = lambda kind, *rest: print("interrupted") if kind is KeyboardInterrupt else sys.__excepthook__(kind, *rest)

import copy
import csv
import difflib
import errno
import hashlib
import importlib.util
import itertools
import json
import math
import multiprocessing
import re
import shutil
import signal
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import tensorboardX
import torch
import torch.nn as nn
import tyro
from filelock import FileLock, Timeout
from torch import Tensor, amax, amin, arctanh, broadcast_to, clip, concatenate, exp, log, logsumexp, quantile, tanh, where
from torch.nn.functional import relu, silu, softplus
from tqdm import tqdm

# What a dataset changes in the defaults below; the paper's: where the best column of its Table 3 is not (5, 3e-4)
DATASET_DEFAULTS = {
    "halfcheetah-random-v2": dict(adv_weight=0.0),
    "halfcheetah-medium-expert-v2": dict(rollout_length=2),
    "hopper-random-v2": dict(rollout_length=1),
    "hopper-medium-expert-v2": dict(adv_weight=0.0),
    "walker2d-medium-v2": dict(adv_weight=0.0),
    "walker2d-medium-replay-v2": dict(adv_weight=0.0),
    "walker2d-medium-expert-v2": dict(rollout_length=2),
    "hopper-mini-v2": dict(total_iterations=40, model_max_pretrain_epochs=40),
    "pendulum-mini": dict(
        total_iterations=15, updates_per_iteration=250, batch_size=128, rollout_batch_size=5000, eval_interval=1,
        policy_lr=3e-4, q_lr=1e-3, model_lr=1e-3, model_hidden_dim=64, model_max_pretrain_epochs=15,
    ),
}  # fmt: skip


@dataclass
class Args:
    exp_name: str = Path(__file__).stem  # name of this experiment, part of the run folder's name
    seed: int = 1  # seed of the initial weights, all sampling and the evaluation episodes
    torch_deterministic: bool = True  # the same seed on the same machine gives the same run; off, a GPU is faster
    cuda: bool = True  # train on the GPU if there is one
    compile: bool = torch.cuda.is_available()  # torch.compile the losses and their backward passes: fewer kernels
    matmul_precision: Literal["float32", "tensorfloat32"] = "float32"  # of products on a GPU
    cudagraphs: bool = torch.cuda.is_available()  # replay each update as one CUDA graph: launching kernels costs
    track: bool = False  # also log to Weights and Biases (needs `pip install wandb`)
    wandb_project_name: str = "rambo"  # the wandb project to log to
    wandb_entity: str | None = None  # the wandb team to log to; the default is your own account
    capture_video: bool = False  # record an episode of the final policy to runs/{run_name}/videos (needs moviepy)
    save_model: bool = False  # save the pretrained and the final dynamics, too, to runs/{run_name}/*.npz
    load_model: str | None = None  # dynamics_pretrained.npz of the same dataset: skip pretraining
    resume: str | None = None  # a run folder: go on from its last checkpoint
    checkpoint_minutes: float = 10  # between two checkpoints of the whole run, pretraining included; 0 writes none
    checkpoint_buffer: bool = True  # keep model rollouts in checkpoints; without, 12 MB each, --resume makes new ones
    eval_interval: int = 10  # iterations between two evaluations; the last 10 iterations are all evaluated
    eval_episodes: int = 10  # episodes of each evaluation, with the policy's mode
    eval_workers: int | None = None  # processes that evaluate while training goes on; default: the cores to spare

    # Algorithm specific arguments
    env_id: str = "hopper-medium-v2"  # a D4RL, bundled or Minari id, or with --dataset-path any gymnasium id
    dataset_path: str | None = None  # a D4RL-style HDF5 file to learn from instead of the dataset --env-id names
    d4rl_physics: bool = True  # evaluate D4RL ids in the physics of their data, not in gymnasium's stock -v4
    total_iterations: int = 2000  # iterations of rollouts, agent and adversarial model updates (n_iter, Algorithm 1)
    updates_per_iteration: int = 1000  # agent updates in each iteration
    model_updates_per_iteration: int | None = None  # adversarial model updates; the paper's default: as many
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # how far the target critics move towards the critics at each update
    batch_size: int = 256  # rows in a batch of the agent, of the model's supervised and its adversarial loss
    policy_lr: float = 1e-4  # learning rate of the actor and of the temperature
    q_lr: float = 3e-4  # learning rate of the critics
    num_critics: int = 2  # Q-functions; the smallest of their values counts
    alpha: float = 1.0  # the temperature (entropy bonus): its initial value, or its fixed value with --no-autotune
    autotune: bool = True  # learn the temperature so that the policy's entropy approaches -action_dim
    policy_average: float = 0.0  # evaluate and save an average of the policy: the share of it that an iteration keeps
    real_ratio: float = 0.5  # share of dataset rows in the agent's batch (f); 1 is SAC on the dataset, with no model
    rollout_length: int = 5  # steps of each model rollout (k); DATASET_DEFAULTS has some datasets' own
    adv_weight: float = 3e-4  # weight of the adversarial loss (lambda), 0 freezes the model; DATASET_DEFAULTS too
    norm_adv: bool = True  # normalise the advantages of the adversarial loss over the batch
    halt_outside: bool = False  # a model rollout that leaves the range of the dataset's observations ends there
    rollout_batch_size: int = 50_000  # model rollouts started at each iteration; a multiple of num_elites
    rollout_retain_iterations: int = 5  # the agent learns from the rollouts of so many past iterations
    num_models: int = 7  # dynamics models in the pretrained ensemble
    num_elites: int = 5  # models kept after pretraining: those with the lowest hold-out error
    model_hidden_dim: int = 200  # units in each of the four hidden layers of a dynamics model
    model_lr: float = 3e-4  # learning rate of the dynamics models, in pretraining and in adversarial training
    model_max_pretrain_epochs: int = 1000  # pretraining stops after so many epochs even if it still improves
    bc_epochs: int = 0  # epochs of behaviour cloning that warm-start the policy (the authors' later code: 50)


# ALGO LOGIC: the batch. E: ensemble members, B: rows of a batch, O: observation and A: action dimension, D = O + 1,
# N: rows of a dataset, W = 2O + A + 2: the width of a row
class Batch(NamedTuple):
    observations: Tensor  # [..., O], normalised by the dataset's mean and std
    actions: Tensor  # [..., A], in [-1, 1]
    rewards: Tensor  # [...]
    next_observations: Tensor  # [..., O], normalised
    terminals: Tensor  # [...], 0 or 1; a timeout is no terminal


def split_rows(rows: Tensor, obs_dim: int) -> Batch:
    """Dataset and model buffer are matrices with rows (s, a, r, s', done), so that one gather samples a batch."""
    action_dim = rows.shape[-1] - 2 * obs_dim - 2
    observations, actions, rewards, next_observations, terminals = rows.split([obs_dim, action_dim, 1, obs_dim, 1], -1)
    return Batch(observations, actions, rewards.squeeze(-1), next_observations, terminals.squeeze(-1))


def sample_rows(rows: Tensor, *shape: int) -> Tensor:
    """Rows drawn uniformly with replacement: [N, W] -> [*shape, W]."""
    return rows[torch.randint(len(rows), shape, device=rows.device)]


# ALGO LOGIC: networks
LOG_STD_MIN, LOG_STD_MAX = -20, 2  # of the policy, before the tanh
WEIGHT_DECAYS = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # of the dynamics model's five layers (the authors' code)


class BatchedLinear(nn.Module):
    """n linear layers side by side, one batched product: [n, B, in] -> [n, B, out]. Initialised like nn.Linear."""

    def __init__(self, n: int, fan_in: int, fan_out: int):
        super().__init__()
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(n, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, 1, fan_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Critic(nn.Module):
    """Q-functions side by side, two by default: observations [B, O], actions [B, A] -> [n, B]."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 256, n: int = 2):
        super().__init__()
        self.fc1 = BatchedLinear(n, obs_dim + action_dim, hidden_dim)
        self.fc2 = BatchedLinear(n, hidden_dim, hidden_dim)
        self.fc3 = BatchedLinear(n, hidden_dim, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        x = concatenate([observations, actions], -1)
        x = relu(self.fc1(broadcast_to(x, (len(self.fc1.weight), *x.shape))))
        x = relu(self.fc2(x))
        return self.fc3(x).squeeze(-1)


class Actor(nn.Module):
    """Squashed Gaussian policy: observations [..., O] -> mean and log std [..., A] before the tanh."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 256):
        super().__init__()
        self.fc1 = nn.Linear(obs_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.fc3 = nn.Linear(hidden_dim, 2 * action_dim)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        x = relu(self.fc1(observations))
        x = relu(self.fc2(x))
        mean, log_std = self.fc3(x).chunk(2, -1)
        return mean, clip(log_std, LOG_STD_MIN, LOG_STD_MAX)

    def mode(self, observations: Tensor) -> Tensor:
        return tanh(self(observations)[0])


def squashed_log_prob(mean: Tensor, log_std: Tensor, pre_tanh: Tensor) -> Tensor:
    """log pi(tanh(pre_tanh)), [...]. log(1 - tanh(u)^2) in the softplus form: exact, no epsilon, no atanh."""
    log_prob = -0.5 * ((pre_tanh - mean) / exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return (log_prob - 2 * (math.log(2) - pre_tanh - softplus(-2 * pre_tanh))).sum(-1)


def sample_action(actor: Actor, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised actions [..., A] and their log pi [...] from standard normal noise [..., A]."""
    mean, log_std = actor(observations)
    pre_tanh = mean + exp(log_std) * noise
    return tanh(pre_tanh), squashed_log_prob(mean, log_std, pre_tanh)


class Agent(nn.Module):
    """Actor and critics, and an average of each: target_critic, and policy, which alone is evaluated and saved. By default it
    is the actor after an iteration, with --policy-average an average over iterations."""

    def __init__(self, obs_dim: int, action_dim: int, alpha: float, num_critics: int = 2):
        super().__init__()
        self.actor = Actor(obs_dim, action_dim)
        self.policy = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic = Critic(obs_dim, action_dim, n=num_critics)
        self.target_critic = Critic(obs_dim, action_dim, n=num_critics).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))


class Dynamics(nn.Module):
    """Ensemble of E Gaussian models of [s' - s, r] (D = O + 1), states normalised.

    observations [E, B, O], actions [E, B, A] -> mean, log variance [E, B, D]. Inputs [B, ...] go to every member.
    """

    def __init__(self, num_models: int, obs_dim: int, action_dim: int, hidden_dim: int):
        super().__init__()
        widths = [obs_dim + action_dim, *[hidden_dim] * 4, 2 * (obs_dim + 1)]
        self.layers = nn.ModuleList(BatchedLinear(num_models, *widths[i : i + 2]) for i in range(5))
        for layer, fan_in in zip(self.layers, widths, strict=False):
            std = 1 / (2 * math.sqrt(fan_in))
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)  # its default bounds are absolute: +-2
            nn.init.zeros_(layer.bias)
        self.max_log_var = nn.Parameter(torch.full((obs_dim + 1,), 1.0))
        self.min_log_var = nn.Parameter(torch.full((obs_dim + 1,), -6.0))
        self.register_buffer("input_mean", torch.zeros(obs_dim + action_dim))
        self.register_buffer("input_std", torch.ones(obs_dim + action_dim))
        self.register_buffer("output_scale", torch.ones(obs_dim + 1))

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        x = (concatenate([observations, actions], -1) - self.input_mean) / self.input_std
        x = broadcast_to(x, (len(self.layers[0].weight), *x.shape[-2:]))
        for layer in self.layers[:-1]:
            x = silu(layer(x))
        mean, log_var = self.layers[-1](x).chunk(2, -1)
        log_var = self.max_log_var - softplus(self.max_log_var - log_var)
        log_var = self.min_log_var + softplus(log_var - self.min_log_var)
        return mean * self.output_scale, log_var + 2 * log(self.output_scale)

    @torch.no_grad()
    def set_scales(self, rows: Batch) -> None:
        """Standardises the inputs by mean and std of rows [N, ...], and the reward if its size is not of order 1."""
        inputs = concatenate([rows.observations, rows.actions], -1)
        std = inputs.std(0, correction=1)
        self.input_mean.copy_(inputs.mean(0))
        smallest = where(torch.arange(len(std), device=std.device) < rows.observations.shape[-1], 0.01, 0.001)
        self.input_std.copy_(where(std < smallest, 1.0, std))  # constants, such as a goal, have tiny stds
        reward_size = (rows.rewards**2).mean() ** 0.5
        of_order_one = (0.1 <= reward_size) & (reward_size <= 30) | (reward_size == 0)
        self.output_scale[-1] = where(of_order_one, 1.0, reward_size)

    @torch.no_grad()
    def keep_members(self, members: Tensor) -> None:
        """Keeps these members alone; the log-variance bounds are shared by all."""
        for layer in self.layers:
            layer.weight = nn.Parameter(layer.weight[members])
            layer.bias = nn.Parameter(layer.bias[members])


def adam_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# ALGO LOGIC: model learning
def model_targets(batch: Batch) -> Tensor:
    """[s' - s, r], [..., D]."""
    return concatenate([batch.next_observations - batch.observations, batch.rewards[..., None]], -1)


def supervised_loss(dynamics: Dynamics, mean: Tensor, log_var: Tensor, targets: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of targets [E, B, D], the maximum likelihood term of Eq. 6.

    Mean over B and D, sum over members: lambda is tuned to these reductions. Weight decay is part of the loss.
    """
    nll = ((mean - targets) ** 2 * exp(-log_var) + log_var).mean((1, 2)).sum()
    bounds = 1e-3 * (dynamics.max_log_var.sum() - dynamics.min_log_var.sum())
    decay = sum(0.5 * c * (layer.weight**2).sum() for c, layer in zip(WEIGHT_DECAYS, dynamics.layers, strict=True))
    return nll + bounds + decay


def pretraining_loss(dynamics: Dynamics, batch: Batch) -> Tensor:
    """Maximum likelihood alone, on rows [E, B, ...] of each member's own."""
    return supervised_loss(dynamics, *dynamics(batch.observations, batch.actions), model_targets(batch))


@torch.no_grad()
def holdout_errors(dynamics: Dynamics, holdout: Batch) -> Tensor:
    """Mean squared error of each member's mean on the hold-out rows, [E]."""
    mean, _ = dynamics(holdout.observations, holdout.actions)
    return (((mean - model_targets(holdout)) / dynamics.output_scale) ** 2).mean((1, 2))


def pretrain_dynamics(dynamics: Dynamics, train_rows: Tensor, holdout: Batch, args: Args, run: "Run | None" = None) -> Tensor:
    """Maximum likelihood, each member on its own bootstrap sample; early stopping and best weights per member.

    Returns the members' best hold-out errors [E], with these weights restored; not finite ones if it diverges. A run
    keeps checkpoints.
    """
    obs_dim = holdout.observations.shape[-1]
    dynamics.set_scales(split_rows(train_rows, obs_dim))
    if args.model_max_pretrain_epochs == 0:
        return holdout_errors(dynamics, holdout)
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=args.model_lr, fused=True, capturable=True)
    loss_function = torch.compile(pretraining_loss) if args.compile else pretraining_loss

    def update(indices: Tensor) -> None:
        adam_step(optimizer, loss_function(dynamics, split_rows(train_rows[indices], obs_dim)))

    update = CudaGraph(update) if args.cudagraphs and train_rows.is_cuda else update
    bootstrap = torch.randint(len(train_rows), (args.num_models, len(train_rows)), device=train_rows.device)
    best_errors = torch.full((args.num_models,), math.inf, device=train_rows.device)  # the first epoch always improves
    best_layers = copy.deepcopy(dynamics.layers).requires_grad_(False)
    parts, name = (dynamics, optimizer, best_layers), "pretraining.pt"
    first_epoch, epochs_since_improvement = load_checkpoint(run, parts, [best_errors], name) if run and args.resume else (0, 0)
    epochs = range(first_epoch, args.model_max_pretrain_epochs)
    bar = tqdm(epochs, "Pretraining the model", epochs.stop, unit="epoch", initial=first_epoch, dynamic_ncols=True)
    for i in bar:
        order = bootstrap.gather(1, torch.rand(bootstrap.shape, device=bootstrap.device).argsort(1))  # reshuffled for each
        for indices in order.split(args.batch_size, dim=1):
            update(indices)
        errors = holdout_errors(dynamics, holdout)
        if not errors.isfinite().all():
            return errors
        improved = errors < 0.99 * best_errors
        best_errors.copy_(where(improved, errors, best_errors))
        for kept, weight in zip(best_layers.parameters(), dynamics.layers.parameters(), strict=True):
            kept.copy_(where(improved[:, None, None], weight.detach(), kept))
        epochs_since_improvement = 0 if improved.any() else epochs_since_improvement + 1
        bar.set_postfix(holdout_mse=f"{best_errors.mean():.4f}", patience=f"{epochs_since_improvement}/10")
        if epochs_since_improvement > 10:
            break
        if run and run.checkpoint_is_due():
            save_checkpoint(run, 0, parts, [best_errors], name, (i + 1, epochs_since_improvement))
    dynamics.layers.load_state_dict(best_layers.state_dict())
    return best_errors


def rollout_ends(dataset: Batch, rule: Callable, obs_mean: Tensor, obs_std: Tensor, args: Args) -> Callable:
    """The function (rewards [...], next_observations [..., O]) -> rewards, terminals [...] that ends steps of the model.

    The environment's rule, on un-normalised states, terminates them. With --halt-outside leaving the range of the dataset's
    observations does as well: no row has taught the model anything there. Where rewards are negative, that is no way out.
    """
    both = concatenate([dataset.observations, dataset.next_observations])
    low, high = amin(both, 0), amax(both, 0)
    # Many rows exactly on an edge: the environment clips there, and stepping over it by the model's noise is not leaving
    low = where((both == low).sum(0) > 10 + 1e-4 * len(both), -math.inf, low)
    high = where((both == high).sum(0) > 10 + 1e-4 * len(both), math.inf, high)
    low_reward = quantile(dataset.rewards[: 2**24], 0.01)  # of as many as torch takes; the lowest one may be far off
    low_value = clip(low_reward, max=0) / (1 - args.gamma)

    def end_step(rewards: Tensor, next_observations: Tensor) -> tuple[Tensor, Tensor]:
        terminals = rule(next_observations * obs_std + obs_mean)
        if args.halt_outside:
            halted = ((next_observations < low) | (next_observations > high)).any(-1) & ~terminals
            rewards = rewards + args.gamma * low_value * halted  # the target r + gamma low_value: the worst for ever
            terminals = terminals | halted
        return rewards, terminals

    return end_step


@torch.no_grad()
def rollout_models(
    agent: Agent, dynamics: Dynamics, rows: Tensor, end_step: Callable, args: Args
) -> tuple[Tensor, dict[str, Tensor]]:
    """k-step rollouts of the stochastic policy in the model from dataset states: rows [k * starts, W], and metrics.

    Each rollout stays in one elite: elite e takes the e-th fifth of the (i.i.d.) start states. One that terminates goes
    on from a fresh dataset state, so that shapes stay static and every row is valid.
    """
    obs_dim, num_elites = len(dynamics.max_log_var) - 1, len(dynamics.layers[0].weight)
    shape = num_elites, args.rollout_batch_size // num_elites
    action_dim = rows.shape[1] - 2 * obs_dim - 2
    observations = sample_rows(rows, *shape)[..., :obs_dim]
    steps = []
    for _ in range(args.rollout_length):
        actions, _ = sample_action(agent.actor, observations, torch.randn(*shape, action_dim, device=rows.device))
        mean, log_var = dynamics(observations, actions)
        sample = mean + exp(0.5 * log_var) * torch.randn_like(mean)
        next_observations = observations + sample[..., :-1]
        rewards, terminals = (x[..., None] for x in end_step(sample[..., -1], next_observations))
        step = concatenate([observations, actions, rewards, next_observations, terminals], -1)
        steps.append(step.flatten(0, 1))
        restarts = sample_rows(rows, *shape)[..., :obs_dim]
        observations = where(terminals, restarts, next_observations)
    rollouts = concatenate(steps)
    imagined = split_rows(rollouts, obs_dim)
    return rollouts, {
        "rollout/reward": imagined.rewards.mean(),
        "rollout/termination_rate": imagined.terminals.mean(),
        "rollout/max_abs_state": abs(imagined.next_observations).max(),
    }


# ALGO LOGIC: SAC
def critic_loss(agent: Agent, batch: Batch, noise: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Sum of the critics' mean squared Bellman errors, and their values [n, B]. noise [B, A]: of the next actions."""
    with torch.no_grad():
        next_actions, next_log_probs = sample_action(agent.actor, batch.next_observations, noise)
        next_values = amin(agent.target_critic(batch.next_observations, next_actions), 0)
        next_values = next_values - exp(agent.log_alpha) * next_log_probs
        targets = batch.rewards + gamma * (1 - batch.terminals) * next_values
    values = agent.critic(batch.observations, batch.actions)
    return ((values - targets) ** 2).mean(1).sum(), values


def actor_loss(agent: Agent, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """mean(alpha log pi - min_i Q_i), and log pi [B]. noise [B, A] draws the actions."""
    actions, log_probs = sample_action(agent.actor, observations, noise)
    values = amin(agent.critic(observations, actions), 0)
    return (exp(agent.log_alpha).detach() * log_probs - values).mean(), log_probs


def update_agent(
    agent: Agent, optimizers: dict[str, torch.optim.Optimizer], batch: Batch, noise: Tensor, args: Args,
    critic_loss: Callable = critic_loss, actor_loss: Callable = actor_loss,  # or compiled ones
) -> dict[str, Tensor]:  # fmt: skip
    """One SAC step with noise [2, B, A]: critics, actor, temperature, target critics; and its metrics."""
    qf_loss, values = critic_loss(agent, batch, noise[0], args.gamma)
    adam_step(optimizers["critic"], qf_loss)

    agent.critic.requires_grad_(False)  # the critics get no gradient from this loss
    policy_loss, log_probs = actor_loss(agent, batch.observations, noise[1])
    adam_step(optimizers["actor"], policy_loss)
    agent.critic.requires_grad_(True)

    alpha, target_entropy = exp(agent.log_alpha), -batch.actions.shape[-1]
    alpha_loss = -(agent.log_alpha * (log_probs.detach() + target_entropy)).mean()
    if args.autotune:
        adam_step(optimizers["alpha"], alpha_loss)

    torch._foreach_lerp_(list(agent.target_critic.parameters()), [p.data for p in agent.critic.parameters()], args.tau)
    metrics = {
        "losses/qf_loss": qf_loss,
        "losses/qf_values": values.mean(),
        "losses/max_abs_qf_value": abs(values).max(),
        "losses/actor_loss": policy_loss,
        "losses/alpha_loss": alpha_loss,
        "losses/alpha": alpha,
        "losses/entropy": -log_probs.mean(),
    }
    return {name: value.detach() for name, value in metrics.items()}


# ALGO LOGIC: RAMBO, the adversarial model update
def mixture_log_prob(mean: Tensor, log_var: Tensor, sample: Tensor) -> Tensor:
    """log of the elites' average density at sample [B, D], for means and log variances [E, B, D]. Returns [B]."""
    log_probs = -0.5 * ((sample - mean) ** 2 * exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)
    return logsumexp(log_probs, 0) - math.log(len(mean))  # not log(exp): densities under- and overflow float32


@torch.no_grad()
def compute_advantages(agent: Agent, batch: Batch, gamma: float) -> Tensor:
    """r + gamma V(s') - Q(s, a) of Eq. 5, [B], un-normalised: is this transition better than the critic expects?"""
    next_values = amin(agent.critic(batch.next_observations, agent.actor.mode(batch.next_observations)), 0)
    values = amin(agent.critic(batch.observations, batch.actions), 0)
    return batch.rewards + gamma * (1 - batch.terminals) * next_values - values


def adversarial_loss(log_prob: Tensor, advantages: Tensor, norm_adv: bool = True) -> Tensor:
    """Its gradient is the sampled Eq. 5: that of the policy's value in the model with respect to the model.

    Minimising it LOWERS the probability of transitions that are better than expected. Gradients flow only through the
    log-probability [B]; the sample it was taken at and the advantages [B] are constants.
    """
    if norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-6)
    return (advantages.detach() * log_prob).mean()


def model_loss(
    dynamics: Dynamics, agent: Agent, observations: Tensor, real: Batch, elites: Tensor, noise: Tensor,
    end_step: Callable, args: Args,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    """Eq. 6 on one step of the policy in the model from observations [B, O], and on dataset rows [E, B, ...].

    elites [B] draw the member that each (s', r) is sampled from, noise [B, A + D] the action and that sample. Returns
    the loss, and the next observations [B, O], which of them are terminal [B], and metrics.
    """
    batch_size, action_dim = len(observations), real.actions.shape[-1]
    with torch.no_grad():
        actions, _ = sample_action(agent.actor, observations, noise[:, :action_dim])
    # One pass of the ensemble over both: the imagined step, the same for every member, and each member's dataset rows
    both_observations = concatenate([broadcast_to(observations, real.observations.shape), real.observations], 1)
    both_actions = concatenate([broadcast_to(actions, real.actions.shape), real.actions], 1)
    both_means, both_log_vars = dynamics(both_observations, both_actions)
    mean, real_mean = both_means.split(batch_size, 1)
    log_var, real_log_var = both_log_vars.split(batch_size, 1)

    rows = torch.arange(batch_size, device=mean.device)
    sample = mean[elites, rows] + exp(0.5 * log_var[elites, rows]) * noise[:, action_dim:]
    sample = sample.detach()  # the sampled (s', r) is a constant
    next_observations = observations + sample[:, :-1]
    rewards, terminals = end_step(sample[:, -1], next_observations)
    imagined = Batch(observations, actions, rewards, next_observations, terminals.float())
    advantages = compute_advantages(agent, imagined, args.gamma)
    log_prob = mixture_log_prob(mean, log_var, sample)
    adv_loss = adversarial_loss(log_prob, advantages, args.norm_adv)
    sup_loss = supervised_loss(dynamics, real_mean, real_log_var, model_targets(real))
    loss = sup_loss + args.adv_weight * adv_loss  # Eq. 6
    metrics = {
        "model/supervised_loss": sup_loss,
        "model/adversarial_loss": adv_loss,
        "model/advantage_mean": advantages.mean(),
        "model/advantage_std": advantages.std(correction=0),
        "model/log_prob": log_prob.mean(),
    }
    return loss, next_observations, terminals, {name: value.detach() for name, value in metrics.items()}


def update_model(
    agent: Agent, dynamics: Dynamics, optimizer: torch.optim.Optimizer, observations: Tensor, restarts: Tensor,
    real: Batch, elites: Tensor, noise: Tensor, end_step: Callable, args: Args,
    model_loss: Callable = model_loss,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """One step of Eq. 7, as in model_loss. Returns the observations [B, O] to go on from, and metrics.

    Rollouts that terminate go on from restarts [B, O]: the critic was never trained at states past a terminal.
    """
    loss, next_observations, terminals, metrics = model_loss(
        dynamics, agent, observations, real, elites, noise, end_step, args
    )
    adam_step(optimizer, loss)
    grad_norm = nn.utils.get_total_norm([parameter.grad for parameter in dynamics.parameters()])
    observations = where(terminals[..., None], restarts, next_observations)
    return observations, metrics | {"model/grad_norm": grad_norm}


def main(args: Args) -> dict:
    """Trains. Returns result.json and the folder of the run. Raises InputError, Diverged."""
    check_args(args, announce=True)
    # TRY NOT TO MODIFY: seeding
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS; read when CUDA starts
    torch.use_deterministic_algorithms(args.torch_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # True fills new memory with NaN: 17 kernels an update
    torch.set_float32_matmul_precision("highest" if args.matmul_precision == "float32" else "high")
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.capture_video:
        record_video(args)  # better to fail now than after training

    # Dataset: on the device, states normalised. Every run has the same hold-out rows, so --load-model keeps them unseen
    with closing(make_env(args.env_id, args.d4rl_physics)) as env:
        dataset, rule = load_dataset(args.env_id, args.dataset_path, env), termination_rule(env)
    obs_dim, action_dim = dataset.obs_dim, dataset.action_dim
    rows = torch.as_tensor(np.random.default_rng(0).permutation(dataset.rows), device=device)
    num_holdout = min(1000, len(rows) // 10)
    holdout, train_rows = split_rows(rows[:num_holdout], obs_dim), rows[num_holdout:]
    obs_mean, obs_std = torch.tensor(np.stack([dataset.obs_mean, dataset.obs_std]), dtype=torch.float32, device=device)
    end_step = rollout_ends(split_rows(rows, obs_dim), rule, obs_mean, obs_std, args)

    # Agent, model, and the ring buffer of the last iterations' rollouts
    use_model = args.real_ratio < 1
    resume_training = args.resume and not (Path(args.resume) / "pretraining.pt").exists()  # else within the pretraining
    pretrain = use_model and not resume_training and not args.load_model
    num_models = args.num_models if pretrain else args.num_elites
    retained = args.rollout_retain_iterations if use_model else 0
    agent = Agent(obs_dim, action_dim, args.alpha, args.num_critics).to(device)
    dynamics = Dynamics(num_models, obs_dim, action_dim, args.model_hidden_dim).to(device)
    buffer = torch.zeros(retained, args.rollout_length * args.rollout_batch_size, rows.shape[1], device=device)

    def add_rollouts(iteration: int) -> dict[str, Tensor]:
        rollouts, metrics = rollout_models(agent, dynamics, rows, end_step, args)
        buffer[iteration % args.rollout_retain_iterations] = rollouts  # over the oldest
        return metrics

    # Pretraining; or what an earlier run left
    if args.load_model and not resume_training:
        load_arrays(args.load_model, dynamics, dataset)
    run = Run(args, dataset, "cpu" if device.type == "cpu" else torch.cuda.get_device_name())
    if pretrain:
        errors = pretrain_dynamics(dynamics, train_rows, holdout, args, run)
        run.check(0, {"hold-out error": errors.sum().item()})
        elites = errors.argsort()[: args.num_elites].sort().values
        print(f"Hold-out MSE: {' '.join(f'{error:.5f}' for error in errors)}; elites: {elites.tolist()}")
        dynamics.keep_members(elites)
    if not resume_training:
        clone_behaviour(agent, rows, obs_dim, args)
        if args.save_model and use_model:
            run.save_arrays("dynamics_pretrained.npz", to_numpy(dynamics))
    adam = partial(torch.optim.Adam, fused=True, capturable=True)
    optimizers = {
        "actor": adam(agent.actor.parameters(), lr=args.policy_lr),
        "critic": adam(agent.critic.parameters(), lr=args.q_lr),
        "alpha": adam([agent.log_alpha], lr=args.policy_lr),
        "model": adam(dynamics.parameters(), lr=args.model_lr),  # starts afresh after pretraining
    }
    parts = agent, dynamics, *optimizers.values()
    if resume_training:
        load_checkpoint(run, parts, (buffer,))
    if resume_training and use_model and run.iteration and not buffer.any():
        print("The checkpoint holds no model rollouts: rolling the model out anew")
        for iteration in range(max(run.iteration - args.rollout_retain_iterations, 0), run.iteration):
            add_rollouts(iteration)

    # One update each, as functions of tensors of fixed shapes
    compiled = torch.compile if args.compile else lambda function: function
    captured = CudaGraph if args.cudagraphs and device.type != "cpu" else lambda function: function
    sac_losses, adversary_loss = (compiled(critic_loss), compiled(actor_loss)), compiled(model_loss)
    model_rows = buffer.flatten(0, 1)

    def agent_step(real_indices: Tensor, model_indices: Tensor, noise: Tensor) -> dict[str, Tensor]:
        batch = split_rows(concatenate([rows[real_indices], model_rows[model_indices]]), obs_dim)
        return update_agent(agent, optimizers, batch, noise, args, *sac_losses)

    def model_step(observations: Tensor, restart_indices: Tensor, real_indices: Tensor, *draws: Tensor) -> tuple:
        real, restarts = split_rows(train_rows[real_indices], obs_dim), rows[restart_indices, :obs_dim]
        model = agent, dynamics, optimizers["model"]
        return update_model(*model, observations, restarts, real, *draws, end_step, args, adversary_loss)

    agent_step, model_step = captured(agent_step), captured(model_step)

    # ALGO LOGIC: Algorithm 1
    num_updates, batch_size, num_real = args.updates_per_iteration, args.batch_size, round(args.real_ratio * args.batch_size)
    model_updates = args.model_updates_per_iteration or num_updates
    draw, normal = partial(torch.randint, device=device), partial(torch.randn, device=device)
    first, last = run.iteration, args.total_iterations
    bar = tqdm(range(first, last + 1), "RAMBO", last, unit="iteration", initial=first, dynamic_ncols=True)
    for iteration in bar:
        # TRY NOT TO MODIFY: checkpoint and evaluate what the iterations so far have made
        is_last, just_pretrained = iteration == last, iteration == 0 and pretrain
        if run.checkpoint_is_due(just_pretrained or is_last):
            save_checkpoint(run, iteration, parts, (buffer,) if args.checkpoint_buffer else ())
        if iteration % args.eval_interval == 0 or iteration > last - 10:
            run.evaluate(iteration, to_numpy(agent))
        if is_last:
            break

        # Generate synthetic k-step rollouts with pi in the model, from states of the dataset
        metrics = {name: value.item() for name, value in add_rollouts(iteration).items()} if use_model else {}

        # Agent update: SAC on dataset and model rows
        start_time, history = time.monotonic(), []
        num_model_rows = min(iteration + 1, retained) * buffer.shape[1] if use_model else 1
        real_indices = draw(len(rows), (num_updates, num_real))
        model_indices = draw(num_model_rows, (num_updates, batch_size - num_real))
        noise = normal(num_updates, 2, batch_size, action_dim)
        for draws in zip(real_indices, model_indices, noise, strict=True):
            agent_metrics = agent_step(*draws)
            history.append(torch.stack(list(agent_metrics.values())))
        metrics |= summarize(agent_metrics, history)
        metrics["charts/SPS"] = num_updates / (time.monotonic() - start_time)
        actor_parameters = [parameter.data for parameter in agent.actor.parameters()]
        torch._foreach_lerp_(list(agent.policy.parameters()), actor_parameters, 1 - args.policy_average)

        # Adversarial model update; lambda = 0 leaves the maximum likelihood model as it is
        if use_model and args.adv_weight > 0:
            start_time, history = time.monotonic(), []
            starts, restarts = draw(len(rows), (2, model_updates, batch_size))
            real_indices = draw(len(train_rows), (model_updates, args.num_elites, batch_size))
            elites = draw(args.num_elites, (model_updates, batch_size))
            noise = normal(model_updates, batch_size, action_dim + obs_dim + 1)
            for i, draws in enumerate(zip(restarts, real_indices, elites, noise, strict=True)):
                if i % args.rollout_length == 0:
                    observations = rows[starts[i], :obs_dim]
                observations, model_metrics = model_step(observations, *draws)
                history.append(torch.stack(list(model_metrics.values())))
            metrics |= summarize(model_metrics, history)
            metrics["charts/model_SPS"] = model_updates / (time.monotonic() - start_time)
        if use_model:
            metrics["model/holdout_mse"] = holdout_errors(dynamics, holdout).mean().item()

        run.log(iteration + 1, metrics)
        bar.set_postfix_str(progress([run], metrics["losses/qf_values"]))

    run.save_arrays("policy.npz", to_numpy(agent.policy))
    if args.save_model and use_model:
        run.save_arrays("dynamics.npz", to_numpy(dynamics) | {"adv_weight": args.adv_weight})
    result = run.finish()
    if args.capture_video:
        record_video(args, NumpyAgent(to_numpy(agent), dataset.obs_mean, dataset.obs_std), run.folder)
    return result


# What main needs beside the algorithm
def summarize(names: Iterable[str], history: list[Tensor]) -> dict[str, float]:
    """The metrics of an iteration from those of its updates: means, or the largest of max_... Waits for the device."""
    values = torch.stack(history)
    columns = zip(names, values.mean(0).tolist(), values.amax(0).tolist(), strict=True)
    return {name: largest if "/max_" in name else mean for name, mean, largest in columns}


def clone_behaviour(agent: Agent, rows: Tensor, obs_dim: int, args: Args) -> None:
    """Warm-starts the policy by maximum likelihood on the dataset, reshuffled every epoch (--bc-epochs)."""
    optimizer = torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr, fused=True)
    for _ in tqdm(range(args.bc_epochs), desc="Behaviour cloning", disable=not args.bc_epochs, dynamic_ncols=True):
        for indices in torch.randperm(len(rows), device=rows.device).split(args.batch_size):
            batch = split_rows(rows[indices], obs_dim)
            pre_tanh = arctanh(clip(batch.actions, -0.999, 0.999))  # an action at +-1 has no finite log pi
            adam_step(optimizer, -squashed_log_prob(*agent.actor(batch.observations), pre_tanh).mean())
    agent.policy.load_state_dict(agent.actor.state_dict())


class CudaGraph:
    """Replays a function of tensors of fixed shapes as one CUDA graph, over the last results; other shapes run as they are."""

    stream = None  # one for the warm-up and capture of all graphs: gradients are summed on the stream that made them

    def __init__(self, function: Callable):
        self.function, self.calls, self.graph = function, 0, None
        CudaGraph.stream = CudaGraph.stream or torch.cuda.Stream()

    def __call__(self, *inputs: Tensor):
        self.calls += 1
        if self.calls <= 3:  # the warm-up that a capture needs: real updates, on a side stream
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self.graph, self.inputs = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        if any(static.shape != x.shape for static, x in zip(self.inputs, inputs, strict=True)):
            return self.function(*inputs)
        for static, x in zip(self.inputs, inputs, strict=True):
            static.copy_(x)
        self.graph.replay()
        return self.outputs


def to_numpy(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}


def load_arrays(path: str, module: nn.Module, dataset: "Dataset") -> None:
    """Fills the module from a file of Run.save_arrays; InputError if it is of another dataset or bent by an adversary."""
    with explain(f"--load-model {path} cannot be loaded into this run"), np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
        if str(arrays["fingerprint"]) != dataset.fingerprint:
            raise InputError(f"{path} was trained on another dataset")
        if arrays.get("adv_weight", 0) > 0:
            raise InputError(f"{path} was changed by an adversary: take dynamics_pretrained.npz of that run")
        module.load_state_dict({name: torch.as_tensor(arrays[name]) for name in module.state_dict()})


def save_checkpoint(run: "Run", iteration: int, parts: tuple, tensors: tuple, name="checkpoint.pt", progress=()) -> None:
    """Everything that the run needs to go on as if it had never stopped; evaluations under way are waited for."""
    checkpoint = run.state(iteration) | {
        "states": [part.state_dict() for part in parts],
        "tensors": tensors,  # the model's rollouts, where they are kept; of pretraining the best errors
        "progress": progress,  # of pretraining
        "rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }
    write_file(run.folder / name, lambda file: torch.save(checkpoint, file))
    CHECKPOINTS[run.folder] = iteration
    if name == "checkpoint.pt":
        (run.folder / "pretraining.pt").unlink(missing_ok=True)


def load_checkpoint(run: "Run", parts: tuple, tensors: tuple, name: str = "checkpoint.pt") -> tuple:
    """Goes on from save_checkpoint's file, running no pickled code. Returns its progress."""
    with explain(f"--resume {run.folder}: no usable {name} there"):
        checkpoint = torch.load(run.folder / name, map_location=tensors[0].device, weights_only=True)
        run.check_checkpoint(checkpoint)
        for part, state in zip(parts, checkpoint["states"], strict=True):
            part.load_state_dict(state)
        for tensor, saved in zip(tensors, checkpoint["tensors"], strict=False):
            tensor.copy_(saved)
        run.go_on(checkpoint)
        torch.set_rng_state(checkpoint["rng_state"].cpu())
        if torch.cuda.is_initialized() and checkpoint["cuda_rng_state"] is not None:
            torch.cuda.set_rng_state(checkpoint["cuda_rng_state"].cpu())
        return checkpoint["progress"]


# Below here is nothing of RAMBO: arguments, data, environments, evaluation, run folder; the same in both scripts
# PLUMBING: arguments
MAY_BE_ZERO = """seed total_iterations adv_weight real_ratio bc_epochs model_max_pretrain_epochs policy_average
checkpoint_minutes eval_workers""".split()
MAY_CHANGE_ON_RESUME = """resume total_iterations checkpoint_minutes checkpoint_buffer cuda compile cudagraphs track
wandb_project_name wandb_entity capture_video save_model dataset_path num_seeds eval_workers policy_average""".split()


class InputError(Exception):
    """Something the user can put right: one line, exit code 1."""


class Diverged(Exception):
    """A loss or the value function blew up: one line, exit code 3."""


@contextmanager
def explain(tried: str, advice: dict[type[Exception], str] | None = None):
    """Any error becomes one line: what was tried, what helps against errors of its type, and what the error says."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        helps = [f": {text}" for kind, text in (advice or {}).items() if isinstance(error, kind)]
        raise InputError(f"{tried}{''.join(helps)} ({type(error).__name__}: {error})".replace("\n", " ")) from error


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def make_args(env_id: str, **changes) -> Args:
    """The command line's Args for programs: the defaults of the dataset (DATASET_DEFAULTS) and these changes."""
    return Args(**{"env_id": env_id} | DATASET_DEFAULTS.get(env_id, {}) | changes)


def parse_args(argv: list[str] | None = None) -> Args:
    """The command line over the dataset's defaults or, with --resume, over the saved arguments. Raises InputError."""
    argv = plain_flags(sys.argv[1:] if argv is None else argv)
    args = tyro.cli(Args, args=[word for word in argv if word not in ("-h", "--help")])  # which dataset, or which run?
    defaults = read_args(Path(args.resume)) if args.resume else make_args(args.env_id)
    args = tyro.cli(Args, args=argv, default=defaults)
    fixed = fixed_arguments(vars(defaults)) if args.resume else {}
    if changed := [f"{flag_of(name)} {old}" for name, old in fixed.items() if getattr(args, name) != old]:
        raise InputError(f"--resume: that run has {', '.join(changed)}; leave it out, or start a new run")
    check_args(args)
    return args


def fixed_arguments(arguments: dict) -> dict:
    """Those that a run keeps when it is resumed."""
    return {name: value for name, value in arguments.items() if name not in MAY_CHANGE_ON_RESUME}


def plain_flags(argv: list[str]) -> list[str]:
    """--flag=True and --flag False, as sweep agents write switches, become --flag and --no-flag; a flag that is gone goes."""
    text = "\0".join(["", *argv, ""])
    text, gone = re.subn(r"\0--checkpoint[-_]interval[=\0][^\0]*", "", text)
    if gone:
        print("warning: --checkpoint-interval is ignored, checkpoints are written every --checkpoint-minutes")
    switches = "|".join(name.replace("_", "[-_]") for name, value in vars(Args()).items() if isinstance(value, bool))
    text = re.sub(rf"\0--({switches})[=\0]true(?=\0)", r"\0--\1", text, flags=re.I)
    text = re.sub(rf"\0--({switches})[=\0]false(?=\0)", r"\0--no-\1", text, flags=re.I)
    return text.split("\0")[1:-1]


def read_args(folder: Path) -> Args:
    """The arguments of a run to go on with; all seeds that began with this one go on together. Raises InputError."""
    with explain(f"--resume {folder}: its args.json cannot be read"):
        saved = json.loads((folder / "args.json").read_text(encoding="utf-8"))
        saved.pop("device", None)
        if {"num_seeds", "cudagraphs"} & saved.keys() - vars(Args()).keys():
            other = "rambo_continuous_jax.py" if "num_seeds" in saved else "rambo_continuous.py"
            raise InputError(f"--resume {folder}: a run of the other script, go on with {other}")
        if "num_seeds" in saved and (folder / "seeds.json").exists():
            saved["num_seeds"] = len(json.loads((folder / "seeds.json").read_text(encoding="utf-8")))
        return Args(**saved)


def check_args(args: Args, announce: bool = False) -> None:
    """Raises InputError with every rule that the arguments break; says which of the dataset's defaults are in force."""
    num_seeds, num_real = getattr(args, "num_seeds", 1), args.real_ratio * args.batch_size
    compiles, compiler = getattr(args, "compile", False), os.environ.get("CXX", "g++")
    rules = {
        "--seed must be below 2**32": args.seed + num_seeds <= 2**32,
        "--gamma and --policy-average must be below 1": max(args.gamma, args.policy_average) < 1,
        "--tau and --real-ratio must not exceed 1": max(args.tau, args.real_ratio) <= 1,
        "--real-ratio must leave a row of the dataset and one of the model in each batch, or be 0 or 1":
            num_real in (0, args.batch_size) or 0.5 < num_real < args.batch_size - 0.5,
        "--num-elites must not exceed --num-models": args.num_elites <= args.num_models,
        "--num-elites must divide --rollout-batch-size": args.rollout_batch_size % (args.num_elites or 1) == 0,
        "--load-model makes no sense with --real-ratio 1: no model is used": not args.load_model or args.real_ratio < 1,
        "--track makes no sense with several --num-seeds": not args.track or num_seeds == 1,
        "--track needs `pip install wandb`": not args.track or importlib.util.find_spec("wandb"),
        "--capture-video needs `pip install moviepy`": not args.capture_video or importlib.util.find_spec("moviepy"),
        f"--compile needs a C++ compiler: install {compiler}, or set CXX": not compiles or shutil.which(compiler),
    }  # fmt: skip
    for name, value in vars(args).items():
        if type(value) in (int, float):
            limit = "0 or more" if name in MAY_BE_ZERO else "positive"
            rules[f"{flag_of(name)} must be {limit}"] = 0 < value < math.inf or (name in MAY_BE_ZERO and value == 0)
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise InputError("; ".join(broken))
    for name, default in DATASET_DEFAULTS.get(args.env_id, {}).items() if announce else ():
        value = getattr(args, name)
        print(f"{flag_of(name)} {value}: {args.env_id}'s default" + (f" is {default}" if value != default else ""))


# PLUMBING: data
D4RL_HOSTS = (
    "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2",
    f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/datasets/imone/D4RL/resolve/main",
)
D4RL_FILES = {  # id: (bytes, sha256) of the file; hopper-medium-v2 is hopper_medium-v2.hdf5
    "hopper-random-v2": (152525345, "63103ef7059db4c0819bd054f4e83ff339030b50bcdb46bdbe50385f234b5054"),
    "hopper-medium-v2": (152756557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"),
    "hopper-medium-replay-v2": (75854457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "hopper-medium-expert-v2": (304537315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"),
    "hopper-expert-v2": (152427435, "01aa219a5f8eea5e639eccdc636ec2bf40e317159a95cf4bf6e985f16909941b"),
    "hopper-full-replay-v2": (187998921, "56baf95963c51c1e964049a974566c50ba80f289390565523e60c0ba83e0982e"),
    "halfcheetah-random-v2": (237338037, "25407aef85b5d16c0f36b4149341edb4acc6a9e88c1db529b2de19e7464874ba"),
    "halfcheetah-medium-v2": (237727262, "41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0"),
    "halfcheetah-medium-replay-v2": (59448533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "halfcheetah-medium-expert-v2": (474567252, "015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06"),
    "halfcheetah-expert-v2": (237464597, "d9fe53bb994eb1e20a99b4fa3412cd76a1bb7966a7ff55e0fcbdd6081bd2965f"),
    "halfcheetah-full-replay-v2": (291381762, "27fdf7ea86e5a2cbd24d611ae9e703c86ec2e8e52823abc69dd9af6afb3a36c0"),
    "walker2d-random-v2": (216109364, "4e863bb6090cf4a461548bd470564b32f1ae5b32ef3085f816b2ede7f092e7fa"),
    "walker2d-medium-v2": (232254996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"),
    "walker2d-medium-replay-v2": (86323963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "walker2d-medium-expert-v2": (462197079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"),
    "walker2d-expert-v2": (230567195, "2985dc3d436a8baa10e8f43f946fe1d7c6337a4e4fbc65def70618093b18c59a"),
    "walker2d-full-replay-v2": (285115514, "f2720f9d27b2acef6ec9a7d9ad3b80b6c2078ad4467cee668a81e3b3c80bcf2a"),
}
BUNDLED_FILES = {"hopper-mini-v2": "hopper_mini-v2.hdf5", "pendulum-mini": "pendulum_mini.hdf5"}  # in benchmark/datasets


def suggest(env_id: str) -> str:
    if "-sbx-" in env_id:
        return "benchmark/datasets/rebuild.py makes it."
    if env_id in gym.registry:
        return "that is an environment."
    close = difflib.get_close_matches(env_id, [*D4RL_FILES, *BUNDLED_FILES, *gym.registry], 3)
    return f"did you mean {' or '.join(close or ['hopper-medium-v2'])}?"


def minari_dataset(env_id: str):
    """Minari's dataset of that id, such as mujoco/hopper/medium-v0 or a local one of any name; None where it has none."""
    if env_id in D4RL_FILES or env_id in BUNDLED_FILES or env_id in gym.registry or ":" in env_id:
        return None
    advice = {ImportError: "pip install 'minari[hdf5,hf]'", ValueError: "`minari list remote` shows what there is"}
    with explain(f"Minari's {env_id} cannot be loaded", advice):
        minari = importlib.import_module("minari") if "/" in env_id or importlib.util.find_spec("minari") else None
        local = minari.list_local_datasets() if minari else {}
        if "/" in env_id or env_id in local:
            return minari.load_dataset(env_id, download=env_id not in local)


def download_d4rl(env_id: str, path: Path) -> None:
    """Downloads a D4RL file, resuming what an earlier try left; only a file with the right checksum gets its name."""
    (size, sha256), part = D4RL_FILES[env_id], Path(f"{path}.part")
    for host in D4RL_HOSTS:
        start = part.stat().st_size if part.exists() else 0
        try:
            request = urllib.request.Request(f"{host}/{path.name}", headers={"Range": f"bytes={start}-"})
            with urllib.request.urlopen(request, timeout=30) as response, part.open("ab") as file:
                start = start if response.status == 206 else 0  # else the host ignores Range and sends it all
                if start + (response.length or 0) != size:
                    raise OSError("the host sends another file")
                file.truncate(start)
                with tqdm.wrapattr(file, "write", size, initial=start, desc=path.name) as bar:
                    shutil.copyfileobj(response, bar)
            problem = "the transfer broke off"
        except (OSError, ValueError, HTTPException) as error:  # as well for a file that is complete: nothing is left to send
            problem = error
        if part.exists() and part.stat().st_size >= size:
            if hashlib.sha256(part.read_bytes()).hexdigest() == sha256:
                part.replace(path)
                return
            problem = "wrong checksum"
            part.unlink()
    ways_out = f"run again to go on, or put {path.name} there ($D4RL_DATASET_DIR), or give --dataset-path FILE"
    raise InputError(f"could not download {host}/{path.name} to {path.parent} ({problem}): {ways_out}")


def find_dataset(env_id: str, dataset_path: str | None) -> Path:
    """The HDF5 file to learn from, downloaded if need be. Raises InputError."""
    if dataset_path or env_id in BUNDLED_FILES:
        path = Path(dataset_path or Path(__file__).resolve().parent / "benchmark" / "datasets" / BUNDLED_FILES[env_id])
        if not path.is_file():
            raise InputError(f"no such file: {path}. Give --dataset-path FILE")
        return path
    if env_id not in D4RL_FILES:
        raise InputError(f"no dataset is known as {env_id}: {suggest(env_id)} Or give --dataset-path FILE")
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets")
    with explain(f"{folder} cannot hold D4RL's files: $D4RL_DATASET_DIR names another folder"):
        path = folder.expanduser() / f"{env_id.removesuffix('-v2').replace('-', '_')}-v2.hdf5"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock_file(f"{path}.lock"):  # several runs may need the same file
                if not path.exists():
                    download_d4rl(env_id, path)
    return path


def read_minari(dataset) -> dict[str, np.ndarray]:
    """The columns of read_hdf5, from a Minari dataset."""
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    episodes = dataset.iterate_episodes()
    each = ((e.observations[:-1], e.actions, e.rewards, e.observations[1:], e.terminations, e.truncations) for e in episodes)
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*each, strict=True), strict=True)}


def read_hdf5(path: Path, time_limit: int = 1000) -> dict[str, np.ndarray]:
    """observations [N, O], actions [N, A], rewards, terminals, timeouts [N], next_observations [N, O] of a D4RL file, whose
    episodes end at terminals and at timeouts; if it says nothing of these, after time_limit steps. Raises InputError."""
    required, optional = ("observations", "actions", "rewards", "terminals"), ("timeouts", "next_observations")
    with explain(f"{path} cannot be read as HDF5 with columns of one length"), h5py.File(path) as file:
        data = {key: np.atleast_1d(file[key]) for key in required + optional if isinstance(file.get(key), h5py.Dataset)}
        if missing := [key for key in required if key not in data]:
            raise InputError(f"{path} lacks {', '.join(missing)}: not a D4RL-style file")
        terminals, steps = data["terminals"].astype(bool).reshape(-1), np.arange(len(data["terminals"]))
        timeouts = data.get("timeouts", np.zeros_like(terminals)).astype(bool).reshape(-1)
        starts = np.maximum.accumulate(np.where(np.roll(terminals | timeouts, 1), steps, 0))  # of each row's episode
        timed_out = timeouts if timeouts.any() else (steps - starts) % time_limit == time_limit - 1
        if "timeouts" not in data:
            print(f"{path.name} has no timeouts: taking episodes to end at terminals and after {time_limit} steps")
        data["timeouts"] = timed_out
        if "next_observations" not in data:
            # Row i + 1 holds row i's next observation; where an episode ends it is lost, so the row is dropped
            last = terminals | timed_out | (steps == len(steps) - 1)
            print(f"{path.name} has no next_observations: dropped the last row of {last.sum()} episodes")
            data["next_observations"] = np.roll(data["observations"], -1, axis=0)
            data = {key: column[~last] for key, column in data.items()}
    return data


class Dataset(NamedTuple):
    rows: np.ndarray  # float32 [N, 2O + A + 2]: observation | action | reward | next observation | terminal
    obs_mean: np.ndarray  # float64 [O]; observations are stored as (observation - mean) / std
    obs_std: np.ndarray  # float64 [O]
    obs_dim: int
    action_dim: int
    action_low: np.ndarray  # [A], the environment's bounds
    action_high: np.ndarray  # [A]
    fingerprint: str  # of the dataset's columns: tells datasets apart


def load_dataset(env_id: str, dataset_path: str | None, env: gym.Env) -> Dataset:
    """Reads, checks and packs the dataset. States are normalised by mean and std + 1e-3 (the way of TD3+BC), actions are
    scaled to [-1, 1], rewards stay raw. Only terminals end the return: a timeout bootstraps. Raises InputError."""
    if dataset_path is None and (minari := minari_dataset(env_id)) is not None:
        path, data = env_id, read_minari(minari)
    else:
        path = find_dataset(env_id, dataset_path)
        data = read_hdf5(path, env.spec.max_episode_steps)
    n, obs_dim, action_dim = len(data["rewards"]), env.observation_space.shape[0], env.action_space.shape[0]
    widths = {"observations": obs_dim, "next_observations": obs_dim, "actions": action_dim}
    for key in data:
        with explain(f"{path}: {key} of {data[key].dtype} cannot be read as numbers"), np.errstate(over="ignore"):
            column = data[key].astype(np.promote_types(data[key].dtype, np.float32), copy=False)  # float64 stays, for offsets
            column = column.reshape(len(column), math.prod(column.shape[1:]))  # [N] becomes [N, 1]
            finite = np.isfinite(column.astype(np.float32, copy=False))
        if column.shape != (n, widths.get(key, 1)):
            raise InputError(f"{path}: {key} has shape {data[key].shape}, {env.spec.id} needs {n, widths.get(key, 1)}")
        if not finite.all():
            raise InputError(f"{path}: {key} holds NaN or infinity in row {np.argwhere(~finite)[0, 0]}")
        data[key] = column
    # Recorded from an environment that resets itself, an episode's last row, or one row more, leads into the next episode
    ends = ((data["terminals"] > 0) | (data["timeouts"] > 0))[:, 0]
    returns = np.diff(np.cumsum(data["rewards"], dtype=np.float64)[ends], prepend=0.0)
    before, after, following = data["observations"][:-1], data["next_observations"][:-1], data["observations"][1:]
    joined = np.flatnonzero(ends[:-1] & (after == following).all(1) & (after != before).any(1))
    if joined.size:
        print(f"warning: {path} leads from {joined.size} ends of episodes into the next: dropped the two rows at each")
        data = {key: np.delete(column, [*joined, *joined + 1], 0) for key, column in data.items()}
    if (n := len(data["rewards"])) < 20:
        raise InputError(f"{path} holds {n} transitions: too few to learn from")
    low, high, actions = env.action_space.low, env.action_space.high, data["actions"]
    tolerance = 5e-4 * (high - low) + 1e-6 * abs(high)
    if (actions < low - tolerance).any() or (actions > high + tolerance).any():
        raise InputError(f"{path}: actions reach outside {env.spec.id}'s bounds {low} to {high}")
    flagged, by_rule = data["terminals"] > 0, termination_rule(env)(data["next_observations"])
    wrong, most = (flagged[:, 0] != by_rule).sum(), max(flagged.sum(), by_rule.sum())
    if wrong > max(0.05 * most, 3):
        raise InputError(f"{path}: {wrong} of {most} terminals contradict {env.spec.id}'s rule: another environment's?")

    mean, std = (f(data["observations"], axis=0, dtype=np.float64) for f in (np.mean, np.std))
    size = abs(data["observations"]).max(0)  # of observations in small units, 1e-3 would hide the spread
    std += 1e-3 * np.where(size > 0, np.minimum(100 * size, 1), 1)
    states, next_states = ((data[key] - mean) / std for key in ("observations", "next_observations"))
    actions = np.clip((actions - low) / np.where(high > low, high - low, 1) * 2 - 1, -1, 1)
    rows = np.concatenate([states, actions, data["rewards"], next_states, flagged], 1, dtype=np.float32)
    columns = (data[key].astype(np.float32, copy=False) for key in (*widths, "rewards", "terminals"))
    fingerprint = hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()
    text = f", return mean {returns.mean():.1f}, best {returns.max():.1f}" if len(returns) else ""
    print(f"Dataset {path}: {n:,} rows, {len(returns):,} finished episodes{text}")
    if (constant := np.flatnonzero(states.std(0) < 0.01)).size:
        print(f"  observations that hardly change, taken as constants: {', '.join(map(str, constant))}")
    print(f"  {(np.abs(actions) > 0.999).mean():.1%} saturated actions, {wrong} of {most} terminals against the rule")
    return Dataset(rows, mean, std, obs_dim, action_dim, low, high, fingerprint)


# PLUMBING: environments
D4RL_ENVS = {  # the environment, and the returns of a random and of an expert policy: the normalised scores 0 and 100
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
}
# Does an episode end at this un-normalised next observation [..., O]? The model learns no termination: the rule is
# given, for numpy, torch and jax arrays alike. NaN in a coordinate that it reads terminates.
TERMINATION_RULES = {
    "Hopper": lambda s: ~((0.7 < s[..., 0]) & (s[..., 0] < 1e9) & (abs(s[..., 1]) < 0.2) & (abs(s[..., 1:]) < 100).all(-1)),
    "Walker2d": lambda s: ~((0.8 < s[..., 0]) & (s[..., 0] < 2.0) & (abs(s[..., 1]) < 1.0)),
    "Ant": lambda s: ~((0.2 <= s[..., 0]) & (s[..., 0] <= 1.0) & (abs(s) < math.inf).all(-1)),
    "Humanoid": lambda s: ~((1.0 < s[..., 0]) & (s[..., 0] < 2.0)),
    "InvertedPendulum": lambda s: ~((abs(s[..., 1]) <= 0.2) & (abs(s) < math.inf).all(-1)),
    "MountainCarContinuous": lambda s: ~((s[..., 0] < 0.45) | (s[..., 1] < 0.0)),
} | dict.fromkeys(["HalfCheetah", "Swimmer", "Reacher", "Pusher", "Pendulum"], lambda s: s[..., 0] != s[..., 0])  # NaN only


def is_d4rl_id(env_id: str) -> bool:
    """hopper-medium-v2 and its kind, also names of one's own such as hopper-mini-v2: evaluated in D4RL physics."""
    return re.fullmatch(r"(hopper|halfcheetah|walker2d)-[a-z0-9-]+-v2", env_id) is not None


def normalized_score(env_id: str, returns: np.ndarray) -> np.ndarray:
    """D4RL's score: 0 is a random policy, 100 an expert. NaN for environments without reference returns."""
    _, random, expert = D4RL_ENVS[env_id.split("-")[0]] if is_d4rl_id(env_id) else ("", math.nan, math.nan)
    return 100 * (returns - random) / (expert - random)


def restore_d4rl_physics(env: gym.Env) -> None:
    """Gives a -v4 hopper, halfcheetah or walker2d the physics D4RL v2 was recorded in (MuJoCo 2.0/2.1.0): until 2.1.2 made
    the inertia of capsules exact, a capsule weighed as a solid cylinder of length 2h + r. See tests/test_environment.py."""
    model, spec = env.unwrapped.model, mujoco.MjSpec.from_file(env.unwrapped.fullpath)
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
            capsule = model.geom(geom.name)
            radius, half_length, _ = capsule.size
            geom.type, geom.fromto = mujoco.mjtGeom.mjGEOM_CYLINDER, [np.nan] * 6
            geom.pos, geom.quat, geom.size = capsule.pos, capsule.quat, [radius, half_length + radius / 2, 0]
    cylinders = spec.compile()  # MuJoCo weighs them
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        getattr(model, name)[:] = getattr(cylinders, name)
    if tuple(int(number) for number in mujoco.__version__.split(".")[:2]) >= (3, 5):  # adds two margins, took the larger
        model.geom_margin *= 0.5
    mujoco.mj_setConst(model, env.unwrapped.data)


def make_env(env_id: str, d4rl_physics: bool = True, **kwargs) -> gym.Env:
    """The environment to evaluate in: a D4RL id gives gymnasium's -v4 in D4RL physics, a Minari id the recorded one, any
    other id gymnasium's own. Raises InputError when there is none, or when its spaces are not flat boxes."""
    gym.logger.min_level = gym.logger.ERROR  # gymnasium warns that v5 is newer: v5 is another environment
    if is_d4rl_id(env_id) and hasattr(mujoco, "set_mju_user_warning"):  # HalfCheetah's model has a deprecated attribute
        mujoco.set_mju_user_warning(lambda text: None)  # else it is printed, and written to MUJOCO_LOG.TXT
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass'")
    advice = {AttributeError: "pip install --upgrade mujoco gymnasium"}
    advice |= {gym.error.Error: suggest(env_id)} if env_id not in gym.registry else {}
    with explain(f"no environment for --env-id {env_id} can be made here", advice):
        if is_d4rl_id(env_id):
            env = gym.make(D4RL_ENVS[env_id.split("-")[0]][0], **kwargs)
            if d4rl_physics:
                restore_d4rl_physics(env)
        elif (dataset := minari_dataset(env_id)) is not None:
            env = dataset.recover_environment(**kwargs)
        else:
            env = gym.make("Pendulum-v1" if env_id == "pendulum-mini" else env_id, **kwargs)
    spaces = env.observation_space, env.action_space
    if not all(isinstance(s, gym.spaces.Box) and len(s.shape) == 1 for s in spaces) or not spaces[1].is_bounded():
        env.close()
        raise InputError(f"--env-id {env_id}: needs flat observations and bounded continuous actions, not {spaces}")
    return env if env.spec.max_episode_steps else gym.wrappers.TimeLimit(env, 1000)  # an evaluation must end


def termination_rule(env: gym.Env) -> Callable:
    """The function next_observations [..., O] -> terminated [...] of an environment. Raises InputError if none is known."""
    name = re.split("[/:]", env.spec.id)[-1].split("-")[0]
    if name not in TERMINATION_RULES:
        raise InputError(f"no termination rule is known for {env.spec.id}: add one to TERMINATION_RULES as '{name}'")
    return TERMINATION_RULES[name]


# PLUMBING: evaluation
class Evaluation(NamedTuple):
    returns: np.ndarray  # [episodes], undiscounted
    discounted_returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes], steps
    first_observations: np.ndarray  # [episodes, O], un-normalised


def evaluate(policy: Callable, envs: gym.vector.VectorEnv, seed: int | list[int], gamma: float) -> Evaluation:
    """Runs one episode in each environment; policy maps un-normalised observations [n, O] to actions in [-1, 1]^A."""
    low, high = envs.single_action_space.low, envs.single_action_space.high
    seeds = np.random.SeedSequence(seed).generate_state(envs.num_envs)  # so that no two runs share an episode
    observations, _ = envs.reset(seed=seeds.tolist())
    first_observations, running, step = observations.copy(), np.ones(envs.num_envs, bool), 0
    returns, discounted_returns, lengths = np.zeros((3, envs.num_envs))
    while running.any():
        actions = np.clip(low + (policy(observations) + 1) / 2 * (high - low), low, high)
        actions = actions.astype(low.dtype)  # which some environments check
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        returns += running * rewards  # environments that ended have reset themselves: what follows does not count
        discounted_returns += running * gamma**step * rewards
        lengths += running
        running &= ~(terminations | truncations)
        step += 1
    return Evaluation(returns, discounted_returns, lengths, first_observations)


class NumpyAgent(NamedTuple):
    """Policy and critics for the processes that evaluate."""

    weights: dict[str, np.ndarray]  # of to_numpy
    obs_mean: np.ndarray
    obs_std: np.ndarray

    def network(self, name: str, x: np.ndarray) -> np.ndarray:
        for layer in ("fc1", "fc2", "fc3"):
            weight, bias = self.weights[f"{name}.{layer}.weight"], self.weights[f"{name}.{layer}.bias"]
            x = np.maximum(x, 0) if layer != "fc1" else x
            x = x @ (weight.T if weight.ndim == 2 else weight) + bias  # [out, in], of two critics [2, in, out]
        return x

    def normalized(self, observations: np.ndarray) -> np.ndarray:
        return ((observations - self.obs_mean) / self.obs_std).astype(np.float32)

    def mode(self, observations: np.ndarray) -> np.ndarray:
        """The policy's mode [n, A] at un-normalised observations [n, O]."""
        mean, _ = np.split(self.network("policy", self.normalized(observations)), 2, -1)
        return np.tanh(mean)

    def value(self, observations: np.ndarray) -> np.ndarray:
        """min_i Q_i(s, mode of pi(s)), [n]."""
        states, actions = self.normalized(observations), self.mode(observations)
        return self.network("critic", np.concatenate([states, actions], -1)).min(0)[:, 0]


def load_policy(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """A run's policy.npz as a function of observations [O] or [n, O]: the mode's actions, in the environment's bounds."""
    with explain(f"{path} holds no policy that can be read"), np.load(path, allow_pickle=False) as file:
        weights = {f"policy.{name}": file[name] for name in file.files}
        agent = NumpyAgent(weights, file["obs_mean"], file["obs_std"])
        low, high = file["action_low"], file["action_high"]
    return lambda observations: np.clip(low + (agent.mode(observations) + 1) / 2 * (high - low), low, high).astype(low.dtype)


def run_evaluation(args: Args, agent: NumpyAgent, seed: list[int]) -> dict:
    """The metrics of an evaluation: one episode of the policy's mode in each environment."""
    make = [lambda: make_env(args.env_id, args.d4rl_physics)] * args.eval_episodes
    with closing(gym.vector.SyncVectorEnv(make)) as envs:
        result = evaluate(agent.mode, envs, seed, args.gamma)
    scores = normalized_score(args.env_id, result.returns)
    return {
        "charts/normalized_score": scores.mean(),
        "charts/normalized_score_std": scores.std(),
        "charts/episodic_return": result.returns.mean(),
        "charts/episodic_length": result.lengths.mean(),
        "charts/discounted_return": result.discounted_returns.mean(),
        "charts/value_gap": (agent.value(result.first_observations) - result.discounted_returns).mean(),
        "episodic_returns": " ".join(f"{value:.3f}" for value in result.returns),
    }


def record_video(args: Args, agent: NumpyAgent | None = None, run_folder: Path = Path()) -> None:
    """Records an episode of the agent's mode; without one it only checks that this machine can render."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    with explain(f"--capture-video: no picture can be made here with MUJOCO_GL={os.environ.get('MUJOCO_GL')}"):
        env = make_env(args.env_id, args.d4rl_physics, render_mode="rgb_array")
        env.reset()
        env.render()
        env = gym.wrappers.RecordVideo(env, str(run_folder / "videos"), disable_logger=True) if agent else env
        with closing(gym.vector.SyncVectorEnv([lambda: env])) as envs:
            if agent:
                evaluate(agent.mode, envs, args.seed, args.gamma)


def start_worker() -> None:
    """Leaves Ctrl-C to the parent, closes its environments when terminated, and ends then, or when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is raised in an evaluation ends that one alone
    signal.signal(signal.SIGTERM, lambda *_: (threading.Timer(1, os._exit, [1]).start(), sys.exit(1)))
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


@lru_cache
def worker_pool(workers: int | None) -> Executor:
    """Processes that evaluate while training goes on, by default one for each core but one; 0: a thread of this process,
    as by default where a program imports this file: other processes do not know the environments that it registered."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = os.environ.get("OMP_NUM_THREADS", "")  # what a runner leaves to this run
        cores = int(threads) if threads.isdigit() else cores
        workers = max(1, cores - 1) if __name__ == "__main__" else 0
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, in these processes
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with CUDA or JAX in it may hang
    try:
        pool = ProcessPoolExecutor(workers, spawn, start_worker) if workers else ThreadPoolExecutor(1)
    except (OSError, ImportError, NotImplementedError) as error:  # no usable /dev/shm
        print(f"warning: no processes can evaluate ({error}): a thread does")
        pool = ThreadPoolExecutor(1)
    threading._register_atexit(pool.shutdown, cancel_futures=True)  # atexit would come too late to end its thread
    return pool


class Evaluations:
    """Evaluations under way beside the training. Their results go to the run's tables in order."""

    def __init__(self, args: Args, tables: "Tables"):
        self.args, self.tables, self.pool, self.pending = args, tables, worker_pool(args.eval_workers), []
        self.score_name = "charts/normalized_score" if is_d4rl_id(args.env_id) else "charts/episodic_return"
        self.latest, self.way_out = None, f"go on with --resume {tables.folder} --eval-workers 0"

    def start(self, iteration: int, seconds: float, agent: NumpyAgent) -> None:
        with explain("no evaluation can begin", {BrokenExecutor: self.way_out}):
            future = self.pool.submit(run_evaluation, self.args, agent, [self.args.seed, iteration])
        self.pending.append((iteration, seconds, future))

    def collect(self, most: int = 10) -> None:
        """Logs those that are done; waits as long as more than `most` are under way."""
        while self.pending and (len(self.pending) > most or self.pending[0][2].done()):
            iteration, seconds, future = self.pending.pop(0)
            if isinstance(future.exception(), BrokenExecutor | SystemExit):
                raise InputError(f"a process that evaluates died: {self.way_out}")
            metrics = future.result() | {"seconds": round(seconds, 1)}
            self.tables.add("evaluations.csv", iteration, metrics)
            self.tables.writer.flush()  # waits for the disk, so not in every iteration
            self.latest = iteration, metrics[self.score_name]


# PLUMBING: run folder
CHECKPOINTS: dict[Path, int] = {}  # the iterations that this process' runs would go on from


def lock_file(path: str | Path, **options) -> ExitStack:
    """Holds a lock until closed; where the file system has none, it says so. Raises filelock.Timeout."""
    lock, held = FileLock(path, **options), ExitStack()
    try:
        lock.acquire()
        held.callback(lock.release, force=True)
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        print(f"warning: {path} cannot be locked ({error}): start no second process that writes there")
    return held


def new_folder(args: Args) -> Path:
    """runs/{env_id}__{exp_name}__{seed}__{time}; a second later if another run has just taken that."""
    Path("runs").mkdir(exist_ok=True)
    for seconds in itertools.count(int(time.time())):
        folder = Path("runs") / re.sub(r"[^\w.-]+", "-", f"{args.env_id}__{args.exp_name}__{args.seed}__{seconds}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def write_file(path: Path, write: Callable) -> None:
    """write(file) goes to a temporary file that gets the name only when complete: a crash leaves the previous one."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with explain(f"{path} cannot be written"), temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict | list) -> None:
    write_file(path, lambda file: file.write(json.dumps(values, indent=2).encode()))


def start_wandb(args: Args, folder: Path) -> None:
    """With --track, logs to Weights and Biases, too; a resumed run goes on under its id. Raises InputError."""
    if not args.track:
        return
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name)[-128:]  # wandb refuses other ids
    where = dict(project=args.wandb_project_name, entity=args.wandb_entity, name=name, id=name, resume="allow")
    with explain("--track cannot start wandb, which needs a login (wandb login) or WANDB_MODE=offline"):
        importlib.import_module("wandb").init(**where, config=vars(args), sync_tensorboard=True)


class Tables:
    """metrics.csv and evaluations.csv in a run folder, and both for TensorBoard."""

    names = "metrics.csv", "evaluations.csv"

    def __init__(self, folder: Path, args: Args):
        self.folder, self.args, self.iteration = folder, args, None  # the iteration that a resumed run goes on from
        for name in self.names:
            (folder / name).touch()

    @cached_property
    def writer(self) -> tensorboardX.SummaryWriter:
        # Events are written at once: in the thread meant for it, a full disk is a traceback, and then a hanging queue
        event_file_writer = tensorboardX.event_file_writer.EventFileWriter
        event_file_writer.add_event = lambda self, event: self._ev_writer.write_event(event)
        try:
            writer = tensorboardX.SummaryWriter(str(self.folder), purge_step=self.iteration)
        except OSError as error:  # its queue needs /dev/shm
            print(f"warning: no events for TensorBoard can be written ({error})")
            writer = tensorboardX.SummaryWriter(write_to_disk=False)
        table = "\n".join(f"|{key}|{value}|" for key, value in vars(self.args).items())
        writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + table)
        return writer

    def add(self, name: str, iteration: int, metrics: dict) -> None:
        """Appends a row to a CSV file, and its numbers to TensorBoard's events."""
        with (self.folder / name).open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["iteration", *metrics], lineterminator="\n")
            if file.tell() == 0:
                table.writeheader()
            table.writerow({"iteration": iteration} | metrics)
        self.add_scalars(iteration, metrics)

    def add_scalars(self, iteration: int, metrics: dict) -> None:
        for name, value in metrics.items():
            if "/" in name and not math.isnan(float(value)):
                self.writer.add_scalar(name, float(value), iteration)

    def rows(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / name).read_text(encoding="utf-8").splitlines()))

    def go_back(self, iteration: int, texts: dict) -> None:
        """To what they were at a checkpoint: what came after it is forgotten."""
        self.iteration = iteration
        for name in self.names:
            write_file(self.folder / name, lambda file, name=name: file.write(str(texts[name]).encode()))
        for row in self.rows("metrics.csv")[-1:]:  # purge_step drops it, too, with the evaluation that is made again
            self.add_scalars(iteration, row)


class RunFolder:
    """runs/{run_name}/, in which one process at a time trains: its lock, args.json, tables, arrays and checkpoints."""

    def __init__(self, args: Args, dataset: Dataset, device: str):
        with explain(f"no run folder can be made in {Path('runs').resolve()}"):
            self.folder = Path(args.resume) if args.resume else new_folder(args)
        advice = {Timeout: "another process trains in it", TypeError: "pip install --upgrade filelock"}
        with explain(f"no run can be kept in {self.folder}", advice):
            self.lock = lock_file(self.folder / ".lock", timeout=0, is_singleton=True)
        try:
            start_wandb(args, self.folder)
        except InputError:
            self.lock.close()
            if not args.resume:
                shutil.rmtree(self.folder)
            raise
        print(f"Run folder: {self.folder}, training on {device}")
        self.args, self.dataset, self.iteration, self.start_time = args, dataset, 0, time.monotonic()
        self.checkpoint_time, self.arguments = self.start_time, vars(args) | {"resume": None, "device": device}
        self.settings = [fixed_arguments(vars(args)), dataset.fingerprint]  # of which a checkpoint must be
        self.tables = Tables(self.folder, args)
        self.evaluations = Evaluations(args, self.tables)
        if not args.resume:
            write_json(self.folder / "args.json", self.arguments)

    def save_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Plain arrays, named as in torch's state_dict, no pickle: both scripts read and write these files."""
        more = {key: getattr(self.dataset, key) for key in ("obs_mean", "obs_std", "action_low", "action_high", "fingerprint")}
        write_file(self.folder / name, lambda file: np.savez(file, **arrays, **more, env_id=self.args.env_id))

    def checkpoint_is_due(self, now: bool = False) -> bool:
        """Whether --checkpoint-minutes have passed since the last one; or now, if checkpoints are written at all."""
        minutes = (time.monotonic() - self.checkpoint_time) / 60
        return self.args.checkpoint_minutes > 0 and (now or minutes >= self.args.checkpoint_minutes)

    def state(self, iteration: int) -> dict:
        """What a checkpoint holds of the run, whose evaluations under way are waited for."""
        self.checkpoint_time = time.monotonic()
        self.evaluations.collect(0)
        self.tables.writer.flush()
        seconds = time.monotonic() - self.start_time
        texts = {name: (self.folder / name).read_text(encoding="utf-8") for name in self.tables.names}
        return texts | {"settings": json.dumps(self.settings), "iteration": iteration, "seconds": seconds}

    def check_checkpoint(self, checkpoint: dict) -> None:
        """Raises InputError if this run cannot go on from there."""
        arguments, fingerprint = json.loads(str(checkpoint["settings"]))
        if [fixed_arguments(arguments), fingerprint] != self.settings:  # an older one holds some that may change now
            raise InputError(f"--resume {self.folder}: its checkpoint is of another run, dataset or version")
        if (iteration := int(checkpoint["iteration"])) > self.args.total_iterations:
            raise InputError(f"--resume {self.folder}: it is at iteration {iteration}, raise --total-iterations")

    def go_on(self, checkpoint: dict) -> None:
        """Resumes from a checkpoint with state(): what came after it is forgotten. Raises InputError if it cannot."""
        self.check_checkpoint(checkpoint)
        (self.folder / "result.json").unlink(missing_ok=True)
        self.iteration = CHECKPOINTS[self.folder] = int(checkpoint["iteration"])
        self.start_time = time.monotonic() - float(checkpoint["seconds"])
        self.tables.go_back(self.iteration, checkpoint)
        write_json(self.folder / "args.json", self.arguments)


def value_bound_ratio(mean_q: float, rewards: np.ndarray, gamma: float) -> float:
    """The mean Q over the largest value that the rewards allow, r_max / (1 - gamma); below 0 over the smallest's size."""
    highest, lowest = max(rewards.max(), 0), max(-rewards.min(), 0)  # of one sign alone, the only scale is that of both
    bound = (highest or lowest) if mean_q > 0 else (lowest or highest)
    return mean_q * (1 - gamma) / float(bound or 1)


class Run(RunFolder):
    """A run as main sees it: its folder, and what it logs, evaluates and ends with."""

    warned = False  # of values that run away

    @cached_property
    def rewards(self) -> np.ndarray:
        return self.dataset.rows[:, self.dataset.obs_dim + self.dataset.action_dim].copy()  # a column is slow to search

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        """Logs an iteration's metrics, and the evaluations that are done. Raises Diverged."""
        mean_q = metrics["losses/qf_values"]
        metrics["losses/value_bound_ratio"] = ratio = value_bound_ratio(mean_q, self.rewards, self.args.gamma)
        if abs(ratio) > 1 and not self.warned:
            self.warned, side = True, "more" if mean_q > 0 else "less"
            text = f"the mean Q, {mean_q:.0f}, is {side} than the rewards allow. What helps: benchmark/runaway_values.md"
            tqdm.write(f"warning: in iteration {iteration} {text}")
        self.tables.add("metrics.csv", iteration, metrics)
        self.check(iteration, metrics)
        self.evaluations.collect()

    def check(self, iteration: int, values: dict[str, float]) -> None:
        """Raises Diverged if a value is not finite, or |Q| above 1e10."""
        largest = values.get("losses/max_abs_qf_value", 0)
        wrong = [f"{name} is not finite" for name, value in values.items() if not math.isfinite(value)]
        if wrong or largest > 1e10:
            self.finish("diverged")
            what = wrong[0] if wrong else f"largest |Q| {largest:.3g}"
            raise Diverged(f"diverged in iteration {iteration}: {what}, see {self.folder}")

    def evaluate(self, iteration: int, weights: dict[str, np.ndarray]) -> None:
        """Starts an evaluation of the agent with these weights. Raises Diverged if they are not finite."""
        self.check(iteration, {name: float(array.sum()) for name, array in weights.items()})
        weights = {name: array.copy() for name, array in weights.items()}  # updates may write over them
        agent = NumpyAgent(weights, self.dataset.obs_mean, self.dataset.obs_std)
        self.evaluations.start(iteration, time.monotonic() - self.start_time, agent)

    def finish(self, status: str = "finished") -> dict:
        """Writes result.json, prints the scores and returns them with the folder."""
        self.evaluations.collect(0)
        rows, name, seed = self.tables.rows("evaluations.csv"), self.evaluations.score_name, f"Seed {self.args.seed}"
        result = {"status": status, "score": name, "iteration": None, "last": None, "mean_of_last_10": None}
        if scores := [float(row[name]) for row in rows]:
            iteration, last, mean = int(rows[-1]["iteration"]), scores[-1], float(np.mean(scores[-10:]))
            result |= {"iteration": iteration, "last": last, "mean_of_last_10": mean}
        if scores and status == "finished":
            print(f"{seed}, mean of the last {len(scores[-10:])} evaluations: {name} {mean:.1f}")
            print(f"{seed}, iteration {iteration}: {name} {last:.1f} (mean of {self.args.eval_episodes} episodes)")
        write_json(self.folder / "result.json", result)
        self.tables.writer.close()
        if self.args.track:
            importlib.import_module("wandb").finish(exit_code=3 if status == "diverged" else 0)
        self.lock.close()
        CHECKPOINTS.pop(self.folder, None)
        return result | {"folder": str(self.folder)}


def progress(runs: Iterable[Run], mean_q: float) -> str:
    """For the progress bar: the mean score of the latest evaluations, which lag behind, and the mean Q."""
    scores = [run.evaluations.latest for run in runs if run.evaluations.latest]
    text = f"score={np.mean([score for _, score in scores]):.1f} after iteration {scores[0][0]}, " if scores else ""
    return f"{text}Q={mean_q:.0f}"


if __name__ == "__main__":
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    if hasattr(sys.stdout, "reconfigure"):  # not that of a notebook
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # a path may be in letters that it lacks
    sys.excepthook, message, code = sys.__excepthook__, "", 0
    try:
        main(parse_args())
    except (BrokenPipeError, KeyboardInterrupt) as end:
        what = "interrupted" if isinstance(end, KeyboardInterrupt) else "error: nobody reads the output any more"
        folders = sorted(CHECKPOINTS, key=lambda folder: not (folder / "seeds.json").exists())  # the first one's lists all
        ways_on = [f"--resume {folder} goes on from iteration {CHECKPOINTS[folder]}" for folder in folders]
        message, code = f"{what}: {[*ways_on, 'there is no checkpoint yet to go on from'][0]}", 1
        sys.stdout = open(os.devnull, "w")  # what is left to write there would fail again
    except (InputError, OSError, Diverged) as problem:
        message, code = f"error: {problem}", 3 if isinstance(problem, Diverged) else 1
    finally:
        for process in multiprocessing.active_children():  # evaluations under way
            process.terminate()
    print(message, end="\n" if message else "", file=sys.stderr)  # now that main is left and its progress bar closed
    sys.exit(code)
