"""SAC: losses, log pi, temperature and target update against plain computations in float64."""

import copy
import math

import numpy as np
import pytest
import torch

import rambo_continuous as rambo

OBS_DIM, ACTION_DIM, BATCH = 4, 2, 32
ARGS = rambo.Args(gamma=0.9, tau=0.2, q_lr=1e-2, policy_lr=1e-3)


@pytest.fixture
def agent():
    torch.manual_seed(0)
    agent = rambo.Agent(OBS_DIM, ACTION_DIM, alpha=0.3)
    with torch.no_grad():  # critics and targets that differ, a policy with a state-dependent spread
        for parameter in agent.target_critic.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        agent.actor.fc3.weight.mul_(5)
    return agent


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    terminals = (torch.arange(BATCH) % 3 == 0).float()
    return rambo.Batch(draw(BATCH, OBS_DIM), torch.tanh(draw(BATCH, ACTION_DIM)), draw(BATCH), draw(BATCH, OBS_DIM), terminals)


def optimizers(agent):
    return {
        "actor": torch.optim.Adam(agent.actor.parameters(), lr=ARGS.policy_lr),
        "critic": torch.optim.Adam(agent.critic.parameters(), lr=ARGS.q_lr),
        "alpha": torch.optim.Adam([agent.log_alpha], lr=ARGS.policy_lr),
    }


def draw_noise(seed):
    return torch.randn(2, BATCH, ACTION_DIM, generator=torch.Generator().manual_seed(seed))


def float64(tensor):
    return tensor.detach().numpy().astype(np.float64)


def plain_q(critic, i, observation, action):
    """Q_i of one state and action, layer by layer."""
    x = np.concatenate([observation, action])
    for layer in (critic.fc1, critic.fc2, critic.fc3):
        x = x @ float64(layer.weight[i]) + float64(layer.bias[i, 0])
        x = np.maximum(x, 0) if layer is not critic.fc3 else x
    return x.item()


def plain_policy(actor, observation, noise):
    """Action and log pi of one state: change of variables with 1 - tanh^2 itself."""
    x = observation
    for layer in (actor.fc1, actor.fc2, actor.fc3):
        x = float64(layer.weight) @ x + float64(layer.bias)
        x = np.maximum(x, 0) if layer is not actor.fc3 else x
    mean, log_std = x[:ACTION_DIM], np.clip(x[ACTION_DIM:], -20, 2)
    action = np.tanh(mean + np.exp(log_std) * noise)
    density = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    return action, np.log(density).sum() - np.log(1 - action**2).sum()


def test_critic_loss_is_the_plain_bellman_error(agent, batch):
    noise = torch.randn(BATCH, ACTION_DIM, generator=torch.Generator().manual_seed(2))
    errors = np.zeros((2, BATCH))
    for row in range(BATCH):
        observation, action, reward, next_observation, terminal = (float64(column[row]) for column in batch)
        next_action, log_prob = plain_policy(agent.actor, next_observation, float64(noise[row]))
        target = reward
        if not terminal:
            next_value = min(plain_q(agent.target_critic, i, next_observation, next_action) for i in range(2))
            target = reward + 0.9 * (next_value - 0.3 * log_prob)
        errors[:, row] = [plain_q(agent.critic, i, observation, action) - target for i in range(2)]
    loss, values = rambo.critic_loss(agent, batch, noise, 0.9)
    assert loss.item() == pytest.approx((errors**2).mean(1).sum(), rel=1e-4)
    assert values.shape == (2, BATCH)
    assert values[1, 7].item() == pytest.approx(plain_q(agent.critic, 1, float64(batch[0][7]), float64(batch[1][7])), rel=1e-4)

    loss.backward()
    assert all(p.grad is not None for p in agent.critic.parameters())
    assert all(p.grad is None for p in [*agent.actor.parameters(), *agent.target_critic.parameters(), agent.log_alpha])


def test_actor_loss_is_the_plain_one(agent, batch):
    noise = torch.randn(BATCH, ACTION_DIM, generator=torch.Generator().manual_seed(3))
    losses, log_probs = [], []
    for row in range(BATCH):
        observation = float64(batch.observations[row])
        action, log_prob = plain_policy(agent.actor, observation, float64(noise[row]))
        losses.append(0.3 * log_prob - min(plain_q(agent.critic, i, observation, action) for i in range(2)))
        log_probs.append(log_prob)
    loss, log_pi = rambo.actor_loss(agent, batch.observations, noise)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    np.testing.assert_allclose(log_pi.detach().numpy(), log_probs, rtol=1e-3, atol=1e-3)


def test_actor_gradient_raises_the_value_and_the_entropy(agent, batch):
    """The reparameterised gradient against finite differences along itself: also the sign of both terms."""
    noise = torch.randn(BATCH, ACTION_DIM, generator=torch.Generator().manual_seed(4))
    agent.double()
    observations, noise = batch.observations.double(), noise.double()
    loss, log_probs = rambo.actor_loss(agent, observations, noise)
    gradients = torch.autograd.grad(loss, list(agent.actor.parameters()))
    step = 1e-4 / math.sqrt(sum((g**2).sum() for g in gradients))
    with torch.no_grad():
        for parameter, gradient in zip(agent.actor.parameters(), gradients, strict=True):
            parameter.sub_(step * gradient)
        after, _ = rambo.actor_loss(agent, observations, noise)
    expected = step * sum((g**2).sum() for g in gradients)
    assert (loss - after).item() == pytest.approx(expected.item(), rel=1e-2)
    agent.log_alpha.data.fill_(math.log(1e6))  # the entropy term alone
    loss, log_probs = rambo.actor_loss(agent, observations, noise)
    assert loss.item() == pytest.approx(1e6 * log_probs.mean().item(), rel=1e-3)


def test_log_pi_stays_finite_and_exact_far_out():
    pre_tanh = torch.tensor([[-60.0], [-30.0], [30.0], [60.0]], requires_grad=True)
    log_prob = rambo.squashed_log_prob(torch.zeros(4, 1), torch.zeros(4, 1), pre_tanh)
    u = pre_tanh.detach().double()
    # log(1 - tanh(u)^2) = log 4 - 2|u| to machine precision out there
    expected = (-0.5 * u**2 - 0.5 * math.log(2 * math.pi) - math.log(4) + 2 * u.abs()).squeeze(-1)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-6, atol=1e-4)
    log_prob.sum().backward()
    assert torch.isfinite(pre_tanh.grad).all()


def test_the_policys_log_std_is_limited(agent):
    with torch.no_grad():
        agent.actor.fc3.weight.zero_()
        agent.actor.fc3.bias.copy_(torch.tensor([3.0, -3.0, 1e3, -1e3]))
    mean, log_std = agent.actor(torch.zeros(1, OBS_DIM))
    assert mean.tolist() == [[3, -3]] and log_std.tolist() == [[2, -20]]


def test_sampled_actions_have_the_density_that_is_reported(agent):
    """The probability mass of a box of actions, counted and integrated."""
    observation = torch.randn(1, OBS_DIM, generator=torch.Generator().manual_seed(6))
    noise = torch.randn(40_000, ACTION_DIM, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        actions, _ = rambo.sample_action(agent.actor, observation.expand(40_000, -1), noise)
        center, half = actions.median(0).values, 0.2
        counted = ((actions - center).abs() < half).all(-1).float().mean().item()
        mean, log_std = agent.actor(observation)
        grid = center + half * (torch.cartesian_prod(*[(torch.arange(200) + 0.5) / 100 - 1] * ACTION_DIM))
        density = rambo.squashed_log_prob(mean, log_std, torch.atanh(grid)).exp()
    assert density.mean().item() * (2 * half) ** ACTION_DIM == pytest.approx(counted, abs=4 * math.sqrt(counted / 40_000))


def test_agent_update_moves_each_part_by_its_own_loss(agent, batch):
    before = copy.deepcopy(agent)
    noise = draw_noise(11)
    metrics = rambo.update_agent(agent, optimizers(agent), batch, noise, ARGS)

    # By hand, from a copy: critics, then the actor against the new critics, then the temperature, then the targets
    by_hand = copy.deepcopy(before)
    step = optimizers(by_hand)
    qf_loss, values = rambo.critic_loss(by_hand, batch, noise[0], ARGS.gamma)
    by_hand.zero_grad()
    qf_loss.backward()
    step["critic"].step()
    critic = copy.deepcopy(by_hand.critic)
    policy_loss, log_probs = rambo.actor_loss(by_hand, batch.observations, noise[1])
    by_hand.zero_grad()
    policy_loss.backward()
    step["actor"].step()
    for new, expected in zip(agent.critic.parameters(), critic.parameters(), strict=True):
        torch.testing.assert_close(new, expected)
    for new, expected in zip(agent.actor.parameters(), by_hand.actor.parameters(), strict=True):
        torch.testing.assert_close(new, expected)
    for new, old, online in zip(
        agent.target_critic.parameters(), before.target_critic.parameters(), critic.parameters(), strict=True
    ):
        torch.testing.assert_close(new, (1 - ARGS.tau) * old + ARGS.tau * online)
        assert not new.requires_grad, "autograd would keep every update in memory"
    # Adam's first step moves the temperature by its learning rate, down if the entropy exceeds its target of -A
    entropy = -log_probs.mean().item()
    change = -ARGS.policy_lr if entropy > -ACTION_DIM else ARGS.policy_lr
    assert (agent.log_alpha - before.log_alpha).item() == pytest.approx(change, rel=1e-3)

    expected = {
        "losses/qf_loss": qf_loss.item(),
        "losses/qf_values": values.mean().item(),
        "losses/max_abs_qf_value": values.abs().max().item(),
        "losses/actor_loss": policy_loss.item(),
        "losses/alpha_loss": -math.log(0.3) * (-entropy - ACTION_DIM),
        "losses/alpha": 0.3,
        "losses/entropy": entropy,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("log_std, direction", [(-0.2, -1), (-8.0, 1)])
def test_temperature_falls_when_the_entropy_exceeds_its_target_and_rises_below(agent, batch, log_std, direction):
    with torch.no_grad():
        agent.actor.fc3.weight.zero_()
        agent.actor.fc3.bias.copy_(torch.tensor([0.0] * ACTION_DIM + [log_std] * ACTION_DIM))
    before = agent.log_alpha.item()
    entropy = rambo.update_agent(agent, optimizers(agent), batch, draw_noise(11), ARGS)["losses/entropy"].item()
    assert (entropy > -ACTION_DIM) == (direction < 0)
    assert (agent.log_alpha.item() - before) * direction > 0


def test_critics_start_alike_with_their_targets_and_unlike_each_other():
    agent = rambo.Agent(OBS_DIM, ACTION_DIM, alpha=1.0)
    for online, target in zip(agent.critic.parameters(), agent.target_critic.parameters(), strict=True):
        assert torch.equal(online, target)
        assert not torch.equal(online[0], online[1])
    assert agent.log_alpha.item() == 0


def test_batched_linear_is_initialised_like_nn_linear():
    torch.manual_seed(13)
    layer = rambo.BatchedLinear(50, 16, 24)
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 16), rel=0.02)  # uniform on +-1/sqrt(16)
    assert layer.weight.abs().max() <= 0.25 and layer.bias.abs().max() <= 0.25


def test_behaviour_cloning_recovers_the_mean_and_spread_of_the_data():
    """Actions tanh(normal(0.5 s, 0.3)) of one dimension: the clone's mode and spread come close to them."""
    torch.manual_seed(14)
    observations = torch.randn(4000, 1)
    actions = torch.tanh(0.5 * observations + 0.3 * torch.randn(4000, 1))
    rows = torch.cat([observations, actions, torch.zeros(4000, 1), observations, torch.zeros(4000, 1)], 1)
    rows[::50, 1] = 1.0  # saturated actions have no finite log pi and must do no harm
    agent = rambo.Agent(1, 1, alpha=1.0)
    rambo.clone_behaviour(agent, rows, 1, rambo.Args(bc_epochs=15, policy_lr=1e-3))
    x = torch.linspace(-1, 1, 9).unsqueeze(1)
    mean, log_std = agent.policy(x)
    assert (mean - 0.5 * x).abs().max() < 0.35
    assert 0.2 < log_std.exp().mean() < 0.8
