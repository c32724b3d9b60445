"""What speed.py times: the scripts' own functions, called as their mains do, and the loop that one would write first."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rambo_continuous as rambo  # noqa: E402


class Problem(NamedTuple):
    """What every loop works on."""

    args: rambo.Args
    updates: int  # in a timed block
    rows: np.ndarray  # float32 [N, 2O + A + 2]
    obs_dim: int
    action_dim: int
    obs_mean: np.ndarray  # [O]
    obs_std: np.ndarray  # [O]
    rule: Callable  # the environment's termination rule
    device: str  # cpu or cuda


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def yardstick_loop(problem: Problem) -> tuple[dict[str, Callable], Callable]:
    """The loop that one would write first, with the scripts' networks and formulas: CleanRL's SAC with a module for each
    critic, all models in every pass of the ensemble, a pass for each of RAMBO's two terms, torch's Adam as it comes. All is
    on the device and nothing waits for it. Returns a function for each part, and the policy on observations [n, O]."""
    args, obs_dim, action_dim, device = problem.args, problem.obs_dim, problem.action_dim, problem.device
    torch.manual_seed(1)
    actor = rambo.Actor(obs_dim, action_dim).to(device)
    widths = obs_dim + action_dim, 256, 256, 1
    critics = [
        nn.Sequential(*[f for i in range(3) for f in (nn.Linear(*widths[i : i + 2]), nn.ReLU())][:-1]) for _ in range(4)
    ]
    qf1, qf2, qf1_target, qf2_target = (critic.to(device) for critic in critics)
    log_alpha = torch.zeros(1, requires_grad=True, device=device)
    ensemble = rambo.Dynamics(args.num_models, obs_dim, action_dim, args.model_hidden_dim).to(device)
    q_optimizer = torch.optim.Adam([*qf1.parameters(), *qf2.parameters()], lr=args.q_lr)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=args.policy_lr)
    a_optimizer = torch.optim.Adam([log_alpha], lr=args.policy_lr)
    model_optimizer = torch.optim.Adam(ensemble.parameters(), lr=args.model_lr)
    rows, obs_mean, obs_std = (torch.as_tensor(x, device=device) for x in (problem.rows, problem.obs_mean, problem.obs_std))
    buffer_size = args.rollout_retain_iterations * args.rollout_length * args.rollout_batch_size
    buffer, pointer = torch.zeros(buffer_size, rows.shape[1], device=device), 0
    elites = torch.randperm(args.num_models, device=device)[: args.num_elites]

    def sample(source: torch.Tensor, *shape: int) -> rambo.Batch:
        return rambo.split_rows(rambo.sample_rows(source, *shape), obs_dim)

    def act(observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rambo.sample_action(actor, observations, torch.randn(len(observations), action_dim, device=device))

    def min_q(first: nn.Module, second: nn.Module, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([observations, actions], 1)
        return torch.min(first(inputs), second(inputs)).squeeze(-1)

    def agent_updates() -> None:
        num_real = round(args.real_ratio * args.batch_size)
        for _ in range(problem.updates):
            halves = sample(rows, num_real), sample(buffer, args.batch_size - num_real)
            batch = rambo.Batch(*(torch.cat(pair) for pair in zip(*halves, strict=True)))
            with torch.no_grad():
                next_actions, next_log_pi = act(batch.next_observations)
                next_value = min_q(qf1_target, qf2_target, batch.next_observations, next_actions)
                next_value = next_value - log_alpha.exp() * next_log_pi
                target = batch.rewards + (1 - batch.terminals) * args.gamma * next_value
            inputs = torch.cat([batch.observations, batch.actions], 1)
            step(q_optimizer, sum(F.mse_loss(qf(inputs).squeeze(-1), target) for qf in (qf1, qf2)))
            pi, log_pi = act(batch.observations)
            step(actor_optimizer, (log_alpha.exp().detach() * log_pi - min_q(qf1, qf2, batch.observations, pi)).mean())
            with torch.no_grad():
                _, log_pi = act(batch.observations)
            step(a_optimizer, (-log_alpha.exp() * (log_pi - action_dim)).mean())
            for network, target_network in ((qf1, qf1_target), (qf2, qf2_target)):
                for param, target_param in zip(network.parameters(), target_network.parameters(), strict=True):
                    target_param.data.copy_(args.tau * param.data + (1 - args.tau) * target_param.data)

    def imagine(observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, rambo.Batch, torch.Tensor]:
        with torch.no_grad():
            actions, _ = act(observations)
        mean, log_var = ensemble(observations, actions)
        outcomes = (mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)).detach()
        members = elites[torch.randint(args.num_elites, (len(observations),), device=device)]
        outcome = outcomes[members, torch.arange(len(observations), device=device)]
        next_observations = observations + outcome[:, :-1]
        terminals = problem.rule(next_observations * obs_std + obs_mean)
        batch = rambo.Batch(observations, actions, outcome[:, -1], next_observations, terminals.float())
        return mean[elites], log_var[elites], batch, outcome

    def model_updates() -> None:
        for i in range(problem.updates):
            restarts = sample(rows, args.batch_size).observations
            observations = restarts if i % args.rollout_length == 0 else observations  # noqa: F821
            mean, log_var, batch, outcome = imagine(observations)
            with torch.no_grad():
                next_value = min_q(qf1, qf2, batch.next_observations, actor.mode(batch.next_observations))
                target = batch.rewards + (1 - batch.terminals) * args.gamma * next_value
                advantages = target - min_q(qf1, qf2, batch.observations, batch.actions)
            adversarial_loss = rambo.adversarial_loss(rambo.mixture_log_prob(mean, log_var, outcome), advantages)
            supervised_loss = rambo.pretraining_loss(ensemble, sample(rows, args.num_models, args.batch_size))
            step(model_optimizer, supervised_loss + args.adv_weight * adversarial_loss)
            observations = torch.where(batch.terminals.bool().unsqueeze(-1), restarts, batch.next_observations)

    @torch.no_grad()
    def rollouts() -> None:
        nonlocal pointer
        observations = sample(rows, args.rollout_batch_size).observations
        for _ in range(args.rollout_length):
            _, _, batch, _ = imagine(observations)
            where = torch.arange(pointer, pointer + len(observations), device=device) % len(buffer)
            buffer[where] = torch.cat([x if x.dim() == 2 else x.unsqueeze(-1) for x in batch], -1)
            pointer = (pointer + len(observations)) % len(buffer)
            observations = batch.next_observations[~batch.terminals.bool()]

    @torch.no_grad()
    def policy(observations: np.ndarray) -> np.ndarray:
        observations = torch.as_tensor(observations, dtype=torch.float32, device=device)
        return actor.mode((observations - obs_mean) / obs_std).cpu().numpy()

    return {"agent": agent_updates, "adversarial": model_updates, "rollout": rollouts}, policy


def torch_loop(problem: Problem, flags: list[str]) -> tuple[dict[str, Callable], Callable]:
    """rambo_continuous.py: its functions, called as its main does."""
    args = replace(problem.args, compile="compile" in flags, cudagraphs="graphs" in flags)
    obs_dim, action_dim, device = problem.obs_dim, problem.action_dim, torch.device(problem.device)
    torch.manual_seed(1)
    agent = rambo.Agent(obs_dim, action_dim, args.alpha).to(device)
    dynamics = rambo.Dynamics(args.num_elites, obs_dim, action_dim, args.model_hidden_dim).to(device)
    adam = partial(torch.optim.Adam, fused=True, capturable=True)
    optimizers = {
        "actor": adam(agent.actor.parameters(), lr=args.policy_lr),
        "critic": adam(agent.critic.parameters(), lr=args.q_lr),
        "alpha": adam([agent.log_alpha], lr=args.policy_lr),
        "model": adam(dynamics.parameters(), lr=args.model_lr),
    }
    rows, obs_mean, obs_std = (torch.as_tensor(x, device=device) for x in (problem.rows, problem.obs_mean, problem.obs_std))
    shape = args.rollout_retain_iterations, args.rollout_length * args.rollout_batch_size, rows.shape[1]
    buffer = torch.zeros(shape, device=device)
    model_rows, num_updates, num_real = buffer.flatten(0, 1), problem.updates, round(args.real_ratio * args.batch_size)
    compiled = torch.compile if args.compile else lambda function: function
    sac_losses = compiled(rambo.critic_loss), compiled(rambo.actor_loss)
    model_loss = compiled(rambo.model_loss)
    draw, normal = partial(torch.randint, device=device), partial(torch.randn, device=device)

    def terminated(observations: torch.Tensor) -> torch.Tensor:
        return problem.rule(observations * obs_std + obs_mean)

    def agent_step(real: torch.Tensor, imagined: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = rambo.split_rows(torch.cat([rows[real], model_rows[imagined]]), obs_dim)
        return rambo.update_agent(agent, optimizers, batch, noise, args, *sac_losses)

    def model_step(observations: torch.Tensor, restarts: torch.Tensor, real: torch.Tensor, *draws: torch.Tensor) -> tuple:
        real, restarts = rambo.split_rows(rows[real], obs_dim), rows[restarts, :obs_dim]
        model = agent, dynamics, optimizers["model"]
        return rambo.update_model(*model, observations, restarts, real, *draws, terminated, args, model_loss)

    agent_step, model_step = (rambo.capture(step, args, device) for step in (agent_step, model_step))

    def agent_updates() -> None:
        history = []
        real_indices = draw(len(rows), (num_updates, num_real))
        model_indices = draw(len(model_rows), (num_updates, args.batch_size - num_real))
        for draws in zip(real_indices, model_indices, normal(num_updates, 2, args.batch_size, action_dim), strict=True):
            metrics = agent_step(*draws)
            history.append(torch.stack(list(metrics.values())))
        rambo.summarize(metrics, history)

    def model_updates() -> None:
        history = []
        starts, restarts = draw(len(rows), (2, num_updates, args.batch_size))
        real_indices = draw(len(rows), (num_updates, args.num_elites, args.batch_size))
        elites = draw(args.num_elites, (num_updates, args.batch_size))
        noise = normal(num_updates, args.batch_size, action_dim + obs_dim + 1)
        for i, draws in enumerate(zip(restarts, real_indices, elites, noise, strict=True)):
            observations = rows[starts[i], :obs_dim] if i % args.rollout_length == 0 else observations  # noqa: F821
            observations, metrics = model_step(observations, *draws)
            history.append(torch.stack(list(metrics.values())))
        rambo.summarize(metrics, history)

    def rollouts() -> None:
        buffer[0], _ = rambo.rollout_models(agent, dynamics, rows, terminated, args)

    weights = rambo.to_numpy(agent)
    functions = {"agent": agent_updates, "adversarial": model_updates, "rollout": rollouts}
    return functions, lambda x: rambo.NumpyAgent(weights, problem.obs_mean, problem.obs_std).mode(x)


def compile_jax(problem: Problem, seeds: int) -> tuple[dict[str, list], Callable]:
    """rambo_continuous_jax.py: for each part the compiled function, its state, and its other arguments; and the policy.

    An update is train_iteration without the other one and with next to no rollouts.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import rambo_continuous_jax as twin

    jax.config.update("jax_default_matmul_precision", problem.args.matmul_precision)  # as main does
    if problem.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    settings = {name: value for name, value in vars(problem.args).items() if name in vars(twin.Args())}
    args = replace(twin.Args(**settings), updates_per_iteration=problem.updates)
    few = replace(args, rollout_batch_size=args.num_elites)
    rows, obs_dim = jnp.asarray(problem.rows), problem.obs_dim
    data = jnp.int32(args.rollout_retain_iterations), rows, twin.split_rows(rows[:1], obs_dim)

    def terminated(observations: jax.Array) -> jax.Array:
        return problem.rule(observations * problem.obs_std + problem.obs_mean)

    def init(key: jax.Array) -> twin.TrainState:
        agent = twin.init_agent(key, obs_dim, problem.action_dim, args.alpha)
        dynamics = twin.Dynamics(args.num_elites, obs_dim, problem.action_dim, args.model_hidden_dim, nnx.Rngs(key))
        learnt = {"actor": agent.actor, "critic": agent.critic, "alpha": agent.log_alpha, "model": dynamics}
        optimizers = {name: twin.adam_init(parameters) for name, parameters in learnt.items()}
        shape = args.rollout_retain_iterations, args.rollout_length * few.rollout_batch_size, rows.shape[1]
        return twin.TrainState(agent, dynamics, optimizers, jnp.zeros(shape), key)

    def rollout(key: jax.Array, agent: twin.Agent, dynamics: twin.Dynamics, rows: jax.Array) -> tuple:
        return jax.random.split(key)[0], twin.rollout_models(agent, dynamics, rows, key, terminated, args)

    def compile_update(args: twin.Args) -> list:
        state = jax.jit(jax.vmap(init))(keys)
        iterate = jax.vmap(partial(twin.train_iteration, terminated=terminated, args=args), (0, None, None, None))
        return [twin.compile_ahead(iterate, args, state, *data), state, data]

    keys = jax.vmap(jax.random.PRNGKey)(jnp.arange(seeds))
    first = jax.jit(jax.vmap(init))(keys)
    inputs = first.agent, first.dynamics, rows
    parts = {"agent": compile_update(replace(few, adv_weight=0))}
    with patch.object(twin, "update_agent", lambda agent, optimizers, *_: (agent, optimizers, {"none": 0.0})):
        parts["adversarial"] = compile_update(few)
    parts["rollout"] = [twin.compile_ahead(jax.vmap(rollout, (0, 0, 0, None)), args, keys, *inputs), keys, inputs]
    weights = twin.to_numpy(twin.take(first.agent, 0))
    return parts, lambda x: twin.NumpyAgent(weights, problem.obs_mean, problem.obs_std).mode(x)


def jax_loop(problem: Problem, seeds: int) -> tuple[dict[str, Callable], Callable]:
    import jax

    parts, policy = compile_jax(problem, seeds)

    def run(part: str) -> None:
        function, state, inputs = parts[part]
        parts[part][1], results = function(state, *inputs)
        jax.block_until_ready(results)

    return {part: partial(run, part) for part in parts}, policy
