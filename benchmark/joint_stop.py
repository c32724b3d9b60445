"""How well does a model know that a joint has a stop? `python benchmark/joint_stop.py RUN_DIR ...`

Hopper starts with its thigh at the end of its range. There an action beyond 0.9 presses it against the stop, and the simulator
holds it. The table compares the thigh's velocity after one step, as the model of a run's last checkpoint predicts it, with the
run's own log, on the rows at the stop that press and on all rows (all but the 1,000 hold-out rows are trained on):

    bias    mean of predicted minus logged, in rad/s: above 0, the model lets the thigh go on through the stop
    error   mean absolute difference, in rad/s
    sigma   the standard deviation that the model admits to, in rad/s
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))
from value_gap import load_run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rambo_continuous import Dynamics, InputError, model_targets, split_rows

THIGH_ANGLE, THIGH_VELOCITY, THIGH_MOTOR = 2, 8, 0  # in Hopper's observation and action
COLUMNS = ("rows", "bias", "error", "sigma")


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders that hold a checkpoint, of either script"""
    dynamics: Path | None = None
    """the model to look at instead of the checkpoint's: a dynamics*.npz of the same dataset"""
    max_angle: float = 0.02
    """rad: nearer than this the thigh is at its stop"""


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


def analyse(folder: Path, max_angle: float, dynamics_path: Path | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """COLUMNS on the rows of the run's log that press, and on all. Raises InputError."""
    args, _, _, dynamics, _, dataset = load_run(folder, dynamics_path)
    if not args.env_id.startswith("hopper-"):
        raise InputError(f"{folder}: only for hopper, not {args.env_id}")
    rows, scale = torch.tensor(dataset.rows), float(dataset.obs_std[THIGH_VELOCITY])
    angles = rows[:, THIGH_ANGLE] * dataset.obs_std[THIGH_ANGLE] + dataset.obs_mean[THIGH_ANGLE]
    pressing = (angles > -max_angle) & (rows[:, dataset.obs_dim + THIGH_MOTOR] > 0.9)
    return tuple(compare(dynamics, chosen, dataset.obs_dim, dataset.action_dim, scale) for chosen in (rows[pressing], rows))


def main(args: Args) -> None:
    found = [(folder, analyse(folder, args.max_angle, args.dynamics)) for folder in args.runs]
    header = ["run", *(f"{name}, {which}" for which in ("pressing", "all") for name in COLUMNS)]
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for folder, parts in found:
        cells = [f"{part[key]:.{0 if key == 'rows' else 3}f}" for part in parts for key in COLUMNS]
        print(f"| {folder.resolve().name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
