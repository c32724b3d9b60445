"""Rebuilds a log of collect.py from its actions and the first state of every episode, bit for bit.

    python benchmark/datasets/rebuild.py benchmark/datasets/hopper_sbx_medium_replay-v2.npz     # writes collected/....hdf5
    python benchmark/datasets/rebuild.py collected/hopper_sbx_medium_replay-v2.hdf5             # the way back: writes the .npz

MuJoCo is deterministic, so the simulator can add the rest: 2 MB in git instead of 20. The .npz holds a checksum of the rows;
a machine that rounds otherwise, or another MuJoCo, ends with an error and writes no file.
"""

import hashlib
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from rambo_continuous import InputError, is_d4rl_id, make_env

COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
STORED = ("env_id", "actions", "lengths", "qpos", "qvel", "sha256")


@dataclass
class Args:
    source: Annotated[Path, tyro.conf.Positional]
    """an .npz of actions to rebuild the log from, or an .hdf5 of collect.py (without --minimal) to make one of"""
    output: Path | None = None
    """the file to write (default: of the same name in collected/, or in benchmark/datasets/)"""


def checksum(data: dict[str, np.ndarray]) -> str:
    """sha256 over the columns' bytes: that of the HDF5 file would also depend on how it is compressed."""
    digest = hashlib.sha256()
    for key in COLUMNS:
        digest.update(np.ascontiguousarray(data[key]).tobytes())
    return digest.hexdigest()


def write(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Write a file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two may rebuild it at once
    with open(temporary, "wb") as file:
        save(file)
    os.replace(temporary, path)


def pack(source: Path) -> dict[str, np.ndarray]:
    """The arrays of the .npz: actions [N, A] and lengths [M] of the episodes, their first qpos and qvel [M, ...].

    Raises InputError where the file lacks the simulator's states.
    """
    env_id = source.stem.replace("_", "-")
    if not is_d4rl_id(env_id):
        raise InputError(f"{source}: name it as D4RL does, such as hopper_sbx_medium_replay-v2.hdf5: the name is the id")
    try:
        with h5py.File(source) as file:
            data = {key: file[key][()] for key in (*COLUMNS, "infos/qpos", "infos/qvel")}
    except (OSError, KeyError) as error:
        raise InputError(f"{source}: not a log of collect.py with infos/qpos and infos/qvel ({error})") from error
    ends = np.flatnonzero(data["terminals"] | data["timeouts"]) + 1
    starts = np.concatenate([[0], ends[:-1]])
    states = {key: data[f"infos/{key}"][starts] for key in ("qpos", "qvel")}
    return dict(env_id=env_id, actions=data["actions"], lengths=np.diff(ends, prepend=0), **states, sha256=checksum(data))


def set_state(env: gym.Env, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    """Starts an episode in this state, as the environment's own reset would. Returns the observation."""
    env.reset()
    mujoco.mj_resetData(env.unwrapped.model, env.unwrapped.data)  # what the reset's own start left in the solver
    env.unwrapped.set_state(qpos, qvel)
    return env.unwrapped._get_obs()


def recording_env(env_id: str) -> gym.Env:
    """make_env's environment with the bodies weighed as when the logs were recorded: MuJoCo, which weighs them now, rounds
    otherwise. A capsule weighs as a solid cylinder of length 2h + r."""
    env = make_env(env_id, d4rl_physics=False)
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
    model.geom_margin *= 0.5  # MuJoCo 3.5 adds those of two touching geoms; the logs need a later one anyway
    mujoco.mj_setConst(model, data)
    return env


def simulate(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of the log, in the physics it was recorded in. Raises InputError where they differ from the recorded."""
    env, actions = recording_env(str(stored["env_id"])), stored["actions"]
    obs_dim, n = env.observation_space.shape[0], len(actions)
    observations, next_observations = np.zeros((2, n, obs_dim), np.float32)
    rewards, terminals, timeouts = np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, bool)
    if stored["lengths"].sum() != n:
        raise InputError("the lengths of the episodes do not add up to the number of actions: the file is damaged")
    row = 0
    for length, qpos, qvel in zip(tqdm(stored["lengths"], unit="episode"), stored["qpos"], stored["qvel"], strict=True):
        observation = set_state(env, qpos, qvel)
        for _ in range(length):
            observations[row] = observation
            observation, rewards[row], terminals[row], truncated, _ = env.step(actions[row])
            next_observations[row], timeouts[row] = observation, truncated and not terminals[row]
            row += 1
    values = observations, actions, rewards, terminals, timeouts, next_observations
    data = dict(zip(COLUMNS, values, strict=True))
    if checksum(data) != str(stored["sha256"]):
        needed = f"they need mujoco 4.0.0 on x86-64, here is {mujoco.__version__}"
        raise InputError(f"the rebuilt rows are not those recorded: {needed}")
    return data


def main(args: Args) -> None:
    if args.source.suffix == ".hdf5":
        arrays = pack(args.source)
        simulate(arrays)  # what cannot be rebuilt is not worth storing
        path = args.output or Path(__file__).parent / f"{args.source.stem}.npz"
        write(path, lambda file: np.savez_compressed(file, **arrays))
    else:
        try:
            with np.load(args.source, allow_pickle=False) as file:
                stored = {key: file[key] for key in STORED}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{args.source}: not a file of actions that this script wrote ({error})") from error
        data = simulate(stored)
        path = args.output or Path("collected") / f"{args.source.stem}.hdf5"

        def save(file: BinaryIO) -> None:
            with h5py.File(file, "w") as hdf5:
                for key, column in data.items():
                    hdf5.create_dataset(key, data=column, chunks=True, shuffle=True, compression="gzip")

        write(path, save)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
