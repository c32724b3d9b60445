"""Collect a dataset in the format and after the recipe of D4RL, in the physics D4RL's own data was recorded with.

    python benchmark/datasets/collect.py --env hopper --quality medium-replay --seed 0

SAC (sbx, the JAX sibling of stable-baselines3) learns online, and the qualities are cut from that one run, which they share:

    random         rollouts of a randomly initialised policy (or of uniformly random actions)
    medium         rollouts of the policy as it was when its return first reached a third of the expert's
    medium-replay  what SAC saw until then, in order of time
    expert         rollouts of the policy at the end of the run
    medium-expert  the rows of medium, then the rows of expert

A killed collection continues from its last checkpoint when the same command is given again, and ends with the same file.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import h5py
import jax
import numpy as np
import tyro
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmark.datasets.rebuild import recording_env
from rambo_continuous import D4RL_ENVS, InputError, make_env

# A policy maps (observation, step number) to (action in the environment's units, log-density of the action scaled to [-1, 1])
Policy = Callable[[np.ndarray, int], tuple[np.ndarray, float]]
# What `Recorder` keeps besides the columns of the file: the action as SAC's replay buffer holds it, before it is rescaled
BUFFER_ACTIONS = "buffer_actions"
ROLLOUTS = ("random", "medium", "expert")
LIBRARIES = ("sbx-rl", "stable-baselines3", "jax", "gymnasium", "mujoco", "numpy")
# Settings without influence on the data
NOT_IN_THE_FILE = ("output_dir", "output", "checkpoint_every")
# What a SAC run depends on, besides its length
SAC_SETTINGS = ("env", "seed", "learning_starts", "learning_rate", "batch_size")
SAC_SETTINGS += ("eval_every", "eval_episodes", "medium_fraction", "medium_return")
CHUNK_ROWS = 131_072


@dataclass
class Args:
    env: str = "hopper"
    """hopper, halfcheetah or walker2d (with D4RL's physics), or a gymnasium id with a Box action space such as Pendulum-v1"""
    quality: Literal["random", "medium", "medium-replay", "medium-expert", "expert"] = "medium-replay"
    """which policy, or which part of the SAC run, the data is from"""
    seed: int = 0
    """seed of the SAC run, of the environments and of the sampled actions"""
    num_transitions: int | None = None
    """rows at most, in complete episodes: of each policy rolled out (default 1,000,000), or the last ones of the replay"""
    output_dir: Path = Path("collected")
    """folder of the file and of the checkpoints"""
    output: Path | None = None
    """path of the file (default: named as D4RL does, in output_dir)"""
    minimal: bool = False
    """leave out infos/*, about a third of the file"""
    compression: int = 9
    """gzip level, 0 to 9"""
    sac_steps: int = 1_000_000
    """environment steps after which SAC is the expert"""
    learning_starts: int = 5_000
    """environment steps with uniformly random actions before SAC learns"""
    learning_rate: float = 3e-4
    """learning rate of SAC's networks"""
    batch_size: int = 256
    """transitions per SAC update; there is one update per environment step"""
    medium_fraction: float = 1 / 3
    """the policy is medium at this fraction of the way from D4RL's random return to its expert return"""
    medium_return: float | None = None
    """the policy is medium at this return (environments without D4RL reference scores need it for the medium qualities)"""
    eval_every: int = 5_000
    """environment steps between two evaluations of SAC's policy"""
    eval_episodes: int = 10
    """episodes per evaluation"""
    checkpoint_every: int = 20_000
    """environment steps between two checkpoints"""
    random_policy: Literal["untrained", "uniform"] = "untrained"
    """what --quality random rolls out: an untrained network, as D4RL does, or uniformly random actions"""
    action_repeat: int = 1
    """steps that the uniform random policy holds an action for"""


class TrainingPaused(Exception):
    """Raised between two episodes to leave `SAC.learn` at a point from which it can go on exactly."""


class Recorder(gym.Wrapper):
    """Records every transition of the wrapped environment in order of time, in the columns of a D4RL file.

    `data` holds arrays of `capacity` rows, of which the first `size` are filled. qpos and qvel are the state the action was
    taken in; next_observations the state it led to, before any reset. `reset_state` is the random generator's state before
    the last reset, so that a checkpoint written between two episodes can repeat that reset.
    """

    def __init__(self, env: gym.Env, capacity: int):
        super().__init__(env)
        obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
        columns = {
            "observations": (obs_dim, np.float32),
            "actions": (act_dim, np.float32),
            "rewards": (None, np.float32),
            "terminals": (None, bool),
            "timeouts": (None, bool),
            "next_observations": (obs_dim, np.float32),
            "infos/action_log_probs": (None, np.float32),
            BUFFER_ACTIONS: (act_dim, np.float32),
        }
        self.is_mujoco = hasattr(env.unwrapped, "data")
        if self.is_mujoco:
            columns["infos/qpos"] = (env.unwrapped.model.nq, np.float64)
            columns["infos/qvel"] = (env.unwrapped.model.nv, np.float64)
        self.data = {
            key: np.zeros((capacity,) if dim is None else (capacity, dim), dtype) for key, (dim, dtype) in columns.items()
        }
        self.size = 0
        self.between_episodes = True
        self.reset_state: dict | None = None
        self._restored_state: dict | None = None
        self._obs = np.zeros(obs_dim)

    def restore(self, data: dict[str, np.ndarray], reset_state: dict | None = None) -> None:
        """Continue after the rows of `data`; the next reset draws what followed `reset_state`, if given."""
        self.size = len(data["rewards"])
        for key, column in self.data.items():
            column[: self.size] = data[key]
        self._restored_state = reset_state

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if self._restored_state is not None:
            self.unwrapped.np_random.bit_generator.state = self._restored_state
            seed, self._restored_state = None, None
        elif seed is not None:  # the generator that reset(seed=seed) would make, but seen before the reset draws from it
            self.unwrapped.np_random, _ = gym.utils.seeding.np_random(seed)
            seed = None
        self.reset_state = self.unwrapped.np_random.bit_generator.state
        self._obs, info = self.env.reset(seed=seed, options=options)
        self.between_episodes = True
        return self._obs, info

    def step(self, action: np.ndarray):
        if self.is_mujoco:
            self.data["infos/qpos"][self.size] = self.unwrapped.data.qpos
            self.data["infos/qvel"][self.size] = self.unwrapped.data.qvel
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        row = {
            "observations": self._obs,
            "actions": action,
            "rewards": reward,
            "terminals": terminated,
            "timeouts": truncated and not terminated,
            "next_observations": next_obs,
        }
        for key, value in row.items():
            self.data[key][self.size] = value
        self.size += 1
        self._obs, self.between_episodes = next_obs, False
        return next_obs, reward, terminated, truncated, info

    def complete_episodes(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """The columns of the file, of those episodes that lie completely in the rows from `start` to `stop`."""
        ends = np.flatnonzero(self.data["terminals"][: self.size] | self.data["timeouts"][: self.size]) + 1
        bounds = np.concatenate([[0], ends])
        bounds = bounds[(bounds >= start) & (bounds <= (self.size if stop is None else stop))]
        if len(bounds) < 2:
            raise InputError("not one complete episode: raise --num-transitions")
        return {key: column[bounds[0] : bounds[-1]] for key, column in self.data.items() if key != BUFFER_ACTIONS}


def save_recording(path: Path, recorder: Recorder, state: dict[str, Any], models: dict[str, bytes]) -> None:
    """Write the recorded rows, a JSON-able state and saved SAC models to one npz, all or nothing."""
    arrays = {key: column[: recorder.size] for key, column in recorder.data.items()}
    arrays |= {f"model/{name}": np.frombuffer(model, np.uint8) for name, model in models.items()}
    arrays["state"] = np.array(json.dumps(state, default=lambda array: array.tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def load_recording(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, bytes]]:
    """Read what `save_recording` wrote: (columns, state, models)."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    state = json.loads(str(arrays.pop("state")))
    models = {key.removeprefix("model/"): arrays.pop(key).tobytes() for key in list(arrays) if key.startswith("model/")}
    return arrays, state, models


def derive_seed(*parts: int) -> int:
    """A seed that is unrelated for unrelated `parts`, e.g. (run seed, purpose, episode)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def scaled_log_prob(dist: Any, actions: jax.Array) -> jax.Array:
    """Log-density of tanh-squashed actions in [-1, 1], finite where float32 rounded an action to the bound itself."""
    return dist.log_prob(jax.numpy.clip(actions, -1 + 1e-6, 1 - 1e-6))


@jax.jit
def sac_sample(actor_state: Any, obs: jax.Array, key: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
    """Sample SAC's stochastic policy: (action scaled to [-1, 1], log-density)."""
    dist = actor_state.apply_fn(actor_state.params, obs[None])
    action = dist.sample(seed=jax.random.fold_in(key, step))
    return action[0], scaled_log_prob(dist, action)[0]


@jax.jit
def sac_log_prob(actor_state: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
    """Log-density of an action scaled to [-1, 1] under SAC's policy."""
    return scaled_log_prob(actor_state.apply_fn(actor_state.params, obs[None]), action[None])[0]


def sac_policy(model: SAC, seed: int) -> Policy:
    """SAC's stochastic policy, with its own random stream."""
    actor_state, low, high = model.policy.actor_state, model.action_space.low, model.action_space.high
    key = jax.random.PRNGKey(seed)

    def act(obs: np.ndarray, step: int) -> tuple[np.ndarray, float]:
        action, log_prob = sac_sample(actor_state, obs.astype(np.float32), key, step)
        return low + 0.5 * (np.asarray(action) + 1.0) * (high - low), float(log_prob)

    return act


def uniform_policy(env: gym.Env, seed: int, action_repeat: int) -> Policy:
    """Actions drawn uniformly from the action space, each held for `action_repeat` steps."""
    low, high = env.action_space.low, env.action_space.high

    def act(obs: np.ndarray, step: int) -> tuple[np.ndarray, float]:
        action = np.random.default_rng([seed, step // action_repeat]).uniform(low, high).astype(np.float32)
        return action, -len(low) * np.log(2.0)

    return act


def evaluate(env: gym.Env, policy: Policy, episodes: int, seed: int) -> float:
    """Mean return of `episodes` episodes."""
    total, step = 0.0, 0
    for episode in range(episodes):
        obs, _ = env.reset(seed=derive_seed(seed, episode))
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs, step)[0])
            total, step, done = total + float(reward), step + 1, terminated or truncated
    return total / episodes


def build_env(env: str) -> gym.Env:
    """The environment behind a name such as hopper (in D4RL's physics) or Pendulum-v1 (as gymnasium has it)."""
    built = recording_env(f"{env}-medium-v2") if env in D4RL_ENVS else make_env(env)
    if built.spec.max_episode_steps is None:
        raise InputError(f"--env {env}: episodes without a time limit cannot be recorded")
    return built


class Supervisor(BaseCallback):
    """Evaluates, marks the medium policy, writes checkpoints, and ends the training, all between two episodes."""

    def __init__(self, run: "SacRun", stop_at_medium: bool):
        super().__init__()
        self.run, self.stop_at_medium = run, stop_at_medium
        self.saved_at = run.recorder.size

    def _on_rollout_start(self) -> None:
        """Called before every step, when the update after the last step is done."""
        run, args, size = self.run, self.run.args, self.run.recorder.size
        if not run.recorder.between_episodes:
            return
        evaluations = run.state["evaluations"]
        if size > args.learning_starts and size - (evaluations[-1][0] if evaluations else 0) >= args.eval_every:
            policy = sac_policy(run.model, derive_seed(args.seed, 1, size))
            evaluations.append([size, evaluate(run.eval_env, policy, args.eval_episodes, derive_seed(args.seed, 2, size))])
            self.bar.set_postfix_str(f"return {evaluations[-1][1]:.0f}, medium at {run.medium_return:.0f}")
            if run.state["medium_step"] is None and evaluations[-1][1] >= run.medium_return:
                run.state["medium_step"] = size
                run.models["medium"] = save_model(run.model)
        pause = size >= args.sac_steps or (self.stop_at_medium and run.state["medium_step"] is not None)
        if pause or size - self.saved_at >= args.checkpoint_every:
            run.save()
            self.saved_at = size
        if pause:
            raise TrainingPaused

    def _on_step(self) -> bool:
        recorder, row = self.run.recorder, self.run.recorder.size - 1
        action = self.locals["buffer_actions"][0]
        recorder.data[BUFFER_ACTIONS][row] = action
        if self.num_timesteps <= self.run.args.learning_starts:
            log_prob = -len(action) * np.log(2.0)
        else:
            log_prob = sac_log_prob(self.model.policy.actor_state, recorder.data["observations"][row], action)
        recorder.data["infos/action_log_probs"][row] = log_prob
        self.bar.update()
        return True

    def _on_training_start(self) -> None:
        steps = {"total": self.run.args.sac_steps, "initial": self.run.recorder.size}
        self.bar = tqdm(desc="SAC", unit="step", smoothing=0.05, mininterval=1.0, **steps)

    def close(self) -> None:
        self.bar.close()


def save_model(model: SAC) -> bytes:
    """An SB3 zip of the model without its replay buffer."""
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


class SacRun:
    """One SAC training run, from which the qualities are cut; it lives in one checkpoint file and goes on where that ends.

    `state` is JSON-able: settings, evaluations [[step, return], ...], medium_step, and the states of all random generators.
    """

    def __init__(self, args: Args):
        self.args = args
        self.path = checkpoint_path(args, "sac")
        self.medium_return = medium_threshold(args)
        self.eval_env = build_env(args.env)
        settings = {key: getattr(args, key) for key in SAC_SETTINGS}
        env = build_env(args.env)
        if not self.path.exists():
            self.recorder = Recorder(env, args.sac_steps + env.spec.max_episode_steps)
            self.state = {"settings": settings, "evaluations": [], "medium_step": None}
            self.models: dict[str, bytes] = {}
            self.model = SAC(
                "MlpPolicy",
                self.recorder,
                learning_rate=args.learning_rate,
                learning_starts=args.learning_starts,
                batch_size=args.batch_size,
                seed=args.seed,
            )
            return
        data, self.state, self.models = load_recording(self.path)
        require_same_settings(self.path, self.state["settings"], settings)
        size = len(data["rewards"])
        self.recorder = Recorder(env, max(args.sac_steps, size) + env.spec.max_episode_steps)
        self.recorder.restore(data, self.state["env_rng"])
        self.model = SAC.load(io.BytesIO(self.models["latest"]), env=self.recorder)
        self.model.key = jax.numpy.asarray(self.state["jax_key"], dtype=jax.numpy.uint32)
        self.model.action_space.np_random.bit_generator.state = self.state["action_rng"]
        np.random.set_state(self.state["numpy_rng"])
        buffer = self.model.replay_buffer
        rows = np.arange(max(0, size - buffer.buffer_size), size)
        slots = rows % buffer.buffer_size
        buffer.observations[slots, 0] = data["observations"][rows]
        buffer.next_observations[slots, 0] = data["next_observations"][rows]
        buffer.actions[slots, 0] = data[BUFFER_ACTIONS][rows]
        buffer.rewards[slots, 0] = data["rewards"][rows]
        buffer.dones[slots, 0] = (data["terminals"] | data["timeouts"])[rows]
        buffer.timeouts[slots, 0] = data["timeouts"][rows]
        buffer.pos, buffer.full = size % buffer.buffer_size, size >= buffer.buffer_size

    def save(self) -> None:
        """Write the checkpoint. Only between two episodes."""
        self.state |= {
            "env_rng": self.recorder.reset_state,
            "action_rng": self.model.action_space.np_random.bit_generator.state,
            "numpy_rng": np.random.get_state(legacy=False),
            "jax_key": np.asarray(self.model.key),
        }
        self.models["latest"] = save_model(self.model)
        save_recording(self.path, self.recorder, self.state, self.models)

    def length(self) -> int:
        """Rows until the first episode end at or after `sac_steps`, or all rows where the run is not that long yet."""
        ends = np.flatnonzero((self.recorder.data["terminals"] | self.recorder.data["timeouts"])[: self.recorder.size]) + 1
        return int(min(ends[ends >= self.args.sac_steps], default=self.recorder.size))

    def train(self, stop_at_medium: bool) -> None:
        """Train until the first episode end at or after `sac_steps`, or until the policy is medium if that comes first."""
        target = self.args.sac_steps
        if self.recorder.size >= target or (stop_at_medium and self.state["medium_step"] is not None):
            return
        supervisor = Supervisor(self, stop_at_medium)
        try:
            self.model.learn(10 * target, callback=supervisor, reset_num_timesteps=False)
        except TrainingPaused:
            pass
        finally:
            supervisor.close()


def checkpoint_path(args: Args, name: str) -> Path:
    return args.output_dir / "checkpoints" / f"{args.env}-seed{args.seed}-{name}.npz"


def require_same_settings(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to continue or to keep a file that other settings made."""
    different = [key for key in wanted if stored.get(key) != wanted[key]]
    if different:
        changes = ", ".join(f"{key} {stored.get(key)}, not {wanted[key]}" for key in different)
        raise InputError(f"{path} was made with other settings ({changes}): delete it or write elsewhere")


def medium_threshold(args: Args) -> float:
    """The return from which on a policy counts as medium; infinite where nothing says so."""
    if args.medium_return is not None:
        return args.medium_return
    if args.env not in D4RL_ENVS:
        return float("inf")
    _, random_return, expert_return = D4RL_ENVS[args.env]
    return random_return + args.medium_fraction * (expert_return - random_return)


def rollout(args: Args, name: str, policy: Policy) -> dict[str, np.ndarray]:
    """Roll a fixed policy out, continuing from the rollout's last checkpoint. Returns the columns of complete episodes."""
    path, target = checkpoint_path(args, name), args.num_transitions or 1_000_000
    keys = (*SAC_SETTINGS, "num_transitions", "sac_steps", "random_policy", "action_repeat")
    state = {"settings": {key: getattr(args, key) for key in keys}, "episodes": 0}
    recorder = Recorder(build_env(args.env), target)
    if path.exists():
        data, stored, _ = load_recording(path)
        require_same_settings(path, stored["settings"], state["settings"])
        state = stored
        recorder.restore(data)
    saved_at = recorder.size
    with tqdm(total=target, initial=recorder.size, desc=name, unit="step", mininterval=1.0) as bar:
        while recorder.size < target:
            if recorder.size - saved_at >= args.checkpoint_every:
                save_recording(path, recorder, state, {})
                saved_at = recorder.size
            obs, _ = recorder.reset(seed=derive_seed(args.seed, 3, state["episodes"]))
            done = False
            while not done and recorder.size < target:
                row = recorder.size
                action, recorder.data["infos/action_log_probs"][row] = policy(obs, row)
                obs, _, terminated, truncated, _ = recorder.step(action)
                done = terminated or truncated
            state["episodes"] += 1
            bar.update(recorder.size - bar.n)
    return recorder.complete_episodes()


def episode_returns(data: dict[str, np.ndarray]) -> np.ndarray:
    """Undiscounted return of every episode of the columns of a file."""
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    return np.diff(np.cumsum(data["rewards"], dtype=np.float64)[ends], prepend=0.0)


def collect(args: Args) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The columns of the file, and what its metadata say about the policies behind it."""
    if args.quality == "random":
        env = build_env(args.env)
        if args.random_policy == "uniform":
            policy = uniform_policy(env, derive_seed(args.seed, 4), args.action_repeat)
        else:
            policy = sac_policy(SAC("MlpPolicy", env, buffer_size=1, seed=args.seed), derive_seed(args.seed, 4))
        data = rollout(args, "random", policy)
        return data, {"random": {"policy": args.random_policy, "return": episode_returns(data).mean()}}

    run = SacRun(args)
    run.train(stop_at_medium=args.quality in ("medium", "medium-replay"))
    length = run.length()
    evaluations = [evaluation for evaluation in run.state["evaluations"] if evaluation[0] <= length]
    medium_step = run.state["medium_step"]
    if medium_step is not None and medium_step > length:  # an earlier command trained for longer than sac_steps
        medium_step = None
    about = {"sac": {"evaluations": evaluations, "medium_return": str(run.medium_return), "medium_step": medium_step}}
    if medium_step is None and args.quality != "expert":
        best = max((value for _, value in evaluations), default=float("nan"))
        problem = f"no evaluation reached {run.medium_return:.0f} within --sac-steps {args.sac_steps} (best {best:.0f})"
        if args.quality != "medium-replay":
            raise InputError(f"{problem}: raise it to train on")
        print(f"{problem}: the replay is of all steps", file=sys.stderr)
    if args.quality == "medium-replay":
        stop = medium_step or length
        return run.recorder.complete_episodes(stop - (args.num_transitions or stop), stop), about

    parts = []
    if args.quality in ("medium", "medium-expert"):
        parts.append(("medium", run.models["medium"], medium_step))
    if args.quality in ("expert", "medium-expert"):
        if length < run.recorder.size:
            raise InputError(f"{run.path} has already trained for {run.recorder.size} steps: --sac-steps is too small for it")
        parts.append(("expert", run.models["latest"], run.recorder.size))
    columns = []
    for name, model, step in parts:
        policy = sac_policy(SAC.load(io.BytesIO(model)), derive_seed(args.seed, 4, ROLLOUTS.index(name)))
        columns.append(rollout(args, name, policy))
        about[name] = {"step": step, "return": episode_returns(columns[-1]).mean()}
    return {key: np.concatenate([part[key] for part in columns]) for key in columns[0]}, about


def write_file(args: Args, path: Path, data: dict[str, np.ndarray], settings: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the HDF5 file, all or nothing; `about` is JSON-able and describes the policies behind the data."""
    metadata = {
        "algorithm": "SAC (sbx)",
        "environment": build_env(args.env).spec.id,
        "physics": "D4RL v2 (MuJoCo 2.0/2.1.0)" if args.env in D4RL_ENVS else "as gymnasium has it",
        "quality": args.quality,
        "seed": args.seed,
        "settings": json.dumps(settings),
        "policies": json.dumps(about),
        "libraries": json.dumps({name: version(name) for name in LIBRARIES}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with h5py.File(temporary, "w") as file:
        for key, column in data.items():
            if args.minimal and key.startswith("infos/"):
                continue
            # One column per chunk: neighbouring values are alike, which is what shuffle and gzip live on
            chunks = (min(len(column), CHUNK_ROWS), *([1] * (column.ndim - 1)))
            file.create_dataset(
                key, data=column, chunks=chunks, shuffle=True, compression="gzip", compression_opts=args.compression
            )
        for key, value in metadata.items():
            file[f"metadata/{key}"] = value
    os.replace(temporary, path)


def stored_settings(path: Path) -> dict[str, Any]:
    """The settings a finished file was made with. Raises InputError where it is not one of this script's files."""
    try:
        with h5py.File(path) as file:
            return json.loads(file["metadata/settings"][()])
    except (OSError, KeyError):
        raise InputError(f"{path} is there already, and not from this script: delete it or choose another --output") from None


def summary(path: Path) -> str:
    """Rows, episodes, returns, saturation, size and checksum of a finished file, one per line."""
    with h5py.File(path) as file:
        data = {key: file[key][()] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
        space = make_env(file["metadata/environment"][()].decode()).action_space
    returns = episode_returns(data)
    scaled = 2 * (data["actions"] - space.low) / (space.high - space.low) - 1
    lines = {
        "rows": f"{len(data['rewards']):,}",
        "episodes": f"{len(returns):,} ({data['terminals'].sum():,} terminated, {data['timeouts'].sum():,} timed out)",
        "return": f"mean {returns.mean():.1f}, best {returns.max():.1f}, last 20 episodes {returns[-20:].mean():.1f}",
        "saturated": f"{(np.abs(scaled) > 0.999).mean():.1%} of actions",
        "size": f"{path.stat().st_size:,} bytes",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return "\n".join([str(path), *(f"  {key:<10} {value}" for key, value in lines.items())])


def check(args: Args) -> None:
    """Refuse settings that cannot work. Raises InputError."""
    positive = ("sac_steps", "batch_size", "eval_every", "eval_episodes", "checkpoint_every", "action_repeat")
    if args.learning_rate <= 0:
        raise InputError(f"--learning-rate {args.learning_rate}: must be above 0")
    for key in positive + (("num_transitions",) if args.num_transitions is not None else ()):
        if getattr(args, key) < 1:
            raise InputError(f"--{key.replace('_', '-')} {getattr(args, key)}: must be at least 1")
    if not 0 <= args.compression <= 9:
        raise InputError(f"--compression {args.compression}: must be from 0 to 9")
    if args.action_repeat > 1 and (args.quality != "random" or args.random_policy != "uniform"):
        raise InputError("--action-repeat needs --quality random --random-policy uniform")
    if args.quality.startswith("medium") and args.quality != "medium-replay" and medium_threshold(args) == float("inf"):
        raise InputError(f"--env {args.env} has no D4RL reference scores: give --medium-return")


def main(args: Args) -> None:
    check(args)
    name = f"{args.env.lower()}_{args.quality.replace('-', '_')}{'-v2' if args.env in D4RL_ENVS else ''}.hdf5"
    path = args.output or args.output_dir / name
    settings = {key: value for key, value in asdict(args).items() if key not in NOT_IN_THE_FILE}
    if path.exists():
        require_same_settings(path, stored_settings(path), settings)
        print(f"already complete: {summary(path)}")
        return
    data, about = collect(args)
    write_file(args, path, data, settings, about)
    for part in ROLLOUTS:
        checkpoint_path(args, part).unlink(missing_ok=True)
    print(summary(path))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command continues from the last checkpoint")
