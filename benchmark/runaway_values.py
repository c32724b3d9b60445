"""The figure and the table of runaway_values.md: `python benchmark/runaway_values.py`.

Table: the runs whose mean Q passes what the rewards of their log allow, r_max / (1 - gamma). Figure: mean Q on one log with
short and long rollouts, and numbers measured elsewhere (runaway_peer.csv; they have no log in this repository).
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import report
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PEER_BOUND = 340  # rewards of at most 3.4 a step on the log of runaway_peer.csv
HEADER = ["log", "method", "runs that pass the bound", "first at iteration", "largest Q / bound"]
HEADER += ["score of those that pass", "of the others", "behaviour cloning"]


@dataclass
class Args:
    results: Path = HERE / "results"
    """the folder of the logs of published runs"""
    figure: Path = HERE / "figures" / "runaway_values.png"
    """the file that it is drawn to"""
    log: str = "hopper-sbx-medium-v2"
    """the log of the figure's left half"""


def mean_score(runs: list[report.Run]) -> str:
    """The mean over runs of their last 10 evaluations."""
    return report.number(np.mean([run.mean_of_last for run in runs])) if runs else ""


def passing_runs(runs: report.Runs) -> str:
    """How many runs pass the bound, and the methods they belong to."""
    critics = [run for group in runs.values() for run in group if not report.is_behaviour_cloning(run.args)]
    passes = sum(run.bound_passed is not None for run in critics)
    text = f"Of {len(critics)} published runs with a critic {passes} pass the bound:"
    rows = []
    for dataset, groups in report.datasets(runs).items():
        cloned = [run for group in groups.values() for run in group if report.is_behaviour_cloning(run.args)]
        for (_, method), group in groups.items():
            passing, others = ([run for run in group if bool(run.bound_passed) is passed] for passed in (True, False))
            if passing:
                row = [dataset, method.name, f"{len(passing)} of {len(group)}", str(min(run.bound_passed for run in passing))]
                row += [report.ratio_text(max(report.largest_ratios(passing)))]
                rows.append([*row, *map(mean_score, (passing, others, cloned))])
    return f"{text}\n\n{report.table(HEADER, rows)}"


def draw(runs: report.Runs, bound: float, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), facecolor="white", layout="constrained")
    for (_, method), group in runs.items():
        if method.pair is not None:
            color = {5: "#c0392b", 20: "#2471a3"}.get(method.pair[0], "0.5")
            for run in group:
                axes[0].plot(*run.curve("losses/qf_values"), "-" if method.pair[1] else "--", color=color, linewidth=1)
    styles = [("#c0392b", "-", "k = 5, λ > 0"), ("#c0392b", "--", "k = 5, λ = 0")]
    styles += [("#2471a3", "-", "k = 20, λ > 0"), ("#2471a3", "--", "k = 20, λ = 0")]
    handles = [plt.Line2D([], [], color=color, linestyle=style, label=label) for color, style, label in styles]
    axes[0].legend(handles=handles, frameon=False)
    axes[0].set_yscale("log")
    axes[0].set_title(f"{next(iter(runs))[0]}, each seed")
    curves = defaultdict(list)
    for row in report.read_csv(HERE / "runaway_peer.csv"):
        curves[row["program"]].append((int(row["iteration"]), float(row["mean Q"])))
    for marker, (program, points) in zip("osx", curves.items(), strict=True):
        axes[1].plot(*zip(*points, strict=True), f"{marker}-", label=program)
    axes[1].legend(frameon=False)
    axes[1].set_title("a log of 200,000 rows, k = 5, λ = 0")
    for axis, limit in zip(axes, (bound, PEER_BOUND), strict=True):
        axis.axhline(limit, color="black", linestyle=":")
        axis.annotate("r_max / (1 - γ)", (0, limit), (4, 4), ("axes fraction", "data"), "offset points")
        axis.set(xlabel="iteration", ylabel="mean Q of a batch")
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def main(args: Args) -> None:
    sys.stdout.reconfigure(encoding="utf-8")
    runs, _, _ = report.group_runs(report.read(args.results), unfinished=False)
    print(passing_runs(runs))
    chosen = report.datasets(runs)[args.log]
    run = next(run for group in chosen.values() for run in group if len(run.curve(report.RATIO)[1]))
    values, ratios = run.curve("losses/qf_values")[1], run.curve(report.RATIO)[1]
    draw(chosen, np.median((values / ratios)[values > 0]), args.figure)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
