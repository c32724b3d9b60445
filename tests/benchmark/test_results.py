"""What is published comes from the files of the runs: tables and figures are made again, the numbers of the texts computed."""

import csv
import json
import re
import shutil

import falls
import numpy as np
import pytest
from conftest import ROOT, run_as_main, run_script
from PIL import Image

pytest.importorskip("rliable", reason="benchmark/requirements.txt is not installed")
import report
import resampled

BENCHMARK = ROOT / "benchmark"
FILES = sorted(path for path in (BENCHMARK / "results").glob("*.csv"))
OWN = [path for path in FILES if "-sbx-" in path.stem or path.stem == "hopper-mini-v2"]
NAMES = ("results", "paper_length", "adversary", "resampled")
PAGES = {name: (BENCHMARK / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}
LENGTH = BENCHMARK / "results" / "paper_length"
RAMBO = "RAMBO, k = 5, λ = 0.0003, JAX"
OURS = "RAMBO, k = 20, λ = 0, policy_average 0.9, halt_outside True, rollout_batch_size 12500, JAX"
LONGER = "RAMBO, k = 20, λ = {}, rollout_batch_size 12500, JAX"


@pytest.fixture(scope="module")
def runs() -> report.Runs:
    return report.group_runs(report.read(BENCHMARK / "results"), unfinished=False)[0]


def of(runs: report.Runs, dataset: str, name: str) -> list[report.Run]:
    (group,) = [group for (found, method), group in runs.items() if (found, method.name) == (dataset, name)]
    return group


def section(page: str, heading: str) -> str:
    return PAGES[page].split(f"\n## {heading}")[1].split("\n## ")[0]


def check_numbers(text: str, *values: object, form: str = "") -> None:
    """The values stand in the text in this order, with at most a few words between them."""
    values = [f"{value:{form}}" if form else str(value) for value in values]
    pattern = r"[^\d.]{1,60}?".join(re.escape(value.removeprefix("-")) for value in values)
    assert re.search(rf"(?<![\d.,]){pattern}(?![\d]|[.,]\d)", text.replace("\n", " ")), values


def same_picture(name: str, folder) -> bool:
    pictures = [np.asarray(Image.open(where / name)) for where in (folder, BENCHMARK / "figures")]
    return np.array_equal(*pictures)


def make_again(page: str, tmp_path, monkeypatch, program: str) -> list[str]:
    """The commands of a page in a copy of the folder whose tables lack their rows; what they print."""
    ignored = shutil.ignore_patterns("figures", "datasets")
    shutil.copytree(BENCHMARK, tmp_path / "benchmark", ignore=ignored, dirs_exist_ok=True)
    for name in ("rambo_continuous.py", "rambo_continuous_jax.py"):
        shutil.copy(ROOT / name, tmp_path)
    copy = tmp_path / "benchmark" / f"{page}.md"
    copy.write_text(re.sub(r"^\| (mean of|RAMBO|SAC|behav).*\n", "", PAGES[page], flags=re.M), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    printed = []
    for command in re.findall(program, re.sub(r"( \\)?\n +", " ", PAGES[page])):
        result = run_as_main(*command.split())
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout.strip())
    assert "--tables" not in program or copy.read_text(encoding="utf-8") == PAGES[page]
    return printed


def test_the_command_in_results_md_makes_tables_and_figures_again(tmp_path, monkeypatch):
    make_again("results", tmp_path, monkeypatch, r"(?m)^python (benchmark/report.py .* --tables .*)$")
    figures = sorted(path.name for path in (tmp_path / "benchmark" / "figures").glob("*.png"))
    assert figures == sorted(["learning_curves.png", *(f"{file.stem}.png" for file in FILES)])
    assert [name for name in figures if not same_picture(name, tmp_path / "benchmark" / "figures")] == []


def test_the_commands_in_paper_length_md_make_its_tables_and_figures_again(tmp_path, monkeypatch):
    make_again("paper_length", tmp_path, monkeypatch, r"(?m)^python (benchmark/report.py .* --figures .*)$")
    printed = make_again("paper_length", tmp_path, monkeypatch, r"\(`python\s(benchmark/falls.py[^`;]*?\.csv[^`;]*)`")
    (falls_table,) = printed
    assert f"-->\n\n{falls_table}\n\n<!-- end -->" in PAGES["paper_length"]
    names = [f"{name}.png" for name in ("halfcheetah-sbx-medium-v2", "hopper-sbx-full-replay-v2", "learning_curves")]
    for name in names:
        assert same_picture(f"paper_length/{name}", tmp_path / "benchmark" / "figures"), name
    assert same_picture("falls.png", tmp_path)


def test_the_readmes_command_makes_its_table_and_the_figures_of_the_resampled_datasets_again(tmp_path):
    result = run_script(BENCHMARK / "resampled.py", "--figures", tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"\n\n{result.stdout.strip()}\n\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(same_picture(name, tmp_path) for name in ("resampled.png", "runaway_values.png"))


def test_of_resampled_runs_the_longest_of_a_seed_counts_if_it_has_the_papers_setting_and_an_evaluation(tmp_path, monkeypatch):
    (folder := tmp_path / "results" / "resampled").mkdir(parents=True)
    args = {"env_id": "walker2d-medium-v2", "rollout_length": 5, "adv_weight": 0.0, "rollout_batch_size": 50_000}
    methods = {name: {"args": args | {"total_iterations": 300}} for name in ("first", "more", "other")}
    methods["other"]["args"] = methods["other"]["args"] | {"adv_weight": 3e-4}
    (folder / "walker2d-medium-v2.args.json").write_text(json.dumps({"methods": methods}), encoding="utf-8")
    rows = "first,1,10,50\nmore,1,5,40\nmore,2,1,\nother,1,20,60\n"
    (folder / "walker2d-medium-v2.csv").write_text(f"method,seed,iteration,{resampled.SCORE}\n{rows}")
    monkeypatch.setattr(resampled, "HERE", tmp_path)
    found = resampled.read_results("walker2d-medium-v2")
    assert resampled.summary(found[resampled.PAPER]) == "50.0 (1 × 10)"


def test_the_command_in_resampled_md_makes_its_tables_again(tmp_path, monkeypatch):
    make_again("resampled", tmp_path, monkeypatch, r"(?m)^python (benchmark/report.py .* --tables .*)$")


def test_every_file_of_our_own_datasets_is_on_the_page():
    assert [path.stem for path in OWN] == sorted(re.findall(r"^## ([\w-]+-v2)$", PAGES["results"], re.M))
    assert all(f"<!-- {path.stem} -->\n\n| " in section("results", path.stem) for path in OWN)


def test_a_file_is_complete(subtests):
    """Every iteration of a finished run has a row; the arguments are those of the dataset."""
    for path in [*FILES, *sorted(BENCHMARK.glob("results/resampled/*.csv")), *BENCHMARK.glob("results/model_updates/*.csv")]:
        with subtests.test(path=str(path)):
            with path.open(encoding="utf-8", newline="") as file:
                count = len({(row["method"], row["seed"]) for row in csv.DictReader(file)})
            found = report.read(path)
            assert len(found) == count
            for run in found:
                resampled = "" if path.stem in [own.stem for own in FILES] else report.RESAMPLED
                assert run.dataset == path.stem + resampled and run.status in ("finished", "diverged", "unfinished")
                if run.status == "finished":
                    assert [int(row["iteration"]) for row in run.rows] == list(range(run.args["total_iterations"] + 1))


def test_every_mean_and_std_of_the_pages_is_in_a_table_of_the_report(runs):
    tables = report.seeds_section(runs, [], dict.fromkeys(report.datasets(runs), ""))
    text = section("results", "hopper-mini-v2") + PAGES["paper_length"]
    text += section("adversary", "Does the").split("[Our setting]")[0]  # ours: test_the_table_of_lambdas_...
    found = re.findall(r"-?\d[\d.e+]* ± \d[\d.e+]*\d", text)
    assert len(found) > 15
    assert [value for value in found if not re.search(rf"(?<![\d.-]){re.escape(value)}(?![\d.])", tables)] == []


def test_numbers_in_the_text_of_the_results(runs):
    for dataset, best in (("halfcheetah-sbx-medium-replay-v2", 42.2), ("halfcheetah-sbx-medium-v2", 43.7)):
        scores, text = [run.scores for run in of(runs, dataset, RAMBO)], section("results", dataset)
        check_numbers(text, *(int(iterations[values <= best][-1]) + 1 for iterations, values in scores))
        check_numbers(text, best)


def test_numbers_on_the_adversary(runs):
    """Hopper medium, k = 20. The weight alone differs from lambda = 1e-9."""
    off, paper, large = (of(runs, "hopper-sbx-medium-v2", LONGER.format(weight)) for weight in ("1e-09", "0.0003", "0.03"))
    p_values = [report.p_value(group, off, 10_000) for group in (paper, large)]
    check_numbers(section("adversary", "Does the"), *p_values)
    names = [f"RAMBO, k = 5, λ = {weight}, JAX" for weight in ("0.0003", "0")]
    curves = [[run.curve("charts/value_gap") for run in of(runs, "hopper-sbx-full-replay-v2", name)] for name in names]
    above, above_0 = (sum((gap[iterations > 0] > 0).sum() for iterations, gap in group) for group in curves)
    check_numbers(section("adversary", "Proposition 1"), above, sum((x > 0).sum() for x, _ in curves[0]))
    check_numbers(section("adversary", "Proposition 1"), 0, above_0)


def test_the_tables_of_fewer_adversarial_updates():
    folder = BENCHMARK / "results" / "model_updates"
    tables = [part.split("\n\n")[0].splitlines() for part in section("adversary", "Fewer").split("|---|\n")[1:]]
    for dataset, rows in zip(("hopper-medium-v2", "hopper-mini-v2"), tables, strict=False):
        lines = []
        for runs in report.group_runs(report.read(folder / f"{dataset}.csv"), unfinished=False)[0].values():
            scores, args = [run.mean_of_last for run in runs], runs[0].args
            if args["adv_weight"] == 1e-9:
                continue
            updates = args["model_updates_per_iteration"] or args["updates_per_iteration"]
            name = "none, λ = 0" if args["adv_weight"] == 0 else "1,000, the paper's" if updates == 1000 else str(updates)
            errors = np.mean([run.curve("model/holdout_mse")[1][[0, -1]] for run in runs], 0)
            each, errors = ", ".join(f"{score:.1f}" for score in scores), ", ".join(f"{error:.5f}" for error in errors)
            seconds = f" {min(run.seconds_per_iteration for run in runs):.1f} |" if dataset == "hopper-mini-v2" else ""
            lines.append(f"| {name} | {each} | {np.mean(scores):.1f} ± {np.std(scores):.1f} | {errors} |{seconds}")
        assert len(lines) == 4 and sorted(lines) == sorted(rows)
    name = "halfcheetah-medium-v2.csv"
    cheetah = [*report.read(folder / name), *report.read(BENCHMARK / "results" / "resampled" / name)]
    table = {"mean": [], "hold": []}
    for what in ((3e-4, None, 1), (3e-4, None, 2), (3e-4, None, 3), (1e-9, None, 1), (3e-4, 100, 1), (0.0, None, 1)):
        (run,) = [
            run for run in cheetah
            if run.args["rollout_length"] == 5 and run.args["total_iterations"] > 0
            and (run.args["adv_weight"], run.args.get("model_updates_per_iteration"), run.seed) == what
        ]  # fmt: skip
        iterations, scores = run.scores
        chosen = (iterations >= 50) & (iterations <= 100) & (iterations % 5 == 0)
        table["mean"].append(f"{scores[chosen].mean():.1f}")
        table["hold"].append(f"{value_at(run, 'model/holdout_mse', 100):.4f}")
    text = section("adversary", "Fewer")
    for row, numbers in table.items():
        (line,) = re.findall(rf"^\| {row}.*", text, re.M)
        assert re.findall(r"\d+\.\d+", line) == numbers


def test_the_table_of_lambdas_with_our_setting():
    """Hopper: means of the last 10. HalfCheetah, whose runs with lambda = 0 went on to 100: of iterations 50, 55 and 60."""
    folder, rows = BENCHMARK / "results", {}
    hopper = report.read(folder / "model_updates" / "hopper-medium-v2.csv")
    cheetah = [
        run for name in ("model_updates", "resampled") for run in report.read(folder / name / "halfcheetah-medium-v2.csv")
        if run.args["rollout_length"] == 20 and run.args.get("policy_average") == 0.9
    ]  # fmt: skip
    for weight in (3e-4, 1e-9, 0.0):
        hoppers, cheetahs = (
            [run for run in runs if run.args["adv_weight"] == weight and not run.args.get("model_updates_per_iteration")]
            for runs in (hopper, cheetah)
        )
        scores = [run.mean_of_last for run in hoppers]
        at_60 = [np.mean([value_at(run, "charts/normalized_score", i) for i in (50, 55, 60)]) for run in cheetahs]
        assert [run.seed for run in hoppers] == [run.seed for run in cheetahs] == [1, 2, 3]
        rows[weight] = [
            f"{', '.join(f'{score:.1f}' for score in each)} | {np.mean(each):.1f} ± {np.std(each):.1f}"
            for each in (scores, at_60)
        ]
    text = section("adversary", "Does the")
    for weight, row in zip(("3e-4", "1e-9", "0"), rows.values(), strict=True):
        assert re.search(rf"^\| {weight}[^|]* \| {re.escape(' | '.join(row))} \|$", text, re.M), (weight, row)


def test_our_columns_beside_the_authors_code(runs):
    text = section("results", "Measured outside")
    frozen = of(runs, "hopper-sbx-medium-v2", "RAMBO, k = 5, λ = 0, JAX")
    for iteration in (10, 20, 40):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {iteration} |")]
        for column, form in (("losses/qf_values", ",.0f"), ("charts/normalized_score", ".1f")):
            check_numbers(line, *(value_at(run, column, iteration) for run in frozen), form=form)
    check_numbers(text, *(run.bound_passed for run in frozen))


def value_at(run: report.Run, column: str, iteration: int) -> float:
    iterations, values = run.curve(column)
    return values[iterations == iteration].item()


def test_numbers_in_the_text_on_paper_length_runs():
    (cheetah,), (hopper,) = (
        report.read(LENGTH / f"{name}-v2.csv") for name in ("halfcheetah-sbx-medium", "hopper-sbx-full-replay")
    )
    page, text = PAGES["paper_length"], section("paper_length", "HalfCheetah")
    iterations, scores = cheetah.scores
    check_numbers(page, *(scores[iterations == i].item() for i in (100,)), form=".1f")
    means = [scores[(start < iterations) & (iterations <= start + 100)].mean() for start in range(0, 600, 100)]
    check_numbers(text, *means, form=".0f")
    numbers, ratios = cheetah.curve(report.RATIO)
    check_numbers(text, *numbers[ratios > 1][[0, -1]])
    numbers, gaps = cheetah.curve("charts/value_gap")
    check_numbers(text, numbers[gaps > 0][-1] + 10)
    iterations, scores = hopper.scores
    text = section("paper_length", "Hopper")
    check_numbers(
        text, *(scores[(start <= iterations) & (iterations < start + 200)].mean() for start in range(0, 2000, 200)), form=".0f"
    )
    check_numbers(text, *hopper.curve("model/holdout_mse")[1][[0, -1]], form=".4f")
    table = falls.score_table(hopper.rows, 100)
    for scores in ("30 to 45", "above 85"):
        check_numbers(text, re.search(rf"^\| {scores} \|.*\| (\d+) \| \d+ to \d+ \|$", table, re.M)[1])
    for name, blind in ("falls_k5", 10), ("falls_k20", 0):
        check_numbers(text, blind, "10")
        assert f"In {blind} of them" in falls.summary(report.read_csv(LENGTH / f"{name}.csv"))
    for k, count in (5, 30), (20, 30), (20, 130):
        rows = [row for row in report.read_csv(LENGTH / f"k{k}_evaluations.csv") if int(row["iteration"]) <= 2000 + count][
            -10:
        ]
        (line,) = [line for line in text.splitlines() if line.startswith(f"| k = {k}, {count} iterations | ")]
        score, steps = (
            np.array([float(row[name]) for row in rows]) for name in ("charts/normalized_score", "charts/episodic_length")
        )
        assert line.split(" | ")[1:3] == [f"{score.mean():.1f}", f"{steps[-1]:,.0f}"]


def test_our_setting_after_200_iterations_and_on_datasets_of_our_own(runs):
    page, screens = (BENCHMARK / "runaway_values.md").read_text(encoding="utf-8"), BENCHMARK / "results" / "screens"
    longer = report.read_csv(screens / "halfcheetah_200.evaluations.csv")[-10:]
    check_numbers(page, 200, f"{np.mean([float(row['charts/normalized_score']) for row in longer]):.1f}")
    for body in ("hopper", "halfcheetah", "walker2d"):
        (ours,) = of(runs, f"{body}-sbx-medium-v2", OURS)
        clones = [run.mean_of_last for run in of(runs, f"{body}-sbx-medium-v2", "behaviour cloning, 50 epochs, JAX")]
        text = page.split(f"{body}-sbx-medium-v2")[1]
        check_numbers(text[:60], f"{ours.mean_of_last:.1f}", f"{np.mean(clones):.1f}")
        if body == "halfcheetah":
            check_numbers(page, "promises", f"{np.mean(ours.curve('charts/value_gap')[1][-10:]):.0f}")
            frozen = value_at(ours, "charts/normalized_score", 60)
    trained = report.read(BENCHMARK / "results" / "model_updates" / "halfcheetah-sbx-medium-v2.csv")
    last = {run.args["adv_weight"]: value_at(run, "charts/normalized_score", 60) for run in trained}
    check_numbers(page, "has", f"{last[3e-4]:.1f}", 60, "3e-4", f"{last[1e-9]:.1f}", "1e-9", f"{frozen:.1f}")


STUCK = falls.summary, "halfcheetah_stuck", "7 are stuck in the end", "seven episodes of ten end so"
STARTS = falls.starts_table, "hopper_starts", "| in the environment | 10 |", "scores 0.9 after"


@pytest.mark.parametrize(("make_table", "name", "found", "told"), [STUCK, STARTS])
def test_the_tables_of_falls_in_runaway_values_md(make_table, name, found, told):
    text = make_table(report.read_csv(BENCHMARK / "results" / "screens" / f"{name}.csv"))
    page = (BENCHMARK / "runaway_values.md").read_text(encoding="utf-8")
    assert found in text and told in page
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) >= 3 and all(line in page for line in rows)


def test_what_the_papers_setting_reaches_on_hopper_and_walker2d():
    """The table of windows, and how Walker2d's seed 2 goes on after 300."""
    results = {dataset: found for dataset in resampled.DATASETS if (found := resampled.read_results(dataset))}
    assert f"\n\n{resampled.windows(results)}\n\n" in PAGES["resampled"]
    last = results["hopper-medium-v2"][resampled.PAPER][4][resampled.SCORE].tail(10)
    check_numbers(PAGES["resampled"], "4's", 10, (last.round() == 107).sum(), 107, (last < 3).sum(), 2)
    averaged = report.read_csv(BENCHMARK / "results" / "screens" / "hopper_average.evaluations.csv")[-10:]
    numbers = [f"{scores.mean():.1f}" for scores in (last, np.array([row[resampled.SCORE] for row in averaged], float))]
    for number in numbers:
        check_numbers((BENCHMARK / "runaway_values.md").read_text(encoding="utf-8"), number)
    run = results["walker2d-medium-v2"][resampled.PAPER][2]
    late = run[run["iteration"] > 300][resampled.SCORE]
    check_numbers(PAGES["resampled"], len(late), 300, run["iteration"].max())
    check_numbers(PAGES["resampled"], f"{np.median(late):.1f}", (late < 30).sum(), 30)
    check_numbers((ROOT / "README.md").read_text(encoding="utf-8"), np.median(late), form=".0f")


def test_how_often_halfcheetah_gets_stuck():
    """The frozen model's means and each seed's last ten evaluations in resampled.md, those of seed 1 in runaway_values.md."""
    found = report.read(BENCHMARK / "results" / "resampled" / "halfcheetah-medium-v2.csv")
    found = [run for run in found if run.args["rollout_length"] == 5 and run.args["real_ratio"] < 1]
    (frozen,), trained = ([run for run in found if run.args["adv_weight"] == weight] for weight in (0, 3e-4))
    iterations, scores = frozen.scores
    means = [scores[(low <= iterations) & (iterations <= high)].mean() for low, high in ((50, 100), (105, 150))]
    check_numbers(PAGES["resampled"], f"{means[0]:.1f}", "50", "100", f"{means[1]:.1f}", "150")
    rows = [[row["episodic_returns"].split() for row in run.rows if row["episodic_returns"]][-10:] for run in trained]
    returns, page = np.array(rows, float), (BENCHMARK / "runaway_values.md").read_text(encoding="utf-8")
    move, stuck = (returns > 6500).sum((1, 2)), (returns < 1000).sum((1, 2))
    check_numbers(PAGES["resampled"], *move, "6,500", *stuck, "1,000")
    moves = returns[0][returns[0] > 6500]
    check_numbers(page, moves.min().round(-2), moves.max().round(-2), form=",.0f")
    check_numbers(page, "291", "300", 100 - move[0])
