"""The paper's datasets made again: the table and the picture of the README, and the figure of runaway_values.md.

    python benchmark/resampled.py     # reads benchmark/results/resampled, prints the table, draws the figures
    python benchmark/resampled.py --windows   # prints the table of resampled.md
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rambo_continuous import DATASET_DEFAULTS

HERE = Path(__file__).parent
DATASETS = [f"{body}-{quality}-v2" for quality in ("medium", "random") for body in ("hopper", "halfcheetah", "walker2d")]
SCORE, GAP, LAST = "charts/normalized_score", "charts/value_gap", 10
PAPER, OURS, SINGLE, CLONING = "paper's setting", "our setting", "without the average", "behaviour cloning"
COLORS = {PAPER: "#c0392b", SINGLE: "#5dade2", OURS: "#1b4f72"}
PUBLISHED = pd.read_csv(HERE / "published.csv", index_col="dataset", dtype=str).fillna("")


def kind_of(args: dict) -> str | None:
    """Which of the compared settings these arguments are."""
    if args["total_iterations"] == 0:
        return CLONING
    average = args.get("policy_average", 0)
    if args.get("halt_outside"):
        return (OURS if average else SINGLE) if args["adv_weight"] == 0 and args["rollout_length"] == 20 else None
    theirs = {"rollout_batch_size": 50_000, "rollout_length": 5, "adv_weight": 3e-4, "model_updates_per_iteration": None}
    theirs |= DATASET_DEFAULTS.get(args["env_id"], {})
    return PAPER if not average and all(args.get(name) == value for name, value in theirs.items()) else None


def read_results(dataset: str) -> dict[str, dict[int, pd.DataFrame]]:
    """setting -> seed -> its evaluations."""
    path, found = HERE / "results" / "resampled" / f"{dataset}.csv", {}
    if path.exists():
        methods = json.loads(path.with_suffix(".args.json").read_text(encoding="utf-8"))["methods"]
        for (method, seed), rows in pd.read_csv(path).groupby(["method", "seed"]):
            scored = rows.dropna(subset=[SCORE])  # a run that was stopped early may have none
            if (kind := kind_of(methods[method]["args"])) and len(scored):
                seeds = found.setdefault(kind, {})
                if seed not in seeds or scored["iteration"].max() > seeds[seed]["iteration"].max():
                    seeds[seed] = scored  # of several ensembles the longest run counts
    return found


def summary(runs: dict[int, pd.DataFrame] | None) -> str:
    """Mean of the last 10 evaluations: mean and std (population's) over the seeds, how many they are and their iterations; or
    each seed's, where they did not run equally long."""
    if not runs:
        return ""
    runs = dict(sorted(runs.items()))
    scores = [rows[SCORE].tail(LAST).mean() for rows in runs.values()]
    iterations = [int(rows["iteration"].max()) for rows in runs.values()]
    if len({*iterations}) > 1:
        return ", ".join(f"{score:.1f} ({length})" for score, length in zip(scores, iterations, strict=True))
    spread = f" ± {np.std(scores):.1f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread} ({len(scores)}{f' × {iterations[0]}' if iterations[0] else ''})"


def table(results: dict) -> str:
    lines = [f"| dataset | {CLONING} | RAMBO, {PAPER} | {OURS} | the paper | OfflineRL-Kit |", "|---|---|---|---|---|---|"]
    for dataset, found in results.items():
        cells = [summary(found.get(kind)) for kind in (CLONING, PAPER, OURS)]
        lines.append(f"| {dataset} | {' | '.join(cells)} | {' | '.join(PUBLISHED.loc[dataset, ['RAMBO', 'OfflineRL-Kit']])} |")
    return "\n".join(lines)


def windows(results: dict) -> str:
    """Mean score of each seed in the paper's setting over windows of its iterations; empty where it did not get there."""
    bounds = [(50, 100), (105, 150), (155, 200), (205, 250), (255, 300)]
    lines = [f"| each seed, {PAPER} | {' | '.join(f'{low} to {high}' for low, high in bounds)} |", "|---|---|---|---|---|---|"]
    for dataset, found in results.items():
        runs = [rows.set_index("iteration")[SCORE] for _, rows in sorted(found.get(PAPER, {}).items())]
        cells = [", ".join(f"{x:.1f}" for run in runs if np.isfinite(x := run.loc[low:high].mean())) for low, high in bounds]
        lines.append(f"| {dataset} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curves(axis: plt.Axes, found: dict, column: str, kinds: tuple = (PAPER, OURS)) -> None:
    """Thin seeds and, where there are several, their mean over the iterations that all have."""
    for kind in kinds:
        color = COLORS[kind]
        curves = [rows.set_index("iteration")[column] for rows in found.get(kind, {}).values()]
        for curve in curves:
            axis.plot(curve.index, curve, color=color, linewidth=0.7, alpha=0.45)
        if curves:
            mean = pd.concat(curves, axis=1).dropna().mean(axis=1).rolling(3, min_periods=1).mean()
            axis.plot(mean.index, mean, color=color, linewidth=2, label=kind)


def draw_scores(results: dict, path: Path) -> None:
    """One panel a dataset; the paper's value after 2,000 iterations as a dashed line with its band."""
    columns = 2 if len(results) == 4 else min(len(results), 3)
    rows = math.ceil(len(results) / columns)
    size = (3.7 * columns, 2.6 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis, (dataset, found) in zip(axes.flat, results.items(), strict=False):
        mean, std = map(float, PUBLISHED.loc[dataset, "RAMBO"].split(" ± "))
        axis.axhspan(mean - std, mean + std, color="0.9")
        axis.axhline(mean, color="0.4", linestyle="--", linewidth=1, label="the paper, 2,000 iterations")
        if cloned := [rows[SCORE].mean() for rows in found.get(CLONING, {}).values()]:
            axis.axhline(np.mean(cloned), color="0.4", linestyle=":", linewidth=1, label=CLONING)
        draw_curves(axis, found, SCORE)
        axis.set_title(dataset, fontsize=11)
        axis.set_ylim(-5, 115)
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(len(results) - columns, 0) : len(results)]:  # below which there is none
        axis.set_xlabel("iteration")
    for axis in axes[:, 0]:
        axis.set_ylabel("normalised score")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2 if columns < 3 else 4, frameon=False)
    figure.savefig(path, dpi=110)


def draw_gaps(results: dict, path: Path) -> None:
    """Score and value gap of the medium datasets, paper's setting and ours."""
    medium = [dataset for dataset in results if "-medium-" in dataset]
    size = (3.7 * len(medium), 5.2)
    figure, axes = plt.subplots(2, len(medium), figsize=size, layout="constrained", sharex="col", squeeze=False)
    for column, dataset in zip(axes.T, medium, strict=True):
        draw_curves(column[0], results[dataset], SCORE, (PAPER, SINGLE, OURS))
        draw_curves(column[1], results[dataset], GAP, (PAPER, SINGLE, OURS))
        column[1].axhline(0, color="0.4", linewidth=0.8)
        column[0].set_title(dataset, fontsize=11)
        column[1].set_xlabel("iteration")
    axes[0, 0].set_ylabel("normalised score")
    axes[1, 0].set_ylabel("value gap")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


@dataclass
class Args:
    figures: Path = HERE / "figures"
    """the folder that the pictures go to"""
    windows: bool = False
    """print how the scores of the paper's setting rise, instead of the README's table"""


def main(args: Args) -> None:
    results = {dataset: found for dataset in DATASETS if (found := read_results(dataset))}
    draw_scores(results, args.figures / "resampled.png")
    draw_gaps(results, args.figures / "runaway_values.png")
    print(windows(results) if args.windows else table(results))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
