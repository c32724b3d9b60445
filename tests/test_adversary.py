"""The adversarial model update: Eq. 5 on MDPs where its gradient is known exactly, Eq. 7 step by step."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rambo_continuous as rambo

GAMMA = 0.8


class TabularMDP:
    """States s, one action per state (the policy is deterministic), outcomes o = (next state, reward, terminal).

    The model's parameters theta [S, A, outcomes] are the logits of the outcomes.
    """

    num_states, num_actions, num_outcomes = 4, 2, 5

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.theta = torch.tensor(rng.normal(size=(self.num_states, self.num_actions, self.num_outcomes)))
        self.next_states = torch.tensor(rng.integers(self.num_states, size=self.theta.shape))
        self.rewards = torch.tensor(rng.normal(size=self.theta.shape) * 2)
        self.terminals = torch.tensor(rng.random(self.theta.shape) < 0.25)
        self.policy = torch.tensor(rng.integers(self.num_actions, size=self.num_states))
        self.start = torch.tensor(rng.dirichlet(np.ones(self.num_states)))

    def q_values(self, theta):
        """Q [S, A] of the policy in the model: the Bellman equation solved as a linear system, differentiable."""
        probabilities = theta.softmax(-1)
        going_on = probabilities * ~self.terminals
        transitions = torch.zeros(*theta.shape[:2], self.num_states, dtype=theta.dtype)
        transitions = transitions.scatter_add(2, self.next_states, going_on)
        expected_rewards = (probabilities * self.rewards).sum(-1)
        states = torch.arange(self.num_states)
        matrix = torch.eye(self.num_states, dtype=theta.dtype) - GAMMA * transitions[states, self.policy]
        values = torch.linalg.solve(matrix, expected_rewards[states, self.policy])
        return expected_rewards + GAMMA * transitions @ values

    def value(self, theta):
        """V(start): what Eq. 5 is the gradient of."""
        return (self.start * self.q_values(theta)[torch.arange(self.num_states), self.policy]).sum()

    def sample(self, n, seed):
        """n transitions (s, a, o) whose states follow the discounted occupancy of the policy in the model.

        The occupancy has mass less than 1 / (1 - gamma) as episodes terminate: returned as the third value.
        """
        rng = np.random.default_rng(seed)
        states = torch.arange(self.num_states)
        probabilities = self.theta.softmax(-1)[states, self.policy]
        transitions = torch.zeros(self.num_states, self.num_states, dtype=torch.float64)
        going_on = probabilities * ~self.terminals[states, self.policy]
        transitions = transitions.scatter_add(1, self.next_states[states, self.policy], going_on)
        occupancy = torch.linalg.solve(torch.eye(self.num_states, dtype=torch.float64) - GAMMA * transitions.T, self.start)
        s = rng.choice(self.num_states, n, p=(occupancy / occupancy.sum()).numpy())
        cumulative = probabilities.cumsum(-1).numpy()[s]
        outcomes = (rng.random((n, 1)) > cumulative).sum(1).clip(0, self.num_outcomes - 1)
        return torch.tensor(s), torch.tensor(outcomes), occupancy.sum()

    def agent(self):
        """A critic that looks Q up in the table, where the second one is always larger, and the policy's one-hot mode."""
        q = self.q_values(self.theta)

        def critic(observations, actions):
            values = q[observations.argmax(-1), actions.argmax(-1)]
            return torch.stack([values, values + 1 + observations.argmax(-1)])

        def mode(observations):
            return torch.nn.functional.one_hot(self.policy[observations.argmax(-1)], self.num_actions)

        return SimpleNamespace(critic=critic, actor=SimpleNamespace(mode=mode))

    def batch(self, s, outcomes):
        one_hot, a = torch.nn.functional.one_hot, self.policy[s]
        return rambo.Batch(
            one_hot(s, self.num_states), one_hot(a, self.num_actions), self.rewards[s, a, outcomes],
            one_hot(self.next_states[s, a, outcomes], self.num_states), self.terminals[s, a, outcomes].double(),
        )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sampled_model_gradient_is_that_of_the_value(seed):
    """Eq. 5: mean of A(s, a, s') grad log T(s', r | s, a) against the exact gradient, within its standard error."""
    mdp, n = TabularMDP(seed), 400_000
    theta = mdp.theta.clone().requires_grad_()
    exact = torch.autograd.grad(mdp.value(theta), theta)[0]

    s, outcomes, mass = mdp.sample(n, seed)
    a = mdp.policy[s]
    advantages = rambo.compute_advantages(mdp.agent(), mdp.batch(s, outcomes), GAMMA)
    for weights in (advantages, advantages + mdp.q_values(mdp.theta)[s, a]):  # with the baseline Q(s, a), and without
        # Each sample's gradient: its weight times (one-hot of its outcome - probabilities), in its row of theta
        probabilities = mdp.theta.softmax(-1)[s, a]
        scores = mass * weights[:, None] * (torch.nn.functional.one_hot(outcomes, mdp.num_outcomes) - probabilities)
        total, squares = torch.zeros(2, *theta.shape, dtype=torch.float64)
        total.index_put_((s, a), scores, accumulate=True)
        squares.index_put_((s, a), scores**2, accumulate=True)
        estimate, error = total / n, (squares / n - (total / n) ** 2).sqrt() / math.sqrt(n)
        visited = squares > 0
        assert visited.sum() == mdp.num_states * mdp.num_outcomes
        assert (exact[~visited] == 0).all(), "actions that the policy does not take do not matter"
        z = ((estimate - exact) / error)[visited]
        assert z.abs().max() < 4.5 and (z**2).mean() < 2.5, "agrees within its standard errors"
        assert exact.norm() > 20 * error[visited].norm(), "this test can tell the gradient from nothing"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_adversarial_loss_has_that_gradient_and_a_step_down_it_lowers_the_value(seed):
    mdp, n = TabularMDP(seed), 100_000
    exact_theta = mdp.theta.clone().requires_grad_()
    exact = torch.autograd.grad(mdp.value(exact_theta), exact_theta)[0]
    s, outcomes, mass = mdp.sample(n, seed)
    advantage = rambo.compute_advantages(mdp.agent(), mdp.batch(s, outcomes), GAMMA)

    theta = mdp.theta.clone().requires_grad_()
    log_prob = theta.log_softmax(-1)[s, mdp.policy[s], outcomes]
    rambo.adversarial_loss(log_prob, advantage).backward()
    # The normalisation divides by the advantages' spread; the mean it subtracts is a baseline, so it changes nothing
    estimate = theta.grad * mass * advantage.std(correction=0)
    assert (estimate - exact).norm() < 0.05 * exact.norm()

    before = mdp.value(mdp.theta)
    torch.optim.SGD([theta], lr=0.1).step()
    drop = (before - mdp.value(theta)).item()
    assert drop == pytest.approx(0.1 * (theta.grad * exact).sum().item(), rel=0.2)
    assert drop > 0


def test_the_gradient_of_an_elite_mixture_is_that_of_the_value():
    """One state and action, elites that are Gaussians, V(s') quadratic: the value's gradient is known in closed form.

    V = mean over elites of (mu_r + gamma sum_i c_i (mu_i^2 + sigma_i^2)), so dV/dmu_i = 2 gamma c_i mu_i / E and
    dV/dlogvar_i = gamma c_i sigma_i^2 / E. The sample comes from one elite, its log-probability is the mixture's.
    """
    torch.manual_seed(0)
    num_elites, n, gamma = 3, 400_000, 0.9
    curvature = torch.tensor([1.0, -2.0], dtype=torch.float64)
    means = torch.tensor([[0.5, -1.0, 1.0], [-0.5, 0.3, 2.0], [1.5, 0.0, -1.0]], dtype=torch.float64)
    log_vars = torch.tensor([[0.0, -1.0, 0.5], [-0.5, 0.4, 0.0], [0.3, -0.3, -1.0]], dtype=torch.float64)
    elites = torch.randint(num_elites, (n,))
    sample = means[elites] + (0.5 * log_vars[elites]).exp() * torch.randn(n, 3, dtype=torch.float64)
    value = lambda states: (curvature * states**2).sum(-1)  # noqa: E731
    agent = SimpleNamespace(
        critic=lambda states, actions: torch.stack([value(states) + 1, value(states)]), actor=SimpleNamespace(mode=lambda x: x)
    )
    # The row's own state is where V is 0, so that the baseline Q(s, a) is 0
    zeros = torch.zeros(n, 2, dtype=torch.float64)
    batch = rambo.Batch(zeros, zeros, sample[:, -1], sample[:, :-1], torch.zeros(n, dtype=torch.float64))
    advantage = rambo.compute_advantages(agent, batch, gamma)

    gradients = []
    for part in range(40):  # the spread over parts of the sample gives the standard error
        rows = slice(part * n // 40, (part + 1) * n // 40)
        mean, log_var = means.clone().requires_grad_(), log_vars.clone().requires_grad_()
        log_prob = rambo.mixture_log_prob(
            mean[:, None].expand(-1, n // 40, -1), log_var[:, None].expand(-1, n // 40, -1), sample[rows]
        )
        (rambo.adversarial_loss(log_prob, advantage[rows]) * advantage[rows].std(correction=0)).backward()
        gradients.append(torch.stack([mean.grad, log_var.grad]))
    gradients = torch.stack(gradients)
    exact = torch.stack([torch.full_like(means, 1 / num_elites), torch.zeros_like(means)])
    exact[0, :, :2] = 2 * gamma * curvature * means[:, :2] / num_elites
    exact[1, :, :2] = gamma * curvature * log_vars[:, :2].exp() / num_elites
    z = (gradients.mean(0) - exact) / (gradients.std(0) / math.sqrt(40))
    assert z.abs().max() < 4.5 and (z**2).mean() < 2.5
    assert exact.norm() > 20 * (gradients.std(0) / math.sqrt(40)).norm()


def plain_mixture_log_prob(mean, log_var, sample):
    """log of the average of the elites' densities, one row at a time, with the exponent's largest part taken out."""
    result = []
    for row in range(len(sample)):
        logs = []
        for m, v in zip(mean[:, row].double().numpy(), log_var[:, row].double().numpy(), strict=True):
            x = sample[row].double().numpy()
            logs.append(sum(-0.5 * (x[d] - m[d]) ** 2 / math.exp(v[d]) - 0.5 * math.log(2 * math.pi * math.exp(v[d]))
                            for d in range(len(x))))  # fmt: skip
        largest = max(logs)
        result.append(largest + math.log(sum(math.exp(value - largest) for value in logs) / len(logs)))
    return result


def test_mixture_log_prob_is_the_plain_computation():
    generator = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 5, 64, 12, generator=generator)
    sample = torch.randn(64, 12, generator=generator)
    expected = plain_mixture_log_prob(mean, log_var, sample)
    np.testing.assert_allclose(rambo.mixture_log_prob(mean, log_var, sample), expected, rtol=1e-5)
    same = rambo.mixture_log_prob(mean[:1].expand(5, -1, -1), log_var[:1].expand(5, -1, -1), sample)
    gaussian = torch.distributions.Normal(mean[0], (0.5 * log_var[0]).exp()).log_prob(sample).sum(-1)
    torch.testing.assert_close(same, gaussian, rtol=1e-5, atol=1e-4)


def test_mixture_log_prob_is_finite_at_extreme_log_variances():
    """18 dimensions at these scales over- and underflow as float32 densities by hundreds of orders of magnitude."""
    for level, distance in itertools.product([-20.0, -12.0, 10.0, 40.0], [0.0, 5.0]):
        generator = torch.Generator().manual_seed(1)
        mean = torch.randn(5, 16, 18, generator=generator).requires_grad_()
        log_var = torch.full((5, 16, 18), level).requires_grad_()
        sample = mean[0].detach() + distance
        log_prob = rambo.mixture_log_prob(mean, log_var, sample)
        expected = plain_mixture_log_prob(mean.detach(), log_var.detach(), sample)
        np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-4)
        log_prob.sum().backward()
        assert torch.isfinite(mean.grad).all() and torch.isfinite(log_var.grad).all()


def test_the_adversarial_loss_is_the_plain_one_and_normalises_advantages():
    generator = torch.Generator().manual_seed(2)
    log_prob, advantage = torch.randn(2, 50, generator=generator)
    x = advantage.double().numpy()
    expected = np.mean((x - x.mean()) / (x.std() + 1e-6) * log_prob.double().numpy())
    assert rambo.adversarial_loss(log_prob, advantage).item() == pytest.approx(expected, rel=1e-5)
    assert rambo.adversarial_loss(log_prob, 100 * advantage - 7).item() == pytest.approx(expected, rel=1e-4)
    assert rambo.adversarial_loss(log_prob, torch.full((50,), 3.0)).item() == 0, "no division by zero"
    plain = np.mean(x * log_prob.double().numpy())
    assert rambo.adversarial_loss(log_prob, advantage, norm_adv=False).item() == pytest.approx(plain, rel=1e-5)


def test_advantages_are_the_plain_computation_and_a_terminal_has_no_future():
    torch.manual_seed(3)
    agent = rambo.Agent(3, 2, 1.0)
    for parameter in agent.target_critic.parameters():  # Eq. 5 takes the online critics
        parameter.data.zero_()
    observations, next_observations = torch.randn(2, 40, 3)
    batch = rambo.Batch(observations, torch.rand(40, 2), torch.randn(40), next_observations, (torch.arange(40) % 2).float())
    result = rambo.compute_advantages(agent, batch, 0.9)
    assert not result.requires_grad
    with torch.no_grad():
        next_q = agent.critic(next_observations, torch.tanh(agent.actor(next_observations)[0]))
        q = agent.critic(observations, batch.actions)
    for row in range(40):
        future = 0.0 if row % 2 else 0.9 * min(next_q[:, row].tolist())
        expected = batch.rewards[row].item() + future - min(q[:, row].tolist())
        assert result[row].item() == pytest.approx(expected, abs=1e-5)


# The whole update
OBS_DIM, ACTION_DIM, NUM_ELITES, BATCH = 3, 2, 5, 64


def never(observations):
    return torch.zeros(observations.shape[:-1], dtype=torch.bool)


@pytest.fixture
def world():
    """An agent, an ensemble that predicts different things, observations, restarts and dataset rows [E, B]."""
    torch.manual_seed(4)
    agent, dynamics = rambo.Agent(OBS_DIM, ACTION_DIM, 1.0), rambo.Dynamics(NUM_ELITES, OBS_DIM, ACTION_DIM, 16)
    observations, restarts = torch.randn(2, BATCH, OBS_DIM)
    real = rambo.split_rows(torch.randn(NUM_ELITES, BATCH, 2 * OBS_DIM + ACTION_DIM + 2), OBS_DIM)
    return SimpleNamespace(agent=agent, dynamics=dynamics, observations=observations, restarts=restarts, real=real)


def update(world, monkeypatch, adv_weight, rule=never, seed=5, norm_adv=True):
    """One plain gradient step of size 1. Returns the new parameters, the imagined batch, its advantages, the outputs."""
    dynamics, seen = copy.deepcopy(world.dynamics), []
    original = rambo.compute_advantages

    def spy(agent, batch, gamma):
        seen.append((batch, original(agent, batch, gamma)))
        return seen[-1][1]

    optimizer = torch.optim.SGD(dynamics.parameters(), lr=1.0)
    args = rambo.Args(adv_weight=adv_weight, gamma=0.9, num_elites=NUM_ELITES, norm_adv=norm_adv)
    generator = torch.Generator().manual_seed(seed)
    elites = torch.randint(NUM_ELITES, (len(world.observations),), generator=generator)
    noise = torch.randn(len(elites), ACTION_DIM + OBS_DIM + 1, generator=generator)
    with monkeypatch.context() as patch:
        patch.setattr(rambo, "compute_advantages", spy)
        next_observations, metrics = rambo.update_model(
            agent=world.agent, dynamics=dynamics, optimizer=optimizer, observations=world.observations,
            restarts=world.restarts, real=world.real, elites=elites, noise=noise, args=args,
            end_step=lambda rewards, states: (rewards, rule(states)),
        )  # fmt: skip
    ((batch, advantage),) = seen
    return SimpleNamespace(
        parameters=flat(dynamics.parameters()), batch=batch, advantage=advantage, elites=elites, noise=noise,
        next_observations=next_observations, metrics={name: value.item() for name, value in metrics.items()},
    )  # fmt: skip


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("norm_adv", [True, False])
def test_the_update_descends_lambda_times_adversarial_plus_supervised_loss(world, monkeypatch, norm_adv):
    """Gradients reach the elites through log-prob and the supervised loss only: all else is a constant here."""
    step = update(world, monkeypatch, adv_weight=0.5, norm_adv=norm_adv)
    dynamics, parameters = world.dynamics, list(world.dynamics.parameters())
    sample = torch.cat([step.batch.next_observations - world.observations, step.batch.rewards[:, None]], 1)
    observations, actions = (x.expand(NUM_ELITES, -1, -1) for x in (world.observations, step.batch.actions))
    log_prob = rambo.mixture_log_prob(*dynamics(observations, actions), sample)
    weights = step.advantage
    if norm_adv:
        weights = (weights - weights.mean()) / (weights.std(correction=0) + 1e-6)
    adversarial = torch.autograd.grad((weights * log_prob).mean(), parameters, allow_unused=True)
    predictions, targets = dynamics(world.real.observations, world.real.actions), rambo.model_targets(world.real)
    nll = rambo.supervised_loss(dynamics, *predictions, targets)
    supervised = torch.autograd.grad(nll, parameters)
    expected = 0.5 * flat(adversarial) + flat(supervised)
    moved = flat(parameters) - step.parameters
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)
    assert (0.5 * flat(adversarial)).norm() > 0.1 * flat(supervised).norm(), "both terms count in this test"

    expected = {
        "model/supervised_loss": nll.item(),
        "model/adversarial_loss": (weights * log_prob).mean().item(),
        "model/advantage_mean": step.advantage.mean().item(),
        "model/advantage_std": step.advantage.std(correction=0).item(),
        "model/log_prob": log_prob.mean().item(),
        "model/grad_norm": expected.norm().item(),
    }
    assert step.metrics == pytest.approx(expected, rel=1e-3)


def test_the_agent_is_left_alone(world, monkeypatch):
    before = copy.deepcopy(world.agent.state_dict())
    update(world, monkeypatch, adv_weight=1.0)
    assert all(torch.equal(value, before[key]) for key, value in world.agent.state_dict().items())
    assert all(p.grad is None for p in world.agent.parameters())


def test_imagined_actions_and_next_states_are_made_of_the_noise_and_the_drawn_elites(world, monkeypatch):
    """The policy's action with the first part of the noise; mean and deviation of the row's elite with the rest."""
    step = update(world, monkeypatch, adv_weight=0.5)
    assert torch.equal(step.batch.observations, world.observations)
    with torch.no_grad():
        actions, _ = rambo.sample_action(world.agent.actor, world.observations, step.noise[:, :ACTION_DIM])
        mean, log_var = world.dynamics(world.observations, actions)
    torch.testing.assert_close(step.batch.actions, actions)
    sample = torch.cat([step.batch.next_observations - world.observations, step.batch.rewards[:, None]], 1)
    for row, elite in enumerate(step.elites):
        expected = mean[elite, row] + torch.exp(0.5 * log_var[elite, row]) * step.noise[row, ACTION_DIM:]
        torch.testing.assert_close(sample[row], expected, rtol=1e-4, atol=1e-5)
    assert len(set(step.elites.tolist())) == NUM_ELITES and (mean[0] - mean[1]).abs().min() > 0


def test_rows_that_terminate_restart_and_their_future_does_not_count(world, monkeypatch):
    """The others go on where they are; without a rule that ends them all do."""
    step = update(world, monkeypatch, adv_weight=1.0, rule=lambda x: x[..., 0] > 0)
    ended = step.batch.next_observations[:, 0] > 0
    assert 0 < ended.sum() < BATCH
    assert torch.equal(step.batch.terminals.bool(), ended)
    assert torch.equal(step.next_observations[ended], world.restarts[ended])
    assert torch.equal(step.next_observations[~ended], step.batch.next_observations[~ended])
    assert not step.next_observations.requires_grad
    endless = update(world, monkeypatch, adv_weight=1.0)
    assert not endless.batch.terminals.any()
    assert torch.equal(endless.next_observations, endless.batch.next_observations)
    assert torch.equal(endless.batch.next_observations, step.batch.next_observations)
    assert torch.equal(endless.advantage[~ended], step.advantage[~ended])
    with torch.no_grad():
        values = world.agent.critic(world.observations, step.batch.actions).amin(0)
    torch.testing.assert_close(step.advantage[ended], (step.batch.rewards - values)[ended])
