"""How well does a model know that a joint has a stop? `python benchmark/joint_stop.py MODEL ... --dataset-path LOG`

Hopper starts with its thigh at the end of its range. There an action beyond 0.9 presses it against the stop, and the simulator
holds it. For each model (a run folder with a checkpoint, or a dynamics*.npz) the table compares the thigh's velocity after one
step with the log's own transitions, on the rows at the stop that press and on all rows the model was trained on:

    bias    mean of predicted minus logged, in rad/s: above 0, the model lets the thigh go on through the stop
    error   mean absolute difference, in rad/s
    sigma   the standard deviation that the model admits to, in rad/s
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))
from value_gap import load_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rambo_continuous import Dynamics, InputError, load_dataset, make_env, model_targets, split_rows

THIGH_ANGLE, THIGH_VELOCITY, THIGH_MOTOR = 2, 8, 0  # in Hopper's observation and action
COLUMNS = ("rows", "bias", "error", "sigma")


@dataclass
class Args:
    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders that hold a checkpoint, or dynamics*.npz"""
    dataset_path: str | None = None
    """the log they were trained on, as in training"""
    env_id: str = "hopper-mini-v2"
    """a hopper dataset's id, as in training"""
    max_angle: float = 0.02
    """rad: nearer than this the thigh is at its stop"""


def load_model(path: Path) -> tuple[Dynamics, int]:
    """The elites or all members of a run's checkpoint or of a .npz, and the seed of the hold-out split. Raises InputError."""
    if path.is_dir():
        args, _, arrays = load_checkpoint(path)
        split_seed = args.seed
        arrays = {key.removeprefix("dynamics."): x for key, x in arrays.items() if key.startswith("dynamics.")}
    else:
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: torch.tensor(file[key]) for key in file if file[key].dtype == np.float32}
                split_seed = int(file["split_seed"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: not a dynamics*.npz ({error})".replace("\n", " ")) from error
    weight = arrays["layers.0.weight"]
    obs_dim = len(arrays["max_log_var"]) - 1
    dynamics = Dynamics(len(weight), obs_dim, len(arrays["input_mean"]) - obs_dim, weight.shape[-1])
    dynamics.load_state_dict({key: arrays[key] for key in dynamics.state_dict()})
    return dynamics, split_seed


@torch.no_grad()
def compare(dynamics: Dynamics, rows: torch.Tensor, obs_dim: int, action_dim: int, scale: float) -> dict[str, float]:
    """COLUMNS on these rows of the log; `scale` is the std of the thigh's velocity."""
    parts, num_models = [], len(dynamics.layers[0].weight)
    for chunk in rows.split(5000):
        batch = split_rows(chunk, obs_dim, action_dim)
        mean, log_var = dynamics(*(x.expand(num_models, -1, -1) for x in (batch.observations, batch.actions)))
        bias = (mean - model_targets(batch))[..., THIGH_VELOCITY]
        parts.append(torch.stack([bias, bias.abs(), torch.exp(0.5 * log_var[..., THIGH_VELOCITY])]))
    numbers = scale * torch.cat(parts, 2).mean((1, 2))
    return dict(zip(COLUMNS, [len(rows), *map(float, numbers)], strict=True))


def main(args: Args) -> None:
    if not args.env_id.startswith("hopper-"):
        raise InputError(f"--env-id {args.env_id}: only for hopper")
    with contextlib.redirect_stdout(sys.stderr):
        dataset = load_dataset(args.env_id, args.dataset_path, make_env(args.env_id))
    sizes = dataset.obs_dim, dataset.action_dim
    angles = dataset.rows[:, THIGH_ANGLE] * dataset.obs_std[THIGH_ANGLE] + dataset.obs_mean[THIGH_ANGLE]
    pressing = (angles > -args.max_angle) & (dataset.rows[:, dataset.obs_dim + THIGH_MOTOR] > 0.9)
    print("| model | " + " | ".join([f"{name}, pressing" for name in COLUMNS] + [f"{name}, all" for name in COLUMNS]) + " |")
    print("| --- " * 9 + "|")
    for path in args.models:
        dynamics, split_seed = load_model(path)
        train = np.random.default_rng(split_seed).permutation(len(dataset.rows))[min(1000, len(dataset.rows) // 10) :]
        cells = []
        for chosen in (train[pressing[train]], train):
            found = compare(dynamics, torch.tensor(dataset.rows[chosen]), *sizes, float(dataset.obs_std[THIGH_VELOCITY]))
            cells += [f"{found['rows']:.0f}", *(f"{found[key]:.3f}" for key in COLUMNS[1:])]
        print(f"| {path} | {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
