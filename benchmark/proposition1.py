"""Proposition 1, checked: is the predicted value a lower bound of the value the policy then realises?

    python benchmark/proposition1.py benchmark/results/hopper-mini-v2.csv

Reads the evaluations of runs with a model (of either script): the critic's value at the first states against the realised
discounted return, both averages over the evaluation episodes. Prints the share of evaluations and of runs (their last
evaluation) in which the prediction is a lower bound, for lambda = 0 and for lambda > 0, and draws both.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import report
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"λ = 0": "#2471a3", "λ > 0": "#c0392b"}


@dataclass
class Args:
    runs: tyro.conf.Positional[list[Path]]
    """published runs (DATASET.csv) and folders that hold run folders"""
    output: Path = Path("proposition1.png")
    """the figure"""
    min_iteration: int = 1
    """evaluations before this iteration do not count: the critic of iteration 0 has learned nothing"""


class Evaluations(NamedTuple):
    """The evaluations of one run."""

    group: str  # a key of COLORS
    iterations: np.ndarray  # [n]
    realised: np.ndarray  # [n], discounted returns
    gaps: np.ndarray  # [n], predicted value minus realised discounted return


def evaluations(run: report.Run, min_iteration: int) -> Evaluations:
    (iterations, gaps), (_, realised) = run.curve("charts/value_gap"), run.curve("charts/discounted_return")
    counts = iterations >= min_iteration
    return Evaluations("λ > 0" if run.args["adv_weight"] > 0 else "λ = 0", iterations[counts], realised[counts], gaps[counts])


def draw(runs: list[Evaluations], path: Path) -> None:
    """Left: predicted against realised value, a ring for the last evaluation of a run; right: the gap over iterations."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", facecolor="white")
    for run in runs:
        color, predicted = COLORS[run.group], run.realised + run.gaps
        axes[0].plot(run.realised, predicted, ".", color=color, markersize=7, alpha=0.5, mew=0)
        axes[0].plot(run.realised[-1], predicted[-1], "o", color=color, markersize=8, markerfacecolor="white", mew=1.8)
        axes[1].plot(run.iterations, run.gaps, color=color, linewidth=1.2, alpha=0.8)
    ends = [np.min([run.realised.min() for run in runs]), np.max([run.realised.max() for run in runs])]
    axes[0].plot(ends, ends, "k--", linewidth=1)
    axes[1].axhline(0, color="black", linestyle="--", linewidth=1)
    axes[0].set(xlabel="realised discounted return", ylabel="predicted value", title="below the line: a lower bound")
    axes[1].set(xlabel="iteration", ylabel="predicted − realised", title="below 0: a lower bound")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    groups = sorted({run.group for run in runs})
    handles = [plt.Line2D([], [], marker="o", color=COLORS[group]) for group in groups]
    figure.legend(handles, groups, loc="outside upper center", ncols=len(groups), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(args: Args) -> None:
    sys.stdout.reconfigure(encoding="utf-8")
    read = [run for path in args.runs for run in report.read(path) if run.args["real_ratio"] < 1]
    runs = [run for run in (evaluations(run, args.min_iteration) for run in read) if len(run.gaps)]
    if not runs:
        sys.exit(f"error: no run with a model and an evaluation from iteration {args.min_iteration} on among the arguments")
    print("           runs, last evaluation a lower bound   evaluations, a lower bound   median gap")
    for group in COLORS:
        members = [run for run in runs if run.group == group]
        if members:
            gaps, last = np.concatenate([run.gaps for run in members]), np.array([run.gaps[-1] for run in members])
            print(f"{group:9}  {f'{(last <= 0).sum()} of {len(last)}':>36}", end="")
            print(f"{f'{(gaps <= 0).sum()} of {len(gaps)} ({(gaps <= 0).mean():.0%})':>29}{np.median(gaps):13.1f}")
    draw(runs, args.output)
    print(f"Figure: {args.output}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
