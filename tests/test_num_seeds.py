"""--num-seeds: several seeds in one call of the JAX script end as their single runs do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, pendulum_log, read_run, write_hdf5

import rambo_continuous_jax as rambo

PENDULUM = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY, "--checkpoint-interval", 1, "--save-model"]
CLOCKS = ("seconds", "charts/SPS", "charts/model_SPS")


@pytest.fixture(autouse=True)
def pendulum_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(tmp_path / "pendulum.hdf5", pendulum_log())
    return tmp_path


def train(tmp_path, *arguments):
    """Runs the script and returns the folders it made, by seed, oldest first."""
    before = set(tmp_path.glob("runs/*"))
    rambo.main(rambo.parse_args([*map(str, arguments)]))
    return sorted(set(tmp_path.glob("runs/*")) - before)


def numbers(rows):
    return [[float(x) for key, value in row.items() if key not in CLOCKS for x in value.split()] for row in rows]


def assert_same_run(one, other, rtol, atol=0.0):
    """The same files with the same content, up to the order in which floating point numbers are added."""
    one, other = read_run(one), read_run(other)
    names = ({path.name for path in run.folder.iterdir() if "tfevents" not in path.name} for run in (one, other))
    assert len(set(map(frozenset, names))) == 1
    for kind in ("metrics", "evaluations"):
        rows = getattr(one, kind), getattr(other, kind)
        assert rows[0] and list(rows[0][0]) == list(rows[1][0])
        np.testing.assert_allclose(numbers(rows[0]), numbers(rows[1]), rtol=rtol, atol=atol)
    assert {**one.args, "exp_name": None} == {**other.args, "exp_name": None}
    assert one.result["status"] == other.result["status"]
    for kind in ("policy", "dynamics", "dynamics_pretrained", "checkpoint"):
        arrays = getattr(one, kind), getattr(other, kind)
        assert set(arrays[0]) == set(arrays[1])
        for name in set(arrays[0]) - {"run_name", "seconds"}:
            if arrays[0][name].dtype.kind == "f":
                np.testing.assert_allclose(arrays[0][name], arrays[1][name], rtol=rtol, atol=atol, err_msg=name)
            else:
                np.testing.assert_array_equal(arrays[0][name], arrays[1][name], err_msg=name)


def test_three_seeds_at_once_are_three_single_runs(tmp_path):
    """Pretraining with its hold-out rows, cloning, training, evaluation and every file."""
    flags = [*PENDULUM, "--bc-epochs", 1, "--model-max-pretrain-epochs", 3]
    together = train(tmp_path, *flags, "--seed", 4, "--num-seeds", 3)
    assert [folder.name.split("__")[2] for folder in together] == ["4", "5", "6"]
    assert len({folder.name.split("__")[3] for folder in together}) == 1
    for seed, folder in zip((4, 5, 6), together, strict=True):
        (single,) = train(tmp_path, *flags, "--seed", seed, "--exp-name", f"single{seed}")
        assert_same_run(folder, single, rtol=1e-3, atol=1e-4)
    policies = [read_run(folder).policy["fc1.weight"] for folder in together]
    assert not any(np.array_equal(policies[0], policy) for policy in policies[1:])


def test_a_seed_that_has_stopped_pretraining_keeps_its_weights_while_others_go_on(monkeypatch):
    """The first seed's error never falls, so it stops after 11 epochs; the second one's falls in every epoch."""
    rewards = jnp.tile(jnp.array([[1.0], [2.0]]), 10)  # tells the seeds apart
    holdout = rambo.Batch(jnp.ones((2, 10, 3)), jnp.ones((2, 10, 1)), rewards, jnp.ones((2, 10, 3)), jnp.ones((2, 10)))
    rows = jax.random.normal(jax.random.PRNGKey(0), (50, 9))
    data = rambo.Data(rows, jnp.tile(jnp.arange(10, 50), (2, 1)), holdout)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    init = jax.vmap(lambda key: rambo.Dynamics(2, 3, 1, 8, rambo.nnx.Rngs(key)))

    def errors(dynamics, holdout):
        falling = jnp.exp(-20 * jnp.abs(dynamics.max_log_var - 1).sum()) * jnp.ones(2)  # training moves the bound steadily
        return jnp.where(holdout.rewards[0] > 1.5, falling, jnp.ones(2))

    def pretrain(seeds, epochs):
        args = rambo.Args(num_models=2, num_elites=1, batch_size=16, model_max_pretrain_epochs=epochs)
        some = rambo.Data(rows, data.train[seeds], jax.tree.map(lambda x: x[seeds], holdout))
        return rambo.pretrain_dynamics(init(keys[seeds]), keys[seeds], some, args)[0]

    monkeypatch.setattr(rambo, "holdout_errors", errors)
    shorter, longer = (pretrain(np.array([0, 1]), epochs) for epochs in (12, 20))
    for one, other in zip(*map(jax.tree.leaves, (shorter, longer)), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(shorter.max_log_var[1], longer.max_log_var[1]), "the other seed must still be learning"
    for i in (0, 1):
        for one, other in zip(*map(jax.tree.leaves, (longer, pretrain(np.array([i]), 20))), strict=True):
            np.testing.assert_allclose(one[i], other[0], rtol=1e-3, atol=1e-4)


def test_seeds_are_resumed_together_or_alone(tmp_path):
    straight = train(tmp_path, *PENDULUM, "--exp-name", "straight", "--num-seeds", 2)
    stopped = train(tmp_path, *PENDULUM, "--exp-name", "stopped", "--num-seeds", 2, "--total-iterations", 1)
    train(tmp_path, "--resume", stopped[0], "--num-seeds", 2, "--total-iterations", 2)
    for one, other in zip(straight, stopped, strict=True):
        assert_same_run(one, other, rtol=0)
    stopped = train(tmp_path, *PENDULUM, "--exp-name", "again", "--num-seeds", 2, "--total-iterations", 1)
    train(tmp_path, "--resume", stopped[1], "--total-iterations", 2)
    assert_same_run(straight[1], stopped[1], rtol=1e-3, atol=1e-4)
    with pytest.raises(rambo.InputError, match="at another iteration"):
        train(tmp_path, "--resume", stopped[0], "--num-seeds", 2, "--total-iterations", 3)
    with pytest.raises(rambo.InputError, match="does not hold"):
        train(tmp_path, "--resume", stopped[0], "--num-seeds", 3, "--total-iterations", 3)


def test_the_other_seeds_go_on_when_one_diverges(tmp_path, monkeypatch, capsys):
    original, second = rambo.train_iteration, int(np.random.default_rng(2).permutation(120)[12])

    def poisoned(state, data, iteration, terminated, args):
        """Seed 2, known by its split of the rows, reports a value without bounds in iteration 1."""
        state, metrics = original(state, data, iteration, terminated, args)
        diverges = (data.train[0] == second) & (iteration == 1)
        metrics["losses/max_abs_qf_value"] = jnp.where(diverges, 1e11, metrics["losses/max_abs_qf_value"])
        return state, metrics

    monkeypatch.setattr(rambo, "train_iteration", poisoned)
    with pytest.raises(rambo.Diverged, match="iteration 1: largest .Q. 1e.11, see .*__2__"):
        train(tmp_path, *PENDULUM, "--num-seeds", 3)
    runs = [read_run(folder) for folder in sorted(tmp_path.glob("runs/*"))]
    assert [run.result["status"] for run in runs] == ["finished", "diverged", "finished"]
    assert [len(run.metrics) for run in runs] == [2, 1, 2]
    assert [len(run.evaluations) for run in runs] == [3, 1, 3]
    assert [(run.folder / "policy.npz").exists() for run in runs] == [True, False, True]


def test_a_saved_model_serves_all_seeds(tmp_path):
    (first,) = train(tmp_path, *PENDULUM, "--seed", 9)
    model = first / "dynamics_pretrained.npz"
    folders = train(tmp_path, *PENDULUM, "--num-seeds", 2, "--load-model", model, "--adv-weight", 0)
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        assert all(np.array_equal(array, run.dynamics[name]) for name, array in read_run(first).dynamics_pretrained.items())
        assert int(run.dynamics["split_seed"]) == 9
    assert not np.array_equal(runs[0].policy["fc1.weight"], runs[1].policy["fc1.weight"])


@pytest.mark.parametrize("flags", [["--num-seeds", 0], ["--num-seeds", 2, "--track"]])
def test_impossible_numbers_of_seeds(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(rambo, "find_spec", lambda name: True)
    with pytest.raises(rambo.InputError, match="--num-seeds"):
        train(tmp_path, *PENDULUM, *flags)
    assert not list(tmp_path.glob("runs/*"))
