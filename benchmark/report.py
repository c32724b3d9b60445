"""Tables and pictures from run folders: `python benchmark/report.py runs --figures benchmark/figures --output report.md`.

Reads args.json, evaluations.csv, metrics.csv and result.json of every run, writes Markdown: every seed; next to the preprint's
Tables 1 and 3 (published.csv); aggregate statistics (rliable); the choice of (k, lambda) without an environment.
"""

import csv
import json
import math
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
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

from rambo_continuous import D4RL_FILES, PAPER_HYPERPARAMETERS, REFERENCE_RETURNS, is_d4rl_id
from rambo_continuous import Args as TrainingArgs

LAST = 10  # evaluations in "mean of the last 10"
ABLATIONS = ("no_advantage_normalisation",)  # experiments that differ in more than their arguments (ablations.sh)
TABLE3_PAIRS = ((1, 3e-4), (2, 3e-4), (5, 3e-4), (5, 0.0))
# Our rule for choosing (k, lambda) offline
WINDOW = 0.1  # share of the iterations, at the end, that it looks at; at least LAST of them
MAX_VARIATION = 0.1  # a Q-value is stable if its std over the window is below this share of its size
LIMIT_MARGIN = 2.0  # the largest |Q| of a batch may exceed what the rewards allow by this factor

SEEDS_TEXT = f"""Entries are "seed: score"; the score is D4RL's normalised one, or the return where there are no reference
returns. ± is the standard deviation over seeds, "-" a run that diverged. Value gap: the critic's value of the first states
minus the discounted return, mean of the last {LAST} evaluations; at or below 0 the value is a lower bound."""

TABLE1_TEXT = """Score of the last iteration, mean ± std over seeds, with the pair (k, λ) that did best in the preprint; "-": a
run diverged. BC to TD3+BC as the preprint prints them, OfflineRL-Kit as its README does."""

CHOICE_TEXT = f"""The authors' final paper chooses by size and stability of the Q-values in training. This is our rule in that
spirit, not theirs. It sees the last {WINDOW:.0%} of the iterations (at least {LAST}) of `losses/qf_values` and
`losses/max_abs_qf_value`, and discards a pair if a seed diverged; if a seed's mean Q exceeds what the rewards allow (what
D4RL's expert earns in a step, for ever), or its largest |Q| {LIMIT_MARGIN:g} times that; or if Q still varies (std above
{MAX_VARIATION:.0%} of its size). Of the rest it takes the lowest mean Q, the most pessimistic; if nothing is left, the
steadiest. Regret: mean score of the last iteration of the best pair minus that of the chosen one."""


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """folders that hold run folders"""
    output: Path | None = None
    """the Markdown goes to this file instead of the terminal"""
    figures: Path | None = None
    """the pictures go to this folder; without it there are none"""
    unfinished: bool = False
    """count runs that have not ended with the score they have reached"""
    bootstrap_samples: int = 5000
    """of the confidence intervals"""


@dataclass(frozen=True)
class Method:
    """What a run does, apart from dataset and seed."""

    name: str
    pair: tuple[int, float] | None  # (k, lambda) of RAMBO
    variant: str  # in what else it differs from the scripts' defaults


@dataclass
class Run:
    folder: Path
    args: dict[str, Any]
    status: str  # finished, diverged or unfinished
    evaluations: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    method: Method | None = None

    @property
    def dataset(self) -> str:
        """The id; a file of one's own under an id of D4RL's or of gymnasium's is told from it by its name."""
        env_id, path = self.args["env_id"], self.args["dataset_path"]
        own_id = is_d4rl_id(env_id) and env_id not in D4RL_FILES
        return env_id if path is None or own_id else f"{env_id} ({Path(path).name})"

    @property
    def seed(self) -> int:
        return self.args["seed"]

    @property
    def scores(self) -> np.ndarray:
        """Of every evaluation: normalised where the environment has reference returns, else returns."""
        normalized = self.evaluations.get("normalized_score_mean", np.empty(0))
        return normalized if np.isfinite(normalized).any() else self.evaluations.get("episodic_return_mean", np.empty(0))

    @property
    def last(self) -> float:
        return float(self.scores[-1])

    @property
    def mean_of_last(self) -> float:
        return float(self.scores[-LAST:].mean())

    @property
    def value_gap(self) -> float:
        return float(self.evaluations["value_gap"][-LAST:].mean())

    @property
    def seconds_per_iteration(self) -> float:
        iterations, seconds = self.evaluations["iteration"], self.evaluations["seconds"]
        return float((seconds[-1] - seconds[0]) / max(iterations[-1] - iterations[0], 1))


Runs = dict[tuple[str, Method], list[Run]]  # those of a dataset and method, by seed


# --- reading ----------------------------------------------------------------------------------------------------------
def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Columns of numbers; a column of text is left out, and so is a row that is still being written."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
    columns = {}
    for key in rows[0] if rows else ():
        try:
            columns[key] = np.array([float(row[key]) for row in rows])
        except ValueError:
            continue
    return columns


def read_run(folder: Path) -> Run | None:
    """One run folder; None if it holds no evaluation yet."""
    args = json.loads((folder / "args.json").read_text())
    result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
    status = result.get("status", "unfinished")
    if status == "finished" and result["iteration"] != args["total_iterations"]:
        status = "unfinished"  # resumed for more iterations
    run = Run(folder, args, status, read_csv(folder / "evaluations.csv"), read_csv(folder / "metrics.csv"))
    return run if len(run.scores) or status == "diverged" else None


def is_behaviour_cloning(args: dict[str, Any]) -> bool:
    return args["total_iterations"] == 0 and args["bc_epochs"] > 0


def settings(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that change the result, apart from those that dataset, seed and the method's name stand for."""
    skipped = {"exp_name", "seed", "env_id", "dataset_path", "rollout_length", "adv_weight", "torch_deterministic"}
    if args["real_ratio"] == 1:
        skipped |= {"real_ratio"}
    if is_behaviour_cloning(args):
        skipped |= {"total_iterations", "updates_per_iteration", "bc_epochs", "eval_interval"}
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
        words += ["JAX"] if "jax" in args["exp_name"] else []
        words += [ablation.replace("_", " ") for ablation in ABLATIONS if ablation in args["exp_name"]]
        if is_behaviour_cloning(args):
            name = f"behaviour cloning, {args['bc_epochs']} epochs"
        elif args["real_ratio"] == 1:
            name = "SAC on the log alone"
        else:
            pair = (args["rollout_length"], args["adv_weight"])
            name = f"RAMBO, {pair_name(pair)}"
        run.method = Method(", ".join([name, *words]), pair, ", ".join(words))
        experiments[run.method].add(args["exp_name"])
    for run in runs:  # the names of experiments are free: they only tell apart what would else be the same
        experiment = run.args["exp_name"]
        if len(experiments[run.method]) > 1 and not experiment.startswith("rambo_continuous"):
            variant = f"{run.method.variant}, {experiment}".removeprefix(", ")
            run.method = Method(f"{run.method.name}, {experiment}", run.method.pair, variant)
    shared = {key: value for key, (value, *more) in values.items() if not more and value != defaults.get(key)}
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in sorted(shared.items()))


def pair_name(pair: tuple[int, float]) -> str:
    return f"k = {pair[0]}, λ = {pair[1]:g}"


def read_runs(folders: tuple[Path, ...], unfinished: bool) -> tuple[Runs, list[Run], dict[str, str]]:
    """The runs that count, by dataset and method; those still going that do not; and the flags that a dataset's runs share."""
    paths = sorted(path.parent for folder in folders for path in folder.glob("*/args.json"))
    by_dataset = defaultdict(list)
    for run in map(read_run, paths):
        if run is not None:
            by_dataset[run.dataset].append(run)
    flags = {dataset: name_methods(runs) for dataset, runs in by_dataset.items()}
    rank = ("unfinished", "diverged", "finished")
    best: dict[tuple, Run] = {}
    for runs in by_dataset.values():
        for run in sorted(runs, key=lambda run: (rank.index(run.status), run.folder.name)):
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


# --- tables -----------------------------------------------------------------------------------------------------------
def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def mean_and_std(runs: list[Run], value: Callable[[Run], float]) -> str:
    """Mean and population standard deviation over seeds; "-" if a run diverged, as in the preprint."""
    if any(run.status == "diverged" for run in runs):
        return "-"
    values = [value(run) for run in runs]
    return f"{number(np.mean(values))} ± {number(np.std(values))}" if len(values) > 1 else number(values[0])


def each_seed(runs: list[Run], value: Callable[[Run], float]) -> str:
    def text(run: Run) -> str:
        reached = f" (iteration {run.evaluations['iteration'][-1]:.0f})" if run.status == "unfinished" else ""
        return f"{run.seed}: " + ("-" if run.status == "diverged" else number(value(run)) + reached)

    return ", ".join(text(run) for run in runs)


LAST_SCORE, MEAN_SCORE, VALUE_GAP, SECONDS = map(attrgetter, ("last", "mean_of_last", "value_gap", "seconds_per_iteration"))


def seeds_section(runs: Runs, left_out: list[Run], flags: dict[str, str]) -> str:
    """Every seed of every dataset and method."""
    text = ["## Every seed", SEEDS_TEXT]
    header = ["method", "last iteration", "each seed", f"mean of the last {LAST}", "each seed", "value gap", "s per iteration"]
    for dataset in dict.fromkeys(dataset for dataset, _ in runs):
        groups = {method: group for (d, method), group in runs.items() if d == dataset}
        rows = []
        for method, group in groups.items():
            row = [method.name, mean_and_std(group, LAST_SCORE), each_seed(group, LAST_SCORE)]
            row += [mean_and_std(group, MEAN_SCORE), each_seed(group, MEAN_SCORE)]
            no_critic = is_behaviour_cloning(group[0].args)
            rows.append(row + ["", ""] if no_critic else [*row, mean_and_std(group, VALUE_GAP), mean_and_std(group, SECONDS)])
        trained = [run for group in groups.values() for run in group if not is_behaviour_cloning(run.args)]
        iterations = sorted({run.args["total_iterations"] for run in trained})
        line = f"Iterations: {', '.join(map(str, iterations))}." if iterations else ""
        line += f" All runs with `{flags[dataset]}`." if flags[dataset] else ""
        text += [f"### {dataset}", line.strip(), table(header, rows)]
    for run in left_out:
        reached = f"{run.evaluations['iteration'][-1]:.0f} of {run.args['total_iterations']}"
        what = f"{run.dataset}, {run.method.name}, seed {run.seed}"
        text.append(f"Not counted, still at iteration {reached}: {what}, score {number(run.last)}.")
    return "\n\n".join(filter(None, text))


def published() -> dict[str, dict[str, str]]:
    """The preprint's Tables 1 and 3 and OfflineRL-Kit's scores, by dataset and column."""
    with (Path(__file__).parent / "published.csv").open(newline="") as file:
        return {row["dataset"]: row for row in csv.DictReader(file)}


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
            best = find(runs, dataset, PAPER_HYPERPARAMETERS[dataset], variant)
            if best:
                ours = [mean_and_std(best, LAST_SCORE), mean_and_std(best, MEAN_SCORE), each_seed(best, LAST_SCORE)]
                rows1.append([dataset, reference["RAMBO"], *ours, *(reference[name] for name in names)])
            else:
                missing.append(dataset)
            groups = [find(runs, dataset, pair, variant) for pair in TABLE3_PAIRS]
            if any(groups):
                ours = [mean_and_std(group, LAST_SCORE) if group else "not run" for group in groups]
                theirs = [reference[f"{k}, {adv_weight:g}"] for k, adv_weight in TABLE3_PAIRS]
                rows3.append([dataset, *(f"{a} ({b})" for a, b in zip(ours, theirs, strict=True))])
        suffix = f" ({variant})" if variant else ""
        text += [f"## The preprint's Table 1{suffix}", TABLE1_TEXT, table(header1, rows1)]
        text += [f"{dataset}: all runs with `{flags[dataset]}`." for dataset in references if flags.get(dataset)]
        text += [f"Not run: {', '.join(missing)}."] if missing else []
        text += [f"## The preprint's Table 3{suffix}", "Score of the last iteration here, in brackets the preprint's."]
        text.append(table(["dataset", *map(pair_name, TABLE3_PAIRS)], rows3))
    return text


# --- aggregate statistics ---------------------------------------------------------------------------------------------
def aggregate_section(runs: Runs, samples: int) -> str:
    """rliable's interquartile mean and probability of improvement, with stratified bootstrap intervals."""
    methods_of: dict[str, set[Method]] = defaultdict(set)
    for (dataset, method), group in runs.items():
        if is_d4rl_id(group[0].args["env_id"]):
            methods_of[dataset].add(method)
    most = max(map(len, methods_of.values()), default=0)
    datasets = [dataset for dataset, methods in methods_of.items() if len(methods) == most]
    methods = sorted(set.intersection(*map(methods_of.get, datasets)), key=method_order) if datasets else []
    if len(methods) < 2:
        return "## Aggregate statistics\n\nThey need two methods on the same dataset with normalised scores."
    seeds = {method: min(len(runs[dataset, method]) for dataset in datasets) for method in methods}

    def matrix(method: Method, value: Callable[[Run], float]) -> np.ndarray:
        groups = [runs[dataset, method][: seeds[method]] for dataset in datasets]
        return np.array([[0.0 if run.status == "diverged" else value(run) for run in group] for group in groups]).T

    def estimate(scores: dict, function: Callable) -> tuple[dict, dict]:
        np.random.seed(0)  # rliable draws from numpy's global generator
        return get_interval_estimates(scores, function, reps=samples)

    rows: dict[str, list[str]] = {method.name: [str(seeds[method])] for method in methods}
    for value in (LAST_SCORE, MEAN_SCORE):
        scores = {method.name: matrix(method, value) for method in methods}
        points, intervals = estimate(scores, lambda x: np.array([aggregate_iqm(x)]))
        for name, row in rows.items():
            low, high = intervals[name].ravel()
            interval = f" ({low:.1f} to {high:.1f})" if row[0] != "1" else ""  # one seed has none
            row.append(f"{points[name].item():.1f}{interval}")
    reference = next((method for method in methods if method.pair == (5, 3e-4)), methods[0])
    others = [method for method in methods if method is not reference]
    pairs = {method.name: (matrix(reference, MEAN_SCORE), matrix(method, MEAN_SCORE)) for method in others}
    points, intervals = estimate(pairs, probability_of_improvement)
    for method in others:
        low, high = intervals[method.name].ravel()
        several = min(seeds[reference], seeds[method]) > 1
        rows[method.name].append(f"{points[method.name]:.2f} ({low:.2f} to {high:.2f})" if several else "")
        per_seed = [scores.mean(1) for scores in pairs[method.name]]  # over the datasets
        difference = partial(permutation_test, statistic=lambda x, y: x.mean() - y.mean(), n_resamples=samples, rng=0)
        rows[method.name].append(f"{difference(per_seed).pvalue:.3f}" if several else "")
    rows[reference.name] += ["", ""]
    header = ["method", "seeds", "IQM, last iteration", f"IQM, mean of the last {LAST}", f"P({reference.name} is better)", "p"]
    return f"""## Aggregate statistics

Over {", ".join(datasets)}; in brackets 95 % stratified bootstrap intervals (rliable). P is the probability of a higher mean of
the last {LAST} evaluations. Few seeds: the intervals are too narrow; so p, of a two-sided permutation test that the same mean
differs (exact up to {samples} permutations of the seeds). A diverged run counts as 0, a random policy.

{table(header, [[name, *row] for name, row in rows.items()])}"""


# --- the choice of (k, lambda) without an environment -----------------------------------------------------------------
@dataclass
class Verdict:
    pair: tuple[int, float]
    mean_q: float  # over window and seeds
    largest_q: float  # |Q| of a batch, mean over the window, the worst seed
    variation: float  # std over |mean| in the window, the worst seed
    problem: str  # empty: the pair may be chosen


def q_limit(env_id: str, gamma: float) -> float:
    """What the rewards allow: the value of earning, for ever, what D4RL's expert earns in a step. Infinite if unknown."""
    return REFERENCE_RETURNS[env_id.split("-")[0]][1] / 1000 / (1 - gamma) if is_d4rl_id(env_id) else math.inf


def judge(pair: tuple[int, float], runs: list[Run]) -> Verdict:
    """Looks at the Q-values of metrics.csv only."""
    if any(run.status == "diverged" for run in runs):
        return Verdict(pair, math.nan, math.nan, math.nan, "diverged")
    means, largest, variations = [], [], []
    for run in runs:
        q, max_q = run.metrics["losses/qf_values"], run.metrics["losses/max_abs_qf_value"]
        window = max(LAST, round(WINDOW * len(q)))
        means.append(q[-window:].mean())
        largest.append(max_q[-window:].mean())
        variations.append(q[-window:].std() / max(abs(means[-1]), 1e-6))
    verdict = Verdict(pair, float(np.mean(means)), float(max(largest)), float(max(variations)), "")
    limit = q_limit(runs[0].args["env_id"], runs[0].args["gamma"])
    if max(means) > limit or verdict.largest_q > LIMIT_MARGIN * limit:
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
            q = [number(verdict.mean_q), number(verdict.largest_q), f"{verdict.variation:.1%}"]
            q = ["-"] * 3 if math.isnan(verdict.mean_q) else q
            rows.append([name, pair_name(verdict.pair), *q, remark, mean_and_std(groups[verdict.pair], LAST_SCORE)])
        if chosen is None:
            choices.append([name, "none: all diverged", *["-"] * 4])
            continue
        scores = {v.pair: np.mean([run.last for run in groups[v.pair]]) for v in verdicts if v.problem != "diverged"}
        best = max(scores, key=scores.get)
        regrets.append(scores[best] - scores[chosen.pair])
        pairs = pair_name(chosen.pair), number(scores[chosen.pair]), pair_name(best), number(scores[best])
        choices.append([name, *pairs, number(regrets[-1])])
    if not rows:
        return "\n\n".join([*text, "No dataset here has two pairs."])
    text.append(table(["dataset", "chosen offline", "its score", "best", "its score", "regret"], choices))
    text += [f"Mean regret: {number(np.mean(regrets))}."] if regrets else []
    text.append(table(["dataset", "pair", "mean Q", "largest \\|Q\\|", "variation of Q", "verdict", "score"], rows))
    return "\n\n".join(text)


# --- pictures ---------------------------------------------------------------------------------------------------------
Curve = Callable[[Run], tuple[np.ndarray, np.ndarray]]


def draw(runs: Runs, path: Path, label: str, curve: Curve, line: float | None = None) -> None:
    """One panel a dataset; thin: each seed, thick: their mean as far as all have come. Behaviour cloning: a dotted line."""
    datasets = list(dict.fromkeys(dataset for dataset, _ in runs))
    methods = sorted({method for _, method in runs}, key=method_order)
    colors = {method: f"C{i}" for i, method in enumerate(methods)}
    columns = 2 if len(datasets) == 4 else min(3, len(datasets))
    lines = math.ceil(len(datasets) / columns)
    size = (max(4.5 * columns, 6), 3.2 * lines + 0.2 * len(methods) + 0.3)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, facecolor="white", layout="constrained")
    for axis, dataset in zip(axes.flat, datasets, strict=False):
        for method, group in ((m, g) for (d, m), g in runs.items() if d == dataset):
            curves = [(x, y) for x, y in map(curve, group) if len(x)]
            if curves and all(len(x) == 1 for x, _ in curves):
                axis.axhline(np.mean([y[0] for _, y in curves]), color=colors[method], linestyle=":", linewidth=1.5)
            elif curves:
                for x, y in curves:
                    axis.plot(x, y, color=colors[method], linewidth=0.6, alpha=0.4)
                shortest = min((x for x, _ in curves), key=len)
                mean = np.mean([y[: len(shortest)] for _, y in curves], 0)
                axis.plot(shortest, mean, color=colors[method], linewidth=1.8)
        if line is not None:
            axis.axhline(line, color="0.3", linewidth=0.8)
        if max(map(abs, axis.dataLim.intervaly)) > 1e4:  # a diverging run
            axis.set_yscale("symlog")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(title=dataset, xlabel="iteration", ylabel=label)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(datasets) :]:
        axis.remove()
    styles = {method: ":" if is_behaviour_cloning(group[0].args) else "-" for (_, method), group in runs.items()}
    handles = [plt.Line2D([], [], color=colors[method], linestyle=styles[method], label=method.name) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def draw_all(runs: Runs, folder: Path) -> None:
    """learning_curves.png, value_gap.png and q_values.png."""

    def column(table: str, key: str) -> Curve:
        return lambda run: tuple(getattr(run, table).get(name, np.empty(0)) for name in ("iteration", key))

    draw(runs, folder / "learning_curves.png", "score", lambda run: (run.evaluations.get("iteration", run.scores), run.scores))
    trained = {key: group for key, group in runs.items() if not is_behaviour_cloning(group[0].args)}
    if trained:  # behaviour cloning has no critic
        draw(trained, folder / "value_gap.png", "value gap", column("evaluations", "value_gap"), line=0.0)
        draw(trained, folder / "q_values.png", "mean Q", column("metrics", "losses/qf_values"))


def main(args: Args) -> None:
    runs, left_out, flags = read_runs(args.runs, args.unfinished)
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
        args.output.write_text(text)
    if args.figures is not None:
        draw_all(runs, args.figures)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
