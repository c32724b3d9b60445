"""Loading and packing datasets: the way of D4RL, of files without next_observations, of Minari; d4rl as an oracle."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import SCRIPTS, TINY, hopper_log, pendulum_log, run_here, write_hdf5


@pytest.fixture
def rambo():
    """The plumbing is word for word the same in both scripts, see test_twins.py: one of them is enough here."""
    return importlib.import_module("rambo_continuous")


def unpack(dataset):
    """The dataset's rows taken apart again, observations in their original units."""
    o, a = dataset.obs_dim, dataset.action_dim
    parts = np.split(dataset.rows, [o, o + a, o + a + 1, 2 * o + a + 1], axis=1)
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    columns = dict(zip(names, parts, strict=True))
    for key in ("observations", "next_observations"):
        columns[key] = columns[key] * dataset.obs_std + dataset.obs_mean
    return columns | {key: columns[key][:, 0] for key in ("rewards", "terminals")}


def load_hopper(rambo, path):
    return rambo.load_dataset("hopper-medium-v2", str(path), rambo.make_env("hopper-medium-v2"))


@pytest.fixture
def hopper_file(tmp_path):
    return write_hdf5(tmp_path / "hopper.hdf5", hopper_log())


def test_rows_hold_what_the_file_holds(rambo, hopper_file):
    dataset, log = load_hopper(rambo, hopper_file), hopper_log()
    assert dataset.rows.dtype == np.float32 and dataset.rows.shape == (48, 2 * 11 + 3 + 2)
    columns = unpack(dataset)
    for key in ("observations", "actions", "rewards", "next_observations", "terminals"):
        np.testing.assert_allclose(columns[key], log[key], rtol=1e-5, atol=1e-5)


def test_states_are_normalised_by_mean_and_std_and_rewards_stay_raw(rambo, hopper_file):
    dataset, log = load_hopper(rambo, hopper_file), hopper_log()
    mean, std = log["observations"].astype(float).mean(0), log["observations"].astype(float).std(0)
    np.testing.assert_allclose(dataset.obs_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.obs_std, std + 1e-3, rtol=1e-5)
    assert dataset.obs_std[0] == pytest.approx(1e-3, rel=1e-2), "a coordinate that never changes"
    expected = (log["observations"][:, 1] - mean[1]) / (std[1] + 1e-3)
    np.testing.assert_allclose(dataset.rows[:, 1], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(dataset.rows[:, 14], log["rewards"])


def test_numbers_of_any_size(rambo, tmp_path):
    """Small units, large offsets, tiny bounds: the rows are those of ordinary numbers."""
    log, env = pendulum_log(), rambo.make_env("Pendulum-v1")
    ordinary = rambo.load_dataset("Pendulum-v1", str(write_hdf5(tmp_path / "ordinary.hdf5", log)), env)
    for scale, offset, tolerance in ((1e-6, 0, 0.4), (1e4, 0, 2e-3), (1, 1e6, 1e-6)):
        changed = {key: log[key].astype(float) * scale + offset for key in ("observations", "next_observations")}
        dataset = rambo.load_dataset("Pendulum-v1", str(write_hdf5(tmp_path / f"{scale} {offset}.hdf5", log | changed)), env)
        np.testing.assert_allclose(dataset.rows, ordinary.rows, rtol=tolerance, atol=1e-6)
        agent = rambo.NumpyAgent({}, dataset.obs_mean, dataset.obs_std)
        np.testing.assert_allclose(agent.normalized(changed["observations"]), dataset.rows[:, :3], atol=1e-6)
    env.action_space = gym.spaces.Box(np.float32([-2e-6]), np.float32([2e-6]))
    path = write_hdf5(tmp_path / "tiny.hdf5", log | {"actions": log["actions"] * np.float32(1e-6)})
    np.testing.assert_allclose(rambo.load_dataset("Pendulum-v1", str(path), env).rows, ordinary.rows, rtol=1e-5, atol=1e-6)
    path = write_hdf5(tmp_path / "beyond.hdf5", log | {"actions": log["actions"] * np.float32(1.1e-6)})
    with pytest.raises(rambo.InputError, match="bounds"):
        rambo.load_dataset("Pendulum-v1", str(path), env)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_model_divides_by_small_spreads_and_not_by_those_of_constants(name):
    """An action of std 0.009, as a good controller's, moves the environment; states are fed back with the model's noise."""
    module = importlib.import_module(Path(name).stem)
    rows = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    rows *= np.float32([0.02, 0.005, 0.009, 0.0005, 1, 1, 1, 1]) / rows.std(0, ddof=1)
    if "jax" in name:
        from flax import nnx

        dynamics = module.Dynamics(2, 2, 2, 8, nnx.Rngs(0))
    else:
        dynamics, rows = module.Dynamics(2, 2, 2, 8), importlib.import_module("torch").as_tensor(rows)
    dynamics.set_scales(module.split_rows(rows, 2))
    np.testing.assert_allclose(np.asarray(dynamics.input_std), [0.02, 1, 0.009, 1], rtol=1e-4)


def test_rows_that_lead_into_the_next_episode_are_dropped(rambo, tmp_path, capsys):
    """Of recorders that reset by themselves: in an episode's last row, or in a row of its own after it."""
    log, ends = hopper_log(), [11, 23, 35]
    same_step = log | {"next_observations": log["next_observations"].copy()}
    for end in ends:
        same_step["next_observations"][end] = log["observations"][end + 1]
    extra = {key: np.insert(column, np.array(ends) + 1, column[ends], 0) for key, column in log.items()}
    for i, end in enumerate(ends):
        extra["observations"][end + 1 + i] = log["next_observations"][end]
        extra["next_observations"][end + 1 + i] = log["observations"][end + 1]
        extra["terminals"][end + 1 + i] = extra["timeouts"][end + 1 + i] = False
    for name, columns in (("same.hdf5", same_step), ("extra.hdf5", extra)):
        rows = unpack(load_hopper(rambo, write_hdf5(tmp_path / name, columns)))
        assert "3 ends of episodes" in capsys.readouterr().out
        jumps = abs(rows["next_observations"][:, 2] - rows["observations"][:, 2])
        assert 40 < len(jumps) and jumps.max() < 1.1
    assert len(load_hopper(rambo, write_hdf5(tmp_path / "plain.hdf5", log)).rows) == 48


def test_timeouts_are_not_terminals(rambo, hopper_file):
    terminals = load_hopper(rambo, hopper_file).rows[:, -1]
    assert np.flatnonzero(terminals).tolist() == [23, 47], "episodes 1 and 3 terminate"
    assert terminals[11] == terminals[35] == 0, "episodes 0 and 2 time out"


def test_the_next_observation_of_an_episodes_last_row_is_the_files(rambo, hopper_file):
    columns, log = unpack(load_hopper(rambo, hopper_file)), hopper_log()
    for last in (11, 23, 35):
        np.testing.assert_allclose(columns["next_observations"][last], log["next_observations"][last], atol=1e-4)
        assert np.abs(columns["next_observations"][last] - log["observations"][last + 1]).max() > 0.5


@pytest.mark.parametrize("also_missing", [(), ("timeouts",)])
def test_without_next_observations_the_last_row_of_every_episode_is_dropped(rambo, tmp_path, capsys, also_missing):
    log = {key: column for key, column in hopper_log().items() if key not in ("next_observations", *also_missing)}
    log["terminals"][:] = False  # a terminal row is dropped, so the rule sees no mismatch either way
    log["terminals"][[23, 47]] = True
    dataset = load_hopper(rambo, write_hdf5(tmp_path / "short.hdf5", log))
    kept = np.delete(np.arange(48), [23, 47] if also_missing else [11, 23, 35, 47])
    columns = unpack(dataset)
    np.testing.assert_allclose(columns["observations"][:, 2], kept, atol=1e-3)
    np.testing.assert_allclose(columns["next_observations"][:, 2], kept + 1, atol=1e-3)
    np.testing.assert_array_equal(columns["rewards"], log["rewards"][kept])
    assert not columns["terminals"].any()
    assert "no next_observations" in capsys.readouterr().out


@pytest.mark.parametrize("timeouts", [None, False])
def test_episodes_end_at_the_time_limit_where_a_file_does_not_say_so(rambo, tmp_path, timeouts):
    """D4RL's old layout: no transition may lead into the next episode. timeouts may be there and never be set."""
    log = pendulum_log(episodes=3, length=200)
    del log["next_observations"], log["timeouts"]
    if timeouts is not None:
        log["timeouts"] = np.zeros(600, bool)
    path = write_hdf5(tmp_path / "old.hdf5", log)
    columns = unpack(rambo.load_dataset("Pendulum-v1", str(path), rambo.make_env("Pendulum-v1")))
    kept = np.delete(np.arange(600), [199, 399, 599])
    np.testing.assert_allclose(columns["observations"], log["observations"][kept], atol=1e-4)
    np.testing.assert_allclose(columns["next_observations"], log["observations"][kept + 1], atol=1e-4)


def test_episodes_may_be_longer_than_the_environments_where_a_file_says_so(rambo, tmp_path, capsys):
    path = write_hdf5(tmp_path / "long.hdf5", pendulum_log(episodes=2, length=300))
    assert len(rambo.load_dataset("Pendulum-v1", str(path), rambo.make_env("Pendulum-v1")).rows) == 600
    assert " 2 finished episodes" in capsys.readouterr().out


def test_columns_of_one_number_may_be_n_or_n_by_1(rambo, tmp_path):
    env, log = rambo.make_env("Pendulum-v1"), pendulum_log()
    expected = rambo.load_dataset("Pendulum-v1", str(write_hdf5(tmp_path / "usual.hdf5", log)), env)
    other = log | {key: log[key][:, None] for key in ("rewards", "terminals", "timeouts")} | {"actions": log["actions"][:, 0]}
    dataset = rambo.load_dataset("Pendulum-v1", str(write_hdf5(tmp_path / "other.hdf5", other)), env)
    np.testing.assert_array_equal(dataset.rows, expected.rows)
    assert dataset.fingerprint == expected.fingerprint


def test_terminals_of_any_number_are_zero_or_one(rambo, tmp_path):
    log = hopper_log()
    log["terminals"] = log["terminals"].astype(np.uint8) * 255
    assert set(load_hopper(rambo, write_hdf5(tmp_path / "bytes.hdf5", log)).rows[:, -1]) == {0, 1}


def test_a_file_that_stops_amid_an_episode_loses_its_last_row_too(rambo, tmp_path):
    log = {key: column[:30] for key, column in hopper_log().items() if key != "next_observations"}
    columns = unpack(load_hopper(rambo, write_hdf5(tmp_path / "cut.hdf5", log)))
    assert columns["observations"][:, 2].round().tolist() == [i for i in range(29) if i not in (11, 23)]


def test_actions_are_scaled_from_the_environments_bounds(rambo, tmp_path):
    log = pendulum_log()
    path = write_hdf5(tmp_path / "pendulum.hdf5", log)
    dataset = rambo.load_dataset("Pendulum-v1", str(path), rambo.make_env("Pendulum-v1"))
    np.testing.assert_allclose(unpack(dataset)["actions"], log["actions"] / 2, atol=1e-6)


def test_actions_within_rounding_of_their_bounds_are_clipped(rambo, tmp_path):
    log = hopper_log()
    log["actions"][3] = [1.0005, -1.0005, 0.5]
    dataset = load_hopper(rambo, write_hdf5(tmp_path / "rounded.hdf5", log))
    np.testing.assert_allclose(unpack(dataset)["actions"][3], [1, -1, 0.5])


def test_the_summary_counts_rows_episodes_returns_and_saturated_actions(rambo, tmp_path, capsys):
    log = hopper_log()
    log["rewards"][:] = 1
    log["rewards"][24:36] = 10
    log["actions"][:12] = 1.0
    load_hopper(rambo, write_hdf5(tmp_path / "summary.hdf5", log))
    summary = capsys.readouterr().out
    for part in ("48 rows", "4 finished episodes", "mean 39.0", "best 120.0", "25.0% saturated"):
        assert part in summary


def test_bundled_datasets_are_found_by_their_ids(rambo, subtests):
    for name in ["hopper-mini-v2", "pendulum-mini"]:
        with subtests.test(name=str(name)):
            env = rambo.make_env(name)
            dataset = rambo.load_dataset(name, None, env)
            assert len(dataset.rows) > 10_000 and dataset.obs_dim == env.observation_space.shape[0]
            assert np.isfinite(dataset.rows).all()


def test_d4rl_files_are_looked_for_where_d4rl_keeps_them(rambo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / ".d4rl" / "datasets" / "hopper_medium_replay-v2.hdf5"
    home.parent.mkdir(parents=True)
    home.touch()
    assert rambo.find_dataset("hopper-medium-replay-v2", None) == home
    elsewhere = tmp_path / "elsewhere" / "hopper_medium_replay-v2.hdf5"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    monkeypatch.setenv("D4RL_DATASET_DIR", str(elsewhere.parent))
    assert rambo.find_dataset("hopper-medium-replay-v2", None) == elsewhere
    assert rambo.find_dataset("hopper-medium-replay-v2", str(home)) == home, "--dataset-path comes first"


# The d4rl package as an oracle
@pytest.fixture
def d4rl(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_py", None)  # else d4rl looks for the MuJoCo 2.1 binaries
    monkeypatch.setenv("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    return pytest.importorskip("d4rl", reason="the oracle d4rl is not installed, see tests/requirements.txt")


def test_reference_scores_and_file_names_are_d4rls(rambo, d4rl):
    assert len(rambo.D4RL_FILES) == 18
    for env_id in rambo.D4RL_FILES:
        low, high = d4rl.infos.REF_MIN_SCORE[env_id], d4rl.infos.REF_MAX_SCORE[env_id]
        assert rambo.D4RL_ENVS[env_id.split("-")[0]][1:] == (low, high)
        for value in (-100.0, 0.0, 1234.5, 10_000.0):
            score = rambo.normalized_score(env_id, np.array([value]))[0]
            assert score == pytest.approx(100 * d4rl.get_normalized_score(env_id, value))


def test_urls_are_d4rls(rambo, d4rl, tmp_path, monkeypatch):
    """The address that a download goes to first."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    asked = []
    monkeypatch.setattr(rambo, "download_d4rl", lambda env_id, path: asked.append(f"{rambo.D4RL_HOSTS[0]}/{path.name}"))
    for env_id in rambo.D4RL_FILES:
        rambo.find_dataset(env_id, None)
        assert asked[-1] == d4rl.infos.DATASET_URLS[env_id]


def test_transitions_are_those_of_d4rl_away_from_episode_ends(rambo, d4rl, hopper_file):
    log = hopper_log()
    oracle = d4rl.qlearning_dataset(None, dataset=log)
    columns = unpack(load_hopper(rambo, hopper_file))
    oracle_rows = oracle["observations"][:, 2].round().astype(int)  # coordinate 2 counts the rows
    assert oracle_rows.tolist() == [i for i in range(47) if i not in (11, 35)], "d4rl drops time-outs and the last row"
    inside = ~log["terminals"][oracle_rows]
    for key in ("observations", "actions", "rewards", "next_observations", "terminals"):
        np.testing.assert_allclose(columns[key][oracle_rows][inside], oracle[key][inside], rtol=1e-5, atol=1e-5)
    # At a terminal d4rl takes the next episode's first state: harmless for Q-learning, wrong for a dynamics model
    at_terminal = oracle["next_observations"][~inside][0]
    np.testing.assert_array_equal(at_terminal, log["observations"][24])
    np.testing.assert_allclose(columns["next_observations"][23], log["next_observations"][23], atol=1e-4)


# Minari
@pytest.fixture
def minari_dataset(tmp_path, monkeypatch):
    """A local Minari dataset of Pendulum-v1 with 2 episodes of 30 steps; returns its id and its episodes."""
    minari = pytest.importorskip("minari", reason="the optional package minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    collector = minari.DataCollector(gym.make("Pendulum-v1", max_episode_steps=30))
    rng = np.random.default_rng(0)
    for episode in range(2):
        collector.reset(seed=episode)
        done = False
        while not done:
            _, _, terminated, truncated, _ = collector.step(rng.uniform(-2, 2, 1).astype(np.float32))
            done = terminated or truncated
    dataset = collector.create_dataset("test/pendulum/random-v0", algorithm_name="uniform", description="made by a test")
    collector.close()
    return "test/pendulum/random-v0", list(dataset.iterate_episodes())


@pytest.mark.filterwarnings("ignore")
def test_a_minari_dataset_is_loaded_from_the_local_cache(rambo, minari_dataset):
    env_id, episodes = minari_dataset
    env = rambo.make_env(env_id)
    assert env.spec.id == "Pendulum-v1" and env.spec.max_episode_steps == 30
    dataset = rambo.load_dataset(env_id, None, env)
    columns = unpack(dataset)
    np.testing.assert_allclose(columns["observations"][30:], episodes[1].observations[:-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(columns["next_observations"][:30], episodes[0].observations[1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(columns["actions"][:30], episodes[0].actions / 2, atol=1e-6)
    np.testing.assert_allclose(columns["rewards"][30:], episodes[1].rewards, rtol=1e-5)
    assert not columns["terminals"].any(), "time limits are no terminals"


@pytest.mark.filterwarnings("ignore")
def test_rambo_runs_on_a_minari_dataset(rambo, minari_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo, "--env-id", minari_dataset[0], *TINY)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished" and result["score"] == "charts/episodic_return"


@pytest.mark.filterwarnings("ignore")
def test_minari_ids_of_any_depth(rambo, minari_dataset, subtests):
    for env_id in ["own-v0", "own/pendulum-v0", "a/b/c/pendulum-v0"]:
        with subtests.test(env_id=str(env_id)):
            folder = Path(os.environ["MINARI_DATASETS_PATH"])
            shutil.copytree(folder / minari_dataset[0], folder / env_id)
            metadata = folder / env_id / "data" / "metadata.json"
            metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"dataset_id": env_id}))
            dataset = rambo.load_dataset(env_id, None, rambo.make_env(env_id))
            assert len(dataset.rows) == 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [None, {"entry_point": "my_laboratory.envs:PendulumEnv"}])
def test_a_minari_dataset_whose_environment_cannot_be_made(rambo, minari_dataset, change):
    metadata = Path(os.environ["MINARI_DATASETS_PATH"]) / minari_dataset[0] / "data" / "metadata.json"
    values = json.loads(metadata.read_text())
    values["env_spec"] = json.dumps(json.loads(values["env_spec"]) | change) if change else None
    metadata.write_text(json.dumps(values))
    with pytest.raises(rambo.InputError, match="no environment.*test/pendulum/random-v0 can be made here"):
        rambo.make_env("test/pendulum/random-v0")
