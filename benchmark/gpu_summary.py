"""What gpu.sh has measured, as Markdown: python benchmark/gpu_summary.py FOLDER."""

import csv
import json
import sys
from pathlib import Path

import numpy as np


def read_column(path: Path, name: str) -> np.ndarray:
    with path.open(newline="", encoding="utf-8") as file:
        return np.array([float(row.get(name) or "nan") for row in csv.DictReader(file)])


def updates_alone(folder: Path) -> float:
    """Seconds that an iteration's updates take, the median over the iterations after the first. JAX times all of it."""
    args = json.loads((folder / "args.json").read_text())
    agent, model = (1 / read_column(folder / "metrics.csv", f"charts/{name}")[1:] for name in ("SPS", "model_SPS"))
    return args["updates_per_iteration"] * float(np.median(agent if "num_seeds" in args else agent + model))


def whole_iteration(folder: Path) -> tuple[float, int]:
    """Seconds from one iteration to the next, evaluation and logging included, and over how many.

    The median over the times between evaluations, without the last ten iterations, each of which is evaluated.
    """
    args = json.loads((folder / "args.json").read_text())
    iterations, seconds = (read_column(folder / "evaluations.csv", name) for name in ("iteration", "seconds"))
    regular = (iterations > 0) & (iterations <= args["total_iterations"] - 10)
    regular = regular if regular.sum() > 1 else iterations > 0
    steps = np.diff(iterations[regular])
    return (float(np.median(np.diff(seconds[regular]) / steps)), int(steps.sum())) if len(steps) else (np.nan, 0)


def describe(folders: list[Path], speed: dict) -> str:
    """A row of the table, from the run folders of all seeds."""
    args = json.loads((folders[0] / "args.json").read_text())
    seconds, count = whole_iteration(folders[0])
    whole = seconds * 1000 / args["updates_per_iteration"]
    row = [len(folders), args["updates_per_iteration"], f"{updates_alone(folders[0]):.3f} s", f"{seconds:.3f} s over {count}"]
    row.append(f"{2000 * whole / 60:.1f} min")
    timed = speed["arguments"]["training"]["env_id"] if "torch" in speed.get("loops", {}) else ""
    comparable = args["env_id"].split("-")[0] == timed.split("-")[0]
    gflop = len(folders) * speed["loops"]["torch"]["iteration"]["gflop"] if comparable else np.nan
    row.append(f"{gflop / whole / speed['matrix_gflops']:.1%}" if comparable else "")
    scores = [read_column(folder / "evaluations.csv", "charts/normalized_score")[-1] for folder in folders]
    last = read_column(folders[0] / "evaluations.csv", "iteration")[-1]
    return " | ".join(map(str, [*row, f"{last:.0f}: {' '.join(f'{score:.1f}' for score in scores)}"]))


def main(work: Path) -> None:
    print((work / "steps.md").read_text())
    speed = json.loads((work / "speed.json").read_text()) if (work / "speed.json").exists() else {}
    rows = []
    for runs in sorted(work.glob("*/runs")):
        for env_id in sorted({folder.name.split("__")[0] for folder in runs.iterdir()}):
            folders = sorted(path.parent for path in runs.glob(f"{env_id}__*/evaluations.csv"))
            measured = [folder for folder in folders if len(read_column(folder / "evaluations.csv", "iteration"))]
            rows += [f"| {runs.parent.name} | {env_id} | {describe(measured, speed)} |"] if measured else []
    if rows:
        header = "path | dataset | seeds | updates in an iteration | these alone | iteration, all included"
        header += " | 2,000 of 1,000 updates | of float32 speed | score at iteration"
        print(f"| {header} |", "|" + " --- |" * 9, *rows, sep="\n", end="\n\n")
    for name in ("speed", "kernels"):
        path = work / "logs" / f"{name}.txt"
        print(path.read_text() if path.exists() else "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
