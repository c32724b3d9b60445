"""Algorithm 1 as both scripts put it together: which function gets which rows and random numbers, in which order.

Of the torch script a whole run is watched. Of the JAX script it is train_iteration, with loops in Python instead of compiled
ones, rollouts that number their rows, and updates that only count how often they were called.
"""

import inspect
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, pendulum_log, read_run, run_here, write_hdf5

import rambo_continuous as in_torch
import rambo_continuous_jax as in_jax

UPDATES, BATCH, NUM_ELITES, K, RETAIN, ITERATIONS, NUM_ROWS, NUM_HOLDOUT = 14, 128, 5, 3, 2, 3, 120, 12
OBS_DIM, ACTION_DIM = 3, 1
FLAGS = [*TINY, "--total-iterations", ITERATIONS, "--updates-per-iteration", UPDATES, "--rollout-length", K]
FLAGS += ["--rollout-retain-iterations", RETAIN, "--batch-size", BATCH]
WATCHED = ("rollout_models", "update_agent", "update_model")


def pack(batch):
    """A batch as rows again."""
    columns = [np.asarray(column) for column in batch]
    return np.concatenate([c if c.ndim == columns[0].ndim else c[..., None] for c in columns], -1)


def copied(value):
    """Arrays as they are now; a batch as rows."""
    if isinstance(value, in_torch.Batch | in_jax.Batch):
        return pack(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone().numpy()
    return np.array(value) if isinstance(value, jax.Array | np.ndarray) else value


class Trace(SimpleNamespace):
    """calls: those of WATCHED in order with their name, arguments and result; buffer: of the last iteration; rows: dataset."""

    def named(self, name):
        return [call for call in self.calls if call.name == name]


def watch(script, patch, calls, fakes=None):
    for name in WATCHED:
        original = getattr(script, name)

        def watching(*positional, name=name, original=original, **named):
            arguments = inspect.signature(original).bind(*positional, **named).arguments
            call = SimpleNamespace(name=name, **{key: copied(value) for key, value in arguments.items()})
            optimizer = arguments.get("optimizer")
            call.adam_is_fresh = isinstance(optimizer, torch.optim.Adam) and not optimizer.state
            calls.append(call)
            result = (fakes or {}).get(name, original)(*positional, **named)
            call.result = [copied(value) for value in result] if isinstance(result, tuple) else result
            return result

        patch.setattr(script, name, watching)


def trace_torch(folder, *flags):
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_hdf5(Path("pendulum.hdf5"), pendulum_log())
        watch(in_torch, patch, calls)
        run = run_here(in_torch, "--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *FLAGS, *flags)
        dataset = in_torch.load_dataset("Pendulum-v1", "pendulum.hdf5", in_torch.make_env("Pendulum-v1"))
        buffer = torch.load(run / "checkpoint.pt", weights_only=True)["tensors"][0].numpy()
    return Trace(calls=calls, buffer=buffer, rows=np.random.default_rng(0).permutation(dataset.rows))


def scan(step, carry, xs, unroll=1):
    """jax.lax.scan as a loop in Python."""
    xs, results = jax.device_get(xs), []
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, result = step(carry, jax.tree.map(lambda x: x[i], xs))  # noqa: B023
        results.append(result)
    return carry, jax.tree.map(lambda *x: np.stack(x), *results)


def trace_jax(folder, *flags):
    counter = iter(range(ITERATIONS))

    def number_rows(agent, dynamics, rows, key, end_step, args):
        first = 1000 * (1 + next(counter))
        shape = K * args.rollout_batch_size, rows.shape[1]
        return np.broadcast_to(first + np.arange(shape[0], dtype=np.float32)[:, None], shape), {}

    def count_agent(agent, optimizers, batch, noise, args):
        return agent._replace(log_alpha=agent.log_alpha + 1), optimizers, {"losses/max_abs_qf_value": agent.log_alpha}

    def count_model(agent, dynamics, optimizer, observations, restarts, real, elites, noise, end_step, args):
        return dynamics + 1, optimizer, observations + 0.1, {"model/log_prob": 0.0}

    rows = np.random.default_rng(0).normal(size=(NUM_ROWS, 2 * OBS_DIM + ACTION_DIM + 2)).astype(np.float32)
    args = in_jax.parse_args(["--env-id", "Pendulum-v1", *map(str, [*FLAGS, *flags])])
    buffer = jnp.zeros((RETAIN if args.real_ratio < 1 else 0, K * args.rollout_batch_size, rows.shape[1]))
    agent, optimizers = in_jax.Agent(None, None, None, None, 0), dict.fromkeys(("actor", "critic", "alpha", "model"))
    state, holdout = in_jax.TrainState(agent, 0, optimizers, buffer, jax.random.PRNGKey(1)), in_jax.split_rows(rows, OBS_DIM)
    holdout, calls = in_jax.Batch(*(column[:NUM_HOLDOUT] for column in holdout)), []
    fakes = dict(rollout_models=number_rows, update_agent=count_agent, update_model=count_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "scan", scan)
        patch.setattr(in_jax, "holdout_errors", lambda dynamics, holdout: np.full(NUM_ELITES, dynamics))
        watch(in_jax, patch, calls, fakes)
        for iteration in range(ITERATIONS):
            state, metrics = in_jax.train_iteration(state, jnp.int32(iteration), jnp.asarray(rows), holdout, None, args)
    return Trace(calls=calls, buffer=np.asarray(state.buffer), rows=rows, metrics=metrics)


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """For each script a function: flags -> the trace of three iterations; each is made once."""
    scripts = {"torch": trace_torch, "jax": trace_jax}
    return {name: lru_cache(partial(make, tmp_path_factory.mktemp(name))) for name, make in scripts.items()}


@pytest.fixture(params=["torch", "jax"])
def trace(request, traces):
    return traces[request.param]


def as_set(rows):
    return set(map(tuple, rows.reshape(-1, rows.shape[-1]).tolist()))


MIXED = ("--real-ratio", 0.25)  # of this most tests look at some aspect


def test_each_iteration_rolls_out_then_trains_the_agent_then_the_model(trace):
    iteration = ["rollout_models", *["update_agent"] * UPDATES, *["update_model"] * UPDATES]
    assert [call.name for call in trace(*MIXED).calls] == iteration * ITERATIONS


def test_lambda_0_never_updates_the_model_and_real_ratio_0_is_model_rows_alone(trace):
    run = trace("--adv-weight", 0, "--real-ratio", 0)
    assert [call.name for call in run.calls] == ["rollout_models", *["update_agent"] * UPDATES] * ITERATIONS
    imagined = [as_set(call.result[0]) for call in run.named("rollout_models")]
    for i, call in enumerate(run.named("update_agent")):
        assert call.batch.shape[0] == BATCH
        assert as_set(call.batch) <= set.union(*imagined[max(i // UPDATES + 1 - RETAIN, 0) : i // UPDATES + 1])


def test_real_ratio_1_is_sac_on_the_dataset(trace):
    run = trace("--real-ratio", 1)
    assert [call.name for call in run.calls] == ["update_agent"] * UPDATES * ITERATIONS
    assert set.union(*(as_set(call.batch) for call in run.calls)) == as_set(run.rows)
    assert all(call.batch.shape[0] == BATCH for call in run.calls)


def test_the_agents_batches_mix_dataset_and_newest_model_rows(trace):
    """Rows of all retained iterations occur, none of older ones, and none of those that are still to come (zeros)."""
    run, imagined, batches, used = trace(*MIXED), [], [], set()
    dataset = as_set(run.rows)
    for call in run.calls:
        if call.name == "rollout_models":
            imagined = (imagined + [as_set(call.result[0])])[-RETAIN:]
            counts = np.zeros(len(imagined))
        elif call.name == "update_agent":
            rows = list(map(tuple, call.batch.tolist()))
            assert len(rows) == BATCH
            assert sum(row in dataset for row in rows) == BATCH // 4
            counts += [sum(row in part for row in rows) for part in imagined]
            used |= dataset & set(rows)
            batches.append(tuple(rows))
        elif len(batches) % UPDATES == 0:
            assert counts.sum() == UPDATES * BATCH * 3 // 4
            assert (abs(counts / counts.sum() - 1 / len(counts)) < 0.1).all()
    assert len(set(batches)) == ITERATIONS * UPDATES
    assert used == dataset, "the whole dataset, its last row as well"


def test_the_ring_buffer_holds_exactly_the_newest_rollouts(trace):
    run = trace(*MIXED)
    rollouts = [call.result[0] for call in run.named("rollout_models")]
    assert run.buffer.shape == (RETAIN, 100 * K, run.rows.shape[1])
    for iteration in range(ITERATIONS - RETAIN, ITERATIONS):
        np.testing.assert_array_equal(run.buffer[iteration % RETAIN], rollouts[iteration])
    assert not np.array_equal(rollouts[-1], rollouts[-2])


def test_the_supervised_rows_of_each_member_are_drawn_independently_and_not_from_the_holdout(trace):
    run = trace(*MIXED)
    for call in run.named("update_model"):
        assert call.real.shape[:2] == (NUM_ELITES, BATCH)
        assert len({tuple(map(tuple, member.tolist())) for member in call.real}) == NUM_ELITES
    assert set.union(*(as_set(call.real) for call in run.named("update_model"))) == as_set(run.rows[NUM_HOLDOUT:])


def test_adversarial_rollouts_go_on_for_k_steps_from_dataset_states(trace):
    """Restarts are drawn apart from the start states, anew for each update."""
    run = trace(*MIXED)
    states, starts, calls = as_set(run.rows[:, :OBS_DIM]), [], run.named("update_model")
    for i, call in enumerate(calls):
        assert call.observations.shape == call.restarts.shape == (BATCH, OBS_DIM)
        if i % UPDATES % K == 0:
            starts.append(call.observations)
            assert (call.observations != call.restarts).any(1).mean() > 0.8
        else:
            previous = calls[i - 1].result
            np.testing.assert_array_equal(call.observations, previous[0] if len(previous) == 2 else previous[2])
    for drawn in (starts, [call.restarts for call in calls]):
        assert set.union(*map(as_set, drawn)) == states
        assert len({observations.tobytes() for observations in drawn}) == len(drawn)


def test_elites_and_noise_are_drawn_anew_for_each_row_of_each_update(trace):
    run = trace(*MIXED)
    elites = np.stack([call.elites for call in run.named("update_model")])
    counts = np.bincount(elites.ravel(), minlength=NUM_ELITES)
    assert elites.shape == (ITERATIONS * UPDATES, BATCH) and len(counts) == NUM_ELITES
    assert (abs(counts - elites.size / NUM_ELITES) < 5 * np.sqrt(elites.size / NUM_ELITES)).all()
    model_noise = np.stack([call.noise for call in run.named("update_model")])
    agent_noise = np.stack([call.noise for call in run.named("update_agent")])
    assert model_noise.shape[1:] == (BATCH, ACTION_DIM + OBS_DIM + 1) and agent_noise.shape[1:] == (2, BATCH, ACTION_DIM)
    for noise in (model_noise, agent_noise):
        assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
        assert len(np.unique(noise)) > 0.99 * noise.size


def test_each_step_gets_what_the_steps_before_have_learnt(traces):
    """JAX passes its state around: rollouts and model updates see the newest agent, rollouts see the newest model."""
    run, agent, model = traces["jax"](*MIXED), 0, 0
    for call in run.calls:
        assert call.agent.log_alpha == agent
        assert call.name == "update_agent" or call.dynamics == model
        agent, model = agent + (call.name == "update_agent"), model + (call.name == "update_model")
    assert (agent, model) == (ITERATIONS * UPDATES, ITERATIONS * UPDATES)
    assert run.metrics["model/holdout_mse"] == model and run.metrics["losses/max_abs_qf_value"] == agent - 1


def test_the_models_adam_starts_afresh_after_pretraining(traces):
    freshness = [call.adam_is_fresh for call in traces["torch"](*MIXED).named("update_model")]
    assert freshness == [True, *[False] * (ITERATIONS * UPDATES - 1)]


def test_pretraining_sees_no_holdout_rows_and_the_best_members_are_kept(rambo, tmp_path, monkeypatch):
    seen, errors, elites = [], [5.0, 1.0, 7.0, 2.0, 3.0, 4.0, 0.5], [1, 3, 4, 5, 6]

    def pretrain(dynamics, *arguments):
        trained = dynamics if rambo is in_torch else in_jax.take(dynamics, 0)
        weights = {name: np.copy(array) for name, array in rambo.to_numpy(trained).items()}
        seen.append((np.asarray(arguments[-4]), pack(arguments[-3]), weights))
        return torch.tensor(errors) if rambo is in_torch else (dynamics, jnp.array([errors]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rambo, "pretrain_dynamics", pretrain)
    monkeypatch.setattr(in_jax, "compile_ahead", lambda function, *arguments: None)  # there is no iteration to compile
    columns = pendulum_log()
    write_hdf5(Path("pendulum.hdf5"), columns)
    flags = [*TINY, "--total-iterations", 0, "--save-model", "--checkpoint-minutes", 0]
    run = run_here(rambo, "--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *flags)
    ((train, holdout, weights),) = seen
    dataset = rambo.load_dataset("Pendulum-v1", "pendulum.hdf5", rambo.make_env("Pendulum-v1"))
    assert len(holdout) == len(as_set(holdout)) == NUM_HOLDOUT and len(as_set(dataset.rows)) == NUM_ROWS
    assert as_set(train).isdisjoint(as_set(holdout)) and as_set(train) | as_set(holdout) == as_set(dataset.rows)
    rewards = holdout[:, OBS_DIM + ACTION_DIM].tolist()
    assert sorted(rewards) != sorted(columns["rewards"][:NUM_HOLDOUT].tolist()), "not the first rows of the file"
    with np.load(run / "dynamics_pretrained.npz") as kept:
        for name, array in weights.items():
            np.testing.assert_array_equal(kept[name], array[elites] if name.startswith("layers") else array)


def test_a_checkpoint_without_model_rollouts_is_small_and_resuming_makes_new_ones(rambo, tmp_path, monkeypatch, capsys):
    """The rollouts of the two iterations so far, in their places of a buffer for three, from states of the dataset."""

    def buffer_of(run):
        if rambo is in_torch:
            tensors = torch.load(run / "checkpoint.pt", weights_only=True)["tensors"]
            return tensors[0].numpy() if tensors else None
        with np.load(run / "checkpoint.npz") as checkpoint:
            return checkpoint.get("buffer")

    monkeypatch.chdir(tmp_path)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log())
    flags = [*TINY, "--rollout-retain-iterations", 3, "--no-checkpoint-buffer"]
    run = run_here(rambo, "--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *flags)
    (checkpoint,) = run.glob("checkpoint.*")
    small, message = checkpoint.stat().st_size, "The checkpoint holds no model rollouts: rolling the model out anew"
    assert buffer_of(run) is None and message not in capsys.readouterr().out
    run_here(rambo, "--resume", run, "--checkpoint-buffer")
    buffer, dataset = buffer_of(run), rambo.load_dataset("Pendulum-v1", "pendulum.hdf5", rambo.make_env("Pendulum-v1"))
    assert message in capsys.readouterr().out
    assert buffer.shape == (3, 2 * 100, dataset.rows.shape[1])
    assert small < checkpoint.stat().st_size - 0.9 * buffer.nbytes
    assert not buffer[2].any() and buffer[:2].any(2).all() and not np.array_equal(buffer[0], buffer[1])
    for rollouts in buffer[:2]:
        assert as_set(rollouts[:100, :OBS_DIM]) <= as_set(dataset.rows[:, :OBS_DIM])
        np.testing.assert_array_equal(rollouts[100:, :OBS_DIM], rollouts[:100, -1 - OBS_DIM : -1])
    run_here(rambo, "--resume", run, "--total-iterations", 3)
    assert message not in capsys.readouterr().out, "that checkpoint holds them"


# What main wires together: one update of everything on rows of the bundled Hopper log, where episodes end by a rule
RATES = {"policy_lr": 1e-3, "q_lr": 2e-3, "model_lr": 4e-3}
ONE_UPDATE = ["--env-id", "hopper-mini-v2", "--dataset-path", "hopper.hdf5", *TINY, "--total-iterations", 1, "--save-model"]
ONE_UPDATE += ["--updates-per-iteration", 1, "--model-max-pretrain-epochs", 0, "--eval-interval", 1, "--gamma", 0.5]
ONE_UPDATE += [word for name, rate in RATES.items() for word in (f"--{name.replace('_', '-')}", rate)]


@pytest.fixture(scope="module", params=[in_torch, in_jax], ids=["torch", "jax"])
def one_update(request, tmp_path_factory):
    """The run's files; agents: those evaluated before and after; num_rows: of what rollouts start from."""
    rambo, agents, num_rows = request.param, [], []
    agent_class, rollout = rambo.NumpyAgent, rambo.rollout_models

    def watch_agent(*parts):
        agents.append(agent_class(*parts))
        return agents[-1]

    def watch_rollout(agent, dynamics, rows, *more, **named):
        num_rows.append(len(rows))
        return rollout(agent, dynamics, rows, *more, **named)

    with pytest.MonkeyPatch.context() as patch, h5py.File(ROOT / "benchmark" / "datasets" / "hopper_mini-v2.hdf5") as file:
        patch.chdir(tmp_path_factory.mktemp("hopper"))
        names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
        write_hdf5(Path("hopper.hdf5"), {name: file[name][-1000:] for name in names})
        patch.setattr(rambo, "NumpyAgent", watch_agent)
        patch.setattr(rambo, "rollout_models", watch_rollout)
        run = read_run(run_here(rambo, *ONE_UPDATE))
    return SimpleNamespace(rambo=rambo, agents=agents, num_rows=num_rows, **vars(run))


def test_each_part_learns_with_its_own_rate(one_update):
    """Adam's first step moves what has a gradient by the learning rate."""
    before, after = (agent.weights for agent in one_update.agents)
    largest = {name: np.abs(after[name] - before[name]).max() for name in before}
    before, after = one_update.dynamics_pretrained, one_update.dynamics
    model = max(np.abs(after[name] - before[name]).max() for name in before if name.startswith("layers"))
    actor = max(change for name, change in largest.items() if name.startswith("actor"))
    critic = max(change for name, change in largest.items() if name.startswith("critic"))
    rates = {"actor": actor, "alpha": largest["log_alpha"], "critic": critic, "model": model}
    expected = {"actor": 1e-3, "alpha": 1e-3, "critic": 2e-3, "model": 4e-3}
    assert rates == pytest.approx(expected, rel=0.01)


def test_the_policy_that_is_evaluated_and_saved_is_the_actor_or_its_average(one_update, tmp_path, monkeypatch):
    def split(agent):
        return (
            {k.split(".", 1)[1]: v for k, v in agent.weights.items() if k.split(".")[0] == part}
            for part in ("policy", "actor")
        )

    for policy, actor in map(split, one_update.agents):
        assert actor.keys() == policy.keys() and all(np.array_equal(policy[name], actor[name]) for name in actor)
    agents, agent_class = [], one_update.rambo.NumpyAgent
    monkeypatch.setattr(one_update.rambo, "NumpyAgent", lambda *parts: agents.append(agent_class(*parts)) or agents[-1])
    monkeypatch.chdir(tmp_path)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log())
    flags = ["--policy-average", 0.75, "--policy-lr", 1e-2, "--eval-interval", 1, "--bc-epochs", 1]
    with monkeypatch.context() as older:  # a version whose runs kept their average
        names = [name for name in one_update.rambo.MAY_CHANGE_ON_RESUME if name != "policy_average"]
        older.setattr(one_update.rambo, "MAY_CHANGE_ON_RESUME", names)
        folder = run_here(one_update.rambo, "--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY, *flags)
    run = read_run(folder)
    (expected, actor), *later = map(split, agents)
    assert len(later) == 2 and all(np.array_equal(expected[name], actor[name]) for name in actor), "both are the clone"
    for policy, actor in later:
        expected = {name: 0.75 * expected[name] + 0.25 * actor[name] for name in actor}
        for name, values in expected.items():
            np.testing.assert_allclose(policy[name], values, atol=1e-6)
    assert all(np.array_equal(run.policy[name], policy[name]) for name in policy)
    assert abs(policy["fc3.weight"] - actor["fc3.weight"]).max() > 1e-2

    run_here(one_update.rambo, "--resume", folder, "--total-iterations", 3, "--policy-average", 0.5)
    (before, _), (policy, actor) = map(split, agents[-2:])
    for name, values in policy.items():
        np.testing.assert_allclose(values, 0.5 * before[name] + 0.5 * actor[name], atol=1e-6)


def test_rollouts_start_from_all_rows_and_end_by_the_rule_for_states_as_they_are(one_update):
    """Normalised, hardly a state is above 0.7 and all are terminal."""
    assert set(one_update.num_rows) == {1000}, "holdout rows as well"
    assert 0 <= float(one_update.metrics[0]["rollout/termination_rate"]) < 0.5


def test_the_value_gap_compares_with_the_discounted_return(one_update):
    env = in_torch.make_env("hopper-mini-v2")
    for agent, row in zip(one_update.agents, one_update.evaluations, strict=True):
        value = agent.value(env.reset(seed=0)[0][None])[0]  # all episodes start within 0.005 of the same state
        discounted, undiscounted = float(row["charts/discounted_return"]), float(row["charts/episodic_return"])
        assert float(row["charts/value_gap"]) == pytest.approx(value - discounted, abs=0.05) and undiscounted > discounted + 1


def test_jax_shuffles_anew_in_each_epoch_with_keys_that_serve_one_purpose(tmp_path, monkeypatch):
    """Weights, pretraining, cloning and training of two seeds: nothing is drawn with a key of another's, or made of it."""
    orders, keys = {7: [], 0: []}, {"weights": [], "training": []}

    def watch_order(update, carry, order, batch_size):
        jax.debug.callback(lambda order: orders[len(order) if order.ndim == 2 else 0].append(np.asarray(order)), order)
        return carry

    def watch_weights(key, *more, original=in_jax.init_agent):
        jax.debug.callback(lambda key: keys["weights"].append(np.asarray(key)), key)
        return original(key, *more)

    def compile_when_called(function, args, *examples):
        if isinstance(examples[0], in_jax.TrainState):
            keys["training"] += list(np.asarray(examples[0].key))
        return jax.jit(function)

    def watch_keys(name, original):
        def watching(learnt, keys_of_seeds, *more, **named):
            keys[name] = list(np.asarray(keys_of_seeds))
            return original(learnt, keys_of_seeds, *more, **named)

        monkeypatch.setattr(in_jax, name, watching)

    monkeypatch.chdir(tmp_path)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log())
    monkeypatch.setattr(in_jax, "scan_batches", watch_order)
    monkeypatch.setattr(in_jax, "init_agent", watch_weights)
    monkeypatch.setattr(in_jax, "compile_ahead", compile_when_called)
    for name in ("pretrain_dynamics", "clone_behaviour"):
        watch_keys(name, getattr(in_jax, name))
    flags = [*TINY, "--total-iterations", 0, "--model-max-pretrain-epochs", 3, "--bc-epochs", 3, "--num-seeds", 2]
    in_jax.main(in_jax.parse_args(["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *map(str, flags)]))
    jax.effects_barrier()
    assert len(orders[7]) == len(orders[0]) == 2 * 3
    members = [tuple(member) for order in orders[7] for member in order.tolist()]
    assert len(set(members)) == 2 * 3 * 7 and len({tuple(sorted(member)) for member in members}) == 2 * 7
    assert len({order.tobytes() for order in orders[0]}) == 2 * 3

    def family(key):
        split = [child for n in range(2, 8) for child in np.asarray(jax.random.split(key, n))]
        return {tuple(k.tolist()) for k in [key, *split, *(np.asarray(jax.random.fold_in(key, i)) for i in range(8))]}

    families = [family(key) for purpose, of_seeds in keys.items() if purpose != "weights" for key in of_seeds]
    families += [{tuple(key.tolist())} for key in keys["weights"]]
    assert len(families) == 4 * 2 and sum(map(len, families)) == len(set.union(*families))


def test_the_defaults_are_the_papers(rambo):
    """Rigter, Lacerda and Hawes 2022, preprint version 1: Table 2 and Appendix B; (k, lambda): the best in Table 3."""
    table_2 = dict(
        q_lr=3e-4, policy_lr=1e-4, gamma=0.99, tau=5e-3, batch_size=256, num_models=7, num_elites=5, model_lr=3e-4,
        real_ratio=0.5, total_iterations=2000,
    )  # fmt: skip
    appendix_b = dict(updates_per_iteration=1000, model_hidden_dim=200, autotune=True, eval_episodes=10, norm_adv=True)
    best = {
        "halfcheetah": dict(random=(5, 0), medium=(5, 3e-4), medium_replay=(5, 3e-4), medium_expert=(2, 3e-4)),
        "hopper": dict(random=(1, 3e-4), medium=(5, 3e-4), medium_replay=(5, 3e-4), medium_expert=(5, 0)),
        "walker2d": dict(random=(5, 3e-4), medium=(5, 0), medium_replay=(5, 0), medium_expert=(2, 3e-4)),
    }
    for body, table_3 in best.items():
        for kind, (k, adv_weight) in table_3.items():
            args = vars(rambo.parse_args(["--env-id", f"{body}-{kind.replace('_', '-')}-v2"]))
            expected = table_2 | appendix_b | dict(rollout_length=k, adv_weight=adv_weight)
            assert {name: args[name] for name in expected} == expected
    args = rambo.parse_args(["--env-id", "hopper-random-v2", "--rollout-length", "3", "--adv-weight", "0.5"])
    assert (args.rollout_length, args.adv_weight) == (3, 0.5), "the command line has the last word"
