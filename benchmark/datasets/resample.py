"""Makes a D4RL medium or expert dataset again, with the policy that recorded it and in the physics it was recorded in.

    python benchmark/datasets/resample.py hopper_medium-v2.hdf5 --output resampled.hdf5  # a million rows, other random numbers
    python benchmark/datasets/resample.py hopper-random-v2 --output random.hdf5          # uniformly random actions
    python benchmark/datasets/resample.py hopper_medium-v2.hdf5 --check                  # how exact are policy and physics?

D4RL's medium and expert files carry the weights of their policy under metadata/policy; two episodes of a file are enough.
D4RL's recipe: the stochastic policy, episodes of at most 1,000 steps, whole episodes appended, cut at the number of rows. The
result has D4RL's layout (--dataset-path takes it), its origin in the file's attributes; call it resampled, not D4RL.
"""

import hashlib
import multiprocessing
import os
import platform
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.datasets.rebuild import write
from rambo_continuous import D4RL_ENVS, InputError, make_env, termination_rule

TIME_LIMIT = 1000
EPISODES = 64  # stepped side by side: a block, which depends on nothing but its number and the seed
LAYERS = ("fc0", "fc1", "last_fc", "last_fc_log_std")
COLUMNS = dict.fromkeys(("observations", "actions", "rewards", "next_observations", "infos/action_log_probs"), np.float32)
COLUMNS |= {"terminals": bool, "timeouts": bool, "infos/qpos": float, "infos/qvel": float}
# Of gymnasium's -v4: the reward of a step that does not fall, what the actions' squares cost, where it clips velocities
BODIES = {"hopper": (1, 1e-3, 10), "halfcheetah": (0, 0.1, np.inf), "walker2d": (1, 1e-3, 10)}


@dataclass
class Args:
    source: Annotated[str, tyro.conf.Positional]  # a D4RL file with its policy, or a random id such as hopper-random-v2
    output: Path | None = None  # the file to write; default: collected/resampled/ and the name that D4RL gives it
    rows: int = 1_000_000  # transitions to record
    seed: int = 1  # of start states and actions; the same rows with any number of processes
    processes: int | None = None  # default: one for each core
    check: bool = False  # record nothing: compare the policy and one step of the physics with the file's own rows


class Policy(NamedTuple):
    """The policy of a D4RL file: two hidden layers, relu, a tanh Gaussian."""

    weights: dict[str, np.ndarray]  # [out, in], by LAYERS
    biases: dict[str, np.ndarray]  # [out]

    def __call__(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """observations [B, O] -> mean and log std [B, A] before the tanh."""
        x = observations
        for layer in ("fc0", "fc1"):
            x = np.maximum(x @ self.weights[layer].T + self.biases[layer], 0)
        mean, log_std = (x @ self.weights[layer].T + self.biases[layer] for layer in ("last_fc", "last_fc_log_std"))
        return mean, np.clip(log_std, -20, 2)

    def log_prob(self, observations: np.ndarray, pre_tanh: np.ndarray) -> np.ndarray:
        """log pi(tanh(pre_tanh)), [B]."""
        mean, log_std = self(observations)
        log_prob = -0.5 * ((pre_tanh - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
        return (log_prob - 2 * (np.log(2) - pre_tanh - np.logaddexp(0, -2 * pre_tanh))).sum(-1)


def body_of(name: str) -> str:
    """hopper, halfcheetah or walker2d: the start of D4RL's names. Raises InputError."""
    if (body := name.replace("_", "-").split("-")[0]) not in D4RL_ENVS:
        raise InputError(f"{name}: name it as D4RL does, such as hopper_medium-v2.hdf5: the name says which body it is of")
    return body


@lru_cache
def make_body(body: str, d4rl_physics: bool = True) -> gym.Env:
    return make_env(f"{body}-medium-v2", d4rl_physics).unwrapped


def read_policy(path: Path) -> Policy:
    """The policy under metadata/policy. Raises InputError: no such file, none in it, or one for another body."""
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give a D4RL medium or expert file, or an id such as hopper-random-v2")
    body = body_of(path.name)
    try:
        with h5py.File(path) as file:
            if "metadata/policy" not in file:
                raise InputError(f"{path} holds no policy (metadata/policy): D4RL's medium and expert files do")
            group = file["metadata/policy"]
            kind = [group[key][()] for key in ("nonlinearity", "output_distribution")]
            arrays = [{layer: group[layer][key][()].astype(np.float32) for layer in LAYERS} for key in ("weight", "bias")]
    except (OSError, KeyError, RuntimeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: is it complete, and D4RL's? ({error})") from error
    if kind != [b"relu", b"tanh_gaussian"]:
        raise InputError(f"{path}: the policy's nonlinearity and distribution are {kind}, not relu and tanh_gaussian")
    env, (first, second, *_) = make_body(body), (arrays[1][layer].size for layer in LAYERS)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    outputs, inputs = (first, second, action_dim, action_dim), (obs_dim, first, second, second)
    shapes = dict(zip(LAYERS, zip(outputs, inputs, strict=True), strict=True))
    if any(arrays[0][layer].shape != shape or arrays[1][layer].shape != shape[:1] for layer, shape in shapes.items()):
        raise InputError(f"{path}: the policy is not one of {obs_dim} observations and {action_dim} actions: another body's?")
    if not all(np.isfinite(array).all() for part in arrays for array in part.values()):
        raise InputError(f"{path}: the policy's weights hold NaN or infinity: the file is damaged")
    return Policy(*arrays)


def record_block(block: int, body: str, policy: Policy | None, seed: int) -> dict[str, np.ndarray]:
    """EPISODES episodes of the stochastic policy (None: uniformly random actions) one after the other, [rows, ...]."""
    env, (alive_reward, action_cost, limit) = make_body(body), BODIES[body]
    *seeds, noise_seed = np.random.SeedSequence([seed, block]).generate_state(EPISODES + 1)
    simulations = []
    for env_seed in seeds:
        env.reset(seed=int(env_seed))
        simulations.append(copy(env.data))

    def observe() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        qpos, qvel = (np.stack([getattr(data, name) for data in simulations]) for name in ("qpos", "qvel"))
        return np.concatenate([qpos[:, 1:], np.clip(qvel, -limit, limit)], 1, dtype=np.float32), qpos, qvel

    rng, running, steps = np.random.default_rng(noise_seed), np.ones(EPISODES, bool), []
    states, qpos, qvel = observe()
    while running.any() and len(steps) < TIME_LIMIT:
        if policy:  # in all states, always: a product of another shape may round otherwise
            mean, log_std = policy(states)
            pre_tanh = mean + np.exp(log_std) * rng.standard_normal(mean.shape, np.float32)
            actions, log_probs = np.tanh(pre_tanh), policy.log_prob(states, pre_tanh)
        else:
            actions = rng.uniform(-1, 1, (EPISODES, env.model.nu)).astype(np.float32)
            log_probs = np.full(EPISODES, -env.model.nu * np.log(2))
        for i in np.flatnonzero(running):  # as env.step does, which takes as long again for the rest: that is for all at once
            simulations[i].ctrl[:] = actions[i]
            mujoco.mj_step(env.model, simulations[i], env.frame_skip)
        new_states, new_qpos, new_qvel = observe()
        rewards = (new_qpos - qpos)[:, 0] / env.dt + alive_reward - action_cost * np.square(actions).sum(1)
        terminals = termination_rule(env)(np.concatenate([new_qpos[:, 1:], new_qvel], 1))
        timeouts = ~terminals & (len(steps) == TIME_LIMIT - 1)
        steps.append((running, states, actions, rewards, new_states, log_probs, terminals, timeouts, qpos, qvel))
        states, qpos, qvel, running = new_states, new_qpos, new_qvel, running & ~terminals
    recorded, *columns = (np.stack(column, 1) for column in zip(*steps, strict=True))  # [episodes, steps, ...]
    return {name: column[recorded].astype(kind) for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)}


@contextmanager
def numpy_of_processes():
    """The settings of numpy's products in processes started meanwhile: one thread and, on all x86 CPUs, the same rounding, so
    that the rows are the same on all."""
    settings = {"OPENBLAS_NUM_THREADS": "1"}
    if platform.machine().lower() in ("x86_64", "amd64"):
        settings["OPENBLAS_CORETYPE"] = "Haswell"
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@numpy_of_processes()
def record(body: str, policy: Policy | None, args: Args) -> dict[str, np.ndarray]:
    """args.rows rows: whole episodes appended in the order of their blocks, and the last one cut."""
    processes = args.processes or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    blocks, waiting, rows, bar = [], [], 0, tqdm(total=args.rows, unit="row", unit_scale=True, dynamic_ncols=True)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while rows < args.rows:
            while len(waiting) <= processes:
                number = len(blocks) + len(waiting)
                waiting.append(pool.submit(record_block, number, body, policy, args.seed))
            blocks.append(waiting.pop(0).result())
            new = min(len(blocks[-1]["rewards"]), args.rows - rows)
            rows += new
            bar.update(new)
        pool.shutdown(cancel_futures=True)
    bar.close()
    return {name: np.concatenate([block[name] for block in blocks])[: args.rows] for name in blocks[0]}


def describe(data: dict[str, np.ndarray]) -> str:
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    returns = np.diff(np.cumsum(data["rewards"], dtype=np.float64)[ends], prepend=0.0)
    found = f", return {returns.mean():.1f} +- {returns.std():.1f} (std over episodes)" if len(returns) else ""
    return f"{len(data['rewards']):,} rows, {len(returns):,} finished episodes{found}"


def physics_errors(path: Path, data: dict[str, np.ndarray], d4rl_physics: bool) -> np.ndarray:
    """Largest error of the next observation, one step on from each row's recorded qpos and qvel, [N]."""
    env, errors = make_body(body_of(path.name), d4rl_physics), np.zeros(len(data["actions"]))
    env.reset()
    for i, action in enumerate(tqdm(data["actions"], unit="row", leave=False)):
        env.set_state(data["infos/qpos"][i], data["infos/qvel"][i])
        errors[i] = np.abs(env.step(action)[0] - data["next_observations"][i]).max()
    return errors


def check(path: Path, policy: Policy) -> dict[str, np.ndarray]:
    """Prints and returns the errors [N] of the log-probabilities and of the next observations. Raises InputError."""
    try:
        with h5py.File(path) as file:
            data = {name: file[name][()] for name in COLUMNS}
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: --check needs infos/qpos, infos/qvel and infos/action_log_probs ({error})") from error
    # Hopper and Walker2d clip velocities at 10, and D4RL recorded the clipped ones; tanh rounds to 1 far out
    clipped = (np.abs(data["infos/qvel"]) == 10).any(1) | (np.abs(data["actions"]) == 1).any(1)
    data = {name: column[~clipped] for name, column in data.items()}
    if not len(data["actions"]):
        raise InputError(f"{path}: --check finds no row to compare")
    pre_tanh = np.arctanh(data["actions"].astype(np.float64))
    log_prob_errors = policy.log_prob(data["observations"], pre_tanh) - data["infos/action_log_probs"]
    errors = {"log-probability of the action": np.abs(log_prob_errors)}
    errors["next observation, D4RL physics"] = physics_errors(path, data, True)
    errors["next observation, stock physics"] = physics_errors(path, data, False)
    print(f"{path}: {len(data['actions']):,} rows compared, {clipped.sum():,} with a velocity or action at its limit left out")
    print(f"{'largest error of':34}{'median':>10}{'99 %':>10}{'largest':>10}")
    for name, error in errors.items():
        print(f"{name:34}{np.median(error):10.1e}{np.quantile(error, 0.99):10.1e}{error.max():10.1e}")
    return errors


def main(args: Args) -> None:
    if min(args.rows, args.seed + 1, 1 if args.processes is None else args.processes) < 1:
        raise InputError("--rows and --processes must be positive, --seed 0 or more")
    is_random = args.source.endswith("-random-v2")
    source = Path(args.source)
    body, policy = body_of(source.name), None if is_random else read_policy(source)
    if args.check:
        if is_random:
            raise InputError("--check needs a D4RL file")
        check(source, policy)
        return
    name = f"{args.source.removesuffix('-v2').replace('-', '_')}-v2.hdf5" if is_random else source.name
    output = args.output or Path("collected") / "resampled" / name
    if output.exists():
        raise InputError(f"{output} exists: delete it, or give another --output")
    origin = {"recipe": f"resample.py: {'uniformly random actions' if is_random else 'the policy of the source'}"}
    origin |= {"source": source.name, "seed": args.seed, "rows": args.rows}
    origin |= {library: version(library) for library in ("mujoco", "gymnasium", "numpy")}
    origin |= {} if is_random else {"source_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    data = record(body, policy, args)

    def save(file) -> None:
        with h5py.File(file, "w") as hdf5:
            hdf5.attrs.update(origin)
            for key, column in data.items():
                hdf5.create_dataset(key, data=column)
            if not is_random:  # the result can be checked, and resampled, as its source can
                with h5py.File(source) as original:
                    original.copy("metadata", hdf5)

    write(output, save)
    print(f"{output}: {describe(data)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (InputError, OSError, BrokenExecutor) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
