# RAMBO: Robust Adversarial Model-Based Offline RL (Rigter, Lacerda, Hawes 2022), https://arxiv.org/abs/2204.12581v1
# Results, logged metrics and every deviation from the paper and the authors' code: README.md
# Sections marked "shared" stand word for word in rambo_continuous.py as well.
import csv
import difflib
import hashlib
import http.client
import json
import math
import os
import re
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import h5py
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import optax
import tyro
from flax import nnx
from tensorboardX import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = Path(__file__).stem
    """the name of this experiment, part of the run folder's name"""
    seed: int = 1
    """seed of the initial weights, the data splits, all sampling and the evaluation episodes"""
    num_seeds: int = 1
    """trains the seeds seed, seed + 1, ... at once on one device; each gets the run folder of its single run"""
    torch_deterministic: bool = True
    """use only deterministic GPU kernels (named as in the torch script): the same seed gives the same run"""
    cuda: bool = True
    """train on the GPU if there is one; --no-cuda trains on the CPU"""
    track: bool = False
    """also log to Weights and Biases (needs `pip install wandb`)"""
    wandb_project_name: str = "rambo"
    """the wandb project to log to"""
    wandb_entity: str | None = None
    """the wandb team to log to; the default is your own account"""
    capture_video: bool = False
    """record one evaluation episode of the final policy to runs/{run_name}/videos (needs `pip install moviepy`)"""
    save_model: bool = False
    """save the policy, the pretrained and the final dynamics to runs/{run_name}/*.npz"""

    # Algorithm specific arguments
    env_id: str = "hopper-medium-v2"
    """a D4RL v2 id, a bundled dataset, a Minari id, or, with --dataset-path, any gymnasium id to evaluate in"""
    dataset_path: str | None = None
    """a D4RL-style HDF5 file to learn from instead of the dataset that --env-id names"""
    d4rl_physics: bool = True
    """evaluate D4RL ids in the physics their data was recorded in; --no-d4rl-physics takes gymnasium's stock -v4"""
    total_iterations: int = 2000
    """iterations of rollouts, agent updates and adversarial model updates (n_iter in Algorithm 1)"""
    updates_per_iteration: int = 1000
    """agent updates, and adversarial model updates, in each iteration"""
    gamma: float = 0.99
    """the discount factor"""
    tau: float = 0.005
    """how far the target critics move towards the critics at each update"""
    batch_size: int = 256
    """rows in each batch of the agent, the model's supervised and the model's adversarial loss"""
    policy_lr: float = 1e-4
    """the learning rate of the actor and of the temperature"""
    q_lr: float = 3e-4
    """the learning rate of the critics"""
    alpha: float = 1.0
    """the temperature (entropy bonus): its initial value, or its fixed value with --no-autotune"""
    autotune: bool = True
    """learn the temperature so that the policy's entropy approaches -action_dim"""
    real_ratio: float = 0.5
    """share of dataset rows in the agent's batch (f); 1 is SAC on the dataset alone and trains no model"""
    rollout_length: int | None = None
    """steps of each model rollout (k); the default is the paper's best for the dataset"""
    adv_weight: float | None = None
    """weight of the adversarial loss (lambda), 0 freezes the model; the default is the paper's best for the dataset"""
    rollout_batch_size: int = 50_000
    """model rollouts started at each iteration; a multiple of num_elites"""
    rollout_retain_iterations: int = 5
    """the rollouts of so many past iterations are kept for the agent to learn from"""
    num_models: int = 7
    """dynamics models in the pretrained ensemble"""
    num_elites: int = 5
    """models kept after pretraining: those with the lowest hold-out error"""
    model_hidden_dim: int = 200
    """units in each of the four hidden layers of a dynamics model"""
    model_lr: float = 3e-4
    """the learning rate of the dynamics models, in pretraining and in adversarial training"""
    model_max_pretrain_epochs: int = 1000
    """pretraining stops after so many epochs even if the hold-out error still falls"""
    bc_epochs: int = 0
    """epochs of behaviour cloning that warm-start the policy (the authors' later code: 50)"""
    eval_interval: int = 1
    """iterations between two evaluations"""
    eval_episodes: int = 10
    """episodes of each evaluation, with the policy's mode"""
    checkpoint_interval: int = 50
    """iterations between two checkpoints of the whole run; 0 writes none"""
    resume: str | None = None
    """a run folder: go on from its last checkpoint"""
    load_model: str | None = None
    """a dynamics_pretrained.npz of the same dataset: skip pretraining (a sweep over k and lambda trains it once)"""


class InputError(Exception):
    """Something the user can put right. The command line prints it as one line and exits with 1."""


class Diverged(Exception):
    """The value function or a loss blew up. The command line prints it as one line and exits with 3."""


# --- shared: datasets, environments, scores, arguments, run folders ---------------------------------------------------
D4RL_HOSTS = (
    "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2",
    "https://huggingface.co/datasets/imone/D4RL/resolve/main",
)
D4RL_FILES = {  # id: (bytes, sha256) of the file; hopper-medium-v2 is hopper_medium-v2.hdf5
    "hopper-random-v2": (152525345, "63103ef7059db4c0819bd054f4e83ff339030b50bcdb46bdbe50385f234b5054"),
    "hopper-medium-v2": (152756557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"),
    "hopper-medium-replay-v2": (75854457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "hopper-medium-expert-v2": (304537315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"),
    "hopper-expert-v2": (152427435, "01aa219a5f8eea5e639eccdc636ec2bf40e317159a95cf4bf6e985f16909941b"),
    "hopper-full-replay-v2": (187998921, "56baf95963c51c1e964049a974566c50ba80f289390565523e60c0ba83e0982e"),
    "halfcheetah-random-v2": (237338037, "25407aef85b5d16c0f36b4149341edb4acc6a9e88c1db529b2de19e7464874ba"),
    "halfcheetah-medium-v2": (237727262, "41324e8487a9556d8cfa4538827f8937f4d63dae3030825ebc9f3a726ed08ca0"),
    "halfcheetah-medium-replay-v2": (59448533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "halfcheetah-medium-expert-v2": (474567252, "015db75dae5bbe8e94029b71fa0bafc2073365df0c94744e71031189f3f79c06"),
    "halfcheetah-expert-v2": (237464597, "d9fe53bb994eb1e20a99b4fa3412cd76a1bb7966a7ff55e0fcbdd6081bd2965f"),
    "halfcheetah-full-replay-v2": (291381762, "27fdf7ea86e5a2cbd24d611ae9e703c86ec2e8e52823abc69dd9af6afb3a36c0"),
    "walker2d-random-v2": (216109364, "4e863bb6090cf4a461548bd470564b32f1ae5b32ef3085f816b2ede7f092e7fa"),
    "walker2d-medium-v2": (232254996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"),
    "walker2d-medium-replay-v2": (86323963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "walker2d-medium-expert-v2": (462197079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"),
    "walker2d-expert-v2": (230567195, "2985dc3d436a8baa10e8f43f946fe1d7c6337a4e4fbc65def70618093b18c59a"),
    "walker2d-full-replay-v2": (285115514, "f2720f9d27b2acef6ec9a7d9ad3b80b6c2078ad4467cee668a81e3b3c80bcf2a"),
}
BUNDLED_FILES = {"hopper-mini-v2": "hopper_mini-v2.hdf5", "pendulum-mini": "pendulum_mini.hdf5"}  # in benchmark/datasets
D4RL_ENVS = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
REFERENCE_RETURNS = {  # of a random and of an expert policy (D4RL): normalised scores 0 and 100
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}
# (k, lambda): the best column of the preprint's Table 3. Ids it does not list get (5, 3e-4), its most frequent choice.
PAPER_HYPERPARAMETERS = {
    "halfcheetah-random-v2": (5, 0.0),
    "halfcheetah-medium-v2": (5, 3e-4),
    "halfcheetah-medium-replay-v2": (5, 3e-4),
    "halfcheetah-medium-expert-v2": (2, 3e-4),
    "hopper-random-v2": (1, 3e-4),
    "hopper-medium-v2": (5, 3e-4),
    "hopper-medium-replay-v2": (5, 3e-4),
    "hopper-medium-expert-v2": (5, 0.0),
    "walker2d-random-v2": (5, 3e-4),
    "walker2d-medium-v2": (5, 0.0),
    "walker2d-medium-replay-v2": (5, 0.0),
    "walker2d-medium-expert-v2": (2, 3e-4),
}


def never_terminates(x):
    return x[..., 0] != x[..., 0]  # NaN only


# Does an episode end at this un-normalised next observation [..., O]? The model learns no termination, the rule is given.
# Written so that each holds for numpy, torch and jax arrays, and so that NaN and infinity terminate.
TERMINATION_RULES = {
    "hopper": lambda x: ~((x[..., 0] > 0.7) & (abs(x[..., 1]) < 0.2) & (abs(x[..., 1:]) < 100).all(-1) & (x[..., 0] < 1e9)),
    "walker2d": lambda x: ~((0.8 < x[..., 0]) & (x[..., 0] < 2.0) & (abs(x[..., 1]) < 1.0)),
    "halfcheetah": never_terminates,
    "ant": lambda x: ~((0.2 <= x[..., 0]) & (x[..., 0] <= 1.0) & (abs(x) < math.inf).all(-1)),
    "humanoid": lambda x: ~((1.0 < x[..., 0]) & (x[..., 0] < 2.0)),
    "invertedpendulum": lambda x: ~((abs(x[..., 1]) <= 0.2) & (abs(x) < math.inf).all(-1)),
    "swimmer": never_terminates,
    "reacher": never_terminates,
    "pusher": never_terminates,
    "pendulum": never_terminates,
    "mountaincarcontinuous": lambda x: ~((x[..., 0] < 0.45) | (x[..., 1] < 0.0)),
}


def is_d4rl_id(env_id: str) -> bool:
    """hopper-medium-v2 and its kind, also names of one's own such as hopper-mini-v2: evaluated in D4RL physics."""
    return re.fullmatch(r"(hopper|halfcheetah|walker2d)-[a-z0-9-]+-v2", env_id) is not None


def restore_d4rl_physics(env: gym.Env) -> gym.Env:
    """Gives a -v4 hopper, halfcheetah or walker2d the physics D4RL v2 was recorded in (MuJoCo 2.0/2.1.0).

    MuJoCo 2.1.2 made the inertia of capsules exact; before, a capsule weighed as a solid cylinder of length 2h + r.
    MuJoCo 3.5 adds the margins of two touching geoms where it took the larger. Body masses: tests/test_environment.py.
    """
    model, data = env.unwrapped.model, env.unwrapped.data
    for body in range(1, model.nbody):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        radius, half_length = model.geom_size[geoms, 0], model.geom_size[geoms, 1]
        length = 2 * half_length + radius
        masses = 1000 * np.pi * radius**2 * length
        center = masses @ model.geom_pos[geoms] / masses.sum()
        inertia = np.zeros((3, 3))
        for geom, m, r, h in zip(geoms, masses, radius, length, strict=True):
            rotation = np.zeros(9)
            mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
            rotation, offset = rotation.reshape(3, 3), model.geom_pos[geom] - center
            transverse, axial = m * (3 * r**2 + h**2) / 12, m * r**2 / 2
            inertia += rotation @ np.diag([transverse, transverse, axial]) @ rotation.T
            inertia += m * (offset @ offset * np.eye(3) - np.outer(offset, offset))  # parallel axes
        moments, axes = np.linalg.eigh(inertia)
        axes[:, 0] *= np.sign(np.linalg.det(axes))  # a rotation, not a reflection
        model.body_mass[body], model.body_ipos[body], model.body_inertia[body] = masses.sum(), center, moments
        mujoco.mju_mat2Quat(model.body_iquat[body], axes.flatten())
    if env.spec.id.startswith("HalfCheetah"):  # its XML sets the total mass to 14
        scale = 14 / model.body_mass.sum()
        model.body_mass *= scale
        model.body_inertia *= scale
    if tuple(int(v) for v in mujoco.__version__.split(".")[:2]) >= (3, 5):
        model.geom_margin *= 0.5
    mujoco.mj_setConst(model, data)
    return env


def make_env(env_id: str, d4rl_physics: bool = True, **kwargs) -> gym.Env:
    """The environment to evaluate in: D4RL ids give gymnasium's -v4 in D4RL physics, Minari ids the recorded one, any
    other id is gymnasium's own. Raises InputError when there is none, or when its spaces are not flat boxes."""
    gym.logger.min_level = gym.logger.ERROR  # gymnasium warns that v5 is newer: v5 is another environment
    try:
        if is_d4rl_id(env_id):
            env = gym.make(D4RL_ENVS[env_id.split("-")[0]], **kwargs)
            env = restore_d4rl_physics(env) if d4rl_physics else env
        elif env_id.count("/") == 2:
            env = gym.make(open_minari(env_id).env_spec, **kwargs)
        else:
            env = gym.make("Pendulum-v1" if env_id == "pendulum-mini" else env_id, **kwargs)
    except gym.error.Error as error:
        known = [*D4RL_FILES, *BUNDLED_FILES, *gym.registry]
        close = difflib.get_close_matches(env_id, known, 3) or ["hopper-medium-v2"]
        raise InputError(f"--env-id {env_id}: {error} Did you mean {' or '.join(close)}?".replace("\n", " ")) from error
    spaces = env.observation_space, env.action_space
    if not all(isinstance(s, gym.spaces.Box) and len(s.shape) == 1 for s in spaces) or not spaces[1].is_bounded():
        raise InputError(f"--env-id {env_id}: needs flat observations and bounded continuous actions, not {spaces}")
    return env


def termination_rule(env: gym.Env) -> Callable:
    """The function next_observations [..., O] -> terminated [...] of an environment. Raises InputError if none is known."""
    name = env.spec.id.split("/")[-1].split("-")[0].lower()
    if name not in TERMINATION_RULES:
        raise InputError(f"no termination rule is known for {env.spec.id}: add one to TERMINATION_RULES as '{name}'")
    return TERMINATION_RULES[name]


def normalized_score(env_id: str, returns: np.ndarray) -> np.ndarray:
    """D4RL's score: 0 is a random policy, 100 an expert. NaN for environments without reference returns."""
    low, high = REFERENCE_RETURNS[env_id.split("-")[0]] if is_d4rl_id(env_id) else (np.nan, np.nan)
    return 100 * (returns - low) / (high - low)


def download_d4rl(env_id: str, path: Path) -> None:
    """Downloads a D4RL file, resuming what an earlier try left; only a file with the right checksum gets its name."""
    (size, sha256), part, problems = D4RL_FILES[env_id], path.with_name(path.name + ".part"), []
    for host in D4RL_HOSTS:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            start = part.stat().st_size if part.exists() else 0
            if start < size:
                request = urllib.request.Request(f"{host}/{path.name}", headers={"Range": f"bytes={start}-"})
                with urllib.request.urlopen(request, timeout=30) as response:
                    if int(response.headers.get("Content-Length", size - start)) not in (size - start, size):
                        problems.append(f"{host}: sends another file")
                        continue
                    start = start if response.status == 206 else 0  # 200: the host ignores Range and sends it all
                    with part.open("ab" if start else "wb") as file, tqdm(
                        desc=path.name, initial=start, total=size, unit="B", unit_scale=True
                    ) as bar:
                        while chunk := response.read(1 << 20):
                            file.write(chunk)
                            bar.update(len(chunk))
            if part.stat().st_size < size:
                problems.append(f"{host}: broke off at {part.stat().st_size} of {size} bytes")
                continue
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    os.replace(part, path)
                    return
            part.unlink()
            problems.append(f"{host}: wrong checksum")
        except (OSError, http.client.HTTPException) as error:
            problems.append(f"{host}: {error}")
    raise InputError(
        f"could not download {path.name} ({'; '.join(problems)}). Run again to go on, put the file into {path.parent}"
        f" (another folder: $D4RL_DATASET_DIR), fetch it from {D4RL_HOSTS[1]}/{path.name}, or give --dataset-path FILE"
    )


def find_dataset(env_id: str, dataset_path: str | None) -> Path:
    """The HDF5 file to learn from, downloaded if need be."""
    if dataset_path is not None:
        if not Path(dataset_path).is_file():
            raise InputError(f"--dataset-path {dataset_path}: no such file")
        return Path(dataset_path)
    if env_id in BUNDLED_FILES:
        path = Path(__file__).resolve().parent / "benchmark" / "datasets" / BUNDLED_FILES[env_id]
        if not path.is_file():
            raise InputError(f"{env_id} comes with the repository, but {path} is missing: give --dataset-path FILE")
        return path
    if env_id not in D4RL_FILES:
        close = difflib.get_close_matches(env_id, [*D4RL_FILES, *BUNDLED_FILES], 3) or ["hopper-medium-v2"]
        raise InputError(f"no dataset is known as {env_id}: did you mean {' or '.join(close)}? Or give --dataset-path FILE")
    folder = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()
    path = folder / (re.sub(r"-(?!v2)", "_", env_id) + ".hdf5")
    if not path.exists():
        download_d4rl(env_id, path)
    return path


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """observations [N, O], actions [N, A], rewards, terminals, timeouts [N], next_observations [N, O] of a D4RL file."""
    keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    try:
        with h5py.File(path, "r") as file:
            data = {key: file[key][()] for key in keys if isinstance(file.get(key), h5py.Dataset)}
    except OSError as error:
        hint = "delete it and run again" if path.parent.name == "datasets" else "is it complete, and HDF5?"
        raise InputError(f"{path} cannot be read ({error}): {hint}".replace("\n", " ")) from error
    missing = [key for key in keys[:4] if key not in data]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: not a D4RL-style file")
    data.setdefault("timeouts", np.zeros(data["terminals"].shape, bool))
    if len({array.shape[:1] for array in data.values()} | {()}) != 2:
        raise InputError(f"{path}: its arrays differ in length: { {key: array.shape for key, array in data.items()} }")
    if "next_observations" not in data:
        # Row i + 1 holds row i's next observation, except where an episode ends: there it is lost, so the row is dropped.
        last = (data["terminals"].astype(bool) | data["timeouts"].astype(bool)).ravel()
        last[-1:] = True
        print(f"{path.name} has no next_observations: shifted the observations, dropped the last row of {last.sum()} episodes")
        data["next_observations"] = np.roll(data["observations"], -1, axis=0)
        data = {key: array[~last] for key, array in data.items()}
    return data


def open_minari(env_id: str):
    """A Minari dataset, e.g. mujoco/hopper/medium-v0, from the local cache or downloaded by the package minari."""
    try:
        import minari
    except ImportError as error:
        raise InputError(f"--env-id {env_id} is a Minari id: pip install 'minari[hdf5]' (hf for downloads)") from error
    try:
        return minari.load_dataset(env_id, download=env_id not in minari.list_local_datasets())
    except Exception as error:  # minari raises what its storage and network libraries raise
        raise InputError(f"Minari has no {env_id} ({error}); see: minari list remote".replace("\n", " ")) from error


def read_minari(env_id: str) -> dict[str, np.ndarray]:
    """The same arrays as read_hdf5, from a Minari dataset."""
    episodes = list(open_minari(env_id).iterate_episodes())
    if not all(isinstance(e.observations, np.ndarray) for e in episodes):
        raise InputError(f"{env_id}: only flat observations are supported")
    columns = {
        "observations": [e.observations[:-1] for e in episodes],
        "actions": [e.actions for e in episodes],
        "rewards": [e.rewards for e in episodes],
        "terminals": [e.terminations for e in episodes],
        "timeouts": [e.truncations for e in episodes],
        "next_observations": [e.observations[1:] for e in episodes],
    }
    return {key: np.concatenate(parts) for key, parts in columns.items()}


class Dataset(NamedTuple):
    rows: np.ndarray  # float32 [N, 2O + A + 2]: observation | action | reward | next observation | terminal
    obs_mean: np.ndarray  # float32 [O]; observations are stored as (observation - mean) / std
    obs_std: np.ndarray  # float32 [O]
    obs_dim: int
    action_dim: int


def load_dataset(env_id: str, dataset_path: str | None, env: gym.Env) -> Dataset:
    """Reads, checks and packs the log. States are normalised by mean and std + 1e-3 (the way of TD3+BC), actions are
    scaled to [-1, 1], rewards stay raw. Only terminals end the return: a timeout bootstraps. Raises InputError."""
    minari_id = dataset_path is None and env_id.count("/") == 2
    path = Path(env_id) if minari_id else find_dataset(env_id, dataset_path)
    data = read_minari(env_id) if minari_id else read_hdf5(path)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    n = len(data["observations"]) if data["observations"].ndim else 0
    if n < 20:
        raise InputError(f"{path} holds {n} transitions: too few to learn from")
    for key, array in data.items():
        width = {"observations": (obs_dim,), "next_observations": (obs_dim,), "actions": (action_dim,)}.get(key, ())
        if array.shape != (n, *width):
            raise InputError(f"{path}: {key} has shape {array.shape}, {env.spec.id} needs {(n, *width)}")
        if array.dtype.kind not in "fiub":
            raise InputError(f"{path}: {key} holds {array.dtype}, not numbers")
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False))
        if not finite.all():
            raise InputError(f"{path}: {key} holds NaN or infinity in row {np.argwhere(~finite)[0, 0]}")
    low, high = env.action_space.low, env.action_space.high
    if (data["actions"] < low - 1e-3).any() or (data["actions"] > high + 1e-3).any():
        raise InputError(f"{path}: actions reach outside {env.spec.id}'s bounds {low} to {high}")
    terminals, timeouts = data["terminals"].astype(bool), data["timeouts"].astype(bool)
    mismatch = (termination_rule(env)(data["next_observations"]) != terminals).mean()
    if mismatch > 0.05:
        raise InputError(f"{path}: {mismatch:.0%} of the terminals contradict {env.spec.id}'s rule: another environment's?")

    rows = np.empty((n, 2 * obs_dim + action_dim + 2), np.float32)
    observations, next_observations = rows[:, :obs_dim], rows[:, -obs_dim - 1 : -1]
    observations[:], next_observations[:] = data["observations"], data["next_observations"]
    obs_mean = observations.mean(0, dtype=np.float64).astype(np.float32)
    obs_std = observations.std(0, dtype=np.float64).astype(np.float32) + np.float32(1e-3)
    for part in (observations, next_observations):
        part -= obs_mean
        part /= obs_std
    rows[:, obs_dim : obs_dim + action_dim] = np.clip((data["actions"] - low) / (high - low) * 2 - 1, -1, 1)
    rows[:, obs_dim + action_dim], rows[:, -1] = data["rewards"], terminals

    last_rows = np.flatnonzero(terminals | timeouts)
    returns = np.diff(np.cumsum(data["rewards"], dtype=np.float64)[last_rows], prepend=0.0)
    saturated = (np.abs(rows[:, obs_dim : obs_dim + action_dim]) > 0.999).mean()
    print(f"Dataset {path}: {n:,} rows, {len(last_rows):,} finished episodes", end="")
    print(f", return mean {returns.mean():.1f}, best {returns.max():.1f}" if len(returns) else "", end="")
    print(f", {saturated:.1%} saturated actions; {mismatch:.2%} of terminals contradict the termination rule")
    return Dataset(rows, obs_mean, obs_std, obs_dim, action_dim)


class Evaluation(NamedTuple):
    returns: np.ndarray  # [episodes], undiscounted
    discounted_returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes], steps
    first_observations: np.ndarray  # [episodes, O], un-normalised


def evaluate(policy: Callable, envs: gym.vector.VectorEnv, seed: int | list[int], gamma: float) -> Evaluation:
    """Runs one episode in each environment; policy maps un-normalised observations [n, O] to actions in [-1, 1]^A."""
    low, high = envs.single_action_space.low, envs.single_action_space.high
    observations, _ = envs.reset(seed=seed)
    first_observations, running, step = observations.copy(), np.ones(envs.num_envs, bool), 0
    returns, discounted_returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs), np.zeros(envs.num_envs)
    while running.any():
        actions = low + (policy(observations) + 1) / 2 * (high - low)
        observations, rewards, terminations, truncations, _ = envs.step(actions)
        returns += running * rewards  # environments that ended have reset themselves: what follows does not count
        discounted_returns += running * gamma**step * rewards
        lengths += running
        running &= ~(terminations | truncations)
        step += 1
    return Evaluation(returns, discounted_returns, lengths, first_observations)


def make_video_env(args: Args) -> gym.Env:
    """An environment that renders; without a display MuJoCo does so through EGL. Raises InputError if it cannot."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        env = make_env(args.env_id, args.d4rl_physics, render_mode="rgb_array")
        env.reset()
        env.render()
    except Exception as error:  # whatever the OpenGL or pygame at hand raises
        raise InputError(f"--capture-video cannot render here ({error}): see MUJOCO_GL".replace("\n", " ")) from error
    return env


def record_video(args: Args, policy: Callable, folder: Path) -> None:
    """Records one evaluation episode."""
    env = gym.wrappers.RecordVideo(make_video_env(args), str(folder), disable_logger=True)
    envs = gym.vector.SyncVectorEnv([lambda: env])
    evaluate(policy, envs, args.seed, args.gamma)
    envs.close()


MAY_CHANGE_ON_RESUME = "resume total_iterations checkpoint_interval cuda track capture_video save_model num_seeds".split()


def parse_args(argv: list[str] | None = None) -> Args:
    """The command line, checked and complete: with --resume the saved arguments, else with k and lambda filled in."""
    args = tyro.cli(Args, args=argv)
    if args.resume is not None:
        try:
            saved = Args(**json.loads((Path(args.resume) / "args.json").read_text()))
            wrong = [k for k, v in vars(Args()).items() if v is not None and type(v) is not type(getattr(saved, k))]
            if wrong:
                raise ValueError(f"wrong type of {', '.join(wrong)}")
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"--resume {args.resume}: no usable args.json there ({error})") from error
        args = tyro.cli(Args, args=argv, default=saved)
        differ = [k for k, v in asdict(args).items() if k not in MAY_CHANGE_ON_RESUME and v != getattr(saved, k)]
        if differ:
            names = ", ".join(f"--{k.replace('_', '-')} {getattr(args, k)} (was {getattr(saved, k)})" for k in differ)
            raise InputError(f"--resume {args.resume} contradicts that run: {names}. Leave it out, or start a new run")
    if args.rollout_length is None or args.adv_weight is None:
        source = "the preprint's Table 3" if args.env_id in PAPER_HYPERPARAMETERS else "the preprint's most frequent choice"
        k, adv_weight = PAPER_HYPERPARAMETERS.get(args.env_id, (5, 3e-4))
        args.rollout_length = k if args.rollout_length is None else args.rollout_length
        args.adv_weight = adv_weight if args.adv_weight is None else args.adv_weight
        print(f"Taking k = {args.rollout_length}, lambda = {args.adv_weight:g} (defaults: {source})")
    positive = "updates_per_iteration batch_size policy_lr q_lr alpha rollout_length rollout_batch_size model_lr eval_interval"
    positive += " rollout_retain_iterations num_elites model_hidden_dim eval_episodes"
    not_negative = "seed total_iterations model_max_pretrain_epochs bc_epochs checkpoint_interval adv_weight"
    checks = [(0 < getattr(args, k) < math.inf, f"--{k.replace('_', '-')} must be positive") for k in positive.split()]
    checks += [(0 <= getattr(args, k) < math.inf, f"--{k.replace('_', '-')} must be 0 or more") for k in not_negative.split()]
    checks += [
        (args.seed < 2**32, "--seed must be below 2**32"),
        (0 < args.gamma < 1, "--gamma must lie between 0 and 1"),
        (0 < args.tau <= 1, "--tau must lie in (0, 1]"),
        (0 <= args.real_ratio <= 1, "--real-ratio must lie in [0, 1]"),
        (args.num_elites <= args.num_models, "--num-elites must not exceed --num-models"),
        (args.rollout_batch_size % max(args.num_elites, 1) == 0, "--rollout-batch-size must be a multiple of --num-elites"),
        (args.load_model is None or args.real_ratio < 1, "--load-model makes no sense with --real-ratio 1: no model is used"),
        (args.wandb_entity is None or args.track, "--wandb-entity makes no sense without --track"),
        (args.load_model is None or Path(args.load_model).is_file(), f"--load-model {args.load_model}: no such file"),
        (not args.track or find_spec("wandb"), "--track needs wandb: pip install wandb"),
        (not args.capture_video or find_spec("moviepy"), "--capture-video needs moviepy: pip install moviepy"),
    ]
    for fine, message in checks:
        if not fine:
            raise InputError(message)
    return args


def write_atomically(path: Path, write: Callable) -> None:
    """write(file) goes to a temporary file that replaces `path` only when complete: a crash leaves the previous one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Run:
    """The folder runs/{run_name}: args.json, evaluations.csv, metrics.csv, TensorBoard events, result.json."""

    def __init__(self, args: Args, folder: Path, first_iteration: int = 0):
        self.folder = folder
        try:
            self.folder.mkdir(parents=True, exist_ok=args.resume is not None)
            settings = json.dumps(asdict(replace(args, resume=None)), indent=2)
            write_atomically(self.folder / "args.json", lambda file: file.write(settings.encode()))
        except OSError as error:
            raise InputError(f"the run folder {self.folder} cannot be written: {error}") from error
        for name in ("evaluations.csv", "metrics.csv"):  # resuming: forget what came after the checkpoint
            rows = [row for row in self.read_csv(name) if int(row["iteration"]) < first_iteration]
            self.append_csv(f"{name}.{os.getpid()}", *rows)
            os.replace(self.folder / f"{name}.{os.getpid()}", self.folder / name)
        if args.track:
            import wandb

            where = dict(project=args.wandb_project_name, entity=args.wandb_entity, name=self.folder.name, id=self.folder.name)
            wandb.init(**where, config=vars(args), resume="allow", sync_tensorboard=True, save_code=True)
        self.writer = SummaryWriter(str(self.folder), purge_step=first_iteration if first_iteration else None)
        table = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
        self.writer.add_text("hyperparameters", "|param|value|\n|-|-|\n" + table)

    def read_csv(self, name: str) -> list[dict[str, str]]:
        if not (self.folder / name).exists():
            return []
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def append_csv(self, name: str, *rows: dict) -> None:
        with (self.folder / name).open("a", newline="") as file:
            for row in rows:
                writer = csv.DictWriter(file, list(row))
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        self.append_csv("metrics.csv", {"iteration": iteration, **metrics})
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, iteration)

    def log_evaluation(self, iteration: int, env_id: str, result: Evaluation, values: np.ndarray, seconds: float) -> float:
        """values [episodes] are the critic's at the first states. Returns the mean score: normalised where possible."""
        scores = normalized_score(env_id, result.returns)
        row = {
            "iteration": iteration,
            "normalized_score_mean": scores.mean(),
            "normalized_score_std": scores.std(),
            "episodic_return_mean": result.returns.mean(),
            "episodic_length_mean": result.lengths.mean(),
            "discounted_return_mean": result.discounted_returns.mean(),
            "value_gap": (values - result.discounted_returns).mean(),
            "seconds": round(seconds, 1),
            "episodic_returns": " ".join(f"{r:.3f}" for r in result.returns),
        }
        self.append_csv("evaluations.csv", row)
        for key, value in row.items():
            if key.endswith(("_mean", "_std", "_gap")) and not math.isnan(value):
                self.writer.add_scalar(f"charts/{key.removesuffix('_mean')}", value, iteration)
        return row["episodic_return_mean" if math.isnan(row["normalized_score_mean"]) else "normalized_score_mean"]

    def finish(self, status: str = "finished") -> None:
        """Writes result.json and prints the score of the last iteration and the mean of the last 10 evaluations."""
        rows = self.read_csv("evaluations.csv")
        is_normalized = bool(rows) and rows[-1]["normalized_score_mean"] != "nan"
        score = "normalized_score_mean" if is_normalized else "episodic_return_mean"
        scores = [float(row[score]) for row in rows]
        result = {"status": status, "score": score, "iteration": int(rows[-1]["iteration"]) if rows else None}
        result |= {"last": scores[-1] if rows else None, "mean_of_last_10": float(np.mean(scores[-10:])) if rows else None}
        write_atomically(self.folder / "result.json", lambda file: file.write(json.dumps(result, indent=2).encode()))
        self.writer.close()
        if status == "finished" and rows:
            kind = "normalised score" if is_normalized else "return"
            episodes = len(rows[-1]["episodic_returns"].split())
            print(f"Iteration {result['iteration']}: {kind} {result['last']:.1f} (mean of {episodes} episodes)")
            print(f"Mean of the last {len(scores[-10:])} evaluations: {kind} {result['mean_of_last_10']:.1f}")
        print(f"Run folder: {self.folder}")


# --- end shared -------------------------------------------------------------------------------------------------------


# ALGO LOGIC: initialize agent and model here:
class Batch(NamedTuple):
    observations: jax.Array  # [..., O], normalised
    actions: jax.Array  # [..., A], in [-1, 1]
    rewards: jax.Array  # [...]
    next_observations: jax.Array  # [..., O], normalised
    terminals: jax.Array  # [...], 0 or 1; a timeout is no terminal


def split_rows(rows: jax.Array, obs_dim: int, action_dim: int) -> Batch:
    """Rows [..., 2O + A + 2] of the dataset or the model buffer, taken apart."""
    parts = jnp.split(rows, np.cumsum([obs_dim, action_dim, 1, obs_dim]), -1)
    return Batch(parts[0], parts[1], parts[2].squeeze(-1), parts[3], parts[4].squeeze(-1))


def sample_rows(key: jax.Array, rows: jax.Array, shape: tuple[int, ...], num_rows: int | jax.Array | None = None) -> jax.Array:
    """Rows drawn uniformly with replacement from the first num_rows: [N, W] -> [*shape, W]."""
    return rows[jax.random.randint(key, shape, 0, len(rows) if num_rows is None else num_rows)]


def uniform_param(rngs: nnx.Rngs, fan_in: int, *shape: int) -> nnx.Param:
    bound = 1 / math.sqrt(fan_in)  # torch's initialisation of a linear layer, weight and bias
    return nnx.Param(jax.random.uniform(rngs(), shape, minval=-bound, maxval=bound))


class Linear(nnx.Module):
    """y = W x + b with the layout of torch's nn.Linear, so that both scripts read each other's policies."""

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs):
        self.weight = uniform_param(rngs, fan_in, fan_out, fan_in)
        self.bias = uniform_param(rngs, fan_in, fan_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight.T + self.bias


class BatchedLinear(nnx.Module):
    """n linear layers side by side, one batched product: [n, B, in] -> [n, B, out]. Initialised like Linear."""

    def __init__(self, n: int, fan_in: int, fan_out: int, rngs: nnx.Rngs):
        self.weight = uniform_param(rngs, fan_in, n, fan_in, fan_out)
        self.bias = uniform_param(rngs, fan_in, n, 1, fan_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight + self.bias


class Critic(nnx.Module):
    """Two Q-functions: observations [B, O], actions [B, A] -> [2, B]."""

    def __init__(self, obs_dim: int, action_dim: int, rngs: nnx.Rngs, hidden_dim: int = 256):
        self.fc1 = BatchedLinear(2, obs_dim + action_dim, hidden_dim, rngs)
        self.fc2 = BatchedLinear(2, hidden_dim, hidden_dim, rngs)
        self.fc3 = BatchedLinear(2, hidden_dim, 1, rngs)

    def __call__(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        x = jnp.concatenate([observations, actions], -1)
        x = jnp.broadcast_to(x, (2, *x.shape))
        return self.fc3(nnx.relu(self.fc2(nnx.relu(self.fc1(x))))).squeeze(-1)


LOG_STD_MIN, LOG_STD_MAX = -20, 2


class Actor(nnx.Module):
    """Squashed Gaussian policy: observations [..., O] -> mean and log std [..., A] before the tanh."""

    def __init__(self, obs_dim: int, action_dim: int, rngs: nnx.Rngs, hidden_dim: int = 256):
        self.fc1 = Linear(obs_dim, hidden_dim, rngs)
        self.fc2 = Linear(hidden_dim, hidden_dim, rngs)
        self.fc3 = Linear(hidden_dim, 2 * action_dim, rngs)

    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = jnp.split(self.fc3(nnx.relu(self.fc2(nnx.relu(self.fc1(observations))))), 2, -1)
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)

    def mode(self, observations: jax.Array) -> jax.Array:
        return jnp.tanh(self(observations)[0])


def squashed_log_prob(mean: jax.Array, log_std: jax.Array, pre_tanh: jax.Array) -> jax.Array:
    """log pi(tanh(pre_tanh)), [...]. log(1 - tanh(u)^2) in the softplus form: exact, no epsilon, no atanh."""
    log_prob = -0.5 * ((pre_tanh - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return (log_prob - 2 * (math.log(2) - pre_tanh - nnx.softplus(-2 * pre_tanh))).sum(-1)


def sample_action(actor: Actor, observations: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reparameterised actions [..., A] and their log pi [...] from standard normal noise [..., A]."""
    mean, log_std = actor(observations)
    pre_tanh = mean + jnp.exp(log_std) * noise
    return jnp.tanh(pre_tanh), squashed_log_prob(mean, log_std, pre_tanh)


class Agent(NamedTuple):
    actor: Actor
    critic: Critic
    target_critic: Critic
    log_alpha: jax.Array


def init_agent(key: jax.Array, obs_dim: int, action_dim: int, alpha: float) -> Agent:
    rngs = nnx.Rngs(key)
    actor, critic = Actor(obs_dim, action_dim, rngs), Critic(obs_dim, action_dim, rngs)
    return Agent(actor, critic, jax.tree.map(jnp.copy, critic), jnp.log(jnp.float32(alpha)))


DECAYS = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # weight decay of the five layers (the authors' code)


class Dynamics(nnx.Module):
    """Ensemble of E Gaussian models of [next-state delta, reward], D = O + 1, in normalised-state space.

    observations [E, B, O], actions [E, B, A] -> mean, log-variance [E, B, D]; member e sees row e.
    """

    def __init__(self, num_models: int, obs_dim: int, action_dim: int, hidden_dim: int, rngs: nnx.Rngs):
        widths = [obs_dim + action_dim, *[hidden_dim] * 4, 2 * (obs_dim + 1)]
        self.layers = nnx.List([BatchedLinear(num_models, *pair, rngs) for pair in zip(widths, widths[1:], strict=False)])
        for layer, fan_in in zip(self.layers, widths, strict=False):
            std = 1 / (2 * math.sqrt(fan_in))  # of the normal distribution that is cut off at two of it
            layer.weight = nnx.Param(std * jax.random.truncated_normal(rngs(), -2, 2, layer.weight.shape))
            layer.bias = nnx.Param(jnp.zeros(layer.bias.shape))
        self.max_log_var = nnx.Param(jnp.full(obs_dim + 1, 1.0))
        self.min_log_var = nnx.Param(jnp.full(obs_dim + 1, -6.0))
        self.input_mean = nnx.Variable(jnp.zeros(obs_dim + action_dim))  # not learnt: no gradient reaches them
        self.input_std = nnx.Variable(jnp.ones(obs_dim + action_dim))

    def __call__(self, observations: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        input_mean, input_std = jax.lax.stop_gradient((self.input_mean[...], self.input_std[...]))
        x = (jnp.concatenate([observations, actions], -1) - input_mean) / input_std
        for layer in self.layers[:-1]:
            x = nnx.silu(layer(x))
        mean, log_var = jnp.split(self.layers[-1](x), 2, -1)
        log_var = self.max_log_var - nnx.softplus(self.max_log_var - log_var)
        return mean, self.min_log_var + nnx.softplus(log_var - self.min_log_var)

    def keep(self, members: jax.Array) -> "Dynamics":
        """The ensemble of these members alone; the log-variance bounds are shared by all members."""
        self.layers = jax.tree.map(lambda x: x[members], self.layers)
        return self


# Model learning
class Data(NamedTuple):
    rows: jax.Array  # [N, 2O + A + 2], the dataset, shared by all seeds
    train: jax.Array  # [N - H], the indices of the rows that the model learns from
    holdout: Batch  # [H, ...], the others

    def batch(self, indices: jax.Array) -> Batch:
        return split_rows(self.rows[indices], self.holdout.observations.shape[-1], self.holdout.actions.shape[-1])


DATA_AXES = Data(rows=None, train=0, holdout=0)  # for vmap over seeds: all else has a leading axis [S]


def model_targets(batch: Batch) -> jax.Array:
    """[next-state delta, reward], [..., D]."""
    return jnp.concatenate([batch.next_observations - batch.observations, batch.rewards[..., None]], -1)


def supervised_loss(dynamics: Dynamics, mean: jax.Array, log_var: jax.Array, targets: jax.Array) -> jax.Array:
    """Gaussian negative log-likelihood of targets [E, B, D], the maximum likelihood term of Eq. 6.

    Mean over B and D, sum over members: lambda is tuned to these reductions. Weight decay is part of the loss.
    """
    nll = ((mean - targets) ** 2 * jnp.exp(-log_var) + log_var).mean((1, 2)).sum()
    bounds = 1e-3 * (dynamics.max_log_var.sum() - dynamics.min_log_var.sum())
    decay = sum(0.5 * c * (layer.weight**2).sum() for c, layer in zip(DECAYS, dynamics.layers, strict=True))
    return nll + bounds + decay


def holdout_errors(dynamics: Dynamics, holdout: Batch) -> jax.Array:
    """Mean squared error of each member's mean on the hold-out rows, [E]."""
    num_members = len(dynamics.layers[0].weight)
    mean, _ = dynamics(*(jnp.broadcast_to(x, (num_members, *x.shape)) for x in (holdout.observations, holdout.actions)))
    return ((mean - model_targets(holdout)) ** 2).mean((1, 2))


def adam_init(params) -> optax.OptState:
    return optax.adam(0).init(params)  # the state knows no learning rate


def adam_step(params, state: optax.OptState, gradients, learning_rate: float) -> tuple:
    """One step of Adam on a pytree of parameters: the new parameters and the optimiser's new state."""
    updates, state = optax.adam(learning_rate).update(gradients, state)
    return optax.apply_updates(params, updates), state


def scan_batches(update: Callable, carry: tuple, order: jax.Array, batch_size: int) -> tuple:
    """carry = update(carry, indices [..., B]) over all rows of order [..., N]; the last batch may be smaller."""
    whole = order.shape[-1] // batch_size * batch_size
    batches = jnp.moveaxis(order[..., :whole].reshape(*order.shape[:-1], -1, batch_size), -2, 0)
    carry, _ = jax.lax.scan(lambda carry, indices: (update(carry, indices), None), carry, batches)
    return update(carry, order[..., whole:]) if whole < order.shape[-1] else carry


def pretrain_dynamics(dynamics: Dynamics, keys: jax.Array, data: Data, args: Args) -> tuple[Dynamics, jax.Array]:
    """Maximum likelihood, each member on its own bootstrap sample; early stopping and best weights per member.

    For all seeds [S, ...] at once; one that has stopped waits for the others. Returns the ensembles with these weights
    restored and the members' best hold-out errors [S, E]. Raises Diverged.
    """

    def start(dynamics: Dynamics, key: jax.Array, data: Data) -> tuple:
        inputs = data.rows[data.train, : len(dynamics.input_mean)]
        dynamics.input_mean = nnx.Variable(inputs.mean(0))
        dynamics.input_std = nnx.Variable(jnp.maximum(inputs.std(0, ddof=1), 1e-6))
        best = holdout_errors(dynamics, data.holdout), dynamics.layers
        return (dynamics, adam_init(dynamics), best, 0), sample_rows(key, data.train, (args.num_models, len(data.train)))

    def loss(dynamics: Dynamics, batch: Batch) -> jax.Array:
        return supervised_loss(dynamics, *dynamics(batch.observations, batch.actions), model_targets(batch))

    def epoch(state: tuple, bootstrap: jax.Array, key: jax.Array, data: Data) -> tuple[tuple, jax.Array]:
        def update(carry: tuple, indices: jax.Array) -> tuple:
            return adam_step(*carry, jax.grad(loss)(carry[0], data.batch(indices)), args.model_lr)

        dynamics, optimizer, best, epochs_since_improvement = state
        _, order = jax.lax.sort((jax.random.bits(key, bootstrap.shape), bootstrap), num_keys=1)  # reshuffled for each member
        dynamics, optimizer = scan_batches(update, (dynamics, optimizer), order, args.batch_size)
        errors = holdout_errors(dynamics, data.holdout)
        improved = (best[0] - errors) / best[0] > 0.01
        choose = jax.vmap(lambda improved, new, best: jax.tree.map(partial(jnp.where, improved), new, best))  # for each member
        best = choose(improved, (errors, dynamics.layers), best)
        new_state = dynamics, optimizer, best, jnp.where(improved.any(), 0, epochs_since_improvement + 1)
        return jax.tree.map(partial(jnp.where, epochs_since_improvement > 10), state, new_state), errors

    state, bootstrap = jax.jit(jax.vmap(start, (0, 0, DATA_AXES)))(dynamics, fold_in(keys, 0), data)
    epoch = compile_ahead(jax.vmap(epoch, (0, 0, 0, DATA_AXES)), args, state, bootstrap, keys, data)
    bar = tqdm(range(args.model_max_pretrain_epochs), desc="Pretraining the model", unit="epoch", dynamic_ncols=True)
    for i in bar:
        state, errors = epoch(state, bootstrap, fold_in(keys, i + 1), data)
        (best_errors, _), epochs_since_improvement = state[2:]
        if not jnp.isfinite(errors).all():
            raise Diverged("the dynamics model's pretraining diverged (try a smaller --model-lr)")
        elites, patience = sorted(best_errors[0].argsort()[: args.num_elites].tolist()), epochs_since_improvement.min()
        bar.set_postfix(holdout_mse=f"{best_errors.mean():.4f}", elites=elites, patience=f"{patience}/10")
        if patience > 10:
            break
    bar.close()
    dynamics, _, (best_errors, dynamics.layers), _ = state
    return dynamics, best_errors


def rollout_models(
    agent: Agent, dynamics: Dynamics, rows: jax.Array, buffer: jax.Array, key: jax.Array, iteration: jax.Array,
    terminated: Callable, args: Args,
) -> tuple[jax.Array, jax.Array]:
    """k-step rollouts of the stochastic policy from dataset states, written over the oldest rows of the ring buffer.

    Each rollout is simulated by one elite: start states are i.i.d., so every elite takes a fixed share of the rows.
    A rollout that terminates goes on from a fresh dataset state, so that shapes stay static and every row is valid.
    Returns the buffer and the metrics of ROLLOUT_METRICS.
    """
    num_elites, obs_dim = len(dynamics.layers[0].weight), dynamics.max_log_var.shape[0] - 1
    shape = (num_elites, args.rollout_batch_size // num_elites)

    def rollout_step(carry: tuple, step: jax.Array) -> tuple:
        buffer, observations = carry
        action_key, sample_key, restart_key = jax.random.split(jax.random.fold_in(key, step), 3)
        noise = jax.random.normal(action_key, (*shape, rows.shape[1] - 2 * obs_dim - 2))
        actions, _ = sample_action(agent.actor, observations, noise)
        mean, log_var = dynamics(observations, actions)
        sample = mean + jnp.exp(0.5 * log_var) * jax.random.normal(sample_key, mean.shape)
        next_observations, rewards = observations + sample[..., :-1], sample[..., -1:]
        terminals = terminated(next_observations)[..., None]
        new_rows = jnp.concatenate([observations, actions, rewards, next_observations, terminals.astype(float)], -1)
        start = (iteration % args.rollout_retain_iterations * args.rollout_length + step) * args.rollout_batch_size
        buffer = jax.lax.dynamic_update_slice(buffer, new_rows.reshape(-1, rows.shape[1]), (start, 0))
        metrics = jnp.stack([rewards.mean(), terminals.mean(), jnp.abs(next_observations).max()])
        observations = jnp.where(terminals, sample_rows(restart_key, rows, shape)[..., :obs_dim], next_observations)
        return (buffer, observations), metrics

    carry = buffer, sample_rows(jax.random.fold_in(key, args.rollout_length), rows, shape)[..., :obs_dim]
    (buffer, _), metrics = jax.lax.scan(rollout_step, carry, jnp.arange(args.rollout_length))
    return buffer, metrics


# SAC
def critic_loss(critic: Critic, agent: Agent, batch: Batch, noise: jax.Array, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Sum of both critics' mean squared Bellman errors, and their values [2, B]. noise [B, A] draws the next actions."""
    next_actions, next_log_probs = sample_action(agent.actor, batch.next_observations, noise)
    next_values = agent.target_critic(batch.next_observations, next_actions).min(0)
    next_values = next_values - jnp.exp(agent.log_alpha) * next_log_probs
    targets = batch.rewards + gamma * (1 - batch.terminals) * next_values
    values = critic(batch.observations, batch.actions)
    return ((values - targets) ** 2).mean(1).sum(), values


def actor_loss(actor: Actor, agent: Agent, observations: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mean(alpha log pi - min_i Q_i) and log pi [B]. noise [B, A] draws the actions."""
    actions, log_probs = sample_action(actor, observations, noise)
    values = agent.critic(observations, actions).min(0)
    return (jnp.exp(agent.log_alpha) * log_probs - values).mean(), log_probs


# Metrics stay on the device until the iteration ends; then an iteration reports their mean, or the largest of max_...
AGENT_METRICS = ("qf_loss", "qf_values", "max_abs_qf_value", "actor_loss", "alpha_loss", "alpha", "entropy")
ROLLOUT_METRICS = ("reward", "termination_rate", "max_abs_state")
MODEL_METRICS = ("supervised_loss", "adversarial_loss", "advantage_mean", "advantage_std", "log_prob", "grad_norm")


def named(group: str, names: tuple[str, ...], history: jax.Array) -> dict[str, jax.Array]:
    """The metrics of one iteration from the history [updates, names] of its updates."""
    columns = zip(names, history.mean(0), history.max(0), strict=True)
    return {f"{group}/{name}": largest if name.startswith("max_") else mean for name, mean, largest in columns}


class Optimizers(NamedTuple):
    actor: optax.OptState
    critic: optax.OptState
    alpha: optax.OptState
    model: optax.OptState


def agent_update(agent: Agent, optimizers: Optimizers, batch: Batch, key: jax.Array, args: Args) -> tuple:
    """One SAC step: critics, actor, temperature, target critics. Returns (agent, optimisers) and AGENT_METRICS."""
    noise = jax.random.normal(key, (2, *batch.actions.shape))
    value_and_grad = partial(jax.value_and_grad, has_aux=True)
    (qf_loss, values), gradients = value_and_grad(critic_loss)(agent.critic, agent, batch, noise[0], args.gamma)
    critic, critic_optimizer = adam_step(agent.critic, optimizers.critic, gradients, args.q_lr)
    agent = agent._replace(critic=critic)

    (policy_loss, log_probs), gradients = value_and_grad(actor_loss)(agent.actor, agent, batch.observations, noise[1])
    actor, actor_optimizer = adam_step(agent.actor, optimizers.actor, gradients, args.policy_lr)

    target_entropy, log_alpha, alpha_optimizer = -batch.actions.shape[-1], agent.log_alpha, optimizers.alpha
    alpha_loss, gradient = jax.value_and_grad(lambda log_alpha: -(log_alpha * (log_probs + target_entropy)).mean())(log_alpha)
    if args.autotune:
        log_alpha, alpha_optimizer = adam_step(log_alpha, alpha_optimizer, gradient, args.policy_lr)

    target_critic = jax.tree.map(lambda target, new: target + args.tau * (new - target), agent.target_critic, critic)
    metrics = [qf_loss, values.mean(), jnp.abs(values).max(), policy_loss, alpha_loss, jnp.exp(agent.log_alpha)]
    metrics = jnp.stack([*metrics, -log_probs.mean()])
    optimizers = Optimizers(actor_optimizer, critic_optimizer, alpha_optimizer, optimizers.model)
    return (Agent(actor, critic, target_critic, log_alpha), optimizers), metrics


def clone_behaviour(actor: Actor, keys: jax.Array, data: Data, args: Args) -> Actor:
    """Warm-starts the policies by maximum likelihood on the log, reshuffled every epoch (--bc-epochs). Raises Diverged."""

    def update(data: Data, carry: tuple, indices: jax.Array) -> tuple:
        batch = data.batch(indices)
        pre_tanh = jnp.arctanh(jnp.clip(batch.actions, -0.999, 0.999))  # an action at +-1 has no finite log pi
        nll = lambda actor: -squashed_log_prob(*actor(batch.observations), pre_tanh).mean()  # noqa: E731
        loss, gradients = jax.value_and_grad(nll)(carry[0])
        return *adam_step(*carry[:2], gradients, args.policy_lr), loss

    def epoch(carry: tuple, key: jax.Array, data: Data) -> tuple:
        return scan_batches(partial(update, data), carry, jax.random.permutation(key, len(data.rows)), args.batch_size)

    epoch = jax.jit(jax.vmap(epoch, (0, 0, DATA_AXES)))
    carry = actor, jax.vmap(adam_init)(actor), jnp.zeros(len(keys))
    for i in tqdm(range(args.bc_epochs), desc="Behaviour cloning", unit="epoch", dynamic_ncols=True):
        carry = epoch(carry, fold_in(keys, i), data)
        if not jnp.isfinite(carry[2]).all():
            raise Diverged("behaviour cloning diverged (try a smaller --policy-lr)")
    return carry[0]


# RAMBO: the adversarial model update
def mixture_log_prob(mean: jax.Array, log_var: jax.Array, sample: jax.Array) -> jax.Array:
    """log of the elites' average density at sample [B, D], for means and log-variances [E, B, D]. Returns [B]."""
    log_probs = -0.5 * ((sample - mean) ** 2 * jnp.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)
    return jax.nn.logsumexp(log_probs, 0) - math.log(len(mean))  # not log(exp): densities under- and overflow float32


def advantages(agent: Agent, batch: Batch, gamma: float) -> jax.Array:
    """r + gamma V(s') - Q(s, a) of Eq. 5, [B], un-normalised: is this transition better than the critic expects?"""
    next_values = agent.critic(batch.next_observations, agent.actor.mode(batch.next_observations)).min(0)
    values = agent.critic(batch.observations, batch.actions).min(0)
    return batch.rewards + gamma * (1 - batch.terminals) * next_values - values


def adversarial_loss(log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """Its gradient is the sampled Eq. 5: that of the policy's value in the model with respect to the model.

    Minimising it LOWERS the probability of transitions that are better than expected. Gradients flow only through the
    log-probability [B]; the sample it was taken at and the advantage [B] are constants.
    """
    normalized = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    return (jax.lax.stop_gradient(normalized) * log_prob).mean()


def adversarial_update(
    agent: Agent, dynamics: Dynamics, optimizer: optax.OptState, observations: jax.Array, restarts: jax.Array,
    real: Batch, key: jax.Array, terminated: Callable, args: Args,
) -> tuple:
    """One step of Eq. 7 on one step of the policy's rollout in the model, and on dataset rows of each member's own.

    observations [B, O]: where the rollouts are; restarts [B, O]: dataset states for rollouts that terminate; real
    [E, B, ...]. Returns (the model, its optimiser, the next observations [B, O]) and MODEL_METRICS.
    """
    num_elites, batch_size = len(dynamics.layers[0].weight), len(observations)
    action_key, elite_key, sample_key = jax.random.split(key, 3)
    noise = jax.random.normal(action_key, (batch_size, real.actions.shape[-1]))
    actions, _ = sample_action(agent.actor, observations, noise)
    imagined_inputs = (jnp.broadcast_to(x, (num_elites, *x.shape)) for x in (observations, actions))
    inputs = [jnp.concatenate(pair, 1) for pair in zip(imagined_inputs, (real.observations, real.actions), strict=True)]

    def loss_and_rollout(dynamics: Dynamics) -> tuple:
        (mean, real_mean), (log_var, real_log_var) = (jnp.split(x, [batch_size], 1) for x in dynamics(*inputs))

        # (s', r) comes from a random elite for each row and step, a constant
        elites = jax.random.randint(elite_key, (1, batch_size, 1), 0, num_elites)
        sample_mean, sample_log_var = (jnp.take_along_axis(x, elites, 0)[0] for x in jax.lax.stop_gradient((mean, log_var)))
        sample = sample_mean + jnp.exp(0.5 * sample_log_var) * jax.random.normal(sample_key, sample_mean.shape)
        next_observations = observations + sample[:, :-1]
        terminals = terminated(next_observations)
        imagined = Batch(observations, actions, sample[:, -1], next_observations, terminals.astype(float))
        advantage = advantages(agent, imagined, args.gamma)
        log_prob = mixture_log_prob(mean, log_var, sample)
        model_value = adversarial_loss(log_prob, advantage)
        nll = supervised_loss(dynamics, real_mean, real_log_var, model_targets(real))
        metrics = [nll, model_value, advantage.mean(), advantage.std(), log_prob.mean()]
        next_observations = jnp.where(terminals[:, None], restarts, next_observations)
        return nll + args.adv_weight * model_value, (next_observations, metrics)  # Eq. 6

    gradients, (next_observations, metrics) = jax.grad(loss_and_rollout, has_aux=True)(dynamics)
    dynamics, optimizer = adam_step(dynamics, optimizer, gradients, args.model_lr)
    return (dynamics, optimizer, next_observations), jnp.stack([*metrics, optax.tree.norm(gradients)])


# An iteration of Algorithm 1 is one call on the device
class TrainState(NamedTuple):
    agent: Agent
    dynamics: Dynamics
    optimizers: Optimizers
    buffer: jax.Array  # [ring, 2O + A + 2], the rollouts of the last iterations
    key: jax.Array


def train_iteration(
    state: TrainState, data: Data, iteration: jax.Array, terminated: Callable, args: Args
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Rollouts, agent updates, adversarial model updates; iterations count from 1. Returns the state and the metrics."""
    agent, dynamics, optimizers, buffer, key = state
    obs_dim, action_dim = data.holdout.observations.shape[-1], data.holdout.actions.shape[-1]
    key, rollout_key, agent_key, model_key = jax.random.split(key, 4)
    metrics, use_model, num_real = {}, args.real_ratio < 1, round(args.real_ratio * args.batch_size)

    # Generate synthetic k-step rollouts with pi in the model, from states of the dataset
    if use_model:
        buffer, history = rollout_models(agent, dynamics, data.rows, buffer, rollout_key, iteration - 1, terminated, args)
        metrics |= named("rollout", ROLLOUT_METRICS, history)
    model_rows = jnp.minimum(iteration, args.rollout_retain_iterations) * args.rollout_length * args.rollout_batch_size

    # Agent update: SAC on dataset and model rows
    def agent_step(carry: tuple, step: jax.Array) -> tuple:
        real_key, model_key, update_key = jax.random.split(jax.random.fold_in(agent_key, step), 3)
        batch = [sample_rows(real_key, data.rows, (num_real,))]
        if num_real < args.batch_size:
            batch.append(sample_rows(model_key, buffer, (args.batch_size - num_real,), model_rows))
        return agent_update(*carry, split_rows(jnp.concatenate(batch), obs_dim, action_dim), update_key, args)

    steps = jnp.arange(args.updates_per_iteration)
    (agent, optimizers), history = jax.lax.scan(agent_step, (agent, optimizers), steps)
    metrics |= named("losses", AGENT_METRICS, history)

    # Adversarial model update; lambda = 0 leaves the maximum likelihood model as it is
    def model_step(carry: tuple, step: jax.Array) -> tuple:
        dynamics, optimizer, observations = carry
        restart_key, real_key, update_key = jax.random.split(jax.random.fold_in(model_key, step), 3)
        restarts = sample_rows(restart_key, data.rows, (args.batch_size,))[:, :obs_dim]
        observations = jnp.where(step % args.rollout_length == 0, restarts, observations)
        real = data.batch(sample_rows(real_key, data.train, (args.num_elites, args.batch_size)))
        return adversarial_update(agent, dynamics, optimizer, observations, restarts, real, update_key, terminated, args)

    if use_model and args.adv_weight > 0:
        carry = dynamics, optimizers.model, jnp.zeros((args.batch_size, obs_dim))
        (dynamics, model_optimizer, _), history = jax.lax.scan(model_step, carry, steps)
        optimizers = optimizers._replace(model=model_optimizer)
        metrics |= named("model", MODEL_METRICS, history)
    if use_model:
        metrics["model/holdout_mse"] = holdout_errors(dynamics, data.holdout).mean()
    return TrainState(agent, dynamics, optimizers, buffer, key), metrics


# Several seeds: every tree has a leading axis [S]
fold_in = jax.vmap(jax.random.fold_in, (0, None))


def take(tree, i: int | slice):
    """Seed i of a tree [S, ...]."""
    return jax.tree.map(lambda x: x[i], tree)


def stack(trees: Sequence):
    """The tree [S, ...] of the seeds' trees."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def compile_ahead(function: Callable, args: Args, *examples) -> Callable:
    """The function compiled for arguments like these examples, of which it takes over the first one's memory."""
    options = {"xla_gpu_deterministic_ops": args.torch_deterministic}
    return jax.jit(function, donate_argnums=0).lower(*examples).compile(compiler_options=options)


def name_of(path: tuple) -> str:
    """The name that torch gives to the array there, such as fc1.weight."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def save_arrays(path: Path, tree, **more) -> None:
    """The tree's arrays, named as in torch, and `more` as a plain .npz: no pickle, both scripts read and write these."""
    arrays = {name_of(key): np.asarray(array) for key, array in jax.tree.leaves_with_path(tree)}
    write_atomically(path, lambda file: np.savez(file, **arrays, **more))


def load_arrays(path: Path, tree) -> tuple:
    """The tree with the arrays of save_arrays' file, and what else the file holds. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        for key, old in jax.tree.leaves_with_path(tree):
            if (new := arrays[name_of(key)]).shape != old.shape:
                raise ValueError(f"{name_of(key)} has shape {new.shape}, not {old.shape}")
        tree = jax.tree.map_with_path(lambda key, old: jnp.asarray(arrays.pop(name_of(key)), old.dtype), tree)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} does not hold what this run needs: {error}".replace("\n", " ")) from error
    return tree, arrays


def main(args: Args) -> None:
    start_time = time.time()
    if args.num_seeds < 1 or (args.track and args.num_seeds > 1):
        raise InputError("--num-seeds must be positive, and 1 with --track")
    if not args.cuda:
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "float32")  # as in torch; a GPU would round to TF32
    seeds = [args.seed + i for i in range(args.num_seeds)]

    if args.capture_video:
        make_video_env(args).close()  # better to fail now than after training

    # Data: everything that is learnt from lives on the device, in normalised-state space
    env = make_env(args.env_id, args.d4rl_physics)
    dataset = load_dataset(args.env_id, args.dataset_path, env)
    obs_dim, action_dim, num_rows = dataset.obs_dim, dataset.action_dim, len(dataset.rows)
    rule = termination_rule(env)

    def normalize(observations: jax.Array) -> jax.Array:
        return (observations - dataset.obs_mean) / dataset.obs_std

    def terminated(observations: jax.Array) -> jax.Array:
        return rule(observations * dataset.obs_std + dataset.obs_mean)

    # Agents and models, one of each for every seed
    use_model = args.real_ratio < 1
    pretrains = use_model and args.resume is None and args.load_model is None

    def init(key: jax.Array) -> tuple[Agent, Dynamics]:
        agent_key, model_key = jax.random.split(key)
        num_models = args.num_models if pretrains else args.num_elites
        dynamics = Dynamics(num_models, obs_dim, action_dim, args.model_hidden_dim, nnx.Rngs(model_key))
        return init_agent(agent_key, obs_dim, action_dim, args.alpha), dynamics

    keys = jnp.stack([jax.random.split(jax.random.PRNGKey(seed), 4) for seed in seeds])
    agent, dynamics = jax.jit(jax.vmap(init))(keys[:, 0])
    split_seeds = seeds
    if args.load_model is not None:
        loaded, more = load_arrays(Path(args.load_model), take(dynamics, 0))
        if not np.array_equal(more["obs_mean"], dataset.obs_mean):
            raise InputError(f"--load-model {args.load_model} was trained on another dataset")
        dynamics = stack([loaded] * len(seeds))
        split_seeds = [int(more["split_seed"])] * len(seeds)  # its hold-out rows stay hold-out rows
    orders = np.stack([np.random.default_rng(split_seed).permutation(num_rows) for split_seed in split_seeds])
    holdout, train = np.split(orders.astype(np.int32), [min(1000, num_rows // 10)], 1)
    rows = jnp.asarray(dataset.rows)
    data = Data(rows, jnp.asarray(train), split_rows(rows[holdout], obs_dim, action_dim))
    ring_size = args.rollout_retain_iterations * args.rollout_length * args.rollout_batch_size

    def make_state() -> TrainState:
        optimizers = Optimizers(*map(jax.vmap(adam_init), (agent.actor, agent.critic, agent.log_alpha, dynamics)))
        buffer = jnp.zeros((len(seeds), ring_size if use_model else 0, rows.shape[1]))
        return TrainState(agent, dynamics, optimizers, buffer, keys[:, 3])

    # A run starts here, or goes on from a checkpoint; every seed has the run folder of its single run
    fingerprint = f"{num_rows} rows, mean {dataset.obs_mean.tolist()}"
    first_iteration = 1
    all_args = [replace(args, seed=seed, num_seeds=1) for seed in seeds]
    if args.resume is None:
        name, now = f"{args.env_id.replace('/', '-')}__{args.exp_name}", int(time.time())
        runs = [Run(a, Path("runs") / f"{name}__{a.seed}__{now}") for a in all_args]
        try:
            if pretrains:
                dynamics, errors = pretrain_dynamics(dynamics, keys[:, 1], data, args)
                elites = jnp.sort(errors.argsort(1)[:, : args.num_elites])
                for mse, members in zip(errors.tolist(), elites.tolist(), strict=True):
                    print(f"Hold-out MSE: {' '.join(f'{e:.5f}' for e in mse)}; elites: {members}")
                dynamics = jax.vmap(Dynamics.keep)(dynamics, elites)
            agent = agent._replace(actor=clone_behaviour(agent.actor, keys[:, 2], data, args))
        except Diverged:
            for run in runs:
                run.finish("diverged")
            raise
        state = make_state()  # the model's Adam starts afresh after pretraining
    else:
        first, template = Path(args.resume).resolve(), take(make_state(), 0)
        folders = [first.with_name(re.sub(r"__\d+__(\d+)$", rf"__{seed}__\1", first.name)) for seed in seeds]
        states, more = zip(*(load_arrays(folder / "checkpoint.npz", template) for folder in folders), strict=True)
        for folder, rest in zip(folders, more, strict=True):
            if rest["fingerprint"] != fingerprint or rest["run_name"] != folder.name:
                raise InputError(f"--resume {folder}: its checkpoint belongs to another run or dataset")
            if rest["iteration"] != more[0]["iteration"]:
                raise InputError(f"--resume {folder}: at another iteration than the first seed's, resume it by itself")
        state = stack(states)
        first_iteration, start_time = int(more[0]["iteration"]) + 1, time.time() - float(more[0]["seconds"])
        runs = [Run(a, folder, first_iteration) for a, folder in zip(all_args, folders, strict=True)]
    running = list(range(len(seeds)))  # the seeds that have not diverged

    def save_models(name: str) -> None:
        for i in running:
            more = dict(obs_mean=dataset.obs_mean, obs_std=dataset.obs_std, split_seed=split_seeds[i], env_id=args.env_id)
            if use_model:
                save_arrays(runs[i].folder / f"dynamics{name}.npz", take(state.dynamics, i), **more)
            if not name:
                save_arrays(runs[i].folder / "policy.npz", take(state.agent.actor, i), **more)

    def save_checkpoint(iteration: int) -> None:
        for i in running:
            more = dict(run_name=runs[i].folder.resolve().name, fingerprint=fingerprint, iteration=iteration)
            save_arrays(runs[i].folder / "checkpoint.npz", take(state, i), **more, seconds=time.time() - start_time)

    # Evaluation: the mode of the policy, in D4RL physics, the episodes of all seeds side by side
    num_envs = len(seeds) * args.eval_episodes
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args.env_id, args.d4rl_physics)] * num_envs)

    actor_tree = jax.tree.structure(agent.actor)

    @jax.jit
    def modes(actor_leaves: list, observations: jax.Array) -> jax.Array:  # leaves: jit is slow to take a module apart
        observations = normalize(observations).reshape(len(actor_leaves[0]), -1, obs_dim)
        return jax.vmap(Actor.mode)(jax.tree.unflatten(actor_tree, actor_leaves), observations).reshape(-1, action_dim)

    @jax.jit
    def values(agent: Agent, observations: jax.Array, actions: jax.Array) -> jax.Array:
        observations, actions = (x.reshape(len(seeds), args.eval_episodes, -1) for x in (normalize(observations), actions))
        return jax.vmap(Critic.__call__)(agent.critic, observations, actions).min(1)

    def policy_of(actor: Actor) -> Callable:
        leaves = jax.tree.leaves(actor)
        return lambda observations: np.asarray(modes(leaves, observations))

    def evaluate_policy(iteration: int) -> float:
        env_seeds = [seed + 1000 * iteration + i for seed in seeds for i in range(args.eval_episodes)]
        policy = policy_of(state.agent.actor)
        result = evaluate(policy, envs, env_seeds, args.gamma)
        first_values = np.asarray(values(state.agent, result.first_observations, policy(result.first_observations)))
        results = [Evaluation(*parts) for parts in zip(*(np.split(x, len(seeds)) for x in result), strict=True)]
        seconds = time.time() - start_time
        return np.mean([runs[i].log_evaluation(iteration, args.env_id, results[i], first_values[i], seconds) for i in running])

    if args.resume is None:
        if args.save_model:
            save_models("_pretrained")
        evaluate_policy(0)
        if args.checkpoint_interval:
            save_checkpoint(0)

    # Algorithm 1
    time_compile = time.time()
    iterate = jax.vmap(partial(train_iteration, terminated=terminated, args=args), (0, DATA_AXES, None))
    iterate = compile_ahead(iterate, args, state, data, jnp.int32(1))
    print(f"Compiled an iteration in {time.time() - time_compile:.1f} s")
    for run in runs:
        run.writer.add_scalar("charts/compile_seconds", time.time() - time_compile, first_iteration)
    problems = []
    bar = tqdm(range(first_iteration, args.total_iterations + 1), desc="RAMBO", unit="iteration", dynamic_ncols=True)
    for iteration in bar:
        time_iteration = time.time()
        state, history = iterate(state, data, jnp.int32(iteration))
        history = jax.device_get(history)  # waits for the device
        sps = args.updates_per_iteration / (time.time() - time_iteration)
        for i in running.copy():
            metrics = {key: float(values[i]) for key, values in history.items()}
            metrics |= {"charts/SPS": sps, "charts/model_SPS": sps}  # updates of each kind per second of the whole iteration
            runs[i].log(iteration, metrics)
            max_abs_q = metrics["losses/max_abs_qf_value"]
            if not all(math.isfinite(value) for value in metrics.values()) or max_abs_q > 1e10:
                runs[i].finish("diverged")
                running.remove(i)  # the other seeds go on
                where = f"iteration {iteration}: largest |Q| {max_abs_q:.3g}, see {runs[i].folder}/metrics.csv"
                problems.append(f"diverged in {where}")
        if not running:
            break
        if iteration % args.eval_interval == 0 or iteration == args.total_iterations:
            score = evaluate_policy(iteration)
            bar.set_postfix(score=f"{score:.1f}", Q=f"{history['losses/qf_values'].mean():.0f}", SPS=f"{sps:.0f}")
        if args.checkpoint_interval and (iteration % args.checkpoint_interval == 0 or iteration == args.total_iterations):
            save_checkpoint(iteration)

    envs.close()
    if args.save_model:
        save_models("")
    for i in running:
        runs[i].finish()
        if args.capture_video:
            record_video(all_args[i], policy_of(take(state.agent.actor, slice(i, i + 1))), runs[i].folder / "videos")
    if problems:
        raise Diverged("; ".join(problems))


if __name__ == "__main__":
    try:
        main(parse_args())
    except (InputError, Diverged) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(3 if isinstance(problem, Diverged) else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted: --resume runs/<run_name> goes on from the last checkpoint")
