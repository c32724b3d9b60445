"""See what the adversary does: the same policy in the pretrained model, in the adversarial model and in the simulator.

    python benchmark/imagine.py runs/hopper-medium-v2__rambo_continuous__1__1700000000 --video
    python benchmark/imagine.py runs/hopper-medium-v2__rambo_continuous__1__1700000000 --probe-weight 0.3

Reads a finished run made with --save-model (of either script) and starts the three worlds from the same dataset states with
the same noise. Writes to RUN_DIR/imagine (or --output):

    trajectories.png  height, angle, share that fall, reward, return and predicted value over time
    parting.png       where in state-action space the two models part, against the distance to the nearest dataset row
    imagine.mp4       with --video: the simulator drawing imagined states next to true ones
    filmstrip.png     with --video: the first of these trajectories as a strip of pictures

The run's final model has seen an adversary and more of the data than the pretrained one, and with the paper's lambda of 3e-4
the latter shows first. --probe-weight takes the two apart: it trains on two copies of the pretrained model against the
finished policy, alike but for the adversary.
"""

import copy
import json
import os
import pickle
import sys
import textwrap
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from moviepy import ImageSequenceClip
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import KDTree
from scipy.stats import spearmanr
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rambo_continuous as rambo
from rambo_continuous import Agent, Dataset, Dynamics, InputError

STYLE = {"figure.facecolor": "white", "figure.constrained_layout.use": True, "axes.titlesize": 11}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
COLORS = ("#2471a3", "#c0392b", "#333333")  # of the model without and with adversarial training, and of the simulator
POINTS = {  # where the two models are compared
    "the log": "#7f8c8d",
    "log states, policy's actions": "#2471a3",
    "log states, random actions": "#d68910",
    "imagined states, policy's actions": "#c0392b",
}


@dataclass
class Args:
    run_dir: tyro.conf.Positional[Path]
    """the folder of a finished run made with --save-model"""
    output: Path | None = None
    """folder of the pictures; the default is RUN_DIR/imagine"""
    probe_weight: float | None = None
    """compare two other models: the pretrained one trained on against the finished policy, once with this lambda (0.3 takes
    minutes to show), once with 0 on the same batches with the same noise, so that they differ by the adversary alone"""
    probe_updates: int = 2000
    """updates of each of these two models"""
    video: bool = False
    """also draw imagined and true states with the simulator: imagine.mp4 and filmstrip.png"""
    video_starts: int = 3
    """trajectories in the video, one after another"""
    starts: int = 200
    """dataset states to start from"""
    horizon: int = 100
    """steps of each trajectory"""
    points: int = 500
    """state-action pairs of each kind at which the two models are compared"""
    deterministic: bool = False
    """take the policy's mode, as in evaluations, instead of sampling, as in the model rollouts of training"""
    seed: int = 0
    """seed of the start states and of all noise"""


class Saved(NamedTuple):
    """What a run folder holds."""

    args: rambo.Args
    env: gym.Env
    dataset: Dataset
    rows: torch.Tensor  # the dataset's rows
    agent: Agent
    has_critic: bool  # or is the agent's critic untrained?
    models: dict[str, Dynamics]  # without and with adversarial training

    def unnormalize(self, observations: torch.Tensor) -> np.ndarray:
        return observations.numpy() * self.dataset.obs_std + self.dataset.obs_mean

    def terminated(self, observations: torch.Tensor) -> torch.Tensor:
        """The environment's termination rule for normalised observations [..., O]."""
        return rambo.termination_rule(self.env)(torch.as_tensor(self.unnormalize(observations)))

    def values(self, observations: torch.Tensor) -> torch.Tensor:
        """The critic's V(s) = min_i Q_i(s, mode of pi(s)) at normalised observations [..., O]."""
        flat = observations.flatten(0, -2)
        return self.agent.critic(flat, self.agent.actor.mode(flat)).min(0).values.view(observations.shape[:-1])


class Trajectories(NamedTuple):
    """T steps from n states in one world. What comes after a fall repeats the fallen state and has reward 0."""

    observations: torch.Tensor  # [T + 1, n, O], normalised
    rewards: torch.Tensor  # [T, n]
    fallen: torch.Tensor  # [T + 1, n], bool


def load_critic(run_dir: Path, agent: Agent) -> bool:
    """Fills in the critic of the run's last checkpoint, of either script. False without a checkpoint of this very policy."""
    try:
        if (run_dir / "checkpoint.pt").exists():
            states = torch.load(run_dir / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)["states"][0]
        elif (run_dir / "checkpoint.npz").exists():
            with np.load(run_dir / "checkpoint.npz", allow_pickle=False) as file:
                names = [name for name in file.files if name.startswith(("agent.actor.", "agent.critic."))]
                states = {name.removeprefix("agent."): torch.as_tensor(file[name]) for name in names}
        else:
            return False
        agent.critic.load_state_dict({name: states[f"critic.{name}"] for name in agent.critic.state_dict()})
        return all(torch.equal(states[f"actor.{name}"], weight) for name, weight in agent.actor.state_dict().items())
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{run_dir}: its checkpoint cannot be read ({error})".replace("\n", " ")) from error


def load_run(run_dir: Path, probing: bool = False) -> Saved:
    """Reads a run folder and the dataset it learned from. Raises InputError. With probing the final model is not needed."""
    try:
        saved = json.loads((run_dir / "args.json").read_text())
        args = rambo.Args(**{f.name: saved[f.name] for f in fields(rambo.Args) if f.name in saved})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{run_dir} is not a run folder: no usable args.json ({error})") from error
    if args.real_ratio == 1:
        raise InputError(f"{run_dir} used no model (--real-ratio 1): there is nothing to imagine")
    if args.adv_weight == 0 and not probing:
        raise InputError(f"{run_dir} has lambda = 0, so its two models are the same: take another run, or --probe-weight 0.3")
    files = {"pretrained model": "dynamics_pretrained.npz"} | ({} if probing else {"adversarial model": "dynamics.npz"})
    missing = [name for name in ("policy.npz", *files.values()) if not (run_dir / name).is_file()]
    if missing:
        raise InputError(f"{run_dir} lacks {', '.join(missing)}: needs a finished run with --save-model")
    env = rambo.make_env(args.env_id, args.d4rl_physics)
    dataset = rambo.load_dataset(args.env_id, args.dataset_path, env)
    agent = Agent(dataset.obs_dim, dataset.action_dim, args.alpha)
    shape = args.num_elites, dataset.obs_dim, dataset.action_dim, args.model_hidden_dim
    models = {name: Dynamics(*shape) for name in files}
    for name, module in zip(("policy.npz", *files.values()), (agent.actor, *models.values()), strict=True):
        with rambo.explain(f"{run_dir}/{name} does not hold what this run needs"):
            arrays = rambo.read_arrays(run_dir / name, dataset)
            module.load_state_dict({key: torch.as_tensor(arrays[key]) for key in module.state_dict()})
    return Saved(args, env, dataset, torch.as_tensor(dataset.rows), agent, load_critic(run_dir, agent), models)


@torch.enable_grad()
def probe(saved: Saved, adv_weight: float, updates: int, seed: int) -> dict[str, Dynamics]:
    """The pretrained model, trained on against the finished policy without and with the adversary, all else equal."""
    if not saved.has_critic:
        raise InputError("--probe-weight needs the critic: the run folder has no checkpoint of this policy")
    dataset, (pretrained,), models = saved.dataset, saved.models.values(), {}
    for name, weight in {"model without adversary": 0.0, f"adversarial model (λ = {adv_weight:g})": adv_weight}.items():
        torch.manual_seed(seed)
        dynamics, args = copy.deepcopy(pretrained), replace(saved.args, adv_weight=weight)
        optimizer = torch.optim.Adam(dynamics.parameters(), lr=args.model_lr, fused=True)
        for i in tqdm(range(updates), desc=name, unit="update", dynamic_ncols=True):
            starts, restarts = rambo.sample_rows(saved.rows, 2, args.batch_size)[..., : dataset.obs_dim]
            if i % args.rollout_length == 0:
                observations = starts
            real = rambo.split_rows(rambo.sample_rows(saved.rows, args.num_elites, args.batch_size), dataset.obs_dim)
            elites = torch.randint(args.num_elites, (args.batch_size,))
            noise = torch.randn(args.batch_size, dataset.action_dim + dataset.obs_dim + 1)
            observations, _ = rambo.update_model(
                saved.agent, dynamics, optimizer, observations, restarts, real, elites, noise, saved.terminated, args
            )
        models[name] = dynamics.requires_grad_(False)
    return models


# The three worlds
def set_state(env: gym.Env, observation: np.ndarray, x: float = 0.0) -> None:
    """Puts the simulator where an un-normalised observation [O] says it is. MuJoCo's observations leave out the position
    along the track: it becomes x. Hopper's and Walker2d's clip velocities at 10: a faster state cannot be told and becomes
    one at 10. Raises InputError for environments whose observation does not determine the state."""
    simulator = env.unwrapped
    if hasattr(simulator, "set_state"):
        num_positions = simulator.model.nq
        num_hidden = num_positions + simulator.model.nv - len(observation)
        if 0 <= num_hidden <= 2:
            state = np.concatenate([[x, 0.0][:num_hidden], observation])
            simulator.set_state(state[:num_positions], state[num_positions:])
            return
    elif env.spec.id.startswith("Pendulum"):
        simulator.state = np.array([np.arctan2(observation[1], observation[0]), observation[2]])
        simulator.last_u = None
        return
    raise InputError(f"the state of {env.spec.id} cannot be told from its observation: add a case to set_state")


def imagine(saved: Saved, dynamics: Dynamics, starts: torch.Tensor, noise: torch.Tensor) -> Trajectories:
    """Rollouts of the policy in a model, as in training one elite each. starts [n, O], noise [T, n, A + D]."""
    observations, fallen, rewards = [starts], [torch.zeros(len(starts), dtype=torch.bool)], []
    for action_noise, model_noise in zip(*noise.split([saved.dataset.action_dim, starts.shape[1] + 1], -1), strict=True):
        here, over = observations[-1], fallen[-1]
        actions, _ = rambo.sample_action(saved.agent.actor, here, action_noise)
        mean, log_var = dynamics(*(x.view(saved.args.num_elites, -1, x.shape[-1]) for x in (here, actions)))
        sample = mean.flatten(0, 1) + torch.exp(0.5 * log_var.flatten(0, 1)) * model_noise
        following = here + sample[:, :-1]
        rewards.append(torch.where(over, 0, sample[:, -1]))
        observations.append(torch.where(over[:, None], here, following))
        fallen.append(over | saved.terminated(following))
    return Trajectories(torch.stack(observations), torch.stack(rewards), torch.stack(fallen))


def simulate(saved: Saved, starts: torch.Tensor, noise: torch.Tensor) -> Trajectories:
    """The same policy with the same noise in the simulator."""
    env, dataset, horizon = saved.env, saved.dataset, len(noise)
    low, high = env.action_space.low, env.action_space.high
    observations = starts.expand(horizon + 1, -1, -1).clone()
    rewards, fallen = torch.zeros(horizon, len(starts)), torch.zeros(horizon + 1, len(starts), dtype=torch.bool)
    for i, start in enumerate(saved.unnormalize(starts)):
        env.reset(seed=i)
        set_state(env, start)
        for t in range(horizon):
            action, _ = rambo.sample_action(saved.agent.actor, observations[t, i], noise[t, i, : dataset.action_dim])
            action = low + (action.numpy() + 1) / 2 * (high - low)
            observation, reward, falls, _, _ = env.unwrapped.step(action)
            observations[t + 1 :, i] = torch.as_tensor((observation - dataset.obs_mean) / dataset.obs_std)
            rewards[t, i] = float(reward)
            if falls:
                fallen[t + 1 :, i] = True
                break
    return Trajectories(observations, rewards, fallen)


# trajectories.png
def height_and_angle(env: gym.Env, observations: np.ndarray) -> dict[str, np.ndarray]:
    """Two named coordinates of un-normalised observations [T, n, O]."""
    name = env.spec.id.split("-")[0]
    if name == "Pendulum":
        angles = np.unwrap(np.arctan2(observations[..., 1], observations[..., 0]), axis=0)
        return {"height of the tip": observations[..., 0], "angle (rad)": angles}
    names = {"Hopper", "Walker2d", "HalfCheetah"}
    labels = ("height of the torso (m)", "angle of the torso (rad)") if name in names else ("observation 0", "observation 1")
    return {label: observations[..., i] for i, label in enumerate(labels)}


def draw_trajectories(saved: Saved, worlds: dict[str, Trajectories], path: Path) -> None:
    """The three worlds over time: medians and 10 to 90 % bands of states, means and two standard errors of the rest."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6))
    for color, (name, world) in zip(COLORS, worlds.items(), strict=True):
        states = height_and_angle(saved.env, saved.unnormalize(world.observations))
        for axis, (label, series) in zip(axes[0], states.items(), strict=False):
            low, median, high = np.quantile(series, [0.1, 0.5, 0.9], axis=1)
            axis.fill_between(range(len(median)), low, high, facecolor=(color, 0.1), edgecolor=color, linewidth=0.8)
            axis.plot(median, color=color, linewidth=2, label=name)
            axis.set_title(label)
        means = {
            "share that have fallen (%)": (axes[0, 2], 100 * world.fallen.float()),
            "reward of the step": (axes[1, 0], world.rewards),
            "return so far": (axes[1, 1], world.rewards.cumsum(0)),
        }
        if saved.has_critic:
            means["predicted value"] = axes[1, 2], torch.where(world.fallen, 0, saved.values(world.observations))
        for label, (axis, series) in means.items():
            mean, error = series.mean(1).numpy(), series.std(1).numpy() / len(series[0]) ** 0.5
            steps = np.arange(len(mean)) + len(world.fallen) - len(mean)  # rewards begin with step 1
            axis.fill_between(steps, mean - 2 * error, mean + 2 * error, color=color, alpha=0.2, linewidth=0)
            axis.plot(steps, mean, color=color, linewidth=2)
            axis.set_title(label)
    axes[0, 2].set_ylim(-2, 102)
    axes[1, 2].set_visible(saved.has_critic)
    for axis in axes.flat:
        axis.set_xlim(0, steps[-1])
        axis.axvline(saved.args.rollout_length, color="#999999", linewidth=1, linestyle=":")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    note = "height and angle: median, 10 and 90 %; the others: mean ± 2 standard errors; after a fall reward and value are 0"
    note = f"step\n{note}; dotted: rollout length in training ({saved.args.rollout_length})"
    figure.supxlabel(note, fontsize=9, color="#555555")
    figure.savefig(path, dpi=100)
    plt.close(figure)


# parting.png
class Parting(NamedTuple):
    """How the two models differ at state-action pairs; every array is [points], or [kinds of POINTS, points] of all kinds."""

    distances: np.ndarray  # to the nearest dataset row, in standard deviations of the dataset's states and actions
    differences: np.ndarray  # of the predicted means, RMS over [delta, reward] in the standard deviations of the targets
    value_changes: np.ndarray  # r + gamma V(s') in the adversarial minus in the other model; NaN without a critic


def nearest_distances(queries: torch.Tensor, rows: torch.Tensor, own: torch.Tensor | None = None) -> np.ndarray:
    """Euclidean distance of each query [Q, W] to its nearest row [N, W]; own [Q]: rows that do not count."""
    distances, nearest = KDTree(rows.numpy()).query(queries.numpy(), k=2)
    return distances[:, 0] if own is None else np.where(nearest[:, 0] == own.numpy(), distances[:, 1], distances[:, 0])


def compare_models(
    saved: Saved, observations: torch.Tensor, actions: torch.Tensor, own: torch.Tensor | None = None
) -> Parting:
    """Compares the two models at pairs [Q, O], [Q, A]; own as in nearest_distances."""
    pretrained, _ = saved.models.values()
    log = rambo.split_rows(saved.rows, observations.shape[1])
    pairs = torch.cat([observations, actions], 1), torch.cat([log.observations, log.actions], 1)
    distances = nearest_distances(*((x - pretrained.input_mean) / pretrained.input_std for x in pairs), own)

    scale = rambo.model_targets(log).std(0).clamp_min(1e-6)
    pair = [x.expand(saved.args.num_elites, -1, -1) for x in (observations, actions)]
    means = [model(*pair)[0] for model in saved.models.values()]  # [E, Q, D] each
    differences = (((means[1] - means[0]) / scale) ** 2).mean(2).sqrt().mean(0)
    if not saved.has_critic:
        return Parting(distances, differences.numpy(), np.full(len(distances), np.nan))
    backups = []
    for mean in means:
        following = observations + mean[..., :-1]
        going_on = ~saved.terminated(following)
        backups.append(mean[..., -1] + saved.args.gamma * going_on * saved.values(following))
    return Parting(distances, differences.numpy(), (backups[1] - backups[0]).mean(0).numpy())


def part(saved: Saved, worlds: dict[str, Trajectories], count: int, generator: torch.Generator) -> Parting:
    """The two models compared at `count` pairs of each kind in POINTS."""
    dataset = saved.dataset
    picked = torch.randint(len(saved.rows), (count,), generator=generator)
    rows = rambo.split_rows(saved.rows[picked], dataset.obs_dim)
    states = torch.cat([world.observations[~world.fallen] for world in list(worlds.values())[:2]])
    imagined = states[torch.randint(len(states), (count,), generator=generator)]

    def act(observations: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(observations), dataset.action_dim, generator=generator)
        return rambo.sample_action(saved.agent.actor, observations, noise)[0]

    random_actions = 2 * torch.rand(count, dataset.action_dim, generator=generator) - 1
    partings = [
        compare_models(saved, rows.observations, rows.actions, own=picked),
        compare_models(saved, rows.observations, act(rows.observations)),
        compare_models(saved, rows.observations, random_actions),
        compare_models(saved, imagined, act(imagined)),
    ]
    return Parting(*np.stack(partings, axis=1))


def correlation(parting: Parting) -> float:
    """Spearman's rank correlation of distance and difference over all points."""
    return float(spearmanr(parting.distances, parting.differences, axis=None).statistic)


def draw_parting(saved: Saved, parting: Parting, path: Path) -> None:
    """Scatter plots with running medians: the difference of the models, and what it does to the predicted value."""
    panels = 2 if saved.has_critic else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.8), squeeze=False)
    distances = parting.distances.ravel()
    bins = np.array_split(distances.argsort(), min(12, len(distances)))
    for axis, heights in zip(axes[0], (parting.differences, parting.value_changes), strict=False):
        for (name, color), x, y in zip(POINTS.items(), parting.distances, heights, strict=True):
            axis.plot(x, y, ".", color=color, markersize=4, alpha=0.5, label=name, markeredgewidth=0)
        everything = heights.ravel()
        centers = [np.median(distances[bin]) for bin in bins]
        low, median, high = np.transpose([np.quantile(everything[bin], [0.25, 0.5, 0.75]) for bin in bins])
        axis.fill_between(centers, low, high, color="black", alpha=0.15, linewidth=0)
        axis.plot(centers, median, "k-", linewidth=2, label="running median, quartiles of all")
        axis.set(xlabel="distance to the nearest dataset row (standard deviations)", xscale="log")
        axis.set_xlim(*np.quantile(distances[distances > 0], [0.005, 1]))
    title = f"Where the models part: Spearman correlation {correlation(parting):.2f}"
    axes[0, 0].set(yscale="log", ylabel="difference of predicted means (standard deviations)", title=title)
    for axis in (axes[0, 0].yaxis, *(a.xaxis for a in axes[0])):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    if saved.has_critic:
        axes[0, 1].axhline(0, color="#999999", linewidth=1)
        axes[0, 1].set(ylabel="r + γV(s') in the adversarial model − in the other", ylim=np.quantile(everything, [0.01, 0.99]))
        axes[0, 1].set_title("What that does to the predicted value")
    legend = figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for handle in legend.legend_handles:
        handle.set(alpha=1, markersize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# imagine.mp4 and filmstrip.png
FRAME_SIZE, FRAME_EVERY = 200, 2  # pixels, steps


def make_video_env(args: rambo.Args) -> gym.Env:
    """A simulator that draws small pictures; without a display MuJoCo does so through EGL. Raises InputError if it cannot."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    view = dict(width=FRAME_SIZE, height=FRAME_SIZE, camera_name="track") if rambo.is_d4rl_id(args.env_id) else {}
    try:
        env = rambo.make_env(args.env_id, args.d4rl_physics, render_mode="rgb_array", **view)
        env.reset()
        env.render()
    except Exception as error:  # whatever the OpenGL or pygame at hand raises
        raise InputError(f"--video cannot render here ({error}): see MUJOCO_GL".replace("\n", " ")) from error
    return env


def render(env: gym.Env, observations: np.ndarray, fallen: np.ndarray) -> list[np.ndarray]:
    """Pictures [size, size, 3] of every FRAME_EVERYth of the un-normalised observations [T + 1, O]: red after a fall."""
    env.reset(seed=0)
    simulator, frames, x = env.unwrapped, [], 0.0
    for t, observation in enumerate(observations):
        set_state(env, observation, x)
        if hasattr(simulator, "model") and not fallen[t]:
            x += simulator.dt * simulator.data.qvel[0]
        if t % FRAME_EVERY == 0:
            picture = np.asarray(Image.fromarray(env.render()).resize((FRAME_SIZE, FRAME_SIZE)))
            frames.append((picture * ((1, 0.6, 0.6) if fallen[t] else (1, 1, 1))).astype(np.uint8))
    return frames


def draw_video(saved: Saved, env: gym.Env, worlds: dict[str, Trajectories], starts: int, output: Path) -> None:
    """The three worlds side by side, and the first trajectory as a strip of pictures. The trajectories that fall in the
    adversarial model alone come first, so the video shows worst cases and not a typical sample."""
    without, adversarial, true = (world.fallen[-1] for world in worlds.values())
    worst = adversarial & ~without & ~true
    print(f"{worst.sum()} of {len(worst)} trajectories fall in the adversarial model alone: the video starts with these")
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
    frames, strips = [], []
    for i in (~worst).int().argsort(stable=True)[:starts]:
        panes = [render(env, saved.unnormalize(w.observations[:, i]), w.fallen[:, i].numpy()) for w in worlds.values()]
        strips = strips or panes
        for pictures in zip(*panes, strict=True):
            frame = Image.fromarray(np.concatenate(pictures, 1))
            for j, name in enumerate(worlds):
                place, stroke = (FRAME_SIZE * j + 8, 6), dict(stroke_width=2, stroke_fill="black")
                ImageDraw.Draw(frame).text(place, name, fill="white", font=font, **stroke)
            frames.append(np.asarray(frame))
    env.close()
    ImageSequenceClip(frames, fps=30).write_videofile(str(output / "imagine.mp4"), logger=None)

    steps = np.unique(np.linspace(0, len(strips[0]) - 1, 8).round().astype(int))
    figure, axes = plt.subplots(len(worlds), len(steps), squeeze=False, figsize=(9, 3.9))
    for row, name, pictures in zip(axes, worlds, strips, strict=True):
        row[0].set_ylabel(textwrap.fill(name, 16), fontsize=9)
        for axis, step in zip(row, steps, strict=True):
            axis.imshow(pictures[step])
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, step in zip(axes[-1], steps, strict=True):
        axis.set_xlabel(f"step {FRAME_EVERY * step}", fontsize=9)
    figure.savefig(output / "filmstrip.png", dpi=90)
    plt.close(figure)
    Image.open(output / "filmstrip.png").quantize(128).save(output / "filmstrip.png")  # a third of the size


@torch.no_grad()
@matplotlib.rc_context(STYLE)
def main(args: Args) -> None:
    for name in ("starts", "horizon", "points", "video_starts", "probe_updates"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    probing = args.probe_weight is not None
    if probing and not 0 < args.probe_weight < np.inf:
        raise InputError("--probe-weight must be positive")
    saved = load_run(args.run_dir, probing)
    output = args.output or args.run_dir / "imagine"
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error}") from error
    video_env = make_video_env(saved.args) if args.video else None  # better to fail now than after the rest
    if probing:
        saved = saved._replace(models=probe(saved, args.probe_weight, args.probe_updates, args.seed))
    if not saved.has_critic:
        print("Predicted values are left out: the run folder has no checkpoint of this policy (--checkpoint-interval)")

    obs_dim, action_dim, num_elites = saved.dataset.obs_dim, saved.dataset.action_dim, saved.args.num_elites
    generator = torch.Generator().manual_seed(args.seed)
    count = -(-args.starts // num_elites) * num_elites  # the same number for each elite
    starts = saved.rows[torch.randint(len(saved.rows), (count,), generator=generator), :obs_dim]
    noise = torch.randn(args.horizon, count, action_dim + obs_dim + 1, generator=generator)
    if args.deterministic:
        noise[..., :action_dim] = 0
    worlds = {name: imagine(saved, model, starts, noise) for name, model in saved.models.items()}
    worlds["simulator"] = simulate(saved, starts, noise)
    parting = part(saved, worlds, args.points, generator)

    draw_trajectories(saved, worlds, output / "trajectories.png")
    draw_parting(saved, parting, output / "parting.png")
    print(f"{'after ' + str(args.horizon) + ' steps':36}  return   have fallen")
    for name, world in worlds.items():
        print(f"{name:36}{world.rewards.sum(0).mean():8.1f}{world.fallen[-1].float().mean():14.1%}")
    print(f"\n{'':36}distance   difference   value change   (medians)")
    for name, distance, difference, change in zip(POINTS, *np.median(parting, axis=2), strict=True):
        print(f"{name:36}{distance:8.3f}{difference:13.4f}{change:15.3f}")
    print(f"Spearman correlation of distance and difference: {correlation(parting):.3f}")
    if video_env is not None:
        draw_video(saved, video_env, worlds, args.video_starts, output)
    for name in ("trajectories.png", "parting.png", *(("imagine.mp4", "filmstrip.png") if args.video else ())):
        print(f"{output / name}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
