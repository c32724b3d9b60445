"""How long the parts of training take on this machine, in seconds and as multiples of the time of a large matrix product:

    python benchmark/speed.py                                       # rambo_continuous.py, on the GPU if there is one
    python benchmark/speed.py --jax --num-seeds 8                   # rambo_continuous_jax.py, eight seeds side by side
    python benchmark/speed.py --output speed.json --no-compile      # flags of the script: at the end

Each part is timed in the script's own main, in runs in which the other parts have next to nothing to do; the product is timed
before and after each run. A multiple of 1: the part's matrix arithmetic, at the speed of that float32 product.
"""

import contextlib
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rambo_continuous as rambo


@dataclass
class Args:
    jax: bool = False
    """time rambo_continuous_jax.py"""
    num_seeds: int = 1
    """with --jax: so many side by side"""
    env_id: str = "hopper-mini-v2"
    """the dataset, as for the script"""
    dataset_path: str | None = None
    """the dataset's file, as for the script"""
    updates: int = 100
    """updates in an iteration that is timed; times are given for one"""
    repeats: int = 5
    """iterations and epochs that are timed, after the first, which warms up"""
    output: Path | None = None
    """also write the figures to this JSON file"""


class Enough(Exception):
    """A run has been timed for long enough."""


class Clock:
    """In place of a script's tqdm: notes when an epoch or an iteration ends, and ends the run."""

    def __init__(self, enough: int):
        self.enough, self.ends = enough, {"epoch": [], "iteration": [], "": []}  # cloning has no unit

    def __call__(self, steps: Iterable[int], *_, unit: str = "", **__) -> "Clock":
        self.steps, self.unit = steps, unit
        return self

    def __iter__(self) -> Iterator[int]:
        for step in self.steps:
            yield step
            self.ends[self.unit].append(time.perf_counter())
            if len(self.ends["iteration"]) > self.enough + 1:
                raise Enough

    def set_postfix(self, **_) -> None: ...
    def set_postfix_str(self, *_) -> None: ...
    def write(self, *_) -> None: ...


def time_run(script: ModuleType, training, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each epoch of pretraining and each iteration of the script's main, without the first."""
    clock = Clock(repeats)
    with patch.object(script, "tqdm", clock), contextlib.redirect_stdout(None), contextlib.suppress(Enough):
        script.main(training)
    return np.diff(clock.ends["epoch"]), np.diff(clock.ends["iteration"])


def evaluation(training, obs_dim: int, action_dim: int) -> Callable:
    """By itself, with episodes that all last to the time limit. In training it runs beside it."""
    make, agent = partial(rambo.make_env, training.env_id), rambo.Agent(obs_dim, action_dim, 1.0)
    endless = {"terminate_when_unhealthy": False} if hasattr(make().unwrapped, "_terminate_when_unhealthy") else {}
    envs = gym.vector.SyncVectorEnv([partial(make, **endless)] * training.eval_episodes)
    policy = rambo.NumpyAgent(rambo.to_numpy(agent), np.zeros(obs_dim), np.ones(obs_dim)).mode
    return lambda: rambo.evaluate(policy, envs, 1, training.gamma)


def count_gflop(args, obs_dim: int, action_dim: int, rows: int) -> dict[str, float]:
    """The matrix arithmetic of an epoch, of an iteration's rollouts and of one update. A layer that learns costs three
    products, but nothing asks for the gradient of the inputs of the first."""

    def weights(inputs: int, outputs: int, width: int, depth: int) -> int:
        return width * (inputs + (depth - 1) * width + outputs)

    both, critics = obs_dim + action_dim, getattr(args, "num_critics", 2)
    actor, critic = weights(obs_dim, 2 * action_dim, 256, 2), weights(both, 1, 256, 2)
    model = weights(both, 2 * (obs_dim + 1), args.model_hidden_dim, 4)
    learning = 3 * model - both * args.model_hidden_dim
    agent = actor + critics * critic  # the targets
    agent += critics * (3 * critic - both * 256) + 3 * actor - obs_dim * 256 + 2 * critics * critic
    counts = {
        "epoch of pretraining": rows * args.num_models * learning,
        "rollouts": args.rollout_length * args.rollout_batch_size * (actor + model),
        "agent update": args.batch_size * agent,
        "adversarial model update": args.batch_size * (2 * args.num_elites * learning + 2 * actor + 2 * critics * critic),
    }
    return {part: 2e-9 * count for part, count in counts.items()}


def matrix_seconds(device: str) -> float:
    """Of a GFLOP in large float32 products."""
    width, count = (8192, 20) if device == "cuda" else (2048, 1)
    x, out = torch.randn(2, width, width, device=device)
    start = time.perf_counter()
    for _ in range(count):
        torch.mm(x, x, out=out)
    out[0, 0].item()
    return (time.perf_counter() - start) / (count * 2e-9 * width**3)


def measure(args: Args, script: ModuleType, training, device: str) -> dict:
    """Seconds (median, least, most) of each part and what multiple of its arithmetic's time in the product that is."""
    env = script.make_env(training.env_id)
    dataset = script.load_dataset(training.env_id, training.dataset_path, env)
    quick = replace(training, eval_workers=0, eval_episodes=1, eval_interval=10**9, total_iterations=10**6)
    no_rollouts = replace(quick, rollout_batch_size=training.num_elites, updates_per_iteration=args.updates)
    product, times, here = [matrix_seconds(device) for _ in range(2)][1:], {}, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            first = replace(no_rollouts, adv_weight=0.0, save_model=True, model_max_pretrain_epochs=args.repeats + 1)
            times["epoch of pretraining"], times["agent update"] = time_run(script, first, args.repeats)
            model = {"load_model": str(next(Path().glob("runs/*/dynamics_pretrained.npz")))}
            product.append(matrix_seconds(device))
            _, both = time_run(script, replace(no_rollouts, adv_weight=3e-4, **model), args.repeats)
            product.append(matrix_seconds(device))
            only_rollouts = replace(quick, adv_weight=0.0, updates_per_iteration=1, **model)
            _, times["rollouts"] = time_run(script, only_rollouts, args.repeats)
        finally:
            os.chdir(here)
    times["adversarial model update"] = (both - np.median(times["agent update"])) / args.updates
    times["agent update"] = times["agent update"] / args.updates
    evaluate, starts = evaluation(training, dataset.obs_dim, dataset.action_dim), [time.perf_counter()]
    for _ in range(args.repeats):
        evaluate()
        starts.append(time.perf_counter())
    times["evaluation"] = np.diff(starts)
    gflop = count_gflop(training, dataset.obs_dim, dataset.action_dim, len(dataset.rows))
    updates = training.updates_per_iteration
    for values in (times, gflop):
        values["iteration"] = values["rollouts"] + updates * (values["agent update"] + values["adversarial model update"])
    per_gflop, parts = float(np.median([*product, matrix_seconds(device)])), {}
    for part, values in times.items():
        seconds, work = float(np.median(values)), args.num_seeds * gflop.get(part, 0)
        parts[part] = {"seconds": seconds, "least": float(values.min()), "most": float(values.max()), "gflop": work}
        parts[part]["multiple"] = seconds / (work * per_gflop) if work else None
    return {"rows": len(dataset.rows), "matrix_gflop_per_second": 1 / per_gflop, "parts": parts}


def main(args: Args, flags: list[str]) -> dict:
    script = importlib.import_module("rambo_continuous_jax" if args.jax else "rambo_continuous")
    flags = [*flags, "--num-seeds", str(args.num_seeds)] if args.jax else flags
    flags = [*flags, "--dataset-path", str(Path(args.dataset_path).resolve())] if args.dataset_path else flags
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves torch some of the GPU's memory
    training = script.parse_args(["--env-id", args.env_id, *flags])
    device = "cuda" if training.cuda and torch.cuda.is_available() else "cpu"
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "mujoco", *["jax"] * args.jax)),
    }
    results = {"machine": machine, **measure(args, script, training, device), "arguments": asdict(training)}
    print(*(f"{key}: {value}" for key, value in machine.items()), sep="; ", end="\n\n")
    print("| part | seconds | from least to most | GFLOP | multiple of the matrix product |\n|---|---|---|---|---|")
    for part, r in results["parts"].items():
        work, multiple = (f"{x:.3g}" if x else "" for x in (r["gflop"], r["multiple"]))
        print(f"| {part} | {r['seconds']:.3g} | {r['least']:.3g} to {r['most']:.3g} | {work} | {multiple} |")
    print(f"\n{results['rows']:,} rows; the product: {results['matrix_gflop_per_second']:,.0f} GFLOP/s in float32.")
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(*tyro.cli(Args, description=__doc__, return_unknown_args=True))
