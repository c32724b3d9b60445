"""benchmark/datasets/resample.py: the file it writes, refusals; and with D4RL's policies that it makes D4RL's logs again."""

import hashlib
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT, run_as_main

from benchmark.datasets import resample
from benchmark.datasets.rebuild import set_state
from rambo_continuous import load_dataset, make_env

SCRIPT = ROOT / "benchmark" / "datasets" / "resample.py"
D4RL_FILES = ROOT.parent / "shared" / "d4rl_medium"
DIMENSIONS = {"hopper": (11, 3), "halfcheetah": (17, 6), "walker2d": (17, 6)}


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in resample.COLUMNS}


def write_policy(path: Path, body: str = "hopper", damage: str = "") -> Path:
    """A file with a small policy of our own in D4RL's layout, and no rows; `damage`: what is wrong with it."""
    rng, (obs_dim, action_dim) = np.random.default_rng(0), DIMENSIONS[body]
    shapes = {"fc0": (8, obs_dim), "fc1": (6, 8), "last_fc": (action_dim, 6), "last_fc_log_std": (action_dim, 6)}
    with h5py.File(path, "w") as file:
        if damage == "no policy":
            return path
        policy = file.create_group("metadata/policy")
        policy["nonlinearity"], policy["output_distribution"] = "elu" if damage == "elu" else "relu", "tanh_gaussian"
        for layer, shape in shapes.items():
            policy[f"{layer}/weight"] = rng.normal(0, np.nan if damage == "NaN" else 0.3, shape)
            policy[f"{layer}/bias"] = rng.normal(0, 0.1, shape[:1])
    return path


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hopper_own-v2.hdf5 with the policy alone and resampled.hdf5 with 3,000 rows of it, of several blocks."""
    folder = tmp_path_factory.mktemp("resampled")
    source = write_policy(folder / "hopper_own-v2.hdf5")
    resample.main(resample.Args(str(source), folder / "resampled.hdf5", rows=3000, processes=1))
    return folder


def test_the_file_has_d4rls_layout_and_says_where_it_comes_from(hopper: Path) -> None:
    data = read(hopper / "resampled.hdf5")
    widths = {"observations": (11,), "next_observations": (11,), "actions": (3,), "infos/qpos": (6,), "infos/qvel": (6,)}
    for name, column in data.items():
        assert column.shape == (3000, *widths.get(name, ())) and np.isfinite(column).all()
        assert column.dtype == (bool if name in ("terminals", "timeouts") else float if "/q" in name else np.float32)
    with h5py.File(hopper / "resampled.hdf5") as file, h5py.File(hopper / "hopper_own-v2.hdf5") as source:
        origin, policies = dict(file.attrs), [part["metadata/policy/fc1/weight"][()] for part in (file, source)]
    assert origin["source_sha256"] == hashlib.sha256((hopper / "hopper_own-v2.hdf5").read_bytes()).hexdigest()
    assert (origin["source"], origin["seed"], origin["rows"]) == ("hopper_own-v2.hdf5", 1, 3000)
    assert {"mujoco", "gymnasium", "numpy"} < set(origin)
    np.testing.assert_array_equal(*policies)
    dataset = load_dataset("hopper-medium-v2", str(hopper / "resampled.hdf5"), make_env("hopper-medium-v2"))
    assert len(dataset.rows) == 3000 and dataset.rows[:, -1].sum() == data["terminals"].sum()
    assert [path.name for path in sorted(hopper.iterdir())] == ["hopper_own-v2.hdf5", "resampled.hdf5"]


def test_processes_more_rows_and_another_cpu_give_the_same_rows_and_another_seed_others(
    hopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")  # as numpy would choose on a CPU that rounds otherwise
    args = resample.Args(str(hopper / "hopper_own-v2.hdf5"), tmp_path / "two.hdf5", rows=3500, processes=2)
    resample.main(args)
    assert os.environ["OPENBLAS_CORETYPE"] == "Prescott", "other processes' numpy rounds as before"
    data, longer = read(hopper / "resampled.hdf5"), read(tmp_path / "two.hdf5")
    for name, column in data.items():
        np.testing.assert_array_equal(column, longer[name][:3000], err_msg=name)
    policy = resample.read_policy(hopper / "hopper_own-v2.hdf5")
    blocks = [resample.record_block(block, "hopper", policy, seed) for block, seed in ((0, 1), (1, 1), (0, 2))]
    np.testing.assert_allclose(blocks[0]["actions"][0], data["actions"][0], atol=1e-5)
    for name in ("observations", "infos/action_log_probs"):
        assert len({block[name][0].tobytes() for block in blocks}) == 3


def test_random_actions_are_uniform_and_as_ever_for_a_seed() -> None:
    data = resample.record_block(0, "hopper", None, 1)
    np.testing.assert_allclose(data["infos/action_log_probs"], -3 * np.log(2), rtol=1e-6)
    assert abs(data["actions"].mean()) < 0.05 and data["actions"].std() == pytest.approx(3**-0.5, rel=0.03)
    np.testing.assert_allclose(data["actions"][0], [0.3077023, -0.7663173, -0.8319604], atol=1e-6)


@pytest.mark.parametrize("body", DIMENSIONS)
def test_rows_are_what_the_environment_gives_and_episodes_end_where_they_should(body: str, tmp_path, monkeypatch) -> None:
    """Episode by episode, replayed with env.step: the same numbers to the last bit."""
    limit = 24 if body == "walker2d" else 14
    monkeypatch.setattr(resample, "TIME_LIMIT", limit)
    policy = resample.read_policy(write_policy(tmp_path / f"{body}_own-v2.hdf5", body))
    data = resample.record_block(0, body, policy, 1)
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    lengths = np.diff(ends, prepend=-1)
    assert len(lengths) == resample.EPISODES and ends[-1] == len(data["rewards"]) - 1
    assert not (data["terminals"] & data["timeouts"]).any() and (lengths[data["timeouts"][ends]] == limit).all()
    assert lengths.max() == limit and data["timeouts"].any() and (body == "halfcheetah" or data["terminals"].any())
    env = make_env(f"{body}-medium-v2")
    for start, end in zip(ends - lengths + 1, ends, strict=True):
        observation = set_state(env, data["infos/qpos"][start], data["infos/qvel"][start])
        for row in range(start, end + 1):
            np.testing.assert_array_equal(data["observations"][row], observation.astype(np.float32))
            np.testing.assert_array_equal(data["infos/qvel"][row], env.unwrapped.data.qvel)
            observation, reward, terminal, *_ = env.unwrapped.step(data["actions"][row])
            np.testing.assert_array_equal(data["next_observations"][row], observation.astype(np.float32))
            assert data["rewards"][row] == np.float32(reward) and data["terminals"][row] == terminal


def test_what_cannot_be_resampled_is_one_line_and_no_file(tmp_path: Path, monkeypatch, subtests) -> None:
    monkeypatch.chdir(tmp_path)
    for damage in ("no policy", "elu", "NaN", "cut"):
        write_policy(Path(f"hopper_{damage.replace(' ', '_')}.hdf5"), damage=damage)
    write_policy(Path("hopper_cheetahs.hdf5"), "halfcheetah")
    write_policy(Path("hopper_own.hdf5"))
    write_policy(Path("myrobot_own.hdf5"))
    Path("hopper_cut.hdf5").write_bytes(Path("hopper_cut.hdf5").read_bytes()[:3000])
    Path("hopper_text.hdf5").write_text("not HDF5")
    before = sorted(Path().iterdir())
    cases = {
        "hopper_missing.hdf5": "no such file",
        "hopper_no_policy.hdf5": "holds no policy",
        "hopper_elu.hdf5": "not relu",
        "hopper_NaN.hdf5": "NaN",
        "hopper_cut.hdf5": "cannot be read",
        "hopper_text.hdf5": "cannot be read",
        "hopper_cheetahs.hdf5": "another body's",
        "myrobot_own.hdf5": "name it as D4RL does",
        "ant-random-v2": "name it as D4RL does",
        "hopper_own.hdf5 --output hopper_text.hdf5": "exists",
        "hopper_own.hdf5 --rows 0": "must be positive",
        "hopper_own.hdf5 --check": "needs infos/qpos",
        "hopper-random-v2 --check": "needs a D4RL file",
    }
    for command, message in cases.items():
        with subtests.test(command):
            process = run_as_main(SCRIPT, "--output", "out.hdf5", *command.split())
            assert process.returncode == 1 and message in process.stderr
            assert process.stderr.startswith("error: ") and process.stderr.count("\n") <= 1
            assert sorted(Path().iterdir()) == before


def test_the_check_of_a_resampled_file_finds_no_error_but_in_stock_physics(hopper: Path, tmp_path: Path, capsys) -> None:
    """One step from qpos and qvel starts MuJoCo's solver elsewhere than the recording did, hence 1e-4 and not 0."""
    path = tmp_path / "hopper_resampled.hdf5"
    shutil.copy(hopper / "resampled.hdf5", path)
    with h5py.File(path, "a") as file:
        file["actions"][0] = 1.0  # has no finite log-probability
        file["infos/qvel"][1, 0] = 10.0
    errors = resample.check(path, resample.read_policy(path))
    assert f"{len(next(iter(errors.values()))):,} rows compared, " in capsys.readouterr().out
    check_errors(errors)


def check_errors(errors: dict[str, np.ndarray]) -> None:
    """1e-5 holds for the log-probabilities of most rows: float32 in both, and far out an action's last bit counts."""
    log_probs, physics, stock = errors.values()
    assert np.median(log_probs) < 5e-6 and np.quantile(log_probs, 0.95) < 1e-5 and log_probs.max() < 1e-4
    assert np.quantile(physics, 0.99) < 1e-4 and np.median(stock) > 100 * np.median(physics)


# With D4RL's own policies. As published for the whole files: mean and std of the observations, of the episodes' returns
needs_d4rl = pytest.mark.skipif(not D4RL_FILES.is_dir(), reason=f"no D4RL files at {D4RL_FILES}")
PUBLISHED = {
    "hopper": (
        "1.311 -0.085 -0.538 -0.072 0.049 2.107 -0.150 0.009 -0.285 -0.185 -0.285",
        "0.178 0.054 0.213 0.145 0.612 0.852 1.452 0.675 1.536 1.616 5.607",
        (1422.1, 379),
    ),
    "halfcheetah": (
        "-0.068 0.016 -0.184 -0.276 -0.341 -0.093 -0.213 -0.088 5.173 -0.043 -0.036 0.141 0.060 0.096 0.067 0.006 0.013",
        "0.075 0.302 0.302 0.344 0.176 0.507 0.257 0.329 1.257 0.760 1.980 6.565 7.466 4.472 10.567 5.672 7.498",
        (4770.3, 356),
    ),
    "walker2d": (
        "1.219 0.142 -0.037 -0.138 0.514 -0.047 -0.473 0.042 2.395 -0.031 0.045 -0.024 -0.101 0.091 -0.004 -0.121 -0.550",
        "0.123 0.324 0.115 0.262 0.564 0.227 0.384 0.737 1.239 0.798 1.566 1.809 3.026 4.062 1.459 3.745 5.585",
        (2852.1, 1095),
    ),
}
RANDOM_RETURNS = {"hopper": (18.6, 17), "halfcheetah": (-269, 80), "walker2d": (1.8, 6)}  # of 60,000 rows; std: of an episode


def returns_of(data: dict[str, np.ndarray]) -> np.ndarray:
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    return np.diff(np.cumsum(data["rewards"], dtype=np.float64)[ends], prepend=0)


@needs_d4rl
@pytest.mark.parametrize("body", DIMENSIONS)
def test_d4rls_policy_and_physics_are_those_that_recorded_its_file(body: str) -> None:
    path = D4RL_FILES / f"{body}_medium-v2.hdf5"
    check_errors(resample.check(path, resample.read_policy(path)))


@needs_d4rl
@pytest.mark.parametrize("body, episodes", [("hopper", 50), ("halfcheetah", 22), ("walker2d", 28)])
def test_20000_rows_have_the_moments_of_d4rls_file(body: str, episodes: int, monkeypatch) -> None:
    """Means within a quarter of D4RL's std, stds within a half and mostly a tenth: a single fall moves one by that."""
    monkeypatch.setattr(resample, "EPISODES", episodes)
    data = resample.record_block(0, body, resample.read_policy(D4RL_FILES / f"{body}_medium-v2.hdf5"), 1)
    mean, std = (np.array(numbers.split(), float) for numbers in PUBLISHED[body][:2])
    returns, (mean_return, std_return) = returns_of(data), PUBLISHED[body][2]
    off = np.abs(data["observations"].std(0) / std - 1)
    assert len(data["rewards"]) >= 20_000
    assert np.abs((data["observations"].mean(0) - mean) / std).max() < 0.25
    assert off.max() < 0.5 and np.median(off) < 0.1
    assert abs(returns.mean() - mean_return) < 4 * std_return / episodes**0.5


@pytest.mark.parametrize("body", DIMENSIONS)
def test_random_actions_return_what_those_of_d4rl_do(body: str, monkeypatch) -> None:
    monkeypatch.setattr(resample, "EPISODES", 16 if body == "halfcheetah" else 200)
    returns, (mean, std) = returns_of(resample.record_block(0, body, None, 1)), RANDOM_RETURNS[body]
    assert abs(returns.mean() - mean) < 4 * std / len(returns) ** 0.5
