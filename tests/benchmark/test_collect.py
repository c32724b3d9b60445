"""benchmark/datasets/collect.py: the file's format, resuming after a kill, refusals, and the bundled datasets."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tyro
from conftest import run_as_main

from benchmark.datasets import collect

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmark" / "datasets" / "collect.py"

pytestmark = pytest.mark.xdist_group("collect")  # one process: they share a run
COLUMNS = {"observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "infos/action_log_probs"}
# A SAC run of 600 steps, which a time limit of 200 cuts into 3 episodes
REPLAY = "--env Pendulum-v1 --quality medium-replay --sac-steps 600 --learning-starts 300 --eval-every 400".split()
REPLAY += "--eval-episodes 1 --checkpoint-every 200 --batch-size 32".split()


def run_here(*arguments: object) -> None:
    """The command line in this process, which saves the seconds that importing JAX takes."""
    collect.main(tyro.cli(collect.Args, args=[*map(str, arguments)]))


def read(path: Path) -> dict[str, np.ndarray]:
    """All columns of a file; metadata are left out."""
    data = {}
    with h5py.File(path) as file:
        file.visititems(lambda key, node: data.update({key: node[()]}) if isinstance(node, h5py.Dataset) else None)
    return {key: value for key, value in data.items() if not key.startswith("metadata/")}


def check_columns(data: dict[str, np.ndarray], obs_dim: int, action_dim: int) -> None:
    """Shapes, types, episode ends and the chain of observations that every file must have."""
    n = len(data["rewards"])
    for key, width in {"observations": obs_dim, "next_observations": obs_dim, "actions": action_dim}.items():
        assert data[key].shape == (n, width) and data[key].dtype == np.float32
    assert data["rewards"].shape == (n,) and data["rewards"].dtype == np.float32
    assert data["terminals"].dtype == data["timeouts"].dtype == bool
    ends = data["terminals"] | data["timeouts"]
    assert not (data["terminals"] & data["timeouts"]).any()
    assert ends[-1]
    inside = np.flatnonzero(~ends)
    np.testing.assert_array_equal(data["next_observations"][inside], data["observations"][inside + 1])
    between = np.flatnonzero(ends[:-1])
    assert (data["next_observations"][between] != data["observations"][between + 1]).any(axis=1).all()
    assert all(np.isfinite(column).all() for column in data.values())


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "replay.hdf5"
    run_here(*REPLAY, "--output-dir", path.parent, "--output", path)
    return path


def test_replay_holds_the_transitions_in_order_of_time(replay: Path) -> None:
    data = read(replay)
    assert set(data) == COLUMNS
    check_columns(data, obs_dim=3, action_dim=1)
    assert len(data["rewards"]) == 600
    np.testing.assert_array_equal(np.flatnonzero(data["timeouts"]), [199, 399, 599])
    assert not data["terminals"].any()
    # actions are the executed ones, in the environment's units: the recorded reward is the one they earn
    theta = np.arctan2(data["observations"][:, 1], data["observations"][:, 0])
    reward = -(theta**2 + 0.1 * data["observations"][:, 2] ** 2 + 0.001 * data["actions"][:, 0] ** 2)
    np.testing.assert_allclose(data["rewards"], reward, atol=1e-4)
    assert 1 < np.abs(data["actions"]).max() <= 2


def test_metadata_say_how_the_file_was_made(replay: Path) -> None:
    with h5py.File(replay) as file:
        metadata = {key: value[()] for key, value in file["metadata"].items()}
    assert metadata["environment"] == b"Pendulum-v1" and metadata["seed"] == 0
    assert json.loads(metadata["settings"])["sac_steps"] == 600
    sac = json.loads(metadata["policies"])["sac"]
    assert [step for step, _ in sac["evaluations"]] == [400] and sac["medium_step"] is None
    assert {"sbx-rl", "mujoco"} <= set(json.loads(metadata["libraries"]))


def test_a_finished_file_is_kept(replay: Path, capsys: pytest.CaptureFixture) -> None:
    before = replay.read_bytes()
    run_here(*REPLAY, "--output-dir", replay.parent, "--output", replay)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(collect.InputError, match="seed 0, not 1"):
        run_here(*REPLAY, "--output-dir", replay.parent, "--output", replay, "--seed", 1)
    assert replay.read_bytes() == before


def test_the_replay_can_be_limited_to_its_last_episodes(replay: Path) -> None:
    path = replay.with_name("last.hdf5")
    run_here(*REPLAY, "--output-dir", replay.parent, "--output", path, "--num-transitions", 450, "--minimal")
    whole, last = read(replay), read(path)
    assert set(last) == COLUMNS - {"infos/action_log_probs"}
    assert all(np.array_equal(last[key], whole[key][200:]) for key in last)


def test_a_killed_collection_ends_with_the_same_file(replay: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "replay.hdf5"
    command = [sys.executable, str(SCRIPT), *REPLAY, "--output-dir", str(tmp_path), "--output", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "checkpoints" / "Pendulum-v1-seed0-sac.npz"
    while process.poll() is None:
        if checkpoint.exists():
            with np.load(checkpoint) as file:
                if len(file["rewards"]) >= 400:  # SAC has learned by then
                    process.send_signal(signal.SIGKILL)
                    process.wait()
        time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL and not path.exists()
    run_here(*REPLAY, "--output-dir", tmp_path, "--output", path)
    assert "3 (0 terminated, 3 timed out)" in capsys.readouterr().out
    whole, resumed = read(replay), read(path)
    assert all(np.array_equal(whole[key], resumed[key]) for key in COLUMNS)


def test_random_hopper_ends_in_terminals(tmp_path: Path) -> None:
    run_here("--env", "hopper", "--quality", "random", "--num-transitions", 300, "--output-dir", tmp_path)
    data = read(tmp_path / "hopper_random-v2.hdf5")
    assert set(data) == COLUMNS | {"infos/qpos", "infos/qvel"}
    check_columns(data, obs_dim=11, action_dim=3)
    assert data["terminals"].sum() > 3 and not data["timeouts"].any()
    # hopper's observation is its state without the x position, velocities clipped to +-10
    state = np.concatenate([data["infos/qpos"][:, 1:], np.clip(data["infos/qvel"], -10, 10)], axis=1)
    np.testing.assert_allclose(data["observations"], state, atol=1e-6)


def test_medium_and_expert_are_rollouts_of_one_run(tmp_path: Path) -> None:
    run = "--env Pendulum-v1 --sac-steps 400 --learning-starts 150 --eval-every 200 --eval-episodes 1 --batch-size 32"
    common = [*run.split(), "--medium-return", -5000, "--num-transitions", 400, "--output-dir", tmp_path, "--quality"]
    for quality in ("medium-expert", "medium"):
        run_here(*common, quality)
    medium, both = (read(tmp_path / f"pendulum-v1_{name}.hdf5") for name in ("medium", "medium_expert"))
    for data in (medium, both):
        check_columns(data, obs_dim=3, action_dim=1)
    assert len(medium["rewards"]) == 400 and len(both["rewards"]) == 800
    assert all(np.array_equal(both[key][:400], medium[key]) for key in COLUMNS)
    assert not np.array_equal(both["actions"][400:], medium["actions"])
    with pytest.raises(collect.InputError, match="--sac-steps is too small"):
        run_here(*common, "expert", "--sac-steps", 200)


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    result = run_as_main(SCRIPT, "--env", "Pendulum-v1", "--quality", "medium", "--output-dir", tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "error: --env Pendulum-v1 has no D4RL reference scores: give --medium-return"
    (tmp_path / "foreign.hdf5").write_bytes(b"precious")
    for arguments, message in [
        (["--env", "hoper"], "hoper"),
        (["--num-transitions", 0], "--num-transitions 0"),
        (["--output", tmp_path / "foreign.hdf5"], "not from this script"),
    ]:
        with pytest.raises(collect.InputError, match=message):
            run_here(*arguments, "--output-dir", tmp_path)


@pytest.mark.parametrize("name, obs_dim, action_dim", [("hopper_mini-v2", 11, 3), ("pendulum_mini", 3, 1)])
def test_bundled_datasets(name: str, obs_dim: int, action_dim: int) -> None:
    check_columns(read(ROOT / "benchmark" / "datasets" / f"{name}.hdf5"), obs_dim, action_dim)
