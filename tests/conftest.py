"""What the tests share: the scripts under test, tiny command lines, and small datasets with chosen properties."""

import csv
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import h5py
import numpy as np
import pytest

SCRIPTS = ["rambo_continuous.py", "rambo_continuous_jax.py"]

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # several test processes share few cores
# JAX tests mostly compile: quickly rather than well, and the same program only once for all processes
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
for name in ("DISPLAY", "D4RL_DATASET_DIR", "MUJOCO_GL"):
    os.environ.pop(name, None)

# The smallest run that does everything once
TINY = "--total-iterations 2 --updates-per-iteration 5 --rollout-batch-size 100 --model-max-pretrain-epochs 1".split()
TINY += "--model-hidden-dim 32 --batch-size 32 --eval-episodes 2 --rollout-length 2 --rollout-retain-iterations 2".split()
TINY += "--adv-weight 3e-4 --eval-workers 0".split()
HOPPER = ["--env-id", "hopper-mini-v2", *TINY, "--batch-size", "512"]  # it has 70,000 rows to pretrain on


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that none runs alone at the end."""
    longest_first = ["test_command_line", "test_twins", "test_learning", "test_bad_input", "test_toy_example", "test_collect"]
    items.sort(key=lambda item: (longest_first + [item.path.stem]).index(item.path.stem))


@pytest.fixture(params=SCRIPTS)
def script(request) -> Path:
    """Each training script in turn, as a file."""
    return ROOT / request.param


@pytest.fixture
def rambo(script):
    """Each training script in turn, as a module."""
    return importlib.import_module(script.stem)


def run_script(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """The command line as a user types it, in the current folder."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | environment)


def run_as_main(script: Path, *arguments: object) -> subprocess.CompletedProcess:
    """The command line as run_script types it, but within this process, which saves the seconds that starting Python takes."""
    command, code = [str(script), *map(str, arguments)], 0
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with patch.object(sys, "argv", command), patch.object(sys, "path", sys.path.copy()):
        with redirect_stdout(out), redirect_stderr(err):
            try:
                runpy.run_path(str(script), run_name="__main__")
            except SystemExit as end:  # sys.exit("text") prints the text and exits with 1
                code = 1 if isinstance(end.code, str) else end.code or 0
                print(end.code if isinstance(end.code, str) else "", end="", file=err)
    return subprocess.CompletedProcess(command, code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def run_here(rambo, *arguments: object) -> Path:
    """The script's main within this process. Returns the run folder."""
    before = set(Path("runs").glob("*"))
    args = rambo.parse_args([*map(str, arguments)])
    rambo.main(args)
    return Path(args.resume) if args.resume else (set(Path("runs").glob("*")) - before).pop()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_run(folder: Path) -> SimpleNamespace:
    """The files of a run folder; arrays as dictionaries."""
    arrays = {}
    for path in folder.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays[path.stem] = dict(file)
    result = folder / "result.json"
    return SimpleNamespace(
        folder=folder,
        args=json.loads((folder / "args.json").read_text()),
        evaluations=read_csv(folder / "evaluations.csv"),
        metrics=read_csv(folder / "metrics.csv"),
        result=json.loads(result.read_text()) if result.exists() else None,
        **arrays,
    )


def pendulum_log(episodes: int = 3, length: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """D4RL-style columns of Pendulum-v1 under random actions in [-2, 2]; every episode ends with a timeout."""
    return {key: column.copy() for key, column in record_pendulum(episodes, length, seed).items()}


@lru_cache
def record_pendulum(episodes: int, length: int, seed: int) -> dict[str, np.ndarray]:
    import gymnasium as gym

    env, rng = gym.make("Pendulum-v1"), np.random.default_rng(seed)
    columns = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")}
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed * 1000 + episode)
        for step in range(length):
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            next_observation, reward, _, _, _ = env.step(action)
            values = (observation, action, np.float32(reward), False, step == length - 1, next_observation)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            observation = next_observation
    return {key: np.asarray(column) for key, column in columns.items()}


def hopper_log(episodes: int = 4, length: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Made-up columns for Hopper: no physics, but terminals that obey its rule. Odd episodes terminate, even time out.

    Observation 2 counts the rows, so that a test can tell which row it sees.
    """
    rng, n = np.random.default_rng(seed), episodes * length
    observations = rng.uniform(-0.1, 0.1, (n, 11)).astype(np.float32)
    observations[:, 0] = 1.2
    observations[:, 2] = np.arange(n)
    next_observations = np.roll(observations, -1, axis=0)
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    for episode in range(episodes):
        last = (episode + 1) * length - 1
        (terminals if episode % 2 else timeouts)[last] = True
        next_observations[last] = observations[last] + 0.01
        next_observations[last, 0] = 0.5 if episode % 2 else 1.2
    actions = rng.uniform(-0.9, 0.9, (n, 3)).astype(np.float32)
    columns = dict(observations=observations, actions=actions, rewards=rng.normal(2, 1, n).astype(np.float32))
    return columns | dict(terminals=terminals, timeouts=timeouts, next_observations=next_observations)


def write_hdf5(path: Path, columns: dict) -> Path:
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file[key] = column
    return path
