"""The two scripts do the same: same weights, same rows and same random numbers give the same losses, gradients and updates."""

import inspect
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import TINY, pendulum_log, read_run, run_here, write_hdf5
from flax import nnx

import rambo_continuous as in_torch
import rambo_continuous_jax as in_jax

OBS_DIM, ACTION_DIM, MEMBERS, BATCH = 4, 2, 3, 32
ARGS = dict(gamma=0.9, tau=0.2, q_lr=1e-2, policy_lr=1e-3, model_lr=1e-3, adv_weight=0.1, batch_size=BATCH)
ARGS |= dict(num_models=MEMBERS, num_elites=MEMBERS, rollout_length=2, rollout_batch_size=12, rollout_retain_iterations=2)


def end_step(rewards, observations):
    """A made-up rule that holds for tensors and for arrays, and ends about one episode in six."""
    return rewards, observations[..., 0] > 1


def to_torch(x):
    return torch.from_numpy(np.array(x))


def to_jax(module, like):
    """The weights of a torch module in the tree that the JAX script has for it."""
    # A copy: jnp.asarray may share the memory, and torch updates its weights in place
    state = {name: jnp.array(tensor.numpy(), copy=True) for name, tensor in module.state_dict().items()}
    filled = jax.tree.map_with_path(lambda key, old: state.pop(in_jax.name_of(key)).reshape(old.shape), like)
    assert not state
    return filled


def named_arrays(tree):
    return {in_jax.name_of(key): np.asarray(array) for key, array in jax.tree.leaves_with_path(tree)}


def assert_close(actual, expected, rtol=1e-5, scale=None):
    """To rtol of the largest entry, or of scale: float32 sums differ in the order of their terms."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    scale = np.abs(expected).max(initial=0) if scale is None else scale
    assert actual.shape == expected.shape
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=rtol * scale + 1e-9)


def assert_same_weights(tree, module, rtol=1e-5, scale=None):
    arrays = named_arrays(tree)
    assert set(arrays) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert_close(arrays[name], tensor, rtol, scale)


def assert_nearly_same_weights(tree, module, steps, learning_rate):
    """After steps of Adam, which magnifies what is left of a gradient near zero: a few entries may be off, by a step or so."""
    arrays = named_arrays(tree)
    assert set(arrays) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        off = np.abs(arrays[name] - tensor.detach().numpy())
        assert (off > 0.1 * learning_rate).mean() < 1e-2 and off.max(initial=0) < steps * learning_rate


def assert_same_gradients(tree, module):
    """Buffers of the torch module, which it gives no gradient, must have gradient zero."""
    arrays, parameters = named_arrays(tree), dict(module.named_parameters())
    assert set(parameters) <= set(arrays)
    scale = max(parameter.grad.abs().max().item() for parameter in parameters.values())
    for name, array in arrays.items():
        if name in parameters:
            assert np.abs(array).max() > 0
            assert_close(array, parameters[name].grad, scale=scale)
        else:
            assert not array.any()


@pytest.fixture
def agents():
    torch.manual_seed(0)
    agent = in_torch.Agent(OBS_DIM, ACTION_DIM, alpha=0.3)
    with torch.no_grad():  # critics and targets that differ, a policy with a state-dependent spread
        for parameter in agent.target_critic.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        agent.actor.fc3.weight.mul_(5)
    like = jax.eval_shape(lambda: in_jax.init_agent(jax.random.PRNGKey(0), OBS_DIM, ACTION_DIM, 0.3))
    return agent, to_jax(agent, like)


@pytest.fixture
def ensembles():
    torch.manual_seed(1)
    dynamics = in_torch.Dynamics(MEMBERS, OBS_DIM, ACTION_DIM, 16)
    dynamics.input_mean.normal_()
    dynamics.input_std.uniform_(0.5, 2)
    dynamics.output_scale.uniform_(0.5, 2)
    return dynamics, to_jax(dynamics, jax.eval_shape(new_ensemble))


def new_ensemble(seed=0):
    return in_jax.Dynamics(MEMBERS, OBS_DIM, ACTION_DIM, 16, nnx.Rngs(jax.random.PRNGKey(seed)))


def make_batches(*shape, seed=2):
    rng = np.random.default_rng(seed)
    draw = lambda *last: rng.normal(size=(*shape, *last)).astype(np.float32)  # noqa: E731
    terminals = (rng.random(shape) < 0.3).astype(np.float32)
    arrays = draw(OBS_DIM), np.tanh(draw(ACTION_DIM)), draw(), draw(OBS_DIM), terminals
    return in_torch.Batch(*map(to_torch, arrays)), in_jax.Batch(*map(jnp.asarray, arrays))


def make_rows(n, seed=3):
    batch, _ = make_batches(n, seed=seed)
    return np.concatenate([x.numpy().reshape(n, -1) for x in batch], 1)


@pytest.fixture
def same_draws(monkeypatch):
    """jax.random replays what torch has drawn since, in the same order; both draw the same shapes."""
    drawn = []

    def record(name):
        original = getattr(torch, name)

        def draw(*args, **kwargs):
            drawn.append(original(*args, **kwargs))
            return drawn[-1].clone()

        monkeypatch.setattr(torch, name, draw)

    def replay(key, shape, *args):
        x = drawn.pop(0)
        assert tuple(x.shape) == tuple(shape)
        return jnp.asarray(x)

    for name in ("randn", "randn_like", "randint", "rand"):
        record(name)
    for name in ("normal", "randint", "bits"):
        monkeypatch.setattr(jax.random, name, replay)
    yield drawn
    assert not drawn, "the JAX script has drawn less"


def torch_optimizers(agent, dynamics, args):
    return {
        "actor": torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr),
        "critic": torch.optim.Adam(agent.critic.parameters(), lr=args.q_lr),
        "alpha": torch.optim.Adam([agent.log_alpha], lr=args.policy_lr),
        "model": torch.optim.Adam(dynamics.parameters(), lr=args.model_lr),
    }


def assert_same_metrics(mine, theirs, rtol=1e-5):
    """The same names; values to rtol of the largest one. (jit sorts the names of what it returns.)"""
    assert set(mine) == set(theirs)
    values = np.array([float(value) for value in theirs.values()])
    assert_close(np.array([float(mine[name]) for name in theirs]), values, rtol)


# What stands word for word in both
def sources():
    return (Path(script.__file__).read_text() for script in (in_torch, in_jax))


def test_what_is_not_rambo_stands_word_for_word_in_both():
    one, other = (re.split(r"^# Below here is nothing of RAMBO", source, flags=re.M) for source in sources())
    assert len(one) == len(other) == 2 and len(one[1]) > 20_000
    assert one[1] == other[1]


def test_defaults_of_datasets_and_command_lines_are_the_same_but_for_what_only_one_can_do():
    tables = [re.search(r"^# What a dataset changes.*?^}", source, re.M | re.S)[0] for source in sources()]
    assert tables[0] == tables[1] and len(in_torch.DATASET_DEFAULTS) > 5
    one, other = (
        dict(re.findall(r"^    (\w+): (.*  # .*)$", inspect.getsource(script.Args), re.M)) for script in (in_torch, in_jax)
    )
    assert set(one) == set(in_torch.Args.__dataclass_fields__) and set(other) == set(in_jax.Args.__dataclass_fields__)
    assert one.keys() - other.keys() == {"compile", "cudagraphs"} and other.keys() - one.keys() == {"num_seeds"}
    assert {name for name in one.keys() & other.keys() if one[name] != other[name]} <= {"torch_deterministic"}
    common = [name for name in one if name in other]
    assert [name for name in other if name in one] == common, "in the same order"
    for name in ("WEIGHT_DECAYS", "LOG_STD_MIN", "LOG_STD_MAX"):
        assert getattr(in_torch, name) == getattr(in_jax, name)


# Networks
def test_both_draw_initial_weights_from_the_same_distributions():
    """Quantiles of every layer of large networks."""
    torch.manual_seed(0)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    pairs = [
        (in_torch.Agent(30, 10, 0.5), jax.jit(lambda key: in_jax.init_agent(key, 30, 10, 0.5))(keys[0])),
        (in_torch.Dynamics(7, 30, 10, 200), jax.jit(lambda key: in_jax.Dynamics(7, 30, 10, 200, nnx.Rngs(key)))(keys[1])),
    ]
    for module, tree in pairs:
        arrays = named_arrays(tree)
        assert set(arrays) == set(module.state_dict())
        for name, tensor in module.state_dict().items():
            assert arrays[name].dtype == np.float32
            if tensor.numel() < 5000:  # too few for quantiles: bounded like the weights of their layer
                bound = module.state_dict()[name.replace("bias", "weight")].abs().max().item()
                assert np.abs(arrays[name]).max() <= 1.2 * bound
                continue
            probabilities = np.linspace(0, 1, 21)
            expected = np.quantile(tensor.numpy(), probabilities)
            assert_close(np.quantile(arrays[name], probabilities), expected, 0.1)
    agent = pairs[0][1]
    for one, other in zip(jax.tree.leaves(agent.critic), jax.tree.leaves(agent.target_critic), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [1, 1e4])
def test_networks_give_the_same(agents, ensembles, size):
    """Also where log std and log variance meet their bounds, and log pi where tanh is 1 in float32."""
    batch, jax_batch = ((b._replace(observations=size * b.observations)) for b in make_batches(BATCH))
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    log_std = agent.actor(batch.observations)[1]
    assert (size == 1) != ({-20, 2} <= set(log_std.flatten().tolist()))
    u = np.linspace(-30, 30, 61, dtype=np.float32)[:, None]
    mine = in_jax.squashed_log_prob(*map(jnp.asarray, (u * 0 + 0.5, u * 0 - 1, u)))
    assert_close(mine, in_torch.squashed_log_prob(*map(to_torch, (u * 0 + 0.5, u * 0 - 1, u))))
    for mine, theirs in zip(jax_agent.actor(jax_batch.observations), agent.actor(batch.observations), strict=True):
        assert_close(mine, theirs)
    assert_close(jax_agent.actor.mode(jax_batch.observations), agent.actor.mode(batch.observations))
    assert_close(jax_agent.critic(jax_batch.observations, jax_batch.actions), agent.critic(batch.observations, batch.actions))
    batch, jax_batch = ((b._replace(observations=size * b.observations)) for b in make_batches(MEMBERS, BATCH))
    for get in (lambda column: column, lambda column: column[0]):  # rows of each member's own, and rows for all
        theirs = dynamics(get(batch.observations), get(batch.actions))
        for mine, expected in zip(jax_dynamics(get(jax_batch.observations), get(jax_batch.actions)), theirs, strict=True):
            assert_close(mine, expected)
    assert_close(in_jax.holdout_errors(jax_dynamics, jax_batch), in_torch.holdout_errors(dynamics, batch))


def test_scales_are_the_same(ensembles):
    dynamics, jax_dynamics = ensembles
    for factor in (1, 100, 0.001, 0):
        rows = make_rows(200)
        rows[:, 0], rows[:, OBS_DIM + ACTION_DIM] = 0.3, factor * rows[:, OBS_DIM + ACTION_DIM]
        dynamics.set_scales(in_torch.split_rows(to_torch(rows), OBS_DIM))
        jax_dynamics.set_scales(in_jax.split_rows(jnp.asarray(rows), OBS_DIM))
        assert dynamics.input_std[0] == 1 and (dynamics.output_scale[-1] == 1) == (factor in (0, 1))
        assert_same_weights(jax_dynamics, dynamics)


# Losses and their gradients
def test_mixture_log_prob_and_gradients():
    rng = np.random.default_rng(5)
    mean, log_var = (rng.normal(size=(MEMBERS, BATCH, OBS_DIM + 1)).astype(np.float32) for _ in range(2))
    sample = rng.normal(size=(BATCH, OBS_DIM + 1)).astype(np.float32)
    log_var[:, 0], sample[1] = -40, 100  # densities that overflow and underflow float32
    tensors = [to_torch(x).requires_grad_() for x in (mean, log_var)]
    expected = in_torch.mixture_log_prob(*tensors, to_torch(sample))
    expected.clamp(-1e4, 1e4).sum().backward()

    def loss(mean, log_var):
        log_probs = in_jax.mixture_log_prob(mean, log_var, jnp.asarray(sample))
        return jnp.clip(log_probs, -1e4, 1e4).sum(), log_probs

    gradients, log_probs = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(jnp.asarray(mean), jnp.asarray(log_var))
    assert_close(log_probs, expected)
    for mine, tensor in zip(gradients, tensors, strict=True):
        assert_close(mine, tensor.grad)


@pytest.mark.parametrize("norm_adv", [True, False])
def test_advantages_and_adversarial_loss(agents, norm_adv):
    (agent, jax_agent), (batch, jax_batch) = agents, make_batches(BATCH)
    expected, advantage = in_torch.compute_advantages(agent, batch, 0.9), in_jax.compute_advantages(jax_agent, jax_batch, 0.9)
    assert_close(advantage, expected)
    log_prob = np.random.default_rng(6).normal(size=BATCH).astype(np.float32)
    tensor = to_torch(log_prob).requires_grad_()
    loss = in_torch.adversarial_loss(tensor, expected, norm_adv)
    loss.backward()
    value, gradient = jax.value_and_grad(in_jax.adversarial_loss)(jnp.asarray(log_prob), advantage, norm_adv)
    assert_close(value, loss)
    assert_close(gradient, tensor.grad)
    zero = jax.grad(in_jax.adversarial_loss, 1)(jnp.asarray(log_prob), advantage, norm_adv)
    assert not np.asarray(zero).any(), "advantages are constants"


def test_sac_losses_and_gradients(agents):
    (agent, jax_agent), (batch, jax_batch) = agents, make_batches(BATCH)
    noise = np.random.default_rng(7).normal(size=(2, BATCH, ACTION_DIM)).astype(np.float32)
    loss, values = in_torch.critic_loss(agent, batch, to_torch(noise[0]), 0.9)
    loss.backward()
    grad = jax.jit(jax.value_and_grad(in_jax.critic_loss, has_aux=True))
    (jax_loss, jax_values), gradients = grad(jax_agent.critic, jax_agent, jax_batch, noise[0], 0.9)
    assert_close(jax_loss, loss)
    assert_close(jax_values, values)
    assert_same_gradients(gradients, agent.critic)

    loss, log_probs = in_torch.actor_loss(agent, batch.observations, to_torch(noise[1]))
    loss.backward(inputs=list(agent.actor.parameters()))
    grad = jax.jit(jax.value_and_grad(in_jax.actor_loss, has_aux=True))
    (jax_loss, jax_log_probs), gradients = grad(jax_agent.actor, jax_agent, jax_batch.observations, noise[1])
    assert_close(jax_loss, loss)
    assert_close(jax_log_probs, log_probs)
    assert_same_gradients(gradients, agent.actor)


# Updates, with the same random numbers
@pytest.mark.parametrize("autotune", [True, False])
def test_agent_updates(agents, ensembles, autotune):
    """Three SAC steps: losses, temperature, actor, critics and target critics."""
    agent, jax_agent = agents
    args, jax_args = in_torch.Args(**ARGS, autotune=autotune), in_jax.Args(**ARGS, autotune=autotune)
    optimizers = torch_optimizers(agent, ensembles[0], args)
    learnt = {"actor": jax_agent.actor, "critic": jax_agent.critic, "alpha": jax_agent.log_alpha}
    jax_optimizers = {name: in_jax.adam_init(parameters) for name, parameters in learnt.items()}
    update = jax.jit(partial(in_jax.update_agent, args=jax_args))
    for step in range(3):
        batch, jax_batch = make_batches(BATCH, seed=20 + step)
        noise = np.random.default_rng(step).normal(size=(2, BATCH, ACTION_DIM)).astype(np.float32)
        metrics = in_torch.update_agent(agent, optimizers, batch, to_torch(noise), args)
        jax_agent, jax_optimizers, mine = update(jax_agent, jax_optimizers, jax_batch, jnp.asarray(noise))
        assert_same_metrics(mine, metrics)
        assert_nearly_same_weights(jax_agent, agent, step + 1, ARGS["policy_lr"])
    assert (float(jax_agent.log_alpha) != pytest.approx(np.log(0.3))) is autotune


def test_adversarial_updates(agents, ensembles):
    """Three steps of Eq. 7 along one rollout: the model, where the rollout goes, restarts after terminations, metrics."""
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    args, jax_args = in_torch.Args(**ARGS), in_jax.Args(**ARGS)
    optimizer = torch_optimizers(agent, dynamics, args)["model"]
    jax_optimizer = in_jax.adam_init(jax_dynamics)
    update = jax.jit(partial(in_jax.update_model, end_step=end_step, args=jax_args))
    observations, rng = make_rows(BATCH, 9)[:, :OBS_DIM], np.random.default_rng(0)
    mine, theirs, restarted = jnp.asarray(observations), to_torch(observations), 0
    for step in range(3):
        restarts = make_rows(BATCH, 10 + step)[:, :OBS_DIM]
        real, jax_real = make_batches(MEMBERS, BATCH, seed=30 + step)
        draws = rng.integers(MEMBERS, size=BATCH), rng.normal(size=(BATCH, ACTION_DIM + OBS_DIM + 1)).astype(np.float32)
        theirs, metrics = in_torch.update_model(
            agent, dynamics, optimizer, theirs, to_torch(restarts), real, *map(to_torch, draws), end_step, args
        )
        jax_dynamics, jax_optimizer, mine, jax_metrics = update(
            jax_agent, jax_dynamics, jax_optimizer, mine, jnp.asarray(restarts), jax_real, *map(jnp.asarray, draws)
        )
        assert_same_metrics(jax_metrics, metrics, 3e-5)
        assert_close(mine, theirs, 3e-5)
        assert_same_weights(jax_dynamics, dynamics, scale=1)
        restarted += (np.asarray(mine) == restarts).all(1).sum()
    assert restarted > 0, "this test needs rollouts that terminate"


def test_rollouts_are_the_same(agents, ensembles, same_draws):
    """Their rows, in which order, and the metrics."""
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    args, jax_args = in_torch.Args(**ARGS), in_jax.Args(**ARGS)
    rows = make_rows(50)
    rollouts, metrics = in_torch.rollout_models(agent, dynamics, to_torch(rows), end_step, args)
    with jax.disable_jit():  # every step of the scan draws anew
        mine, jax_metrics = in_jax.rollout_models(
            jax_agent, jax_dynamics, jnp.asarray(rows), jax.random.PRNGKey(0), end_step, jax_args
        )
    assert_same_metrics(jax_metrics, metrics)
    assert_close(mine, rollouts)
    assert 0 < rollouts[:, -1].sum() < len(rollouts), "this test needs some rows that terminate"


@pytest.mark.parametrize("script", [in_torch, in_jax])
def test_leaving_the_datasets_range_ends_a_step_at_a_low_value(script):
    """None of the dataset's own rows leaves it; what an environment clips (the last coordinate) is no edge."""
    rows = make_rows(500)
    rows[:, [OBS_DIM - 1, -2]] = np.clip(rows[:, [OBS_DIM - 1, -2]], -1, 1)
    rows[7, OBS_DIM + ACTION_DIM], rows[8, 0], rows[9, -1 - OBS_DIM] = -99.0, 50.0, -60.0  # a reward, a state, a next state
    to_script = to_torch if script is in_torch else jnp.asarray
    batch, args = script.split_rows(to_script(rows), OBS_DIM), dict(gamma=0.9, halt_outside=True)
    rule = lambda states: states[..., 1] > 10  # noqa: E731  of un-normalised states
    end_step = script.rollout_ends(batch, rule, 1.0, 2.0, script.Args(**args))
    _, terminals = end_step(batch.rewards, batch.next_observations)
    assert not terminals.any(), "the dataset's own rows stay"
    inside, outside, below, clipped, fallen = np.zeros((5, OBS_DIM), np.float32)
    outside[0], below[0], clipped[-1], fallen[:2] = 50.1, -60.1, 1.5, (50.1, 4.6)
    states = np.stack([inside, outside, below, clipped, fallen])
    rewards, terminals = end_step(to_script(np.ones(5, np.float32)), to_script(states))
    assert terminals.tolist() == [False, True, True, False, True]
    halted = 1 + 0.9 * np.quantile(rows[:, OBS_DIM + ACTION_DIM], 0.01) / (1 - 0.9)
    assert halted < -1 and rewards.tolist() == pytest.approx([1, halted, halted, 1, 1]), "a fall ends at 0"
    _, terminals = script.rollout_ends(batch, rule, 1.0, 2.0, script.Args(gamma=0.9))(to_script(np.ones(5)), to_script(states))
    assert terminals.tolist() == [False, False, False, False, True], "the paper's rollouts go on"


def test_the_metrics_of_an_iteration_have_the_same_names_and_reductions(monkeypatch):
    """Also on a GPU, where several updates are one step of the loop."""
    names = ["losses/qf_loss", "losses/max_abs_qf_value", "model/log_prob"]
    history = np.random.default_rng(11).normal(size=(5, len(names))).astype(np.float32)
    theirs = in_torch.summarize(names, list(to_torch(history)))
    update = lambda carry, values: (carry + 1, dict(zip(names, values, strict=True)))  # noqa: E731
    expected = dict(zip(names, (history[:, 0].mean(), history[:, 1].max(), history[:, 2].mean()), strict=True))
    assert theirs == pytest.approx(expected)
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        carry, mine = jax.jit(partial(in_jax.scan_updates, update))(0, jnp.asarray(history))
        assert carry == 5 and mine == pytest.approx(expected)


def pretrain_both(ensembles, rows, num_holdout, compile_ahead, **changes):
    """Pretrains both ensembles: (ensemble, errors) of each script."""
    dynamics, jax_dynamics = ensembles
    args, jax_args = (script.Args(**ARGS | changes) for script in (in_torch, in_jax))
    holdout = in_torch.split_rows(to_torch(rows[:num_holdout]), OBS_DIM)
    errors = in_torch.pretrain_dynamics(dynamics, to_torch(rows[num_holdout:]), holdout, args)
    holdout = in_jax.split_rows(jnp.asarray(rows[:num_holdout]), OBS_DIM)
    keys, jax_dynamics = jax.random.split(jax.random.PRNGKey(0), 1), jax.tree.map(lambda x: x[None], jax_dynamics)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_jax, "compile_ahead", compile_ahead)
        arguments = jax_dynamics, keys, jnp.asarray(rows[num_holdout:]), holdout, jax_args
        jax_dynamics, jax_errors = in_jax.pretrain_dynamics(*arguments)
    return (dynamics, errors), (in_jax.take(jax_dynamics, 0), jax_errors[0])


def test_pretraining_ends_with_the_same_ensemble_and_elites(ensembles, same_draws):
    """Scales, bootstrap, shuffling, the smaller last batch, best weights of each member: three epochs from the same ones."""
    rows = make_rows(30 + 2 * BATCH + 7)
    rows[:, OBS_DIM + ACTION_DIM] *= 100

    def compile_ahead(epoch, *_):
        """The draw of each epoch becomes an argument of the compiled function."""

        def with_draw(draw, *arguments):
            same_draws.insert(0, draw)
            return epoch(*arguments)

        compiled = jax.jit(with_draw)
        return lambda *arguments: compiled(same_draws.pop(0).numpy(), *arguments)

    (dynamics, errors), (jax_dynamics, jax_errors) = pretrain_both(
        ensembles, rows, 30, compile_ahead, model_max_pretrain_epochs=3
    )
    assert dynamics.output_scale[-1] > 50
    assert_close(jax_errors, errors, 1e-3)
    assert_nearly_same_weights(jax_dynamics, dynamics, 9, ARGS["model_lr"])
    assert jax_errors.argsort().tolist() == errors.argsort().tolist()
    dynamics.keep_members(torch.tensor([0, 2]))
    assert len(dynamics.layers[0].weight) == 2
    assert_nearly_same_weights(jax_dynamics.keep_members(jnp.asarray([0, 2])), dynamics, 9, ARGS["model_lr"])


def test_without_pretraining_both_report_the_errors_of_the_initial_ensemble(ensembles):
    before = [weight.clone() for weight in ensembles[0].layers.parameters()]
    (dynamics, errors), (jax_dynamics, jax_errors) = pretrain_both(
        ensembles, make_rows(100), 30, None, model_max_pretrain_epochs=0
    )
    assert all(torch.equal(new, old) for new, old in zip(dynamics.layers.parameters(), before, strict=True))
    assert_same_weights(jax_dynamics, dynamics)
    assert errors.isfinite().all() and errors.std() > 0
    assert_close(jax_errors, errors)


def test_pretraining_improves_and_stops_by_the_same_errors(ensembles, monkeypatch):
    """Both take the same hold-out errors for an improvement, keep the best of each member and stop in the same epoch."""
    epochs = np.ones((40, MEMBERS), np.float32)
    epochs[:8, 0] = 0.95 ** np.arange(8)  # an improvement in every epoch
    epochs[:, 1] = 0.995 ** np.arange(40)  # now and then: above 1 % against the best
    epochs[12:, 1] = epochs[12, 1]
    epochs[3:6, 2] = 0.5, 0.9, 0.7  # once
    epochs *= 1e6  # the first epoch always improves
    last = {}
    for script in (in_torch, in_jax):

        def errors(*_, count=iter(range(40)), script=script):  # noqa: B008
            last[script] = next(count)
            return torch.tensor(epochs[last[script]]) if script is in_torch else jnp.asarray(epochs[last[script]])

        monkeypatch.setattr(script, "holdout_errors", errors)
    # Instead of training, JAX adds 1 to every weight in every epoch: so they tell from which one they are
    monkeypatch.setattr(in_jax, "scan_batches", lambda _, carry, *__: (jax.tree.map(lambda x: x + 1, carry[0]), carry[1]))
    weight = np.asarray(ensembles[1].layers[0].weight)
    (_, best), (jax_dynamics, jax_best) = pretrain_both(
        ensembles, make_rows(30 + BATCH), 30, lambda epoch, *_: epoch, model_max_pretrain_epochs=39
    )
    assert_close(jax_best, best)
    assert best[0].item() == pytest.approx(1e6 * 0.95**7) and best[2].item() == 0.5e6
    assert last[in_torch] == last[in_jax] == 12 + 11, "more than ten epochs after the last improvement"
    kept = (np.asarray(jax_dynamics.layers[0].weight) - weight).mean((1, 2)).round() - 1
    assert kept[0] == 7 and kept[2] == 3 and epochs[int(kept[1]), 1] == best[1]


def test_behaviour_cloning_is_the_same(agents, monkeypatch):
    (agent, jax_agent), rows = agents, make_rows(2 * BATCH + 5)
    rows[::7, OBS_DIM] = 1.0  # has no finite log pi
    order = np.random.default_rng(0).permutation(len(rows))
    monkeypatch.setattr(torch, "randperm", lambda n, device: to_torch(order))
    monkeypatch.setattr(jax.random, "permutation", lambda key, n: jnp.asarray(order))
    args, jax_args = (script.Args(**ARGS, bc_epochs=2) for script in (in_torch, in_jax))
    in_torch.clone_behaviour(agent, to_torch(rows), OBS_DIM, args)
    clones, keys = jax.tree.map(lambda x: x[None], jax_agent), jax.random.split(jax.random.PRNGKey(0), 1)
    clones = in_jax.clone_behaviour(clones, keys, jnp.asarray(rows), OBS_DIM, jax_args)
    for name in ("actor", "policy"):
        assert_nearly_same_weights(in_jax.take(getattr(clones, name), 0), getattr(agent, name), 6, ARGS["policy_lr"])
    assert not np.allclose(jax_agent.actor.fc3.bias, clones.actor.fc3.bias[0], atol=1e-4), "it has moved"


def test_every_termination_rule_says_the_same_for_tensors_and_arrays():
    rng = np.random.default_rng(12)
    edges = [-1.0, -0.2, 0.0, 0.2, 0.45, 0.7, 0.8, 1.0, 2.0, 99.9, 100.0, -100.0, np.nan, np.inf, -np.inf]
    x = np.concatenate([rng.choice(edges, (5000, 12)), rng.uniform(-0.3, 1.5, (5000, 12))]).astype(np.float32)
    for name, rule in in_jax.TERMINATION_RULES.items():
        expected = in_torch.TERMINATION_RULES[name](to_torch(x)).numpy()
        np.testing.assert_array_equal(np.asarray(jax.jit(rule)(jnp.asarray(x))), expected)
        np.testing.assert_array_equal(rule(x), expected)


@pytest.mark.parametrize("source, target", [(in_torch, in_jax), (in_jax, in_torch)], ids=["torch to jax", "jax to torch"])
def test_a_model_pretrained_by_one_script_is_trained_on_by_the_other(source, target, tmp_path, monkeypatch):
    """Its hold-out rows are the same ones, so both measure the same error. Policies have the same arrays, too."""
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "pendulum.hdf5", pendulum_log())
    flags = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY, "--adv-weight", 0]
    first = read_run(run_here(source, *flags, "--save-model"))
    model = first.folder / "dynamics_pretrained.npz"
    second = read_run(run_here(target, *flags, "--load-model", model, "--seed", 5, "--save-model"))
    for run in (first, second):
        assert run.metrics[0]["model/holdout_mse"] == run.metrics[1]["model/holdout_mse"]
    errors = [float(run.metrics[0]["model/holdout_mse"]) for run in (first, second)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
    for name, array in first.dynamics_pretrained.items():
        np.testing.assert_array_equal(array, second.dynamics[name])
    shapes = [{name: (array.shape, array.dtype.kind) for name, array in run.policy.items()} for run in (first, second)]
    assert shapes[0] == shapes[1]


# --num-seeds of the JAX script: several seeds in one call end as their single runs do
PENDULUM = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY, "--checkpoint-minutes", 1e-9, "--save-model"]
PENDULUM += ["--bc-epochs", 1, "--model-max-pretrain-epochs", 3, "--seed", 4]
CLOCKS = ("seconds", "charts/SPS", "charts/model_SPS")


def train(*arguments):
    """Runs the JAX script in this folder and returns the folders it made, by seed, oldest first."""
    before = set(Path("runs").glob("*"))
    in_jax.main(in_jax.parse_args([*map(str, arguments)]))
    return sorted(folder.resolve() for folder in set(Path("runs").glob("*")) - before)


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """The folders of three seeds that were trained at once: for two iterations, and stopped after the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("seeds"))
        write_hdf5(Path("pendulum.hdf5"), pendulum_log())
        flags = [*PENDULUM, "--num-seeds", 3]
        yield train(*flags), train(*flags, "--total-iterations", 1, "--exp-name", "stopped")


@pytest.fixture
def beside_three_seeds(three_seeds, monkeypatch):
    monkeypatch.chdir(three_seeds[0][0].parent.parent)


def numbers(rows):
    return [[float(x) for key, value in row.items() if key not in CLOCKS for x in value.split()] for row in rows]


def assert_same_run(one, other, rtol, atol=0.0):
    """The same files with the same content, up to the order in which floating point numbers are added."""
    one, other = read_run(one), read_run(other)
    names = ({path.name for path in run.folder.iterdir() if "tfevents" not in path.name} for run in (one, other))
    assert len({frozenset(files - {"seeds.json"}) for files in names}) == 1
    for kind in ("metrics", "evaluations"):
        rows = getattr(one, kind), getattr(other, kind)
        assert rows[0] and list(rows[0][0]) == list(rows[1][0])
        np.testing.assert_allclose(numbers(rows[0]), numbers(rows[1]), rtol=rtol, atol=atol)
    assert {**one.args, "exp_name": None} == {**other.args, "exp_name": None}
    assert one.result["status"] == other.result["status"]
    for kind in ("policy", "dynamics", "dynamics_pretrained", "checkpoint"):
        arrays = getattr(one, kind), getattr(other, kind)
        assert set(arrays[0]) == set(arrays[1])
        for name in set(arrays[0]) - {"settings", "seconds", "metrics.csv", "evaluations.csv"}:
            if arrays[0][name].dtype.kind == "f":
                np.testing.assert_allclose(arrays[0][name], arrays[1][name], rtol=rtol, atol=atol, err_msg=name)
            else:
                np.testing.assert_array_equal(arrays[0][name], arrays[1][name], err_msg=name)


def test_three_seeds_at_once_are_three_single_runs(three_seeds, beside_three_seeds):
    """Pretraining, cloning, training, evaluation and every file."""
    together, _ = three_seeds
    assert [folder.name.split("__")[2] for folder in together] == ["4", "5", "6"]
    for seed, folder in zip((4, 5, 6), together, strict=True):
        (single,) = train(*PENDULUM, "--seed", seed, "--exp-name", f"single{seed}")
        assert_same_run(folder, single, rtol=1e-3, atol=1e-4)
    policies = [read_run(folder).policy["fc1.weight"] for folder in together]
    assert not any(np.array_equal(policies[0], policy) for policy in policies[1:])


def test_seeds_are_resumed_together_or_alone(three_seeds, tmp_path, monkeypatch):
    straight, stopped = three_seeds
    monkeypatch.chdir(shutil.copytree(stopped[0].parent.parent, tmp_path, dirs_exist_ok=True))
    first, second, third = (f"runs/{folder.name}" for folder in stopped)
    train("--resume", second, "--total-iterations", 2)
    assert_same_run(straight[1], Path(second), rtol=1e-3, atol=1e-4)
    files = [path for folder in (first, second, third) for path in Path(folder).iterdir() if path.name != ".lock"]
    before = [path.read_bytes() for path in files]
    with pytest.raises(in_jax.InputError, match="at different iterations"):
        train("--resume", first, "--num-seeds", 3, "--total-iterations", 3)
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(in_jax.InputError, match="not the first folder of 4 seeds"):
        train("--resume", first, "--num-seeds", 4, "--total-iterations", 3)
    shutil.rmtree(second)
    shutil.copytree(stopped[1], second)
    train("--resume", first, "--num-seeds", 3, "--total-iterations", 2)
    for one, other in zip(straight, (first, second, third), strict=True):
        assert_same_run(one, Path(other), rtol=0)


def test_the_compiler_knows_the_options_for_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    double = in_jax.compile_ahead(lambda x: 2 * x, in_jax.Args(), jnp.ones(3))  # an unknown name or value is an error
    np.testing.assert_array_equal(double(jnp.ones(3)), 2)


def test_a_saved_model_serves_all_seeds_and_the_others_go_on_when_one_diverges(three_seeds, beside_three_seeds, monkeypatch):
    original = in_jax.compile_ahead

    def poisoned(*arguments):
        """The second seed reports a value without bounds in the second iteration."""
        iterate = original(*arguments)

        def poisoned_iteration(state, iteration, *rest):
            state, metrics = iterate(state, iteration, *rest)
            name = "losses/max_abs_qf_value"
            return state, metrics | {name: metrics[name].at[1].set(jnp.where(iteration == 1, 1e11, 1.0))}

        return poisoned_iteration

    model, flags = read_run(three_seeds[0][0]).dynamics_pretrained, ["--num-seeds", 3, "--exp-name", "diverging"]
    flags += ["--load-model", three_seeds[0][0] / "dynamics_pretrained.npz"]
    monkeypatch.setattr(in_jax, "compile_ahead", poisoned)
    with pytest.raises(in_jax.Diverged, match="iteration 2: largest .Q. 1e.11, see .*__5__"):
        train(*PENDULUM, *flags)
    runs = [read_run(folder) for folder in sorted(Path("runs").glob("*__diverging__*"))]
    assert [run.result["status"] for run in runs] == ["finished", "diverged", "finished"]
    assert [len(run.metrics) for run in runs] == [2, 2, 2]
    assert [len(run.evaluations) for run in runs] == [3, 2, 3]
    assert [(run.folder / "policy.npz").exists() for run in runs] == [True, False, True]
    for run in runs:
        assert all(np.array_equal(array, run.dynamics_pretrained[name]) for name, array in model.items())
    assert not np.array_equal(runs[0].policy["fc1.weight"], runs[2].policy["fc1.weight"])


def test_the_pretraining_of_several_seeds_survives_until_all_have_a_checkpoint(beside_three_seeds, monkeypatch):
    """Then, or when the first one has diverged, its checkpoint goes: with it there, --resume would pretrain again. Resumed,
    all seeds keep the new arguments and forget their rows."""
    original, saved = in_jax.save_checkpoint, []

    def dies(run, iteration, state, name="checkpoint.npz", **progress):
        if saved:
            raise KeyboardInterrupt
        saved.extend([run] if name == "checkpoint.npz" else [])
        original(run, iteration, state, name, **progress)

    flags = [*PENDULUM, "--num-seeds", 2, "--checkpoint-minutes", 1e-9, "--model-max-pretrain-epochs", 2]
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(in_jax, "save_checkpoint", dies)
        train(*flags, "--exp-name", "killed")
    (first,) = (path.parent for path in Path("runs").glob("*__killed__*/pretraining.npz"))
    assert first.name.split("__")[2] == "4"
    folders = sorted(Path("runs").glob("*__killed__*"))
    (folders[1] / "metrics.csv").write_text("iteration,losses/qf_loss\n1,0.5\n", encoding="utf-8")  # of a try in between
    train("--resume", first, "--total-iterations", 3)
    for run in map(read_run, folders):
        assert run.args["total_iterations"] == 3 and [row["iteration"] for row in run.metrics] == ["1", "2", "3"]

    pretrain = in_jax.pretrain_dynamics

    def diverges(*arguments):
        dynamics, errors = pretrain(*arguments)
        return dynamics, errors.at[0].set(jnp.nan)

    def no_picture(args, agent=None, folder=None):
        if agent:
            raise in_jax.InputError("no ffmpeg")

    monkeypatch.setattr(in_jax, "record_video", no_picture)
    monkeypatch.setattr(in_jax, "pretrain_dynamics", diverges)
    with pytest.raises(in_jax.InputError, match="no ffmpeg"):
        train(*flags, "--num-seeds", 3, "--exp-name", "one", "--capture-video")
    runs = [read_run(folder) for folder in sorted(Path("runs").glob("*__one__*"))]
    assert [run.result["status"] for run in runs] == ["diverged", "finished", "finished"]
    assert not any((run.folder / "pretraining.npz").exists() for run in runs)


def test_a_seed_that_stopped_pretraining_or_diverged_keeps_its_weights_while_others_go_on(monkeypatch):
    """The first seed's error never falls, so it stops after 11 more epochs; the second one's falls in every epoch."""
    rows, keys = jax.random.normal(jax.random.PRNGKey(0), (32, 9)), jax.random.split(jax.random.PRNGKey(0), 2)
    seeds = jax.jit(jax.vmap(lambda key: in_jax.Dynamics(2, 3, 1, 8, in_jax.nnx.Rngs(key))))(keys)
    seeds.min_log_var = in_jax.nnx.Param(seeds.min_log_var - 50 * jnp.arange(2.0)[:, None])  # tells them apart

    def errors(dynamics, holdout):
        falling = jnp.exp(-20 * jnp.abs(dynamics.max_log_var - 1).sum()) * jnp.ones(2)  # training moves the bound steadily
        return jnp.where(dynamics.min_log_var.mean() < -30, falling, jnp.ones(2))

    def pretrain(epochs, *members):
        args = in_jax.Args(num_models=2, num_elites=1, batch_size=16, model_max_pretrain_epochs=epochs)
        some, holdout = jnp.asarray(members), in_jax.split_rows(rows[:10], 3)
        dynamics = jax.tree.map(lambda x: x[some], seeds)
        return in_jax.pretrain_dynamics(dynamics, keys[some], rows, holdout, args)[0]

    monkeypatch.setattr(in_jax, "holdout_errors", errors)
    shorter, longer = (pretrain(epochs, 0, 1) for epochs in (13, 20))
    for one, other in zip(*map(jax.tree.leaves, (shorter, longer)), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(shorter.max_log_var[1], longer.max_log_var[1]), "the other seed must still be learning"
    for i in (0, 1):
        for one, other in zip(*map(jax.tree.leaves, (longer, pretrain(20, i))), strict=True):
            np.testing.assert_allclose(one[i], other[0], rtol=1e-3, atol=1e-4)

    monkeypatch.setattr(in_jax, "holdout_errors", lambda *arguments: jnp.where(errors(*arguments) == 1, jnp.nan, 1.0))
    shorter, longer = (pretrain(epochs, 0, 1) for epochs in (1, 3))
    np.testing.assert_array_equal(shorter.max_log_var[0], longer.max_log_var[0])
    assert not np.array_equal(shorter.max_log_var[1], longer.max_log_var[1])
