"""benchmark/datasets/rebuild.py: logs kept in git as actions come back bit for bit, or not at all."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_datasets import ROWS, describe

from benchmark.datasets import rebuild
from benchmark.datasets.rebuild import COLUMNS, STORED, Args, checksum, main
from rambo_continuous import InputError, make_env

DATASETS = Path(__file__).resolve().parents[2] / "benchmark" / "datasets"
SCRIPT = DATASETS / "rebuild.py"


def record(path: Path, env_id: str, episodes: int) -> dict[str, np.ndarray]:
    """Episodes of random actions, in the columns of datasets/collect.py."""
    env, rng, rows = rebuild.recording_env(env_id), np.random.default_rng(0), []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        done = False
        while not done:
            state = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            following, reward, terminal, timeout, _ = env.step(action)
            rows.append((observation, action, reward, terminal, timeout, following, *state))
            observation, done = following, terminal or timeout
    data = dict(zip((*COLUMNS, "infos/qpos", "infos/qvel"), map(np.array, zip(*rows, strict=True)), strict=True))
    data |= {key: data[key].astype(np.float32) for key in ("observations", "rewards", "next_observations")}
    with h5py.File(path, "w") as file:
        for key, column in data.items():
            file[key] = column
    return data


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}


@pytest.mark.parametrize(("env", "episodes"), [("hopper", 20), ("walker2d", 20), ("halfcheetah", 2)])
def test_a_log_comes_back_bit_for_bit(tmp_path, env, episodes):
    source = tmp_path / f"{env}_own_random-v2.hdf5"
    recorded = record(source, f"{env}-own-random-v2", episodes)
    assert recorded["timeouts"].sum() == (2 if env == "halfcheetah" else 0)
    main(Args(source, tmp_path / "actions.npz"))
    main(Args(tmp_path / "actions.npz", tmp_path / "again.hdf5"))
    rebuilt = read(tmp_path / "again.hdf5")
    assert set(rebuilt) == set(COLUMNS)
    for key in COLUMNS:
        assert rebuilt[key].dtype == recorded[key].dtype and np.array_equal(rebuilt[key], recorded[key]), key
    assert (tmp_path / "actions.npz").stat().st_size < source.stat().st_size / 3


def test_the_bodies_weigh_the_same_as_in_the_scripts_up_to_rounding():
    for env_id in ("hopper-own-v2", "walker2d-own-v2", "halfcheetah-own-v2"):
        recorded, now = rebuild.recording_env(env_id).unwrapped.model, make_env(env_id).unwrapped.model
        for name in ("body_mass", "body_ipos", "geom_margin"):
            np.testing.assert_allclose(getattr(recorded, name), getattr(now, name), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.sort(recorded.body_inertia), np.sort(now.body_inertia), rtol=1e-9)


def test_what_does_not_come_back_is_not_written(tmp_path):
    source = tmp_path / "hopper_own_random-v2.hdf5"
    record(source, "hopper-own-random-v2", 3)
    main(Args(source, tmp_path / "actions.npz"))
    arrays = dict(np.load(tmp_path / "actions.npz"))
    arrays["actions"][7, 0] += 1e-6
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(InputError, match="not those recorded"):
        main(Args(tmp_path / "changed.npz", tmp_path / "never.hdf5"))
    np.savez(tmp_path / "short.npz", **arrays | {"actions": arrays["actions"][:-1]})
    with pytest.raises(InputError, match="damaged"):
        main(Args(tmp_path / "short.npz", tmp_path / "never.hdf5"))
    with h5py.File(source, "r+") as file:  # recorded in other physics
        file["next_observations"][...] += 1e-3
    with pytest.raises(InputError, match="not those recorded"):
        main(Args(source, tmp_path / "never.npz"))
    assert not list(tmp_path.glob("never*"))


def test_bad_input_is_refused_in_one_line(tmp_path):
    (tmp_path / "cut.npz").write_bytes((DATASETS / "hopper_sbx_medium_replay-v2.npz").read_bytes()[:5000])
    with h5py.File(tmp_path / "hopper_minimal-v2.hdf5", "w") as file:
        file["actions"] = np.zeros((3, 3))
    (tmp_path / "pendulum.hdf5").touch()
    for name, message in [
        ("cut.npz", "not a file of actions"),
        ("missing.npz", "not a file of actions"),
        ("hopper_minimal-v2.hdf5", "infos/qpos"),
        ("pendulum.hdf5", "name it as D4RL does"),
    ]:
        with pytest.raises(InputError, match=message):
            main(Args(tmp_path / name, tmp_path / "output"))
    result = subprocess.run([sys.executable, SCRIPT, tmp_path / "missing.npz"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and re.fullmatch(r"error: .*missing\.npz.*\n", result.stderr) and not result.stdout


WHOLE = "halfcheetah_sbx_medium_replay-v2"  # rebuilt as a whole; of the others the last episodes


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.npz")), ids=lambda path: path.stem)
def test_the_logs_of_the_results_come_back(tmp_path, monkeypatch, path):
    with np.load(path) as file:
        stored = {key: file[key] for key in STORED}
    if path.stem == WHOLE:
        main(Args(path, tmp_path / "log.hdf5"))
        rebuilt = read(tmp_path / "log.hdf5")
        assert checksum(rebuilt) == stored["sha256"]
        assert describe(rebuilt) == next(list(row[4:]) for row in ROWS if row[1] == path.name)
        return
    monkeypatch.setattr(rebuild, "checksum", lambda data: str(stored["sha256"]))  # it is that of all rows
    stored |= {key: stored[key][-30:] for key in ("lengths", "qpos", "qvel")}
    stored["actions"] = stored["actions"][-stored["lengths"].sum() :]
    rebuilt = rebuild.simulate(stored)
    ends = rebuilt["terminals"] | rebuilt["timeouts"]
    assert np.array_equal(np.flatnonzero(ends) + 1, np.cumsum(stored["lengths"]))
