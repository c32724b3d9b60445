"""Does the critic see a fall coming, and does the model?

    python benchmark/falls.py runs/hopper-medium-v2__rambo_continuous_jax__1__1700000000

Plays the episodes of an evaluation with the policy of a run's last checkpoint (of either script). Compares, state by state,
the critic's value with the discounted return that follows, with what the learned model says (the share of its rollouts from
there, with the policy's mode, that end within 10 steps) and with the distance to the nearest state that the run's rollouts
pass through, in the dataset's standard deviations. Prints the table, writes RUN_DIR/falls.csv and draws RUN_DIR/falls.png.
Where no episode ends in a fall, the table compares the states where the body moves with those where it is stuck.
Given such a CSV file it only prints and draws. Given published runs (DATASET.csv) it prints what falls cost: the discounted
return of evaluations by their score.

    python benchmark/falls.py runs/RUN --starts 50

plays from states of the dataset instead, 50 at each stage of its episodes: some policies fall after the environment's start
alone. Writes RUN_DIR/starts.csv, from which it prints the table again.
"""

import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from flax import nnx
from report import read_csv, table
from scipy.spatial import KDTree

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rambo_continuous_jax as rambo
from rambo_continuous_jax import Agent, Dynamics, InputError

HORIZON = 10  # steps in which the model foresees a fall
BEFORE = (1, 5, 10, 20, 50, 100)  # steps before the end, the table's rows
STAGES = (0, 5, 10, 20, 50, 100, 1_000_000)  # steps of the dataset's episodes between which --starts begins
STRETCH = 100  # steps that together are stuck or not
SCORES = (20, 30, 45, 85)  # where the rows of the other table end
COLUMNS = "episode step terminated reward value return_to_go model_falls distance usual_distance".split()
START_COLUMNS = "from_step to_step steps return".split()


@dataclass
class Args:
    source: tyro.conf.Positional[Path]
    """a run folder with a checkpoint, a CSV file of this program, or published runs"""
    dataset_path: Path | None = None
    """the dataset, if it is not where the run found it"""
    output: Path | None = None
    """the CSV file"""
    figure: Path | None = None
    """the picture; the default has the CSV file's name"""
    after: int = 20
    """of published runs: evaluations up to this iteration do not count"""
    starts: int = 0
    """of a run folder: play so many episodes from each stage of the dataset's episodes instead"""


class Trained(NamedTuple):
    """What a checkpoint holds, and the dataset and arguments of its run."""

    args: rambo.Args
    dataset: rambo.Dataset
    agent: Agent
    dynamics: Dynamics
    numpy_agent: rambo.NumpyAgent
    iteration: int


def load_run(folder: Path, dataset_path: Path | None) -> Trained:
    """Raises InputError."""
    with rambo.explain(f"{folder} is no run folder with a checkpoint"):
        saved = json.loads((folder / "args.json").read_text(encoding="utf-8"))
        args = rambo.Args(**{key: value for key, value in saved.items() if key in rambo.Args.__dataclass_fields__})
        if (folder / "checkpoint.npz").exists():
            with np.load(folder / "checkpoint.npz", allow_pickle=False) as file:
                arrays = dict(file)
        else:
            import torch

            checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
            parts = zip(("agent", "dynamics"), checkpoint["states"], strict=False)
            arrays = {f"{part}.{name}": np.asarray(array) for part, state in parts for name, array in state.items()}
            arrays["iteration"] = checkpoint["iteration"]
    if args.real_ratio == 1:
        raise InputError(f"{folder}: that run has no model")
    path = str(dataset_path or args.dataset_path or "") or None
    dataset = rambo.load_dataset(args.env_id, path, rambo.make_env(args.env_id, args.d4rl_physics))
    agent = rambo.init_agent(jax.random.PRNGKey(0), dataset.obs_dim, dataset.action_dim, args.alpha, args.num_critics)
    dynamics = Dynamics(args.num_elites, dataset.obs_dim, dataset.action_dim, args.model_hidden_dim, nnx.Rngs(0))
    with rambo.explain(f"{folder}: its checkpoint does not fit the dataset"):
        of_agent = {name.removeprefix("agent."): array for name, array in arrays.items() if name.startswith("agent.")}
        agent = rambo.from_numpy(of_agent, agent)
        dynamics = rambo.from_numpy({name.removeprefix("dynamics."): array for name, array in arrays.items()}, dynamics)
    numpy_agent = rambo.NumpyAgent(of_agent, dataset.obs_mean, dataset.obs_std)
    return Trained(args, dataset, agent, dynamics, numpy_agent, int(arrays["iteration"]))


class Episode(NamedTuple):
    observations: np.ndarray  # [T, O], un-normalised
    rewards: np.ndarray  # [T]
    terminated: bool  # else the time was up
    returns_to_go: np.ndarray  # [T], discounted; after a time limit the critic's value stands for the rest


def returns_to_go(rewards: np.ndarray, rest: float, gamma: float) -> np.ndarray:
    """Discounted return from each step on, [T], when `rest` is worth what comes after the last."""
    result = np.append(np.zeros(len(rewards)), rest)
    for step in reversed(range(len(rewards))):
        result[step] = rewards[step] + gamma * result[step + 1]
    return result[:-1]


def play_on(run: Trained, env, observation: np.ndarray) -> Episode:
    """From this observation on, where the environment stands."""
    low, high = env.action_space.low, env.action_space.high
    observations, rewards, terminated, truncated = [], [], False, False
    while not terminated and not truncated:
        observations.append(observation)
        action = np.clip(low + (run.numpy_agent.mode(observation[None])[0] + 1) / 2 * (high - low), low, high)
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
    rest = 0.0 if terminated else run.numpy_agent.value(observation[None]).item()
    values = returns_to_go(np.array(rewards), rest, run.args.gamma)
    return Episode(np.array(observations), np.array(rewards), terminated, values)


def play(run: Trained) -> list[Episode]:
    """The episodes with which the run evaluates its last checkpoint."""
    env = rambo.make_env(run.args.env_id, run.args.d4rl_physics)
    seeds = np.random.SeedSequence([run.args.seed, run.iteration]).generate_state(run.args.eval_episodes).tolist()
    return [play_on(run, env, env.reset(seed=seed)[0]) for seed in seeds]


def set_state(env, observation: np.ndarray) -> None:
    """Puts a D4RL body where the observation [O] says; the distance covered, which is not in it, is 0."""
    positions = env.unwrapped.model.nq - 1
    env.reset(seed=0)
    env.unwrapped.set_state(np.append(0.0, observation[:positions]), observation[positions:])


def play_from_dataset(run: Trained, path: str | None, count: int) -> list[dict]:
    """A row for each episode: those of the evaluation, from step -1, and `count` from each stage. Raises InputError."""
    if not rambo.is_d4rl_id(run.args.env_id):
        raise InputError(f"--starts: the observations of {run.args.env_id} are not known to hold the environment's state")
    env = rambo.make_env(run.args.env_id, run.args.d4rl_physics)
    data = rambo.read_hdf5(rambo.find_dataset(run.args.env_id, path))
    ends, row = (data["terminals"].astype(bool) | data["timeouts"].astype(bool)).reshape(-1), np.arange(len(data["terminals"]))
    steps = row - np.maximum.accumulate(np.where(np.append(True, ends[:-1]), row, 0))
    episodes = [(-1, -1, episode) for episode in play(run)]
    for low, high in pairwise(STAGES):
        rows = np.flatnonzero((low <= steps) & (steps < high))
        for observation in data["observations"][np.random.default_rng(low).permutation(rows)[:count]]:
            set_state(env, observation)
            episodes.append((low, high - 1, play_on(run, env, observation)))
    return [
        dict(zip(START_COLUMNS, (low, high, len(episode.rewards), f"{episode.rewards.sum():.1f}"), strict=True))
        for low, high, episode in episodes
    ]


def starts_table(rows: list[dict]) -> str:
    """How long episodes last by where they begin."""
    groups = defaultdict(list)
    for row in rows:
        groups[int(row["from_step"]), int(row["to_step"])].append(int(row["steps"]))
    lines = []
    for (low, high), steps in groups.items():
        name = f"at step {low} to {high}" if high < STAGES[-1] - 1 else f"from step {low} on"
        shares = (f"{np.mean(those):.0%}" for those in (np.array(steps) < 30, np.array(steps) >= 1000))
        lines.append([name if low >= 0 else "in the environment", str(len(steps)), f"{np.median(steps):,.0f}", *shares])
    return table(["begins", "episodes", "steps (median)", "fewer than 30", "1,000"], lines)


def termination(run: Trained):
    """The environment's rule for normalised observations."""
    rule = rambo.termination_rule(rambo.make_env(run.args.env_id, run.args.d4rl_physics))
    return lambda observations: rule(observations * run.dataset.obs_std + run.dataset.obs_mean)


def model_falls(run: Trained, states: np.ndarray, samples: int = 20) -> np.ndarray:
    """Share of the model's rollouts from normalised states [T, O] that end within HORIZON steps, [T]."""
    terminated, num_elites = termination(run), run.args.num_elites

    @jax.jit
    def share(states: jax.Array, key: jax.Array) -> jax.Array:
        def step(carry: tuple, key: jax.Array) -> tuple:
            observations, fallen = carry  # [E, T * samples, ...]: each rollout stays in one elite
            mean, log_var = run.dynamics(observations, run.agent.policy.mode(observations))
            sample = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
            observations = observations + jnp.where(fallen[..., None], 0, sample[..., :-1])
            return (observations, fallen | terminated(observations)), None

        observations = jnp.broadcast_to(jnp.repeat(states, samples, 0), (num_elites, len(states) * samples, states.shape[1]))
        carry = observations, jnp.zeros(observations.shape[:2], bool)
        (_, fallen), _ = jax.lax.scan(step, carry, jax.random.split(key, HORIZON))
        return fallen.reshape(num_elites, len(states), samples).mean((0, 2))

    return np.asarray(share(jnp.asarray(states, jnp.float32), jax.random.PRNGKey(0)))


def rollout_states(run: Trained, seed: int) -> np.ndarray:
    """The normalised states that the rollouts of one iteration pass through, [N, O]."""
    rows = jnp.asarray(run.dataset.rows)
    rule = rambo.termination_rule(rambo.make_env(run.args.env_id, run.args.d4rl_physics))
    dataset = rambo.split_rows(rows, run.dataset.obs_dim)
    end_step = rambo.rollout_ends(dataset, rule, run.dataset.obs_mean, run.dataset.obs_std, run.args)
    rollout = jax.jit(partial(rambo.rollout_models, end_step=end_step, args=run.args))
    rollouts, _ = rollout(run.agent, run.dynamics, rows, jax.random.PRNGKey(seed))
    return np.asarray(rollouts[:, : run.dataset.obs_dim])


def measure(run: Trained) -> list[dict]:
    """A row for each state of each episode."""
    tree = KDTree(rollout_states(run, 0))
    others = rollout_states(run, 1)
    usual, _ = tree.query(others[:: max(len(others) // 1000, 1)])
    episodes = play(run)
    observations = np.concatenate([episode.observations for episode in episodes])
    states = (observations - run.dataset.obs_mean) / run.dataset.obs_std
    measured = run.numpy_agent.value(observations), model_falls(run, states), tree.query(states)[0]
    states_left, rows = zip(*measured, strict=True), []
    for i, episode in enumerate(episodes):
        for step, (reward, following) in enumerate(zip(episode.rewards, episode.returns_to_go, strict=True)):
            value, falls, distance = next(states_left)
            texts = [f"{number:.4g}" for number in (reward, value, following, falls, distance, np.median(usual))]
            rows.append(dict(zip(COLUMNS, [i, step, int(episode.terminated), *texts], strict=True)))
    return rows


def episodes_of(rows: list[dict]) -> list[dict[str, np.ndarray]]:
    """The columns of each episode."""
    episodes = defaultdict(list)
    for row in rows:
        episodes[row["episode"]].append(row)
    return [{key: np.array([float(row[key]) for row in group]) for key in COLUMNS} for group in episodes.values()]


def summary(rows: list[dict]) -> str:
    """How many episodes end in a fall, and medians over these at so many steps before it."""
    episodes = episodes_of(rows)
    falls = [episode for episode in episodes if episode["terminated"][0]]
    if not falls:
        return stuck_summary(episodes)
    blind = sum(episode["value"][-1] > 10 * episode["reward"][-1] for episode in falls)
    length = np.median([len(episode["step"]) for episode in falls])
    text = f"{len(falls)} of {len(episodes)} episodes end in a fall, after {length:.0f} steps (median). "
    text += f"In {blind} of them the critic gives the last state more than ten times what it is worth.\n\n"
    header = ["steps before the fall", "critic's value", "discounted return", f"the model falls within {HORIZON} steps"]
    header.append(f"distance to the rollouts (usual: {falls[0]['usual_distance'][0]:.2g})")
    lines = []
    for before in BEFORE:
        at = [{key: column[-before] for key, column in episode.items()} for episode in falls if len(episode["step"]) >= before]
        if at:
            value, following, model, distance = (
                np.median([state[key] for state in at]) for key in ("value", "return_to_go", "model_falls", "distance")
            )
            lines.append([str(before), f"{value:.0f}", f"{following:.0f}", f"{model:.0%}", f"{distance:.2f}"])
    return text + table(header, lines)


def stuck_summary(episodes: list[dict[str, np.ndarray]]) -> str:
    """Medians over the stretches of 100 steps that earn less than a tenth of the best one, which are stuck, and the others."""
    text = f"None of {len(episodes)} episodes ends in a fall."
    stretches = [
        {key: column[start : start + STRETCH] for key, column in episode.items()}
        for episode in episodes
        for start in range(0, len(episode["step"]), STRETCH)
    ]
    rewards = np.array([stretch["reward"].mean() for stretch in stretches])
    least = 0.1 * rewards.max()
    if least < 0 or rewards.min() >= least:
        return text
    lines = []
    for name, those in (("moves", rewards >= least), ("is stuck", rewards < least)):
        columns = ("reward", "value", "return_to_go", "distance")
        of_those = [stretch for stretch, one in zip(stretches, those, strict=True) if one]
        reward, value, following, distance = (np.median(np.concatenate([s[key] for s in of_those])) for key in columns)
        lines.append([name, f"{those.mean():.0%}", f"{reward:.1f}", f"{value:.0f}", f"{following:.0f}", f"{distance:.2f}"])
    header = ["the body", f"stretches of {STRETCH} steps", "reward", "critic's value", "discounted return"]
    header.append(f"distance to the rollouts (usual: {episodes[0]['usual_distance'][0]:.2g})")
    ends = sum(episode["reward"][-STRETCH:].mean() < least for episode in episodes)
    return f"{text} {ends} are stuck in the end.\n\n{table(header, lines)}"


def score_table(rows: list[dict], after: int) -> str:
    """Discounted returns of evaluations after that iteration by their score. Raises InputError if there are none."""
    keys = "charts/normalized_score", "charts/episodic_length", "charts/discounted_return"
    evaluated = [row for row in rows if row[keys[0]] not in ("", "nan") and int(row["iteration"]) > after]
    if not evaluated:
        raise InputError(f"no evaluation with a normalised score after iteration {after}: see --after")
    score, length, discounted = np.array([[float(row[key]) for key in keys] for row in evaluated]).T
    lines = []
    for low, high in zip((-np.inf, *SCORES), (*SCORES, np.inf), strict=True):
        those = (low <= score) & (score < high)
        name = f"below {high}" if low < 0 else f"above {low}" if high > 1e9 else f"{low} to {high}"
        if those.any():
            medians = [f"{np.median(values[those]):.0f}" for values in (length, discounted)]
            spread = "{:.0f} to {:.0f}".format(*np.percentile(discounted[those], [10, 90]))
            lines.append([name, str(those.sum()), *medians, spread])
    header = ["score", "evaluations", "steps of an episode (median)", "discounted return (median)", "80 % of them"]
    return table(header, lines)


def draw(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), facecolor="white", layout="constrained")
    for episode in episodes_of(rows):
        last = slice(-120, None)
        time = (episode["step"] - len(episode["step"]))[last]
        style = dict(linewidth=1.2, alpha=0.7, linestyle="-" if episode["terminated"][0] else ":")
        axes[0].plot(time, episode["value"][last], color="#c0392b", **style)
        axes[0].plot(time, episode["return_to_go"][last], color="#333333", **style)
        axes[1].plot(time, episode["model_falls"][last], color="#2471a3", **style)
        axes[2].plot(time, episode["distance"][last], color="#d68910", **style)
        usual = episode["usual_distance"][0]
    axes[0].legend(
        handles=[plt.Line2D([], [], color=c, label=t) for c, t in (("#c0392b", "critic"), ("#333333", "what follows"))],
        frameon=False,
    )
    axes[2].axhline(usual, color="black", linestyle="--", linewidth=1)
    axes[2].annotate("usual for a rollout's state", (0.02, usual), (0, 4), ("axes fraction", "data"), "offset points")
    axes[0].set(title="discounted return from here", ylim=(0, None))
    axes[1].set(title=f"the model falls within {HORIZON} steps", ylim=(-0.03, 1.03))
    axes[2].set(title="distance to the nearest state of the rollouts", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("steps before the end")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(args: Args) -> None:
    sys.stdout.reconfigure(encoding="utf-8")
    if args.source.suffix == ".csv":
        rows, path = read_csv(args.source), args.source
        known = COLUMNS, START_COLUMNS, ["charts/discounted_return"]
        if rows and not any({*columns} <= {*rows[0]} for columns in known):
            raise InputError(f"{args.source} is neither a file of this program nor one of published runs")
    else:
        run = load_run(args.source, args.dataset_path)
        path = args.output or args.source / ("starts.csv" if args.starts else "falls.csv")
        of_run = str(args.dataset_path or run.args.dataset_path or "") or None
        rows = play_from_dataset(run, of_run, args.starts) if args.starts else measure(run)
        write_csv(path, START_COLUMNS if args.starts else COLUMNS, rows)
    if not rows:
        raise InputError(f"{args.source} holds no episode")
    if "from_step" in rows[0]:
        print(starts_table(rows))
    elif "charts/discounted_return" in rows[0]:
        print(score_table(rows, args.after))
    else:
        print(summary(rows))
        draw(rows, args.figure or path.with_suffix(".png"))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (InputError, OSError) as problem:
        sys.exit(f"error: {problem}")
