"""What is published comes from the logs: tables, report and figures are made again, the texts checked against the logs."""

import csv
import json
import re
import shutil

import h5py
import numpy as np
import pytest
from conftest import ROOT, run_as_main, run_script
from PIL import Image

pytest.importorskip("rliable", reason="benchmark/requirements.txt is not installed")
import falls
import report

BENCHMARK = ROOT / "benchmark"
LOGS = sorted(path for path in (BENCHMARK / "results").glob("*.csv"))
REPORT = (BENCHMARK / "results" / "report.md").read_text(encoding="utf-8")
RESULTS = (BENCHMARK / "results.md").read_text(encoding="utf-8")
RUNAWAY = (BENCHMARK / "runaway_values.md").read_text(encoding="utf-8")
LENGTH = (BENCHMARK / "paper_length.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs() -> report.Runs:
    return report.group_runs(report.read(BENCHMARK / "results"), unfinished=False)[0]


def same_picture(name: str, folder) -> bool:
    pictures = [np.asarray(Image.open(where / name)) for where in (folder, BENCHMARK / "figures")]
    return np.array_equal(*pictures)


def test_the_command_in_results_md_makes_tables_report_and_figures_again(tmp_path, monkeypatch):
    """The tables are taken out of the page first; the command is the one that the page names."""
    shutil.copytree(BENCHMARK, tmp_path / "benchmark", ignore=shutil.ignore_patterns("figures", "datasets", "report.md"))
    shutil.copy(ROOT / "rambo_continuous.py", tmp_path)
    page = tmp_path / "benchmark" / "results.md"
    page.write_text(re.sub(r"^\|.*\n", "", RESULTS, flags=re.M), encoding="utf-8")
    (command,) = re.findall(r"^python (benchmark/report.py .* --tables .*)$", RESULTS, re.M)
    monkeypatch.chdir(tmp_path)
    result = run_as_main(*command.split())
    assert result.returncode == 0, result.stderr
    assert page.read_text(encoding="utf-8") == RESULTS
    assert (tmp_path / "benchmark" / "results" / "report.md").read_text(encoding="utf-8") == REPORT
    figures = sorted(path.name for path in (tmp_path / "benchmark" / "figures").glob("*.png"))
    assert figures == sorted(["learning_curves.png", *(f"{log.stem}.png" for log in LOGS)])
    assert [name for name in figures if not same_picture(name, tmp_path / "benchmark" / "figures")] == []


def test_the_command_in_runaway_values_md_makes_its_table_and_figure_again(tmp_path):
    result = run_script(BENCHMARK / "runaway_values.py", "--figure", tmp_path / "runaway_values.png")
    assert result.returncode == 0, result.stderr
    assert f"<!-- passing runs -->\n\n{result.stdout.strip()}\n\n<!-- end -->" in RUNAWAY
    assert same_picture("runaway_values.png", tmp_path)


def test_the_commands_in_paper_length_md_make_its_tables_and_figures_again(tmp_path, monkeypatch):
    shutil.copytree(BENCHMARK, tmp_path / "benchmark", ignore=shutil.ignore_patterns("figures", "datasets"))
    for name in ("rambo_continuous.py", "rambo_continuous_jax.py"):
        shutil.copy(ROOT / name, tmp_path)
    page = tmp_path / "benchmark" / "paper_length.md"
    page.write_text(re.sub(r"^\| (mean|RAMBO).*\n", "", LENGTH, flags=re.M), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    results = []
    for command in re.findall(r"^python (benchmark/(?:report|falls).py .*)$", LENGTH, re.M):
        results.append(run_as_main(*command.split()))
        assert results[-1].returncode == 0, results[-1].stderr
    assert page.read_text(encoding="utf-8") == LENGTH
    _, scores, last = (result.stdout.strip() for result in results)
    assert f"<!-- scores -->\n\n{scores}\n\n<!-- end -->" in LENGTH
    assert f"<!-- falls -->\n\n{last}\n\n<!-- end -->" in LENGTH
    logs = "halfcheetah-sbx-medium-v2", "hopper-sbx-full-replay-v2", "learning_curves"
    for name in ("falls.png", *(f"paper_length/{log}.png" for log in logs)):
        assert same_picture(name, tmp_path / "benchmark" / "figures"), name


def test_numbers_in_the_text_on_the_paper_length_run_of_halfcheetah():
    _, text = LENGTH.split("\n## Hopper")[0].split("\n## HalfCheetah")
    (run,) = report.read(BENCHMARK / "results" / "paper_length" / "halfcheetah-sbx-medium-v2.csv")
    iterations, scores = run.scores
    means = [scores[(start < iterations) & (iterations <= start + 100)].mean() for start in range(0, 600, 100)]
    assert "is {}, {}, {}, {} and {}, then {} until 530.".format(*(f"{mean:.0f}" for mean in means)) in text
    first, last = scores[iterations == 100].item(), scores[iterations == 530].item()
    assert f"{first:.1f} after 100 iterations, {last:.1f} after 530" in LENGTH and iterations[-1] == 530
    numbers, ratios = run.curve("losses/value_bound_ratio")
    passing = numbers[ratios > 1]
    assert f"in iterations {passing[0]} to {passing[-1]} (at most {ratios.max():.2f})" in text
    assert len(passing) == passing[-1] - passing[0] + 1
    numbers, gaps = run.curve("charts/value_gap")
    assert f"From {numbers[gaps > 0][-1] + 10} on the value gap is negative at every evaluation" in text
    _, errors = run.curve("model/holdout_mse")
    assert f"error falls from {errors[0]:.4f} to {errors[-1]:.4f}" in text


def test_numbers_in_the_text_on_the_paper_length_run():
    (run,) = report.read(BENCHMARK / "results" / "paper_length" / "hopper-sbx-full-replay-v2.csv")
    iterations, scores = run.scores
    means = [scores[(start <= iterations) & (iterations < start + 200)].mean() for start in range(0, 2000, 200)]
    assert "is {}, {}, {}, {}, {}, {}, {}, {}, {} and {}.".format(*(f"{mean:.0f}" for mean in means)) in LENGTH
    best = scores.argmax()
    text = f"reach {scores[best]:.0f} (iteration {iterations[best]}), with {scores[best + 1]:.0f} ten iterations later."
    assert text in LENGTH and iterations[best + 1] == iterations[best] + 10
    gaps = np.abs(run.curve("charts/value_gap")[1] / run.curve("charts/discounted_return")[1])[iterations > 100]
    assert f"it is off by {np.median(gaps):.0%} (median)".replace("%", " %") in LENGTH
    assert f"(at most {report.largest_ratios([run])[0]:.2f} of its" in LENGTH
    _, errors = run.curve("model/holdout_mse")
    assert f"error falls from {errors[0]:.4f} to {errors[-1]:.4f}" in LENGTH
    folder = BENCHMARK / "results" / "paper_length"
    for name, blind, text in (
        ("falls_1100", 2, "was blind in 2 of 10 falls"),
        ("falls_bundled_log", 0, "torch, seed 1) in 0 of 10"),
        ("falls_k5", 10, "| 174 | 10 of 10 ([states](results/paper_length/falls_k5.csv)) |"),
        ("falls_k20_seed4", 0, "[states](results/paper_length/falls_k20_seed4.csv)"),
        ("falls_k20", 0, "| 388 | 0 of 10 ([states](results/paper_length/falls_k20.csv)) |"),
    ):
        found = falls.summary(report.read_csv(folder / f"{name}.csv"))
        assert found.startswith("10 of 10") and f"In {blind} of them" in found and text in LENGTH
        assert name != "falls_k20_seed4" or "| 10 | 29 | 41 |" in found and "it promises 29 where 41 follow, [" in LENGTH
    assert "| 10 | 38 | 47 |" in found and "ten steps before it does the critic promises 38 where 47 follow" in LENGTH
    for log, text in (
        ("hopper-mini-v2", "{} and {} on the bundled log"),
        ("hopper-sbx-full-replay-v2", "{} and {} on full replay"),
        ("hopper-sbx-medium-replay-v2", "{} and {} on\nmedium-replay"),
        ("hopper-sbx-medium-v2", "{} and {} on medium"),
    ):
        lines = falls.score_table(report.read_csv(BENCHMARK / "results" / f"{log}.csv"), falls.Args.after).splitlines()
        returns = {line.split(" | ")[0]: line.split(" | ")[3] for line in lines[2:]}
        assert text.format(returns["| 30 to 45"], returns["| above 85"]) in LENGTH


def test_numbers_in_the_text_on_longer_rollouts():
    folder = BENCHMARK / "results" / "paper_length"
    (run,) = report.read(folder / "hopper-sbx-full-replay-v2.csv")
    names = "iteration", "charts/normalized_score", "charts/episodic_length"

    def read(k: int) -> np.ndarray:
        return np.array([[float(row[name]) for name in names] for row in report.read_csv(folder / f"k{k}_evaluations.csv")])

    for k, iterations in (5, 30), (20, 30), (20, 130):
        rows = read(k)
        last = rows[rows[:, 0] <= 2000 + iterations][-10:]
        assert last[-1, 0] == 2000 + iterations and (np.diff(last[:, 0]) == 1).all()
        (line,) = [line for line in LENGTH.splitlines() if line.startswith(f"| k = {k}, {iterations} iterations | ")]
        assert line.split(" | ")[1].startswith(f"{last[:, 1].mean():.1f} (") and line.split(" | ")[2] == f"{last[-1, 2]:,.0f}"
    _, scores, lengths = rows[rows[:, 0] >= 2060].T
    whole = lengths == 1000
    assert f"{whole.sum()} of {len(whole)} evaluations last a thousand steps" in LENGTH
    assert f"score {scores[whole].min():.0f} to {scores[whole].max():.0f};" in LENGTH
    assert f"one after the other, score {scores[~whole].min():.0f} to {scores[~whole].max():.0f}," in LENGTH
    assert (np.diff(np.flatnonzero(~whole)) == 1).all() and whole.sum() == len(whole) - 4
    _, before = run.curve("charts/episodic_length")
    assert (before == 1000).sum() == 3 and f"three\nof {len(before)} did" in LENGTH


def test_every_log_is_on_the_page_with_its_table_and_figure():
    assert sorted(re.findall(r"^## (.*)$", RESULTS, re.M)) == [log.stem for log in LOGS]
    for log in LOGS:
        section = RESULTS.split(f"\n## {log.stem}\n")[1].split("\n## ")[0]
        assert f"<!-- {log.stem} -->\n\n| " in section and f"(figures/{log.stem}.png)" in section


def test_a_log_is_complete_and_its_ratios_follow_from_its_rewards(subtests):
    """Every iteration of a finished run has a row; methods bear the names that their arguments give them."""
    for log in LOGS:
        with subtests.test(log=str(log)):
            rewards = json.loads(report.args_path(log).read_text(encoding="utf-8"))["rewards"]
            runs = report.read(log)
            report.group_runs(runs, unfinished=True)
            with log.open(encoding="utf-8", newline="") as file:
                names = list(dict.fromkeys((row["method"], int(row["seed"])) for row in csv.DictReader(file)))
            assert [(run.method.name, run.seed) for run in runs] == names
            for run in runs:
                assert run.args["env_id"] == log.stem and run.status in ("finished", "diverged", "unfinished")
                if run.status == "finished":
                    assert [int(row["iteration"]) for row in run.rows] == list(range(run.args["total_iterations"] + 1))
                iterations, q = run.curve("losses/qf_values")
                ratios = [report.value_bound_ratio(value, rewards, run.args["gamma"]) for value in q]
                assert np.allclose(run.curve(report.RATIO)[1], ratios, rtol=1e-5)


def test_the_rewards_of_the_bundled_log_are_its_own():
    with h5py.File(BENCHMARK / "datasets" / "hopper_mini-v2.hdf5") as file:
        rewards = file["rewards"][:]
    stored = json.loads((BENCHMARK / "results" / "hopper-mini-v2.args.json").read_text(encoding="utf-8"))["rewards"]
    assert stored == {"min": rewards.min(), "max": rewards.max()}


def test_every_mean_and_std_of_the_pages_is_in_the_report():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Results\n")[1].split("\n## ")[0]
    found = re.findall(r"-?\d[\d.e+]* ± \d[\d.e+]*\d", (readme + RESULTS + RUNAWAY + LENGTH).replace("−", "-"))
    assert len(found) > 80
    missing = [value for value in found if not re.search(rf"(?<![\d.-]){re.escape(value)}(?![\d.])", REPORT)]
    assert missing == []


def of(runs: report.Runs, log: str, name: str) -> list[report.Run]:
    (group,) = [group for (dataset, method), group in runs.items() if (dataset, method.name) == (log, name)]
    return group


def test_numbers_in_the_text_of_the_results(runs):
    gaps = [run.curve("charts/value_gap") for run in of(runs, "hopper-sbx-medium-replay-v2", "RAMBO, k = 5, λ = 0.0003, JAX")]
    since = [int(iterations[values <= 0][-1]) + 1 for iterations, values in gaps[:4]]
    assert "for good from iterations {}, {}, {} and {} on".format(*since) in RESULTS
    assert "ends at {:.0f}, {:.0f}, {:.0f} and {:.0f}.".format(*(values[-1] for _, values in gaps[:4])) in RESULTS
    for log, best in (("halfcheetah-sbx-medium-replay-v2", 42.2), ("halfcheetah-sbx-medium-v2", 43.7)):
        scores = [run.scores for run in of(runs, log, "RAMBO, k = 5, λ = 0.0003, JAX")]
        since = [int(iterations[values <= best][-1]) + 1 for iterations, values in scores]
        assert f"best episode {best}." in RESULTS and "from iterations {}, {} and {} on".format(*since) in RESULTS
    names = [f"RAMBO, k = 5, λ = {weight}, JAX" for weight in ("1e-09", "0.0003", "0")]
    scores = [of(runs, "halfcheetah-sbx-medium-v2", name)[0].mean_of_last for name in names]
    text = "seed 1 has {:.1f}, with λ = 3e-4 {:.1f}, with the frozen model {:.1f}."
    assert text.format(*scores) in RESULTS
    longer = of(runs, "halfcheetah-sbx-medium-v2", "RAMBO, k = 20, λ = 0.0003, rollout_batch_size 12500, JAX")
    passed = [run.bound_passed for run in longer]
    text = f"of three, at iterations {passed[0]} and {passed[1]}, reaches up to {max(report.largest_ratios(longer)):.0f} times"
    assert text in RESULTS and passed[2] is None
    best = max(run.scores[1].max() for run in longer[:2])
    assert f"more than {best:.1f} in any evaluation; seed 3 has {longer[2].mean_of_last:.1f}, as" in RESULTS
    (between,) = of(runs, "halfcheetah-sbx-medium-v2", "RAMBO, k = 10, λ = 0.0003, rollout_batch_size 25000, JAX")
    assert f"passes the bound by little, recovers and has {between.mean_of_last:.1f}." in RESULTS and between.bound_passed
    assert f"(k = 10, one seed: {between.mean_of_last:.1f})" in RUNAWAY


def test_numbers_in_the_text_on_runaway_values(runs):
    passing = [(log, run) for (log, _), group in runs.items() for run in group if run.bound_passed]
    gaps, below = [], 0
    for log, run in passing:
        at = np.argmax(run.scores[0] >= run.bound_passed)  # the first evaluation since
        gaps.append(run.curve("charts/value_gap")[1][at].item())
        cloned = of(runs, log, "behaviour cloning, 50 epochs, JAX")
        below += run.scores[1][at].item() < np.mean([clone.mean_of_last for clone in cloned])
    assert f"its value gap is at least {min(gaps):.0f}, and in {below} of the {len(passing)} its score is below" in RUNAWAY
    log = "halfcheetah-sbx-medium-v2"
    good = [run for run in of(runs, log, "RAMBO, k = 5, λ = 0.0003, JAX") + of(runs, log, "RAMBO, k = 5, λ = 1e-09, JAX")]
    good += of(runs, "halfcheetah-sbx-medium-replay-v2", "RAMBO, k = 5, λ = 0.0003, JAX")
    assert f"good runs stay at {max(report.largest_ratios([run for run in good if not run.bound_passed])):.2f} of" in RUNAWAY
    (exception,) = [run for run in good if run.bound_passed]
    iterations, ratios = exception.curve(report.RATIO)
    above = iterations[ratios > 1]
    assert f"from iteration {above[0]} to {above[-1]}, overestimates by" in RUNAWAY and len(above) == above[-1] - above[0] + 1
    at = exception.scores[0] == above[0]
    gap = exception.curve("charts/value_gap")[1][at].item()
    assert f"overestimates by {gap:.0f} as it does, with a score of {exception.scores[1][at].item():.1f}," in RUNAWAY
    missed = of(runs, "hopper-sbx-medium-replay-v2", "RAMBO, k = 5, λ = 0.0003, JAX")[0]
    (ratio,) = report.largest_ratios([missed])
    assert (
        f"A gap of {missed.curve('charts/value_gap')[1][-1]:.0f} (Hopper medium-replay, seed 1) stays at {ratio:.2f}"
        in RUNAWAY
    )
    short, hopper, walker, cheetah = [], [], {}, {5: [], 10: [], 20: []}
    for (log, method), group in runs.items():
        passed = {run.seed: run.bound_passed is not None for run in group}
        if method.pair and log == "halfcheetah-sbx-medium-v2":
            cheetah[method.pair[0]] += passed.values()
        elif method.pair and method.pair[0] > 5 and log.startswith("hopper"):
            hopper += passed.values()
        elif method.pair and method.pair[0] > 5:
            walker[log, method] = passed
        elif method.pair and log in ("hopper-sbx-medium-v2", "walker2d-sbx-medium-v2"):
            short += passed.values()
    assert hopper and not any(hopper) and "no run on Hopper's logs passes it" in RUNAWAY
    seeds = [seed for passed in walker.values() for seed, passes in passed.items() if passes]
    text = f"medium log {len(seeds)} of {sum(map(len, walker.values()))} do (k = 20 and 50), all with seed 3."
    assert text in RUNAWAY and set(seeds) == {3} and {log for log, _ in walker} == {"walker2d-sbx-medium-v2"}
    assert f"{sum(short)} of the {len(short)} runs with k = 5 do" in RUNAWAY
    longer, usual = (f"{sum(cheetah[k])} of {len(cheetah[k])}" for k in (20, 5))
    assert f"{longer} pass it, by far, and {usual} with k = 5, by little." in RUNAWAY
    printed = (BENCHMARK / "results" / "imagine.txt").read_text(encoding="utf-8")
    returns = {}  # of the last policy's twenty steps, in the final model and in the simulator
    for name, text in re.findall(r"^(.*, seed \d), imagine.py RUN --horizon 20 .*\n((?:.+\n)+)", printed, re.M):
        returns[name] = re.findall(r"^(?:adversarial model|simulator) +(\S+)", text, re.M)
    pairs = [returns[f"halfcheetah-sbx-medium-v2, seed {seed}"] for seed in (1, 2, 3)]
    first, second, third, hopper = *pairs, returns["hopper-sbx-full-replay-v2, seed 5"]
    text = f"earn {first[0]} and {second[0]} in twenty steps of their final model and {first[1]} and {second[1]} in the"
    assert f"{text} simulator;\nseed 3's, which did not, {third[0]} and {third[1]};" in RUNAWAY
    excess = [100 * (float(model) / float(simulator) - 1) for model, simulator in (first, second, third, hopper)]
    text = "{:.0f}, {:.0f}, {:.0f} and {:.0f} % too much (".format(*excess)
    assert f"Hopper's (full replay, seed 5) {hopper[0]} and {hopper[1]}: {text}" in RUNAWAY


def test_numbers_in_the_text_on_longer_rollouts_from_the_start(runs):
    log = "hopper-sbx-full-replay-v2"
    longer = of(runs, log, "RAMBO, k = 20, λ = 0.0003, rollout_batch_size 12500, JAX")
    first, second, third, fourth, fifth = (f"{run.mean_of_last:.1f}" for run in longer)
    short = [run.mean_of_last for run in of(runs, log, "RAMBO, k = 5, λ = 0.0003, JAX")]
    text = f"score {first}, {second}, {third}, {fourth} and {fifth}, five with k = 5 {min(short):.1f} to {max(short):.1f} ("
    assert text in LENGTH and len(short) == 5
    p = report.p_value(longer, of(runs, log, "RAMBO, k = 5, λ = 0.0003, JAX"), 10_000)
    assert f"four seeds of five: {first}, {second}, {third} and {fifth}, whose" in RESULTS
    assert f"seed 4 falls early and has {fourth} (p = {p})." in RESULTS
    assert f"barely: {fourth})" in RUNAWAY and f"the other has {fourth})" in LENGTH
    fallen = []
    for run, since in zip(longer, (40, 65, 43), strict=False):
        iterations, steps = run.curve("charts/episodic_length")
        assert steps[iterations == since - 1] < 1000 and steps[-1] == 1000
        fallen += [*iterations[(iterations >= since) & (steps < 1000)]]
    assert len(fallen) == 4
    assert "From iterations 40, 65 and 43 on all evaluations of the first three but four last a thousand steps," in LENGTH
    iterations, steps = longer[4].curve("charts/episodic_length")
    whole = steps[iterations >= 54] == 1000
    assert whole[0] and whole[-1] and not (steps[iterations < 54] == 1000).any()
    assert f"from 54 on {whole.sum()} of {len(whole)} of the fifth." in LENGTH
    iterations, scores = longer[3].scores
    assert (scores[iterations >= 42] >= 30).sum() == 1 and scores[iterations == 41] >= 30
    assert "From iteration 42 on the fourth is below 30 in all evaluations but one;" in LENGTH


def test_numbers_in_the_text_on_the_adversary(runs):
    """Hopper medium, k = 20. The weight alone differs from lambda = 1e-9; lambda = 0 freezes the model as well."""
    name = "RAMBO, k = 20, λ = {}, rollout_batch_size 12500, JAX"
    weights = "1e-09", "0.0003", "0.03", "0"
    off, paper, large, frozen = (of(runs, "hopper-sbx-medium-v2", name.format(weight)) for weight in weights)
    p_paper, p_large, p_frozen = (report.p_value(*pair, 10_000) for pair in ((paper, off), (large, off), (paper, frozen)))
    assert f"λ = 1e-9 give p = {p_paper} and {p_large}: no effect" in RESULTS
    assert f"(λ = 0, v1.0 on a CPU) has 64.8 ± 16.8; against it λ = 3e-4 has p = {p_frozen}." in RESULTS
    assert f"with 3e-4\n  (p = {p_paper})" in (ROOT / "README.md").read_text(encoding="utf-8")

    page = (BENCHMARK / "adversary.md").read_text(encoding="utf-8")
    printed = {}  # by imagine.py: (return, percent fallen) of each world, and the first medians of the value change
    for section in (BENCHMARK / "results" / "imagine.txt").read_text(encoding="utf-8").split("\n\nimagine.py RUN")[1:5]:
        worlds = [(round(float(r)), round(float(f))) for r, f in re.findall(r" +(\d+\.\d) +(\d+\.\d)%$", section, re.M)]
        changes = re.findall(r"^(?:the log|imagined) .*(\d\.\d+)$", section, re.M)
        printed[section.split("\n")[0].strip()] = worlds, changes, re.findall(r"difference: (\S+)", section)
    (worlds, changes, (correlation,)) = printed["--probe-weight 0.3 --starts 300 --video"]
    assert "| return of 100 steps | {} | {} | {} |".format(*(returned for returned, _ in worlds)) in page
    assert "| fallen by then | {} % | {} % | {} % |".format(*(fallen for _, fallen in worlds)) in page
    assert "by {:.2f} on the log and by {:.2f} at imagined states (medians)".format(*map(float, changes)) in page
    assert f"weakly so (Spearman correlation {float(correlation):.2f})" in page
    worlds, changes, _ = printed["--probe-weight 0.03 --starts 300"]
    assert f"100 steps return {worlds[1][0]} and the predicted value at imagined states is lower by {changes[1]} (" in page
    worlds, changes, _ = printed["--probe-weight 0.0003 --starts 300"]
    assert f"with 0.0003 they return {worlds[1][0]}, as" in page and worlds[0] == worlds[1] and changes == ["0.000"] * 2
    worlds, _, (correlation,) = printed["--starts 300"]
    assert f"return {worlds[0][0]} and\n{worlds[1][0]} (Spearman correlation {float(correlation):.2f})" in page
