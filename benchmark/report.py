"""Tables and pictures from run folders and from published runs:

    python benchmark/report.py runs --output report.md --figures figures

Published runs of a dataset, benchmark/results/DATASET.csv, have a row for each method, seed and iteration; DATASET.args.json
holds the arguments. One command adds the runs of that dataset in runs/ (in place of those with the same method and seed),
another makes the tables and pictures of what is published again:

    python benchmark/report.py runs --tidy benchmark/results/DATASET.csv
    python benchmark/report.py benchmark/results --figures benchmark/figures --tables benchmark/results.md

A method's name says in which arguments it differs from the scripts' defaults, where the runs of a dataset differ. A run that
cannot be read is named and left out.
"""

import csv
import io
import json
import math
import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial, reduce
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import tyro
from rliable.library import get_interval_estimates
from rliable.metrics import aggregate_iqm, probability_of_improvement
from scipy.stats import permutation_test

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runner import relevant

from rambo_continuous import Args as TrainingArgs

LAST = 10  # evaluations in "mean of the last 10"
RESAMPLED = " (resampled)"  # in the name of a dataset that has D4RL's id but was recorded again
RATIO = "losses/value_bound_ratio"  # mean Q over the largest value that the dataset's rewards allow
MEASURES = (
    "charts/normalized_score", "charts/normalized_score_std", "charts/episodic_return", "charts/episodic_length",
    "charts/discounted_return", "charts/value_gap", "seconds", "episodic_returns", "losses/qf_values",
    "losses/max_abs_qf_value", RATIO, "rollout/reward", "model/holdout_mse",
)  # fmt: skip
# The arguments that every run of RAMBO has, of any version
NEEDED = {"env_id": str, "exp_name": str, "seed": int, "total_iterations": int, "bc_epochs": int, "rollout_length": int}
NEEDED |= {"adv_weight": float, "real_ratio": float}
TABLE3_PAIRS = ((1, 3e-4), (2, 3e-4), (5, 3e-4), (5, 0.0))
# Our rule for choosing (k, lambda) offline
WINDOW = 0.1  # share of the iterations, at the end, that it looks at; at least LAST of them
MAX_VARIATION = 0.1  # a Q-value is stable if its std over the window is below this share of its size

SEEDS_TEXT = f"""Entries are "seed: score"; the score is D4RL's normalised one, or the return where there are no reference
returns. ± is the standard deviation over the seeds (dividing by their number: ddof = 0), "-" a run that diverged. Value gap:
the critic's value of the first states minus the discounted return, mean of the last {LAST} evaluations; at or below 0 the
value is a lower bound. Q / bound: the largest ratio of an iteration's mean Q to what the dataset's rewards allow,
r_max / (1 - γ), and where it first passed 1."""

TABLE1_TEXT = """Score of the last iteration, mean ± std (ddof = 0) over seeds, with the pair (k, λ) that did best in the
preprint; "-": a run diverged. BC to TD3+BC as the preprint prints them, OfflineRL-Kit as its README does."""

CHOICE_TEXT = f"""The authors' final paper chooses by size and stability of the Q-values in training. This is our rule in that
spirit, not theirs. It sees `losses/qf_values` of the last {WINDOW:.0%} of the iterations (at least {LAST}); it discards a pair
if a seed diverged, if a seed's mean Q exceeds what the rewards allow, or if Q still varies (std above {MAX_VARIATION:.0%} of
its size). It takes the lowest mean Q of the rest, the most pessimistic; if none is left, the steadiest. Regret: mean score of
the last iteration of the best pair minus that of the chosen one."""


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """folders that hold run folders or published runs, or a file of published runs, DATASET.csv"""
    output: Path | None = None
    """the Markdown goes to this file instead of the terminal"""
    figures: Path | None = None
    """the pictures go to this folder; without it there are none"""
    tables: Path | None = None
    """a page in which the tables between `<!-- DATASET -->` and `<!-- end -->` are made again"""
    tidy: Path | None = None
    """DATASET.csv, to which the runs of that dataset are added; there is no report then"""
    unfinished: bool = False
    """count runs that have not ended with the score they have reached"""
    bootstrap_samples: int = 2000
    """of the confidence intervals, and at most so many permutations"""


@dataclass(frozen=True)
class Method:
    """What a run does, apart from dataset and seed."""

    name: str
    pair: tuple[int, float] | None  # (k, lambda) of RAMBO
    variant: str  # in what else it differs from the scripts' defaults


@dataclass
class Run:
    args: dict[str, Any]
    status: str  # finished, diverged or unfinished
    rows: list[dict[str, str]]  # one for each iteration: column -> number as it was written, blank where there is none
    method: Method | None = None

    @property
    def dataset(self) -> str:
        """The id; a file of another name is told from it, and so is one of D4RL's name that was resampled."""
        env_id, path = self.args["env_id"], Path(self.args.get("dataset_path") or "")
        if path.name.removesuffix(".hdf5").replace("_", "-") not in ("", env_id):
            return f"{env_id} ({path.name})"
        return env_id + (RESAMPLED if path.parent.name == "resampled" else "")

    @property
    def seed(self) -> int:
        return self.args["seed"]

    def curve(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Iterations and values of a column; the ratio to the bound has the sign of Q."""
        rows = [row for row in self.rows if row.get(column)]
        values = np.array([float(row[column]) for row in rows])
        if column == RATIO:  # older versions wrote its size
            values = np.copysign(values, [float(row.get("losses/qf_values") or 1) for row in rows])
        return np.array([int(row["iteration"]) for row in rows]), values

    @property
    def is_normalised(self) -> bool:
        return bool(np.isfinite(self.curve("charts/normalized_score")[1]).any())

    @property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every evaluation: normalised where the environment has reference returns, else returns."""
        return self.curve("charts/normalized_score" if self.is_normalised else "charts/episodic_return")

    @property
    def last(self) -> float:
        return float(self.scores[1][-1])

    @property
    def mean_of_last(self) -> float:
        return float(self.scores[1][-LAST:].mean())

    @property
    def value_gap(self) -> float:
        return float(self.curve("charts/value_gap")[1][-LAST:].mean())

    @property
    def seconds_per_iteration(self) -> float:
        iterations, seconds = self.curve("seconds")
        return float((seconds[-1] - seconds[0]) / max(iterations[-1] - iterations[0], 1))

    @property
    def bound_passed(self) -> int | None:
        """The first iteration whose mean Q is above what the rewards allow."""
        iterations, ratios = self.curve(RATIO)
        return int(iterations[ratios > 1][0]) if (ratios > 1).any() else None


Runs = dict[tuple[str, Method], list[Run]]  # those of a dataset and method, by seed
STATUSES = ("unfinished", "diverged", "finished")  # of several attempts a later one counts
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)


# --- reading and writing ----------------------------------------------------------------------------------------------
def read_csv(path: Path) -> list[dict[str, str]]:
    """The complete lines: the last one may still be being written."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if None not in row and None not in row.values()]


def check(run: Run) -> Run:
    """Raises ValueError if this is no run of RAMBO, if a number in it is none, or if its end is missing."""
    for name, kind in NEEDED.items():
        if not isinstance(run.args.get(name), (int, float) if kind is float else kind):
            raise ValueError(f"not a run of RAMBO: its {name} is {run.args.get(name)!r}")
    if not all(isinstance(value, str | int | float | None) for value in run.args.values()):
        raise ValueError("not a run of RAMBO: an argument is no plain value")
    if run.status not in STATUSES:
        raise ValueError(f"its status is {run.status!r}: lines are missing")
    for column in MEASURES:
        run.curve(column) if column != "episodic_returns" else None
    return run


def read_folder(folder: Path) -> Run:
    args = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    if not isinstance(args, dict):
        raise ValueError("args.json holds no arguments")
    rows: dict[int, dict[str, str]] = defaultdict(dict)
    for row in (*read_csv(folder / "evaluations.csv"), *read_csv(folder / "metrics.csv")):
        rows[int(row["iteration"])] |= row
    result = folder / "result.json"
    result = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"status": "unfinished"}
    status = result["status"]
    if status == "finished" and result["iteration"] != args["total_iterations"]:
        status = "unfinished"  # resumed for more iterations
    return check(Run(args, status, [rows[iteration] for iteration in sorted(rows)]))


def args_path(path: Path) -> Path:
    return path.with_suffix(".args.json")


def read_tidy(path: Path) -> list[Run]:
    """The runs of DATASET.csv and DATASET.args.json."""
    methods = json.loads(args_path(path).read_text(encoding="utf-8"))["methods"]
    groups = defaultdict(list)
    for row in read_csv(path):
        groups[row.pop("method"), row.pop("seed")].append(row)
    runs = []
    for (method, seed), rows in groups.items():
        own = methods[method]["seeds"].get(seed, {})
        runs.append(check(Run(methods[method]["args"] | own | {"seed": int(seed)}, rows[-1]["status"], rows)))
    return runs


def write_tidy(path: Path, runs: Runs) -> None:
    """DATASET.csv and DATASET.args.json; numbers stay as the runs wrote them."""
    methods, rows = {}, []
    for (_, method), group in runs.items():
        common = {k: v for k, v in group[0].args.items() if all(k in run.args and run.args[k] == v for run in group)}
        common.pop("seed", None)
        seeds = {run.seed: {k: v for k, v in run.args.items() if k not in {*common, "seed"}} for run in group}
        methods[method.name] = {"args": common, "seeds": {seed: own for seed, own in seeds.items() if own}}
        for run in group:
            own = {"method": method.name, "seed": run.seed, "status": ""}
            rows += [row | own for row in run.rows or [{"iteration": 0}]]  # it may diverge before it has a row
            rows[-1]["status"] = run.status
    table = io.StringIO()
    writer = csv.DictWriter(table, ["method", "seed", "iteration", *MEASURES, "status"], "", "ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text = json.dumps({"methods": methods}, indent=2, ensure_ascii=False) + "\n"
    for target, content in ((path, table.getvalue()), (args_path(path), text)):
        temporary = target.with_name(f"{target.name}.tmp")
        temporary.write_text(content, encoding="utf-8", newline="")
        temporary.replace(target)


def add_to_tidy(args: Args) -> None:
    """The command --tidy. Of what is published nothing may get lost: if that cannot be read, nothing is written."""
    try:
        found = read_tidy(args.tidy) if args.tidy.exists() else []
    except UNREADABLE as error:
        sys.exit(f"error: {args.tidy} or {args_path(args.tidy)} is damaged, restore it ({type(error).__name__}: {error})")
    new = [run for path in args.runs for run in read(path) if run.dataset.removesuffix(RESAMPLED) == args.tidy.stem]
    if not new:
        sys.exit(f"error: no run of {args.tidy.stem} in {', '.join(map(str, args.runs))}")
    if len(names := {run.dataset for run in found + new}) > 1:
        sys.exit(f"error: {' and '.join(sorted(names))} do not belong into one file")
    runs, _, _ = group_runs(found + new, unfinished=True)
    if replaced := len(found + new) - sum(map(len, runs.values())):
        print(f"{replaced} runs left out: of those with one method and seed the finished, then the newest stays")
    args.tidy.parent.mkdir(parents=True, exist_ok=True)
    write_tidy(args.tidy, runs)
    for (_, method), group in runs.items():
        print(f"{method.name}: seeds {', '.join(str(run.seed) for run in group)}")


def is_behaviour_cloning(args: dict[str, Any]) -> bool:
    return args["total_iterations"] == 0 and args["bc_epochs"] > 0


def settings(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that change the result, apart from those that dataset, seed and the method's name stand for; what an
    older version did not have is at its default."""
    args = asdict(TrainingArgs()) | args
    skipped = {"exp_name", "seed", "env_id", "dataset_path", "rollout_length", "adv_weight", "torch_deterministic"}
    skipped |= {"eval_interval", "eval_workers", "matmul_precision"}
    if args["real_ratio"] == 1:
        skipped |= {"real_ratio"}
    if is_behaviour_cloning(args):
        skipped |= {"total_iterations", "updates_per_iteration", "bc_epochs"}
    return {key: value for key, value in relevant(args).items() if key not in skipped}


def name_methods(runs: list[Run]) -> str:
    """Gives the runs of a dataset their methods. Returns what all have in common beyond the defaults, as flags."""
    values = defaultdict(set)
    for run in runs:
        for key, value in settings(run.args).items():
            values[key].add(value)
    defaults = asdict(TrainingArgs())
    experiments = defaultdict(set)
    for run in runs:
        args, pair = run.args, None
        changes = {k: v for k, v in settings(args).items() if len(values[k]) > 1 and v != defaults.get(k)}
        words = [f"{key} {value}" for key, value in changes.items()]
        words += ["JAX"] if "num_seeds" in args else []  # which the torch script does not have
        if is_behaviour_cloning(args):
            name = f"behaviour cloning, {args['bc_epochs']} epochs"
        elif args["real_ratio"] == 1:
            name = "SAC on the dataset alone"
        else:
            pair = (args["rollout_length"], args["adv_weight"])
            name = f"RAMBO, {pair_name(pair)}"
        run.method = Method(", ".join([name, *words]), pair, ", ".join(words))
        experiments[run.method].add(args["exp_name"])
    for run in runs:  # the names of experiments are free: they only tell apart what would else be the same
        experiment = run.args["exp_name"]
        if len(experiments[run.method]) > 1 and experiment not in ("rambo_continuous", "rambo_continuous_jax"):
            variant = f"{run.method.variant}, {experiment}".removeprefix(", ")
            run.method = Method(f"{run.method.name}, {experiment}", run.method.pair, variant)
    shared = {key: value for key, (value, *more) in values.items() if not more and value != defaults.get(key)}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in sorted(shared.items()))


def pair_name(pair: tuple[int, float]) -> str:
    return f"k = {pair[0]}, λ = {pair[1]:g}"


def read(path: Path) -> list[Run]:
    """The runs of DATASET.csv, or of the run folders and the published runs in a folder, that have been evaluated or diverged.
    The others are named on stderr, as is what cannot be read."""
    tidy = [path] if path.suffix == ".csv" else [log for log in sorted(path.glob("*.csv")) if args_path(log).exists()]
    readers = dict.fromkeys(tidy, read_tidy)
    readers |= dict.fromkeys((file.parent for file in sorted(path.glob("*/args.json"))), lambda file: [read_folder(file)])
    runs = []
    for file, reader in readers.items():
        try:
            found = [run for run in reader(file) if len(run.scores[1]) or run.status == "diverged"]
            problem = None if found else "no evaluation yet"
        except UNREADABLE as error:
            found, problem = [], f"{type(error).__name__}: {error}"
        runs += found
        if problem:
            print(f"left out: {file}: {problem}", file=sys.stderr)
    return runs


def group_runs(runs: Iterable[Run], unfinished: bool) -> tuple[Runs, list[Run], dict[str, str]]:
    """The runs that count, by dataset and method; those still going that do not; and the flags that a dataset's runs share."""
    by_dataset = defaultdict(list)
    for run in runs:
        by_dataset[run.dataset].append(run)
    flags = {dataset: name_methods(runs) for dataset, runs in by_dataset.items()}
    best: dict[tuple, Run] = {}
    for runs in by_dataset.values():
        for run in sorted(runs, key=lambda run: STATUSES.index(run.status)):
            best[run.dataset, run.method, run.seed] = run  # of several attempts the finished, then the newest
    grouped, left_out = defaultdict(list), []
    for (dataset, method, _), run in sorted(best.items(), key=lambda item: (item[0][0], method_order(item[0][1]), item[0][2])):
        if run.status == "unfinished" and not unfinished:
            left_out.append(run)
        else:
            grouped[dataset, method].append(run)
    return dict(grouped), left_out, flags


def method_order(method: Method) -> tuple:
    """RAMBO as the paper has it, its variants, then what it is compared with."""
    pair = method.pair or (99, 0.0)
    return method.pair is None, method.variant, pair[0], -pair[1], method.name


def datasets(runs: Runs) -> dict[str, Runs]:
    """The runs of each dataset."""
    names = dict.fromkeys(dataset for dataset, _ in runs)
    return {name: {key: group for key, group in runs.items() if key[0] == name} for name in names}


# --- tables -----------------------------------------------------------------------------------------------------------
def table(header: list[str], rows: list[list[str]]) -> str:
    first, *others = ("| " + " | ".join(line) + " |" for line in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *others])


def number(value: float) -> str:
    text = f"{value:.1f}" if abs(value) < 1e4 else f"{value:.1e}"
    return "0.0" if text == "-0.0" else text


def mean_and_std(runs: list[Run], value: Callable[[Run], float]) -> str:
    """Mean and standard deviation (ddof = 0) over seeds; "-" if a run diverged, as in the preprint."""
    if any(run.status == "diverged" for run in runs):
        return "-"
    values = [value(run) for run in runs]
    return f"{number(np.mean(values))} ± {number(np.std(values))}" if len(values) > 1 else number(values[0])


def each_seed(runs: list[Run], value: Callable[[Run], float]) -> str:
    def text(run: Run) -> str:
        reached = f" (iteration {run.rows[-1]['iteration']})" if run.status == "unfinished" else ""
        return f"{run.seed}: " + ("-" if run.status == "diverged" else number(value(run)) + reached)

    return ", ".join(text(run) for run in runs)


def largest_ratios(runs: list[Run]) -> list[float]:
    """The largest mean Q over its bound of each run; empty where the bound is not known."""
    ratios = [ratio[np.isfinite(ratio)] for ratio in (run.curve(RATIO)[1] for run in runs)]
    return [ratio.max() for ratio in ratios if len(ratio)]


def ratio_text(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}" if ratio < 1e4 else f"{ratio:.1e}"


def bound_of_each_seed(runs: list[Run]) -> str:
    def text(run: Run) -> str:
        passed = f" (from {run.bound_passed})" if run.bound_passed else ""
        return ", ".join(f"{run.seed}: {ratio_text(ratio)}{passed}" for ratio in largest_ratios([run]))

    return ", ".join(filter(None, map(text, runs)))


LAST_SCORE, MEAN_SCORE, VALUE_GAP, SECONDS = map(attrgetter, ("last", "mean_of_last", "value_gap", "seconds_per_iteration"))


def seeds_section(runs: Runs, left_out: list[Run], flags: dict[str, str]) -> str:
    """Every seed of every dataset and method."""
    text = ["## Every seed", SEEDS_TEXT]
    header = ["method", "last iteration", "each seed", f"mean of the last {LAST}", "each seed", "value gap", "Q / bound"]
    header += ["s per iteration"]
    for dataset, groups in datasets(runs).items():
        rows = []
        for (_, method), group in groups.items():
            row = [method.name, mean_and_std(group, LAST_SCORE), each_seed(group, LAST_SCORE)]
            row += [mean_and_std(group, MEAN_SCORE), each_seed(group, MEAN_SCORE)]
            values = [mean_and_std(group, VALUE_GAP), bound_of_each_seed(group), mean_and_std(group, SECONDS)]
            rows.append(row + (["", "", ""] if is_behaviour_cloning(group[0].args) else values))
        trained = [run for group in groups.values() for run in group if not is_behaviour_cloning(run.args)]
        iterations = sorted({run.args["total_iterations"] for run in trained})
        line = f"Iterations: {', '.join(map(str, iterations))}." if iterations else ""
        line += f" All runs with `{flags[dataset]}`." if flags[dataset] else ""
        paths = {run.args.get("dataset_path") for group in groups.values() for run in group} - {None}
        line += f" Learnt from {', '.join(f'`{path}`' for path in sorted(paths))}." if paths else ""
        text += [f"### {dataset}", line.strip(), table(header, rows)]
    for run in left_out:
        reached = f"{run.rows[-1]['iteration']} of {run.args['total_iterations']}"
        what = f"{run.dataset}, {run.method.name}, seed {run.seed}"
        text.append(f"Not counted, as of iteration {reached}: {what}, score {number(run.last)}.")
    return "\n\n".join(filter(None, text))


def comparable(runs: list[Run]) -> bool:
    """Has each run a score? One that diverged has that of a random policy, which is known for normalised scores."""
    return all(run.status != "diverged" for run in runs) or any(run.is_normalised for run in runs)


def or_random(run: Run, value: Callable[[Run], float]) -> float:
    """0, the score of a random policy, for a run that diverged."""
    return 0.0 if run.status == "diverged" else value(run)


def p_value(group: list[Run], reference: list[Run], samples: int) -> str:
    """Of a two-sided permutation test that the mean of the last 10 is another one; exact for a few seeds."""
    if group is reference or min(len(group), len(reference)) < 2 or not comparable(group + reference):
        return ""
    scores = [[or_random(run, MEAN_SCORE) for run in runs] for runs in (group, reference)]
    test = partial(permutation_test, statistic=lambda x, y: np.mean(x) - np.mean(y), n_resamples=samples, rng=0)
    return f"{test(scores).pvalue:.2g}"


def summary_table(runs: Runs, samples: int) -> str:
    """The table of one dataset in results.md; p compares with its first row, where that and another have two seeds."""
    header = [f"mean of the last {LAST}", "each seed", "mean ± std", "p", "value gap", "largest Q / bound"]
    rows = []
    reference = next(iter(runs.values()))
    for (_, method), group in runs.items():
        scores = ["-" if run.status == "diverged" else number(run.mean_of_last) for run in group]
        plain = [run.seed for run in group] == [*range(1, len(group) + 1)] and all(run.status != "unfinished" for run in group)
        row = [method.name, ", ".join(scores) if plain else each_seed(group, MEAN_SCORE), mean_and_std(group, MEAN_SCORE)]
        row += [p_value(group, reference, samples)]
        ratios, passed = largest_ratios(group), [run.bound_passed for run in group if run.bound_passed]
        if is_behaviour_cloning(group[0].args):
            row += ["", ""]
        else:
            text = " to ".join(dict.fromkeys(ratio_text(ratio) for ratio in (min(ratios), max(ratios)))) if ratios else ""
            row += [mean_and_std(group, VALUE_GAP)]
            row += [text + (f"; {len(passed)} of {len(group)} pass 1, from iteration {min(passed)}" if passed else "")]
        rows.append(row)
    if not any(row[3] for row in rows):  # nothing to compare
        for line in (header, *rows):
            del line[3]
    return table(header, rows)


def refresh_tables(page: str, runs: Runs, samples: int) -> str:
    """The page with its tables made again."""
    for dataset, groups in datasets(runs).items():
        dataset = dataset.removesuffix(RESAMPLED)
        made = f"<!-- {dataset} -->\n\n{summary_table(groups, samples)}\n\n<!-- end -->"
        page = re.sub(rf"<!-- {re.escape(dataset)} -->.*?<!-- end -->", lambda _, made=made: made, page, flags=re.S)
    return page


def published() -> dict[str, dict[str, str]]:
    """The preprint's Tables 1 and 3 and OfflineRL-Kit's scores, by dataset and column."""
    return {row["dataset"]: row for row in read_csv(Path(__file__).parent / "published.csv")}


def find(runs: Runs, dataset: str, pair: tuple[int, float], variant: str) -> list[Run]:
    """The runs of a pair (k, lambda) on a dataset."""
    for (name, method), group in runs.items():
        if (name, method.pair, method.variant) == (dataset, pair, variant):
            return group
    return []


def paper_sections(runs: Runs, flags: dict[str, str]) -> list[str]:
    """The preprint's Tables 1 and 3 with our scores, one pair of tables for each of the two scripts."""
    references, text = published(), []
    names = list(references["hopper-medium-v2"])[6:]  # after the dataset, RAMBO and its four pairs
    header1 = ["dataset", "RAMBO, preprint", "RAMBO, here", f"mean of the last {LAST}", "each seed", *names]
    variants = {method.variant for dataset, method in runs if method.pair is not None and dataset in references}
    for variant in sorted(variants & {"", "JAX"}):
        rows1, rows3, missing = [], [], []
        for dataset, reference in references.items():
            theirs = {pair: reference[f"{pair[0]}, {pair[1]:g}"] for pair in TABLE3_PAIRS}
            best = find(runs, dataset, next(pair for pair in TABLE3_PAIRS if theirs[pair] == reference["RAMBO"]), variant)
            if best:
                ours = [mean_and_std(best, LAST_SCORE), mean_and_std(best, MEAN_SCORE), each_seed(best, LAST_SCORE)]
                rows1.append([dataset, reference["RAMBO"], *ours, *(reference[name] for name in names)])
            else:
                missing.append(dataset)
            groups = [find(runs, dataset, pair, variant) for pair in TABLE3_PAIRS]
            if any(groups):
                ours = [mean_and_std(group, LAST_SCORE) if group else "not run" for group in groups]
                rows3.append([dataset, *(f"{a} ({b})" for a, b in zip(ours, theirs.values(), strict=True))])
        suffix = f" ({variant})" if variant else ""
        text += [f"## The preprint's Table 1{suffix}", TABLE1_TEXT, table(header1, rows1)]
        text += [f"{dataset}: all runs with `{flags[dataset]}`." for dataset in references if flags.get(dataset)]
        text += [f"Not run: {', '.join(missing)}."] if missing else []
        text += [f"## The preprint's Table 3{suffix}", "Score of the last iteration here, in brackets the preprint's."]
        text.append(table(["dataset", *map(pair_name, TABLE3_PAIRS)], rows3))
    return text


# --- aggregate statistics ---------------------------------------------------------------------------------------------
def aggregate_section(runs: Runs, samples: int) -> str:
    """rliable's interquartile mean, with stratified bootstrap intervals, and probability of improvement, on the datasets and
    methods that make the largest table without a hole."""
    methods_of: dict[str, set[Method]] = defaultdict(set)
    for (dataset, method), group in runs.items():
        if any(run.is_normalised for run in group):
            methods_of[dataset].add(method)
    tables = [(methods, [name for name in methods_of if methods <= methods_of[name]]) for methods in methods_of.values()]
    methods, names = max(tables, key=lambda table: len(table[0]) * len(table[1]), default=((), ()))
    methods = sorted(methods, key=method_order)
    if len(methods) < 2:
        return "## Aggregate statistics\n\nThey need two methods on the same dataset with normalised scores."
    seeds = {method: min(len(runs[dataset, method]) for dataset in names) for method in methods}

    def matrix(method: Method, value: Callable[[Run], float]) -> np.ndarray:
        groups = [runs[dataset, method][: seeds[method]] for dataset in names]
        return np.array([[or_random(run, value) for run in group] for group in groups]).T

    rows: dict[str, list[str]] = {method.name: [str(seeds[method])] for method in methods}
    for value in (LAST_SCORE, MEAN_SCORE):
        scores = {method.name: matrix(method, value) for method in methods}
        np.random.seed(0)  # rliable draws from numpy's global generator
        points, intervals = get_interval_estimates(scores, lambda x: np.array([aggregate_iqm(x)]), reps=samples)
        for name, row in rows.items():
            low, high = intervals[name].ravel()
            interval = f" ({low:.1f} to {high:.1f})" if row[0] != "1" else ""  # one seed has none
            row.append(f"{points[name].item():.1f}{interval}")
    reference = next((method for method in methods if method.pair == (5, 3e-4)), methods[0])
    for method in methods:
        if method is reference or min(seeds[reference], seeds[method]) < 2:
            rows[method.name] += ["", ""]
            continue
        scores = matrix(reference, MEAN_SCORE), matrix(method, MEAN_SCORE)
        per_seed = [score.mean(1) for score in scores]  # over the datasets
        difference = partial(permutation_test, statistic=lambda x, y: x.mean() - y.mean(), n_resamples=samples, rng=0)
        rows[method.name] += [f"{probability_of_improvement(*scores):.2f}", f"{difference(per_seed).pvalue:.3f}"]
    header = ["method", "seeds", "IQM, last iteration", f"IQM, mean of the last {LAST}", f"P({reference.name} is better)", "p"]
    return f"""## Aggregate statistics

Over {", ".join(names)}; in brackets 95 % stratified bootstrap intervals (rliable). P is the probability of a higher mean of
the last {LAST} evaluations, p of a two-sided permutation test that the same mean differs (exact up to {samples} permutations
of the seeds): with few seeds the intervals are too narrow. A diverged run counts as 0, a random policy.

{table(header, [[name, *row] for name, row in rows.items()])}"""


# --- the choice of (k, lambda) without an environment -----------------------------------------------------------------
@dataclass
class Verdict:
    pair: tuple[int, float]
    mean_q: float  # over window and seeds
    variation: float  # std over |mean| in the window, the worst seed
    problem: str  # empty: the pair may be chosen


def judge(pair: tuple[int, float], runs: list[Run]) -> Verdict:
    """Looks at the Q-values only."""
    if any(run.status == "diverged" for run in runs):
        return Verdict(pair, math.nan, math.nan, "diverged")
    means, ratios, variations = [], [], []
    if not all(len(run.curve("losses/qf_values")[1]) for run in runs):
        return Verdict(pair, math.nan, math.nan, "no Q-value logged")
    for run in runs:
        q = run.curve("losses/qf_values")[1]
        window = max(LAST, round(WINDOW * len(q)))
        means.append(q[-window:].mean())
        ratios.append(abs(run.curve(RATIO)[1][-window:]).sum() / max(min(window, len(q)), 1))  # 0 where it is not known
        variations.append(q[-window:].std() / max(abs(means[-1]), 1e-6))
    verdict = Verdict(pair, float(np.mean(means)), float(max(variations)), "")
    if max(ratios) > 1:
        verdict.problem = "Q above what the rewards allow"
    elif verdict.variation > MAX_VARIATION:
        verdict.problem = "Q still varies"
    return verdict


def choose(verdicts: list[Verdict]) -> Verdict | None:
    """The most pessimistic pair without a problem; if there is none, the steadiest of those that did not diverge."""
    fine = [verdict for verdict in verdicts if not verdict.problem]
    alive = [verdict for verdict in verdicts if not math.isnan(verdict.mean_q)]
    if fine:
        return min(fine, key=lambda verdict: verdict.mean_q)
    return min(alive, key=lambda verdict: verdict.variation, default=None)


def choice_section(runs: Runs) -> str:
    """How the rule would have chosen on every dataset, and what that costs against choosing by the scores."""
    text, rows, choices, regrets = ["## Choosing (k, λ) without an environment", CHOICE_TEXT], [], [], []
    candidates: dict[tuple[str, str], dict[tuple[int, float], list[Run]]] = defaultdict(dict)
    for (dataset, method), group in runs.items():
        if method.pair is not None:
            candidates[dataset, method.variant][method.pair] = group
    for (dataset, variant), groups in candidates.items():
        if len(groups) < 2:
            continue
        name = f"{dataset}, {variant}" if variant else dataset
        verdicts = [judge(pair, group) for pair, group in groups.items()]
        chosen = choose(verdicts)
        for verdict in verdicts:
            remark = verdict.problem or "less pessimistic"
            if verdict is chosen:
                remark = f"**chosen** ({verdict.problem}: none passes)" if verdict.problem else "**chosen**"
            q = ["-"] * 2 if math.isnan(verdict.mean_q) else [number(verdict.mean_q), f"{verdict.variation:.1%}"]
            rows.append([name, pair_name(verdict.pair), *q, remark, mean_and_std(groups[verdict.pair], LAST_SCORE)])
        if chosen is None:
            choices.append([name, "none: all diverged, or without Q-values", *["-"] * 4])
            continue
        scores = {v.pair: np.mean([run.last for run in groups[v.pair]]) for v in verdicts if not math.isnan(v.mean_q)}
        best = max(scores, key=scores.get)
        regrets.append(scores[best] - scores[chosen.pair])
        pairs = pair_name(chosen.pair), number(scores[chosen.pair]), pair_name(best), number(scores[best])
        choices.append([name, *pairs, number(regrets[-1])])
    if not rows:
        return "\n\n".join([*text, "No dataset here has two pairs."])
    text.append(table(["dataset", "chosen offline", "its score", "best", "its score", "regret"], choices))
    text += [f"Mean regret: {number(np.mean(regrets))}."] if regrets else []
    text.append(table(["dataset", "pair", "mean Q", "variation of Q", "verdict", "score"], rows))
    return "\n\n".join(text)


# --- pictures ---------------------------------------------------------------------------------------------------------
def draw_panel(axis: plt.Axes, groups: Runs, column: str | None, colors: dict[Method, tuple]) -> None:
    """Thin: each seed, thick: their mean where all were evaluated; dotted: behaviour cloning. Without a column the score, of
    all methods as often as of that which was evaluated least often: else that one looks steadier."""
    curves_of = {key: [run.curve(column) if column else run.scores for run in group] for key, group in groups.items()}
    steps = [np.diff(x).max() for curves in curves_of.values() for x, _ in curves if len(x) > 1]
    for (_, method), group in groups.items():
        curves = [(x, y) for x, y in curves_of[group[0].dataset, method] if len(x)]
        if not column and steps:
            kept = [(x % max(steps) == 0) | (x == x[-1]) for x, _ in curves]
            curves = [(x[mask], y[mask]) for (x, y), mask in zip(curves, kept, strict=True)]
        if curves and is_behaviour_cloning(group[0].args):
            axis.axhline(np.mean([y[0] for _, y in curves]), color=colors[method], linestyle=":", linewidth=1.5)
        elif curves:
            for x, y in curves:
                axis.plot(x, y, color=colors[method], linewidth=0.6, alpha=0.4)
            shared = reduce(np.intersect1d, [x for x, _ in curves])
            axis.plot(shared, np.mean([y[np.isin(x, shared)] for x, y in curves], 0), color=colors[method], linewidth=1.8)
    if np.abs(axis.dataLim.intervaly).max() > 1e4:  # a value that ran away
        axis.set_yscale("symlog")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("iteration")
    axis.grid(alpha=0.3)


def save(
    figure: plt.Figure, methods: list[Method], styles: dict[Method, str], colors: dict[Method, tuple], path: Path
) -> None:
    handles = [plt.Line2D([], [], color=colors[method], linestyle=styles[method], label=method.name) for method in methods]
    columns = 1 if len(methods) < 4 or figure.get_figwidth() < 10 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def draw_all(runs: Runs, folder: Path) -> None:
    """Of each dataset DATASET.png: score, value gap and Q over its bound; of all of them learning_curves.png, the scores of
    behaviour cloning and of the methods that more than one dataset has."""
    styles = {method: ":" if is_behaviour_cloning(group[0].args) else "-" for (_, method), group in runs.items()}
    by_dataset, counts = datasets(runs), Counter(method for _, method in runs)
    shared = {method for method in counts if counts[method] > 1 or styles[method] == ":" or len(by_dataset) == 1}
    methods = sorted(counts, key=lambda method: (method not in shared, method_order(method)))
    palette = [*plt.cm.tab20.colors[::2], *plt.cm.tab20.colors[1::2]]
    colors = {method: palette[i % 20] for i, method in enumerate(methods)}
    columns = min(2, len(by_dataset))  # a README is about nine inches wide
    lines, references = math.ceil(len(by_dataset) / columns), published()
    size = (max(4.3 * columns, 6), 2.7 * lines + 0.2 * len(shared) + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, facecolor="white", layout="constrained")
    for axis, (dataset, groups) in zip(axes.flat, by_dataset.items(), strict=False):
        draw_panel(axis, {key: group for key, group in groups.items() if key[1] in shared}, None, colors)
        axis.set(title=dataset, ylabel="score")
        if dataset in references:
            mean, std = map(float, references[dataset]["RAMBO"].split(" ± "))
            axis.axhline(mean, color="black", linestyle="--", linewidth=1)
            axis.axhspan(mean - std, mean + std, color="black", alpha=0.08)
            axis.annotate("preprint", (1, mean), (-2, 2), ("axes fraction", "data"), "offset points", ha="right")
    for axis in axes.flat[len(by_dataset) :]:
        axis.remove()
    save(figure, methods[: len(shared)], styles, colors, folder / "learning_curves.png")
    for dataset, groups in by_dataset.items():
        figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), facecolor="white", layout="constrained")
        trained = {key: group for key, group in groups.items() if styles[key[1]] == "-"}  # behaviour cloning has no critic
        panels = (
            ("score", None, groups, None),
            ("value gap", "charts/value_gap", trained, 0),
            ("mean Q / largest possible value", RATIO, trained, 1),
        )
        for axis, (label, column, chosen, line) in zip(axes, panels, strict=True):
            draw_panel(axis, chosen, column, colors)
            axis.set_ylabel(label)
            if line is not None:
                axis.axhline(line, color="0.3", linewidth=0.8)
                axis.set_ylim(top=max(axis.get_ylim()[1], 1.1 * line))
        name = re.sub(r"[^\w.-]+", "_", dataset)
        save(figure, [method for _, method in groups], styles, colors, folder / f"{name}.png")


def main(args: Args) -> None:
    sys.stdout.reconfigure(encoding="utf-8")  # λ, whatever a pipe's encoding is
    if args.tidy is not None:
        return add_to_tidy(args)
    found = [run for path in args.runs for run in read(path)]
    runs, left_out, flags = group_runs(found, args.unfinished)
    if not runs:
        sys.exit(f"no run that has ended in {', '.join(map(str, args.runs))} (--unfinished counts those that have not)")
    counts = Counter(run.status for group in runs.values() for run in group)
    made_by = f"`{shlex.join(['python', 'benchmark/report.py', *sys.argv[1:]])}` made this page from "
    made_by += ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + " runs."
    sections = ["# Results", made_by, *paper_sections(runs, flags), seeds_section(runs, left_out, flags)]
    sections += [aggregate_section(runs, args.bootstrap_samples), choice_section(runs)]
    text = "\n\n".join(sections) + "\n"
    if args.output is None:
        print(text, end="")
    else:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    if args.figures is not None:
        draw_all(runs, args.figures)
    if args.tables is not None:
        page = refresh_tables(args.tables.read_text(encoding="utf-8"), runs, args.bootstrap_samples)
        args.tables.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
