"""The dynamics ensemble: initial weights, forward pass, scales, supervised loss, pretraining and rollouts."""

import math

import numpy as np
import pytest
import torch

import rambo_continuous as rambo

OBS_DIM, ACTION_DIM = 3, 2
D = OBS_DIM + 1


def make_dynamics(num_models=4, hidden_dim=16, seed=0):
    torch.manual_seed(seed)
    dynamics = rambo.Dynamics(num_models, OBS_DIM, ACTION_DIM, hidden_dim)
    with torch.no_grad():  # bounds and input statistics that differ in every dimension
        dynamics.max_log_var.add_(torch.linspace(0, 1, D))
        dynamics.min_log_var.add_(torch.linspace(0, 1, D))
        dynamics.input_mean.normal_()
        dynamics.input_std.uniform_(0.5, 2)
        dynamics.output_scale.uniform_(0.5, 2)
        for layer in dynamics.layers:
            layer.bias.normal_(std=0.1)
    return dynamics


def make_rows(n, seed=0, terminal=0.0):
    """Rows [n, 2O + A + 2] of normal states, actions in [-1, 1], rewards that count the rows."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, n, OBS_DIM, generator=generator)
    actions = torch.rand(n, ACTION_DIM, generator=generator) * 2 - 1
    return torch.cat([states[0], actions, torch.arange(n).float()[:, None], states[1], torch.full((n, 1), terminal)], 1)


def split(rows):
    return rambo.split_rows(rows, OBS_DIM)


def plain_model(dynamics, member, observation, action):
    """Mean and log-variance of one member for one row, in float64."""
    numpy = lambda tensor: tensor.detach().numpy().astype(np.float64)  # noqa: E731
    softplus = lambda x: np.logaddexp(0, x)  # noqa: E731
    x = (np.concatenate([numpy(observation), numpy(action)]) - numpy(dynamics.input_mean)) / numpy(dynamics.input_std)
    for i, layer in enumerate(dynamics.layers):
        x = x @ numpy(layer.weight[member]) + numpy(layer.bias[member, 0])
        x = x / (1 + np.exp(-x)) if i < 4 else x
    upper, lower = numpy(dynamics.max_log_var), numpy(dynamics.min_log_var)
    log_var = upper - softplus(upper - x[D:])
    scale = numpy(dynamics.output_scale)
    return x[:D] * scale, lower + softplus(log_var - lower) + 2 * np.log(scale)


def test_initial_weights_are_truncated_at_two_standard_deviations():
    torch.manual_seed(0)
    dynamics = rambo.Dynamics(7, 11, 3, 200)
    for layer, fan_in in zip(dynamics.layers, [14, 200, 200, 200, 200], strict=True):
        assert layer.weight.shape[:2] == (7, fan_in)
        std = 1 / (2 * math.sqrt(fan_in))
        assert 1.9 * std < layer.weight.abs().max() <= 2 * std
        assert layer.weight.std().item() == pytest.approx(0.8796 * std, rel=0.02)  # of a normal cut off at two
        assert not layer.bias.any()
    assert not torch.equal(dynamics.layers[1].weight[0], dynamics.layers[1].weight[1])
    assert dynamics.layers[-1].weight.shape == (7, 200, 24)
    assert (dynamics.max_log_var == 1).all() and (dynamics.min_log_var == -6).all()
    assert dynamics.max_log_var.requires_grad and dynamics.min_log_var.requires_grad


def test_forward_is_the_plain_computation_for_every_member():
    dynamics, rows = make_dynamics(), split(make_rows(4 * 5).view(4, 5, -1))
    mean, log_var = dynamics(rows.observations, rows.actions)
    assert mean.shape == log_var.shape == (4, 5, D)
    for member in range(4):
        for row in range(5):
            expected = plain_model(dynamics, member, rows.observations[member, row], rows.actions[member, row])
            np.testing.assert_allclose(mean[member, row].detach(), expected[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(log_var[member, row].detach(), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("raw", [-1e4, 1e4])
def test_log_variance_stays_between_its_bounds(raw):
    dynamics, batch = make_dynamics(), split(make_rows(4 * 5).view(4, 5, -1))
    with torch.no_grad():
        dynamics.layers[-1].bias[..., D:] = raw
    _, log_var = dynamics(batch.observations, batch.actions)
    lower, upper = (bound + 2 * dynamics.output_scale.log() for bound in (dynamics.min_log_var, dynamics.max_log_var))
    assert (log_var >= lower - 1e-3).all() and (log_var <= upper + 1e-2).all()
    torch.testing.assert_close(log_var, (lower if raw < 0 else upper).expand_as(log_var), rtol=0, atol=1e-2)
    log_var.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in dynamics.parameters())


def test_supervised_loss_is_the_plain_one_with_weight_decay():
    dynamics, batch = make_dynamics(), split(make_rows(4 * 6).view(4, 6, -1))
    targets = rambo.model_targets(batch)
    expected = 0.0
    for member in range(4):
        errors = []
        for row in range(6):
            mean, log_var = plain_model(dynamics, member, batch.observations[member, row], batch.actions[member, row])
            delta = (batch.next_observations - batch.observations)[member, row].numpy()
            target = np.append(delta, batch.rewards[member, row].item())
            np.testing.assert_allclose(targets[member, row], target)
            errors += list((mean - target) ** 2 / np.exp(log_var) + log_var)
        expected += np.mean(errors)
    for decay, layer in zip([2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4], dynamics.layers, strict=True):
        expected += 0.5 * decay * (layer.weight.detach().double() ** 2).sum().item()
    expected += 1e-3 * (dynamics.max_log_var.sum() - dynamics.min_log_var.sum()).item()
    mean, log_var = dynamics(batch.observations, batch.actions)
    loss = rambo.supervised_loss(dynamics, mean, log_var, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    # Weight decay is too small to see above: its gradient is all there is where the likelihood's is taken away
    rambo.supervised_loss(dynamics, mean.detach(), log_var.detach(), targets).backward()
    for decay, layer in zip([2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4], dynamics.layers, strict=True):
        torch.testing.assert_close(layer.weight.grad, decay * layer.weight.detach(), rtol=1e-5, atol=0)
        assert layer.bias.grad is None
    torch.testing.assert_close(dynamics.max_log_var.grad, torch.full((D,), 1e-3))
    torch.testing.assert_close(dynamics.min_log_var.grad, torch.full((D,), -1e-3))


def test_holdout_errors_are_plain_mean_squares():
    dynamics, holdout = make_dynamics(), split(make_rows(6))
    expected = [
        np.mean([
            ((plain_model(dynamics, member, holdout.observations[row], holdout.actions[row])[0]
              - rambo.model_targets(holdout)[row].numpy()) / dynamics.output_scale.numpy()) ** 2
            for row in range(6)
        ])
        for member in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(rambo.holdout_errors(dynamics, holdout), expected, rtol=1e-4)


def pretraining_args(**changes):
    return rambo.Args(**(dict(batch_size=32, num_models=4, num_elites=2, model_max_pretrain_epochs=4) | changes))


def test_each_member_learns_from_its_own_reshuffled_bootstrap_sample(monkeypatch):
    rows, seen = make_rows(320), []
    original = rambo.model_targets

    def spy(batch):
        if batch.rewards.dim() == 2:  # training batches [E, B], not the hold-out rows
            seen.append(batch.rewards.clone())
        return original(batch)

    monkeypatch.setattr(rambo, "model_targets", spy)
    rambo.pretrain_dynamics(make_dynamics(), rows, split(make_rows(20, 1)), pretraining_args(model_lr=1e-6))
    epochs = torch.cat(seen, 1).view(4, 4, 320).long()  # [member, epoch, row]
    for member in epochs:
        counts = torch.stack([torch.bincount(epoch, minlength=320) for epoch in member])
        assert (counts == counts[0]).all(), "the same bootstrap sample in every epoch"
        assert not torch.equal(member[0], member[1]), "in another order"
        assert 0.55 < (counts[0] > 0).float().mean() < 0.71, "drawn with replacement: 1 - 1/e of the rows occur"
    assert not torch.equal(epochs[0, 0].sort().values, epochs[1, 0].sort().values)


def test_inputs_are_standardised_with_the_training_rows():
    rows = make_rows(300) * 3 + 1
    dynamics = make_dynamics()
    rambo.pretrain_dynamics(dynamics, rows, split(make_rows(20, 1)), pretraining_args(model_max_pretrain_epochs=1))
    torch.testing.assert_close(dynamics.input_mean, rows[:, : OBS_DIM + ACTION_DIM].mean(0))
    torch.testing.assert_close(dynamics.input_std, rows[:, : OBS_DIM + ACTION_DIM].std(0))


def test_inputs_that_do_not_vary_are_not_divided_by_a_tiny_deviation():
    """A goal that is always the same, exactly or up to the noise of float32, moves a little after training: by as little."""
    rows = make_rows(300)
    rows[:, 0] = 0.7
    rows[:, 1] = 0.7 + 1e-6 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    rows[:, OBS_DIM] = 0.0  # an action that is never taken
    dynamics = make_dynamics()
    dynamics.set_scales(split(rows))
    assert dynamics.input_std[[0, 1, OBS_DIM]].tolist() == [1, 1, 1]
    torch.testing.assert_close(dynamics.input_std[2], rows[:, 2].std())
    here, there = split(rows[:1]), split(rows[:1] + 0.01)
    outputs = [dynamics(batch.observations, batch.actions)[0] for batch in (here, there)]
    assert (outputs[1] - outputs[0]).abs().max() < 0.1


def test_rewards_are_scaled_only_where_they_are_not_of_order_1():
    rows, signs = make_rows(300), 1 - 2 * (torch.arange(300) % 2)
    for size, scale in [(0.11, 1), (1, 1), (29, 1), (0, 1), (31, 31), (1e4, 1e4), (0.09, 0.09), (1e-4, 1e-4)]:
        rows[:, OBS_DIM + ACTION_DIM] = size * signs
        dynamics = rambo.Dynamics(2, OBS_DIM, ACTION_DIM, 8)
        dynamics.set_scales(split(rows))
        torch.testing.assert_close(dynamics.output_scale, torch.tensor([1.0, 1.0, 1.0, scale]))
        if scale == 1:  # not 1.0000001: such a run is bit for bit the one without scales
            assert dynamics.output_scale.tolist() == [1, 1, 1, 1]


def test_best_weights_come_back_for_each_member(monkeypatch):
    """With a wild learning rate errors go up and down, so that the last weights are not the best ones."""
    rows, holdout, history = make_rows(320), split(make_rows(64, 1)), []
    original = rambo.holdout_errors

    def spy(*arguments):
        history.append(original(*arguments))
        return history[-1]

    monkeypatch.setattr(rambo, "holdout_errors", spy)
    dynamics = make_dynamics()
    best = rambo.pretrain_dynamics(dynamics, rows, holdout, pretraining_args(model_lr=0.1, model_max_pretrain_epochs=25))
    errors = torch.stack(history)
    # An improvement counts above 1 %: follow each member by hand
    expected = errors[0].clone()
    for epoch in errors[1:]:
        for member in range(4):
            if epoch[member] < 0.99 * expected[member]:
                expected[member] = epoch[member]
    torch.testing.assert_close(best, expected)
    assert (errors[-1] > best).any(), "this test needs a last epoch that is not the best"
    torch.testing.assert_close(original(dynamics, holdout), best)


def test_pretraining_reports_divergence():
    errors = rambo.pretrain_dynamics(make_dynamics(), make_rows(320), split(make_rows(20)), pretraining_args(model_lr=1e30))
    assert not errors.isfinite().all()


def linear_rows(n, noise_std, seed):
    """s' - s = [s, a] A + noise and r = [s, a] b + noise, with noise of a known size in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(OBS_DIM + ACTION_DIM, D, generator=torch.Generator().manual_seed(99)) / 2
    inputs = torch.randn(n, OBS_DIM + ACTION_DIM, generator=generator)
    targets = inputs @ matrix + noise_std * torch.randn(n, D, generator=generator)
    states, actions = inputs[:, :OBS_DIM], inputs[:, OBS_DIM:]
    return torch.cat([states, actions, targets[:, -1:], states + targets[:, :-1], torch.zeros(n, 1)], 1)


def test_the_ensemble_learns_a_linear_gaussian_system_to_its_noise_level_and_is_calibrated():
    noise_std = torch.tensor([0.1, 0.2, 0.4, 0.8])
    rows, test = linear_rows(6000, noise_std, 1), split(linear_rows(4000, noise_std, 2))
    torch.manual_seed(0)
    dynamics = rambo.Dynamics(3, OBS_DIM, ACTION_DIM, 64)
    args = rambo.Args(batch_size=256, num_models=3, num_elites=2, model_lr=2e-3, model_max_pretrain_epochs=25)
    best = rambo.pretrain_dynamics(dynamics, rows[500:], split(rows[:500]), args)
    noise_level = (noise_std**2).mean().item()
    assert (best < 1.15 * noise_level).all() and (best > 0.85 * noise_level).all()
    with torch.no_grad():
        mean, log_var = dynamics(test.observations.expand(3, -1, -1), test.actions.expand(3, -1, -1))
    squared_errors = (mean - rambo.model_targets(test)) ** 2
    assert (squared_errors.mean((0, 1)) < 1.15 * noise_std**2).all(), "noise level in each dimension"
    torch.testing.assert_close(torch.exp(0.5 * log_var).mean((0, 1)), noise_std, rtol=0.15, atol=0)
    inside = (squared_errors < torch.exp(log_var)).float().mean((0, 1))
    assert ((inside - 0.683).abs() < 0.05).all(), "68 % of the errors are smaller than the predicted deviation"


def test_the_size_of_the_rewards_does_not_spoil_the_model_of_the_states():
    """Rewards in other units: states are learnt as well as with rewards of order 1, and the rewards themselves, too."""
    errors, rewards = [], []
    for factor in (1, 100):
        rows = linear_rows(3000, torch.tensor([0.1, 0.1, 0.1, 0.1]), 1)
        rows[:, OBS_DIM + ACTION_DIM] *= factor
        torch.manual_seed(0)
        dynamics = rambo.Dynamics(2, OBS_DIM, ACTION_DIM, 32)
        args = rambo.Args(batch_size=64, num_models=2, num_elites=2, model_lr=2e-3, model_max_pretrain_epochs=15)
        holdout = split(rows[:500])
        rambo.pretrain_dynamics(dynamics, rows[500:], holdout, args)
        with torch.no_grad():
            mean, log_var = dynamics(holdout.observations, holdout.actions)
        squares = (mean - rambo.model_targets(holdout)) ** 2
        errors.append(squares[..., :-1].mean().item())
        rewards.append((squares[..., -1].mean().sqrt() / factor).item())
        assert (log_var[..., -1] / 2).exp().mean().item() / factor == pytest.approx(0.12, rel=0.2), "in the log's units"
    assert errors[1] < 1.1 * errors[0] < 0.015, "the noise alone is 0.01"
    assert rewards[1] < 1.2 * rewards[0] < 0.15, "the noise alone is 0.1"


# Rollouts
def constant_dynamics(deltas, rewards, log_var=-30.0):
    """Members that add their own constant to every state, with next to no noise."""
    dynamics = rambo.Dynamics(len(deltas), OBS_DIM, ACTION_DIM, 8)
    with torch.no_grad():
        dynamics.layers[-1].weight.zero_()
        dynamics.layers[-1].bias.zero_()
        dynamics.layers[-1].bias[:, 0, :OBS_DIM] = torch.tensor(deltas)[:, None]
        dynamics.layers[-1].bias[:, 0, OBS_DIM] = torch.tensor(rewards)
        dynamics.layers[-1].bias[:, 0, D:] = log_var
        dynamics.min_log_var.fill_(log_var)
    return dynamics


def roll_out(dynamics, rows, rule, **changes):
    """Steps of rollouts as a batch [k, starts, ...], and metrics."""
    args = rambo.Args(**(dict(rollout_length=3, rollout_batch_size=20) | changes))
    torch.manual_seed(0)
    agent = rambo.Agent(OBS_DIM, ACTION_DIM, 1.0)
    end_step = rambo.rollout_ends(split(rows), rule, 0.0, 1.0, args)
    rollouts, metrics = rambo.rollout_models(agent, dynamics, rows, end_step, args)
    assert rollouts.shape == (args.rollout_length * args.rollout_batch_size, rows.shape[1])
    return split(rollouts.view(args.rollout_length, args.rollout_batch_size, -1)), metrics


def never(observations):
    return torch.zeros(observations.shape[:-1], dtype=torch.bool)


def are_states_of(rows, observations):
    return all((observation == rows[:, :OBS_DIM]).all(1).any() for observation in observations)


def test_each_rollout_stays_with_one_elite_and_every_elite_takes_its_share():
    dynamics, rows = constant_dynamics([1.0, 10.0], [-1.0, -10.0]), make_rows(50)
    steps, metrics = roll_out(dynamics, rows, never)
    deltas = steps.next_observations - steps.observations
    torch.testing.assert_close(deltas, deltas[0, :, :1].expand_as(deltas), rtol=0, atol=1e-4)
    torch.testing.assert_close(steps.rewards, -deltas[..., 0], rtol=0, atol=1e-4)
    assert ((deltas[0, :, 0] - 1).abs() < 1e-3).sum() == ((deltas[0, :, 0] - 10).abs() < 1e-3).sum() == 10
    # Rollouts start in dataset states and go on where they were
    assert are_states_of(rows, steps.observations[0])
    assert torch.equal(steps.observations[1:], steps.next_observations[:-1])
    assert not steps.terminals.any()
    assert metrics["rollout/reward"].item() == pytest.approx(-5.5, abs=1e-3)
    assert metrics["rollout/termination_rate"] == 0
    assert metrics["rollout/max_abs_state"] == steps.next_observations.abs().max() == steps.next_observations[-1].abs().max()
    assert len(metrics) == 3


def test_rollouts_are_sampled_from_model_and_policy():
    rows = make_rows(1)  # all rollouts start in the same state
    dynamics = constant_dynamics([2.0], [5.0], log_var=math.log(0.25))
    with torch.no_grad():
        dynamics.max_log_var.fill_(20)
    steps, _ = roll_out(dynamics, rows, never, rollout_length=1, rollout_batch_size=20_000)
    batch = rambo.Batch(*(column[0] for column in steps))
    targets = rambo.model_targets(batch)
    _, log_var = dynamics(batch.observations[None], batch.actions[None])
    torch.testing.assert_close(targets.mean(0), torch.tensor([2.0, 2.0, 2.0, 5.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(targets.std(0), torch.exp(0.5 * log_var[0, 0]).detach(), rtol=0.03, atol=0)
    assert batch.actions.std(0).min() > 0.3, "the policy is stochastic"
    torch.manual_seed(0)
    mean, log_std = rambo.Agent(OBS_DIM, ACTION_DIM, 1.0).actor(batch.observations[:1])
    pre_tanh = torch.atanh(batch.actions.double())
    torch.testing.assert_close(pre_tanh.mean(0), mean[0].detach().double(), rtol=0, atol=0.05)
    torch.testing.assert_close(pre_tanh.std(0), log_std[0].exp().detach().double(), rtol=0.05, atol=0)


def test_terminated_rows_are_marked_and_restart_from_dataset_states():
    """The rule ends a rollout when its first coordinate exceeds 100; elites add 60, so every second step does."""
    rows = make_rows(50)
    steps, metrics = roll_out(constant_dynamics([60.0, 60.0], [1.0, 1.0]), rows, lambda x: x[..., 0] > 100, rollout_length=4)
    assert torch.equal(steps.terminals, torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None].expand(4, 20))
    assert (steps.next_observations[1::2, :, 0] > 100).all(), "the terminal state itself is stored"
    assert are_states_of(rows, steps.observations[0]) and are_states_of(rows, steps.observations[2])
    assert not torch.equal(steps.observations[0], steps.observations[2]), "fresh states, not the same again"
    assert torch.equal(steps.observations[1], steps.next_observations[0])
    assert torch.equal(steps.observations[3], steps.next_observations[2])
    assert metrics["rollout/termination_rate"] == 0.5


def test_only_the_rollouts_that_terminated_restart():
    rows = make_rows(50)
    steps, _ = roll_out(constant_dynamics([0.5, 0.5], [1.0, 1.0]), rows, lambda x: x[..., 1] > 0.5, rollout_length=2)
    first_observations, ended = steps.next_observations[0], steps.terminals[0].bool()
    assert 0 < ended.sum() < 20
    assert torch.equal(first_observations[:, 1] > 0.5, ended)
    assert torch.equal(steps.observations[1][~ended], first_observations[~ended])
    assert are_states_of(rows, steps.observations[1][ended])


def test_rows_are_taken_apart_in_the_order_of_the_dataset():
    rows = torch.arange(2.0 * (2 * OBS_DIM + ACTION_DIM + 2)).view(2, -1)
    batch = split(rows)
    assert batch.observations[0].tolist() == [0, 1, 2] and batch.actions[0].tolist() == [3, 4]
    assert batch.rewards[0].item() == 5 and batch.next_observations[0].tolist() == [6, 7, 8]
    assert batch.terminals.tolist() == [9, 19]
