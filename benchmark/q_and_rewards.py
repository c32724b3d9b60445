"""Does the critic promise more than the model pays? `python benchmark/q_and_rewards.py RUN_DIR ...`

From the logs alone, for every run with a model. An imagined step pays `rollout/reward` on average, so for ever

    paid = rollout/reward / (1 - gamma),

and the critic's mean Q over the training batches is `losses/qf_values`. Printed: both at one iteration, the largest Q / paid,
in which iterations Q is above paid, and the run's largest value gap, by which the lines are sorted. No strict bound: a
policy may earn more later than in the first k steps from the log's states.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report import Run, read_run, table

COLUMNS = ["run", "λ", "k", "iteration", "paid", "Q", "largest Q / paid", "Q above paid", "first", "last", "largest value gap"]


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders that hold metrics.csv and evaluations.csv"""
    iteration: int = 20
    """the iteration whose Q and paid are printed, or the last one before it"""


def line(run: Run, iteration: int) -> list[str]:
    """A run's line of the table, under COLUMNS."""
    iterations, q = run.metrics["iteration"], run.metrics["losses/qf_values"]
    paid = run.metrics["rollout/reward"] / (1 - run.args["gamma"])
    above = iterations[q > paid]
    at = np.flatnonzero(iterations <= iteration)[-1]
    cells = [run.folder.name, f"{run.args['adv_weight']:g}", str(run.args["rollout_length"]), f"{iterations[at]:.0f}"]
    cells += [f"{paid[at]:.0f}", f"{q[at]:.0f}", f"{(q / paid).max():.2f}", str(len(above))]
    cells += [f"{above[0]:.0f}", f"{above[-1]:.0f}"] if len(above) else ["", ""]
    return [*cells, f"{run.evaluations['value_gap'].max():.0f}"]


def main(args: Args) -> None:
    runs = [run for run in map(read_run, args.runs) if run is not None and "rollout/reward" in run.metrics]
    runs.sort(key=lambda run: run.evaluations["value_gap"].max())
    print(table(COLUMNS, [line(run, args.iteration) for run in runs]))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (OSError, KeyError, ValueError, IndexError) as problem:
        sys.exit(f"error: not a run folder with args.json, evaluations.csv and metrics.csv: {problem}")
