"""The two scripts do the same: same weights, same rows and same random numbers give the same losses, gradients and updates."""

import inspect
import re
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


def terminated(observations):
    """A made-up rule that holds for tensors and for arrays, and ends about one episode in six."""
    return observations[..., 0] > 1


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
    like = in_jax.init_agent(jax.random.PRNGKey(0), OBS_DIM, ACTION_DIM, 0.3)
    return agent, to_jax(agent, like)


@pytest.fixture
def ensembles():
    torch.manual_seed(1)
    dynamics = in_torch.Dynamics(MEMBERS, OBS_DIM, ACTION_DIM, 16)
    dynamics.input_mean.normal_()
    dynamics.input_std.uniform_(0.5, 2)
    return dynamics, to_jax(dynamics, new_ensemble())


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
        return jnp.asarray(x.numpy())

    for name in ("randn", "randn_like", "randint", "rand"):
        record(name)
    for name in ("normal", "randint", "bits"):
        monkeypatch.setattr(jax.random, name, replay)
    yield
    assert not drawn, "the JAX script has drawn less"


def torch_optimizers(agent, dynamics, args):
    return in_torch.Optimizers(
        actor=torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr),
        critic=torch.optim.Adam(agent.critic.parameters(), lr=args.q_lr),
        alpha=torch.optim.Adam([agent.log_alpha], lr=args.policy_lr),
        model=torch.optim.Adam(dynamics.parameters(), lr=args.model_lr),
    )


# What stands word for word in both
def shared_sections(path):
    return re.findall(r"^# --- shared: .*?^# --- end shared -+$", path.read_text(), re.M | re.S)


def test_shared_sections_are_identical():
    one, other = (shared_sections(Path(script.__file__)) for script in (in_torch, in_jax))
    assert len(one) >= 1 and sum(map(len, one)) > 20_000
    assert one == other


def test_the_command_lines_differ_in_what_only_one_can_do():
    def fields(script):
        found = re.findall(r'^    (\w+: .*?)\n    """(.*?)"""$', inspect.getsource(script.Args), re.M)
        return {field: text for field, text in found if not field.startswith("torch_deterministic")}

    one, other = fields(in_torch), fields(in_jax)
    assert {field.split(":")[0] for field in one.keys() - other.keys()} <= {"compile", "cudagraphs"}
    assert {field.split(":")[0] for field in other.keys() - one.keys()} == {"num_seeds"}
    assert all(one[field] == other[field] for field in one.keys() & other.keys())


def test_constants_and_metrics_are_the_same():
    for name in ("AGENT_METRICS", "ROLLOUT_METRICS", "MODEL_METRICS", "DECAYS", "LOG_STD_MIN", "LOG_STD_MAX"):
        assert getattr(in_torch, name) == getattr(in_jax, name)


def test_functions_of_the_same_name_have_the_same_docstring_start():
    """Where both scripts define a function or a class, the reader finds the same sentence."""
    same = {name for name in vars(in_torch) if name in vars(in_jax) and inspect.isfunction(getattr(in_torch, name))}
    assert {"critic_loss", "adversarial_update", "mixture_log_prob", "rollout_models", "pretrain_dynamics"} <= same
    for name in same - {"main", "save_arrays", "load_arrays", "sample_rows", "clone_behaviour"}:
        one, other = (inspect.getdoc(getattr(script, name)) or "" for script in (in_torch, in_jax))
        assert one.split(". ")[0].split("\n\n")[0] == other.split(". ")[0].split("\n\n")[0], name


# Networks
def test_both_draw_initial_weights_from_the_same_distributions():
    """Quantiles of every layer of large networks."""
    torch.manual_seed(0)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    pairs = [
        (in_torch.Agent(30, 10, 0.5), in_jax.init_agent(keys[0], 30, 10, 0.5)),
        (in_torch.Dynamics(7, 30, 10, 200), in_jax.Dynamics(7, 30, 10, 200, nnx.Rngs(keys[1]))),
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


def test_networks_give_the_same(agents, ensembles):
    batch, jax_batch = make_batches(BATCH)
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    for mine, theirs in zip(jax_agent.actor(jax_batch.observations), agent.actor(batch.observations), strict=True):
        assert_close(mine, theirs)
    assert_close(jax_agent.actor.mode(jax_batch.observations), agent.actor.mode(batch.observations))
    assert_close(
        jax_agent.critic(jax_batch.observations, jax_batch.actions), agent.critic(batch.observations, batch.actions)
    )
    batch, jax_batch = make_batches(MEMBERS, BATCH)
    outputs = jax_dynamics(jax_batch.observations, jax_batch.actions), dynamics(batch.observations, batch.actions)
    for mine, theirs in zip(*outputs, strict=True):
        assert_close(mine, theirs)


def test_log_std_and_log_variance_are_bounded_alike(agents, ensembles):
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    x = np.random.default_rng(0).normal(size=(BATCH, OBS_DIM)).astype(np.float32) * 1e4
    (_, jax_log_std), (_, log_std) = jax_agent.actor(jnp.asarray(x)), agent.actor(to_torch(x))
    assert_close(jax_log_std, log_std)
    assert {-20, 2} <= set(np.asarray(jax_log_std).ravel().tolist())
    x, a = np.tile(x, (MEMBERS, 1, 1)), np.zeros((MEMBERS, BATCH, ACTION_DIM), np.float32)
    assert_close(jax_dynamics(jnp.asarray(x), jnp.asarray(a))[1], dynamics(to_torch(x), to_torch(a))[1])


def test_squashed_log_prob_far_out(agents):
    u = np.linspace(-30, 30, 61, dtype=np.float32)[:, None]
    mean, log_std = np.full_like(u, 0.5), np.full_like(u, -1.0)
    mine = in_jax.squashed_log_prob(*map(jnp.asarray, (mean, log_std, u)))
    assert_close(mine, in_torch.squashed_log_prob(*map(to_torch, (mean, log_std, u))))


# Losses and their gradients
def test_supervised_loss_and_gradients(ensembles):
    dynamics, jax_dynamics = ensembles
    batch, jax_batch = make_batches(MEMBERS, BATCH)

    def loss(dynamics):
        outputs = dynamics(jax_batch.observations, jax_batch.actions)
        return in_jax.supervised_loss(dynamics, *outputs, in_jax.model_targets(jax_batch))

    value, gradients = jax.value_and_grad(loss)(jax_dynamics)
    outputs = dynamics(batch.observations, batch.actions)
    expected = in_torch.supervised_loss(dynamics, *outputs, in_torch.model_targets(batch))
    expected.backward()
    assert_close(value, expected)
    assert_same_gradients(gradients, dynamics)


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

    gradients, log_probs = jax.grad(loss, (0, 1), has_aux=True)(jnp.asarray(mean), jnp.asarray(log_var))
    assert_close(log_probs, expected)
    for mine, tensor in zip(gradients, tensors, strict=True):
        assert_close(mine, tensor.grad)


def test_advantages_and_adversarial_loss(agents):
    (agent, jax_agent), (batch, jax_batch) = agents, make_batches(BATCH)
    expected, advantage = in_torch.advantages(agent, batch, 0.9), in_jax.advantages(jax_agent, jax_batch, 0.9)
    assert_close(advantage, expected)
    log_prob = np.random.default_rng(6).normal(size=BATCH).astype(np.float32)
    tensor = to_torch(log_prob).requires_grad_()
    loss = in_torch.adversarial_loss(tensor, expected)
    loss.backward()
    value, gradient = jax.value_and_grad(in_jax.adversarial_loss)(jnp.asarray(log_prob), advantage)
    assert_close(value, loss)
    assert_close(gradient, tensor.grad)
    zero = jax.grad(in_jax.adversarial_loss, 1)(jnp.asarray(log_prob), advantage)
    assert not np.asarray(zero).any(), "advantages are constants"


def test_sac_losses_and_gradients(agents):
    (agent, jax_agent), (batch, jax_batch) = agents, make_batches(BATCH)
    noise = np.random.default_rng(7).normal(size=(2, BATCH, ACTION_DIM)).astype(np.float32)
    loss, values = in_torch.critic_loss(agent, batch, to_torch(noise[0]), 0.9)
    loss.backward()
    grad = jax.value_and_grad(in_jax.critic_loss, has_aux=True)
    (jax_loss, jax_values), gradients = grad(jax_agent.critic, jax_agent, jax_batch, noise[0], 0.9)
    assert_close(jax_loss, loss)
    assert_close(jax_values, values)
    assert_same_gradients(gradients, agent.critic)

    loss, log_probs = in_torch.actor_loss(agent, batch.observations, to_torch(noise[1]))
    loss.backward(inputs=list(agent.actor.parameters()))
    grad = jax.value_and_grad(in_jax.actor_loss, has_aux=True)
    (jax_loss, jax_log_probs), gradients = grad(jax_agent.actor, jax_agent, jax_batch.observations, noise[1])
    assert_close(jax_loss, loss)
    assert_close(jax_log_probs, log_probs)
    assert_same_gradients(gradients, agent.actor)


# Updates, with the same random numbers
def test_adam_is_the_same():
    rng = np.random.default_rng(8)
    gradients = rng.normal(size=(20, 50)).astype(np.float32) * np.logspace(-12, 3, 50, dtype=np.float32)
    parameter = torch.nn.Parameter(torch.ones(50))
    optimizer = torch.optim.Adam([parameter], lr=1e-2, fused=True)
    mine, state = jnp.ones(50), in_jax.adam_init(jnp.ones(50))
    for gradient in gradients:
        parameter.grad = to_torch(gradient)
        optimizer.step()
        mine, state = in_jax.adam_step(mine, state, jnp.asarray(gradient), 1e-2)
        assert_close(mine, parameter)


@pytest.mark.parametrize("autotune", [True, False])
def test_agent_updates(agents, ensembles, same_draws, autotune):
    """Three SAC steps: losses, temperature, actor, critics and target critics."""
    agent, jax_agent = agents
    args, jax_args = in_torch.Args(**ARGS, autotune=autotune), in_jax.Args(**ARGS, autotune=autotune)
    optimizers = torch_optimizers(agent, ensembles[0], args)
    parts = jax_agent.actor, jax_agent.critic, jax_agent.log_alpha, ensembles[1]
    jax_optimizers = in_jax.Optimizers(*map(in_jax.adam_init, parts))
    for step in range(3):
        batch, jax_batch = make_batches(BATCH, seed=20 + step)
        metrics = in_torch.agent_update(agent, optimizers, batch, args)
        key = jax.random.PRNGKey(0)
        (jax_agent, jax_optimizers), mine = in_jax.agent_update(jax_agent, jax_optimizers, jax_batch, key, jax_args)
        assert_close(mine, metrics)
        assert_nearly_same_weights(jax_agent, agent, step + 1, ARGS["policy_lr"])
    assert (float(jax_agent.log_alpha) != pytest.approx(np.log(0.3))) is autotune


def test_adversarial_updates(agents, ensembles, same_draws):
    """Three steps of Eq. 7 along one rollout: the model, where the rollout goes, restarts after terminations, metrics."""
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    args, jax_args = in_torch.Args(**ARGS), in_jax.Args(**ARGS)
    optimizer = torch_optimizers(agent, dynamics, args).model
    jax_optimizer, key = in_jax.adam_init(jax_dynamics), jax.random.PRNGKey(0)
    observations = make_rows(BATCH, 9)[:, :OBS_DIM]
    mine, theirs, restarted = jnp.asarray(observations), to_torch(observations), 0
    for step in range(3):
        restarts = make_rows(BATCH, 10 + step)[:, :OBS_DIM]
        real, jax_real = make_batches(MEMBERS, BATCH, seed=30 + step)
        theirs, metrics = in_torch.adversarial_update(
            agent, dynamics, optimizer, theirs, to_torch(restarts), real, terminated, args
        )
        (jax_dynamics, jax_optimizer, mine), jax_metrics = in_jax.adversarial_update(
            jax_agent, jax_dynamics, jax_optimizer, mine, jnp.asarray(restarts), jax_real, key, terminated, jax_args
        )
        assert_close(jax_metrics, metrics, 3e-5)
        assert_close(mine, theirs, 3e-5)
        assert_same_weights(jax_dynamics, dynamics, scale=1)
        restarted += (np.asarray(mine) == restarts).all(1).sum()
    assert restarted > 0, "this test needs rollouts that terminate"


def test_rollouts_fill_the_same_ring_buffer(agents, ensembles, same_draws):
    """Three iterations into a buffer for two: what is in it, in which order, and the metrics."""
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    args, jax_args = in_torch.Args(**ARGS), in_jax.Args(**ARGS)
    rows = make_rows(50)
    buffer = torch.zeros(2 * 2 * 12, rows.shape[1])
    jax_buffer = jnp.zeros(buffer.shape)
    for iteration in range(3):
        metrics = in_torch.rollout_models(agent, dynamics, to_torch(rows), buffer, iteration, terminated, args)
        with jax.disable_jit():  # every step of the scan draws anew
            jax_buffer, jax_metrics = in_jax.rollout_models(
                jax_agent, jax_dynamics, jnp.asarray(rows), jax_buffer, jax.random.PRNGKey(0), iteration, terminated, jax_args
            )
        assert_close(jax_metrics, metrics)
        assert_close(jax_buffer, buffer)
    assert 0 < buffer[:, -1].sum() < len(buffer), "this test needs some rows that terminate"


def test_the_metrics_of_an_iteration_have_the_same_names_and_reductions():
    history = np.random.default_rng(11).normal(size=(5, len(in_torch.AGENT_METRICS))).astype(np.float32)
    theirs = in_torch.named("losses", in_torch.AGENT_METRICS, to_torch(history))
    mine = in_jax.named("losses", in_jax.AGENT_METRICS, jnp.asarray(history))
    assert list(mine) == list(theirs)
    assert [float(value) for value in mine.values()] == pytest.approx(list(theirs.values()))


def data_for(rows, num_holdout):
    holdout = in_jax.split_rows(jnp.asarray(rows[:num_holdout]), OBS_DIM, ACTION_DIM)
    data = in_jax.Data(jnp.asarray(rows), jnp.arange(num_holdout, len(rows)), holdout)
    return data._replace(train=data.train[None], holdout=jax.tree.map(lambda x: x[None], holdout))


def test_pretraining_ends_with_the_same_ensemble_and_elites(ensembles, same_draws, monkeypatch):
    """Bootstrap, shuffling, the smaller last batch, best weights per member: four epochs from the same weights."""
    rows, (dynamics, jax_dynamics) = make_rows(30 + 3 * BATCH + 7), ensembles
    args, jax_args = (script.Args(**ARGS, model_max_pretrain_epochs=4) for script in (in_torch, in_jax))
    holdout = in_torch.split_rows(to_torch(rows[:30]), OBS_DIM, ACTION_DIM)
    errors = in_torch.pretrain_dynamics(dynamics, to_torch(rows[30:]), holdout, args)

    keys, jax_dynamics = jax.random.split(jax.random.PRNGKey(0), 1), jax.tree.map(lambda x: x[None], jax_dynamics)
    monkeypatch.setattr(in_jax, "compile_ahead", lambda function, *arguments: function)
    with jax.disable_jit():
        jax_dynamics, jax_errors = in_jax.pretrain_dynamics(jax_dynamics, keys, data_for(rows, 30), jax_args)
    assert_close(jax_errors[0], errors, 1e-3)
    assert_nearly_same_weights(in_jax.take(jax_dynamics, 0), dynamics, steps=16, learning_rate=ARGS["model_lr"])
    assert jax_errors[0].argsort().tolist() == errors.argsort().tolist()


def test_pretraining_improves_and_stops_by_the_same_errors(ensembles, monkeypatch):
    """Both take the same hold-out errors for an improvement, keep the best of each member and stop in the same epoch."""
    epochs = np.ones((40, MEMBERS), np.float32)
    epochs[:8, 0] = 0.95 ** np.arange(8)  # an improvement in every epoch
    epochs[:, 1] = 0.995 ** np.arange(40)  # now and then: above 1 % against the best
    epochs[12:, 1] = epochs[12, 1]
    epochs[3:6, 2] = 0.5, 0.9, 0.7  # once
    stopped = []
    for script in (in_torch, in_jax):
        count = iter(range(40))

        def errors(*_, count=count, script=script):
            i = next(count)
            stopped.append((script, i))
            return torch.tensor(epochs[i]) if script is in_torch else jnp.asarray(epochs[i])

        monkeypatch.setattr(script, "holdout_errors", errors)
    rows, (dynamics, jax_dynamics) = make_rows(30 + BATCH), ensembles
    args, jax_args = (script.Args(**ARGS, model_max_pretrain_epochs=39) for script in (in_torch, in_jax))
    holdout = in_torch.split_rows(to_torch(rows[:30]), OBS_DIM, ACTION_DIM)
    best = in_torch.pretrain_dynamics(dynamics, to_torch(rows[30:]), holdout, args)
    monkeypatch.setattr(in_jax, "compile_ahead", lambda function, *arguments: function)
    jax_dynamics = jax.tree.map(lambda x: x[None], jax_dynamics)
    with jax.disable_jit():
        _, jax_best = in_jax.pretrain_dynamics(
            jax_dynamics, jax.random.split(jax.random.PRNGKey(0), 1), data_for(rows, 30), jax_args
        )
    assert_close(jax_best[0], best)
    last = {script: max(i for s, i in stopped if s is script) for script in (in_torch, in_jax)}
    assert last[in_torch] == last[in_jax] < 39, "this test needs an early stop"


def test_the_elites_kept_are_the_same(ensembles):
    dynamics, jax_dynamics = ensembles
    kept = jax_dynamics.keep(jnp.asarray([0, 2]))
    assert_same_weights(kept, dynamics.keep(torch.tensor([0, 2])), 0)


# States
def test_every_termination_rule_says_the_same_for_tensors_and_arrays():
    rng = np.random.default_rng(12)
    edges = [-1.0, -0.2, 0.0, 0.2, 0.45, 0.7, 0.8, 1.0, 2.0, 99.9, 100.0, -100.0, np.nan, np.inf, -np.inf]
    x = np.concatenate([rng.choice(edges, (5000, 12)), rng.uniform(-0.3, 1.5, (5000, 12))]).astype(np.float32)
    for name, rule in in_jax.TERMINATION_RULES.items():
        expected = in_torch.TERMINATION_RULES[name](to_torch(x)).numpy()
        np.testing.assert_array_equal(np.asarray(jax.jit(rule)(jnp.asarray(x))), expected)
        np.testing.assert_array_equal(rule(x), expected)


def test_rows_are_taken_apart_alike():
    rows = make_rows(20)
    theirs = in_torch.split_rows(to_torch(rows), OBS_DIM, ACTION_DIM)
    for mine, tensor in zip(in_jax.split_rows(jnp.asarray(rows), OBS_DIM, ACTION_DIM), theirs, strict=True):
        np.testing.assert_array_equal(mine, tensor.numpy())


# Files
def test_policies_and_models_are_read_by_both(agents, ensembles, tmp_path):
    (agent, jax_agent), (dynamics, jax_dynamics) = agents, ensembles
    more = dict(obs_mean=np.ones(3, np.float32), split_seed=7, env_id="hopper-medium-v2")
    fresh_agent = in_jax.init_agent(jax.random.PRNGKey(1), OBS_DIM, ACTION_DIM, 0.3)
    for module, fresh in ((agent.actor, fresh_agent.actor), (dynamics, new_ensemble(1))):
        in_torch.save_arrays(tmp_path / "torch.npz", module, **more)
        filled, rest = in_jax.load_arrays(tmp_path / "torch.npz", fresh)
        assert_same_weights(filled, module, 0)
        assert (int(rest["split_seed"]), str(rest["env_id"])) == (7, "hopper-medium-v2") and len(rest) == 3
    for tree, module in ((jax_agent.actor, agent.actor), (jax_dynamics, dynamics)):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        in_jax.save_arrays(tmp_path / "jax.npz", tree, **more)
        rest = in_torch.load_arrays(tmp_path / "jax.npz", module)
        assert_same_weights(tree, module, 0)
        assert (int(rest["split_seed"]), str(rest["env_id"])) == (7, "hopper-medium-v2") and len(rest) == 3


def test_a_file_of_another_shape_is_refused_by_both(ensembles, tmp_path):
    dynamics, jax_dynamics = ensembles
    in_torch.save_arrays(tmp_path / "file.npz", in_torch.Dynamics(MEMBERS, OBS_DIM, ACTION_DIM, 8))
    with pytest.raises(in_torch.InputError):
        in_torch.load_arrays(tmp_path / "file.npz", dynamics)
    with pytest.raises(in_jax.InputError, match="has shape"):
        in_jax.load_arrays(tmp_path / "file.npz", jax_dynamics)


@pytest.mark.parametrize("source, target", [(in_torch, in_jax), (in_jax, in_torch)], ids=["torch to jax", "jax to torch"])
def test_a_model_pretrained_by_one_script_is_trained_on_by_the_other(source, target, tmp_path, monkeypatch):
    """Its hold-out rows are the same ones, so both measure the same error."""
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
