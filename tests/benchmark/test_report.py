"""benchmark/report.py on a small set of made-up run folders: the tables must say what the files of the runs say, and the same
when they are made from tidy files."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import rambo_continuous as rambo

pytest.importorskip("rliable", reason="benchmark/requirements.txt is not installed")
import report

pytestmark = pytest.mark.xdist_group("report")  # one worker, so that the logs are written once
SCRIPT = ROOT / "benchmark" / "report.py"
ITERATIONS = 20
COLUMNS = "normalized_score normalized_score_std episodic_return episodic_length discounted_return value_gap".split()
COLUMNS = [f"charts/{name}" for name in COLUMNS]
LIMIT = 323  # what the rewards of the made-up datasets allow


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_run(folder: Path, env_id: str, seed: int, score: float, q: float = 100.0, **changes) -> Path:
    """A run whose score rises to `score` and falls by 1 at the last iteration, and whose Q rises to q and stays there.

    changes: arguments, or status (diverged, None: still going), until (the iteration reached), wobble (relative swings of Q).
    """
    status, until, wobble = changes.pop("status", "finished"), changes.pop("until", ITERATIONS), changes.pop("wobble", 0.0)
    args = asdict(rambo.Args()) | dict(
        env_id=env_id, seed=seed, total_iterations=ITERATIONS, rollout_length=5, adv_weight=3e-4
    )
    args |= changes
    until = min(until, args["total_iterations"])
    normalised = env_id.startswith(("hopper", "walker2d"))
    path = folder / f"{env_id}__{args['exp_name']}__{seed}__{len(list(folder.glob('*')))}"
    path.mkdir(parents=True)
    (path / "args.json").write_text(json.dumps(args))
    evaluations, metrics = [], []
    for iteration in range(until + 1):
        value = score * min(1, (iteration + 1) / 5) - (iteration == until)
        row = [value if normalised else "nan", 1.0, value, 1000.0, 55.0, -5.0]
        row = dict(zip(COLUMNS, row, strict=True))
        evaluations.append({"iteration": iteration, **row, "seconds": 10 + 2.5 * iteration, "episodic_returns": "1.0 2.0"})
        if iteration:
            value = q * (1 + wobble * (-1) ** iteration) * min(1, iteration / 5)
            row = {
                "iteration": iteration,
                "losses/qf_values": value,
                "losses/max_abs_qf_value": 1.5 * q,
                "rollout/reward": 1.0,
            }
            metrics.append(row | {"losses/value_bound_ratio": abs(value) / LIMIT})
    write_csv(path / "evaluations.csv", evaluations)
    if metrics:
        write_csv(path / "metrics.csv", metrics)
    if status is not None:
        (path / "result.json").write_text(json.dumps({"status": status, "iteration": until}))
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """hopper-medium-replay: four pairs, SAC, behaviour cloning. walker2d-medium: two pairs, one diverged. And odd ones."""
    folder = tmp_path_factory.mktemp("logs") / "runs"
    hopper, walker = "hopper-medium-replay-v2", "walker2d-medium-v2"
    for seed, offset in ((1, -10), (2, 0), (3, 10)):
        write_run(folder, hopper, seed, 90 + offset)
        write_run(folder, hopper, seed, 30 + offset, q=250, adv_weight=0.0)
        write_run(folder, hopper, seed, 95 + offset, q=400, rollout_length=2)
        write_run(folder, hopper, seed, 20 + offset, q=50, rollout_length=1, wobble=0.5)
        write_run(folder, hopper, seed, 15 + offset, real_ratio=1.0, adv_weight=0.0)
        write_run(folder, hopper, seed, 12, real_ratio=1.0, adv_weight=0.0, total_iterations=0, bc_epochs=50)
        write_run(folder, walker, seed, 85 + offset, adv_weight=0.0)
        if seed == 2:
            write_run(folder, walker, seed, 500, status="diverged", until=7)
        else:
            write_run(folder, walker, seed, 50)
    write_run(folder, hopper, 4, 60, until=9, status=None)
    write_run(folder, hopper, 1, 1, dataset_path="elsewhere/log.hdf5")
    write_run(folder, "Pendulum-v1", 1, -150)
    write_run(folder, hopper, 1, 70, num_elites=1)
    return folder


@pytest.fixture(scope="module")
def page(logs) -> str:
    """The page, made by the command line, with its pictures beside it."""
    command = [
        sys.executable,
        SCRIPT,
        logs.name,
        "--output",
        "report.md",
        "--figures",
        "figures",
        "--bootstrap-samples",
        "200",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=logs.parent)
    assert result.returncode == 0, result.stderr
    return (logs.parent / "report.md").read_text(encoding="utf-8")


def tables(page: str, heading: str) -> list[dict[str, list[str]]]:
    """The tables of a section: first cell -> the other cells."""
    section = page.split(f"\n{heading}\n")[1].split("\n#")[0]
    found: list[dict[str, list[str]]] = []
    previous = ""
    for line in section.splitlines():
        if line.startswith("|---"):
            continue
        if line.startswith("| "):
            cells = line.strip("| ").split(" | ")
            if not previous.startswith("| "):
                found.append({})
            found[-1]["/".join(cells[:2]) if heading.startswith("## Choosing") and len(found) == 2 else cells[0]] = cells[1:]
        previous = line
    return found


def test_table_1_prints_the_preprint_beside_ours(page):
    (rows,) = tables(page, "## The preprint's Table 1")
    assert rows["dataset"][:4] == ["RAMBO, preprint", "RAMBO, here", "mean of the last 10", "each seed"]
    assert rows["hopper-medium-replay-v2"][:4] == ["102.1 ± 1.5", "89.0 ± 8.2", "89.9 ± 8.2", "1: 79.0, 2: 89.0, 3: 99.0"]
    assert rows["walker2d-medium-v2"][:4] == ["84.5 ± 1.1", "84.0 ± 8.2", "84.9 ± 8.2", "1: 74.0, 2: 84.0, 3: 94.0"]
    assert rows["hopper-medium-replay-v2"][4] == "11.8" and len(rows) == 3  # behaviour cloning in the preprint
    assert "Not run: halfcheetah-random-v2, hopper-random-v2," in page
    assert "\nwalker2d-medium-v2: all runs with `--total-iterations 20`." in page  # the preprint: 2,000


def test_table_3_marks_divergence_as_the_preprint_does(page):
    (rows,) = tables(page, "## The preprint's Table 3")
    assert rows["hopper-medium-replay-v2"] == [
        "19.0 ± 8.2 (74.3 ± 40.3)",
        "94.0 ± 8.2 (67.5 ± 37.6)",
        "89.0 ± 8.2 (102.1 ± 1.5)",
        "29.0 ± 8.2 (32.1 ± 12.0)",
    ]
    assert rows["walker2d-medium-v2"] == ["not run (-)", "not run (82.8 ± 6.9)", "- (77.0 ± 5.8)", "84.0 ± 8.2 (84.5 ± 1.1)"]


def test_every_seed_is_listed(page):
    (rows,) = tables(page, "### hopper-medium-replay-v2")
    assert rows["SAC on the dataset alone"][:3] == ["14.0 ± 8.2", "1: 4.0, 2: 14.0, 3: 24.0", "14.9 ± 8.2"]
    assert rows["RAMBO, k = 5, λ = 0.0003"][3:] == [
        "1: 79.9, 2: 89.9, 3: 99.9",
        "-5.0 ± 0.0",
        "1: 0.31, 2: 0.31, 3: 0.31",
        "2.5 ± 0.0",
    ]
    assert rows["RAMBO, k = 2, λ = 0.0003"][5] == "1: 1.24 (from 5), 2: 1.24 (from 5), 3: 1.24 (from 5)"
    assert rows["behaviour cloning, 50 epochs"][1] == "1: 1.4, 2: 1.4, 3: 1.4"
    assert rows["RAMBO, k = 5, λ = 0.0003, num_elites 1"][0] == "69.0"
    (rows,) = tables(page, "### walker2d-medium-v2")
    assert rows["RAMBO, k = 5, λ = 0.0003"][:2] == ["-", "1: 49.0, 2: -, 3: 49.0"]
    (rows,) = tables(page, "### Pendulum-v1")
    assert rows["RAMBO, k = 5, λ = 0.0003"][0] == "-151.0"
    (rows,) = tables(page, "### hopper-medium-replay-v2 (log.hdf5)")  # not D4RL's file: not in the tables above
    assert rows["RAMBO, k = 5, λ = 0.0003"][0] == "0.0"
    assert "as of iteration 9 of 20: hopper-medium-replay-v2, RAMBO, k = 5, λ = 0.0003, seed 4, score 59.0." in page
    assert "Iterations: 20. All runs with `--total-iterations 20`." in page


def test_aggregates_agree_with_their_definition(logs, page):
    (rows,) = tables(page, "## Aggregate statistics")
    assert set(rows) - {"method"} == {
        *(f"RAMBO, k = {k}, λ = {adv_weight}" for k, adv_weight in ((1, 0.0003), (2, 0.0003), (5, 0.0003), (5, 0))),
        "RAMBO, k = 5, λ = 0.0003, num_elites 1", "SAC on the dataset alone", "behaviour cloning, 50 epochs",
    }  # fmt: skip
    seeds, last, mean = rows["RAMBO, k = 5, λ = 0.0003"][:3]  # 79, 89 and 99: a quarter of three is none to leave out
    assert seeds == "3" and last.startswith("89.0 (79.0 to 9") and mean.startswith("89.9 (79.9 to 9")
    assert rows["RAMBO, k = 5, λ = 0.0003, num_elites 1"][:3] == ["1", "69.0", "69.9"]
    assert not any(rows["RAMBO, k = 5, λ = 0.0003, num_elites 1"][3:])  # one seed has no interval
    assert rows["SAC on the dataset alone"][-2:] == ["1.00", "0.100"]  # 2 of the 20 ways to split six values
    assert rows["RAMBO, k = 2, λ = 0.0003"][-2] == "0.33"  # 3 of 9 pairs: 99 beats 84 and 94, 89 beats 84
    assert rows["RAMBO, k = 2, λ = 0.0003"][-1] == "0.700"  # 14 of 20 are as far apart as 5 or farther

    runs, _, _ = report.group_runs(report.read(logs), unfinished=False)
    assert report.aggregate_section(runs, samples=200) in page  # the same numbers every time
    both = {key: group for key, group in runs.items() if key[1].pair and not key[1].variant and key[0] != "Pendulum-v1"}
    both = {key: group for key, group in both.items() if key[1].pair[0] == 5}
    (rows,) = tables("\n" + report.aggregate_section(both, samples=50) + "\n", "## Aggregate statistics")
    assert rows["RAMBO, k = 5, λ = 0.0003"][1].startswith("66.5 (")  # 0 (diverged) 49 49 79 89 99 without the ends


def test_the_offline_choice_and_its_regret(page):
    choices, verdicts = tables(page, "## Choosing (k, λ) without an environment")
    assert choices["hopper-medium-replay-v2"] == ["k = 5, λ = 0.0003", "89.0", "k = 2, λ = 0.0003", "94.0", "5.0"]
    assert choices["walker2d-medium-v2"] == ["k = 5, λ = 0", "84.0", "k = 5, λ = 0", "84.0", "0.0"]
    assert "Mean regret: 2.5." in page
    name = "hopper-medium-replay-v2/k = {}, λ = {}"
    assert verdicts[name.format(5, 0.0003)] == ["k = 5, λ = 0.0003", "100.0", "0.0%", "**chosen**", "89.0 ± 8.2"]
    assert verdicts[name.format(2, 0.0003)][3] == "Q above what the rewards allow"
    assert verdicts[name.format(1, 0.0003)][2:4] == ["50.0%", "Q still varies"]
    assert verdicts[name.format(5, 0)][3] == "less pessimistic"
    assert verdicts["walker2d-medium-v2/k = 5, λ = 0.0003"][3] == "diverged"


def test_the_choice_when_no_pair_passes():
    verdicts = [report.Verdict((k, 3e-4), 100.0 * k, 0.9 / k, "Q still varies") for k in (1, 2, 5)]
    assert report.choose(verdicts).pair == (5, 3e-4)
    assert report.choose([report.Verdict((1, 0.0), np.nan, np.nan, "diverged")]) is None


def test_the_pictures(page, logs):
    for name in ("learning_curves", "hopper-medium-replay-v2", "hopper-medium-replay-v2_log.hdf5_"):
        path = logs.parent / "figures" / f"{name}.png"
        assert path.stat().st_size < 300_000
        with Image.open(path) as image:
            image = image.convert("RGBA")
        assert image.getextrema()[3] == (255, 255) and image.getpixel((0, 0)) == (255, 255, 255, 255)  # legible on any page
        assert len(image.getcolors(1 << 20)) > 50


def method_names(folder: Path) -> set[str]:
    return {method.name for _, method in report.group_runs(report.read(folder), unfinished=False)[0]}


def test_names_of_experiments_only_tell_apart_what_else_is_the_same(tmp_path):
    hopper = "hopper-medium-v2"
    write_run(tmp_path, hopper, 1, 50)
    write_run(tmp_path, hopper, 1, 40, adv_weight=0.0, exp_name="frozen_model")
    write_run(tmp_path, hopper, 1, 45, num_seeds=1, exp_name="rambo_continuous_jax", eval_interval=7)
    common = "RAMBO, k = 5, λ = 0.0003"
    assert method_names(tmp_path) == {common, "RAMBO, k = 5, λ = 0", f"{common}, JAX"}
    write_run(tmp_path, hopper, 1, 55, exp_name="another_machine")
    write_run(tmp_path, hopper, 1, 65, exp_name="rambo_continuous_mine")
    assert method_names(tmp_path) >= {common, f"{common}, another_machine", f"{common}, rambo_continuous_mine"}


def test_unfinished_runs_count_on_demand(logs):
    runs, left_out, _ = report.group_runs(report.read(logs), unfinished=True)
    (group,) = [group for group in runs.values() if group[-1].status == "unfinished"]
    assert not left_out and report.each_seed(group, report.LAST_SCORE).endswith("4: 59.0 (iteration 9)")


def test_no_runs_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="^no run that has ended in .*$"):
        report.main(report.Args((tmp_path,)))


def test_a_pipe_of_another_encoding_gets_the_page_in_utf8(logs):
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, SCRIPT, logs, "--bootstrap-samples", "5"]
    result = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    assert "| RAMBO, k = 5, λ = 0.0003 |" in result.stdout.decode("utf-8")


def test_a_line_that_is_still_being_written_does_not_count(tmp_path):
    run = write_run(tmp_path, "hopper-medium-v2", 1, 50)
    whole = report.read_folder(run)
    path = run / "evaluations.csv"
    path.write_text(path.read_text().rstrip("\n")[:-3])
    assert report.read_folder(run).curve("seconds")[0][-1] == ITERATIONS - 1 == whole.curve("seconds")[0][-1] - 1


def tidy(folder: Path, path: Path) -> None:
    report.main(report.Args((folder,), tidy=path))


def test_tidy_logs_give_the_same_page_as_the_run_folders(logs, tmp_path):
    """Sections without the first line, which names the command; both formats, every status."""
    results = tmp_path / "results"
    for env_id in ("hopper-medium-replay-v2", "walker2d-medium-v2", "Pendulum-v1"):
        tidy(logs, results / f"{env_id}.csv")
    pages = []
    for source in (logs, results):
        runs, left_out, flags = report.group_runs(report.read(source), unfinished=False)
        runs = {key: group for key, group in runs.items() if "log.hdf5" not in key[0]}
        sections = [*report.paper_sections(runs, flags), report.seeds_section(runs, left_out, flags)]
        pages.append("\n".join([*sections, report.choice_section(runs)]))
    assert pages[0] == pages[1] and "seed 4, score 59.0" in pages[1]
    with (results / "hopper-medium-replay-v2.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["charts/episodic_return"] == "2.0"  # as it was written


def test_a_run_that_is_added_takes_the_place_of_the_same_method_and_seed(tmp_path):
    path = tmp_path / "results" / "hopper-medium-v2.csv"
    for seed in (1, 2):
        write_run(tmp_path / "old", "hopper-medium-v2", seed, 50, save_model=seed == 1)
    write_run(tmp_path / "old", "walker2d-medium-v2", 1, 50)  # another log's
    tidy(tmp_path / "old", path)
    write_run(tmp_path / "new", "hopper-medium-v2", 2, 80)
    write_run(tmp_path / "new", "hopper-medium-v2", 2, 90, rollout_length=20)
    tidy(tmp_path / "new", path)
    runs, _, _ = report.group_runs(report.read(path), unfinished=False)
    scores = {method.pair: {run.seed: run.last for run in group} for (_, method), group in runs.items()}
    assert scores == {(5, 3e-4): {1: 49.0, 2: 79.0}, (20, 3e-4): {2: 89.0}}
    assert [run.args["save_model"] for run in report.read(path) if run.args["rollout_length"] == 5] == [True, False]


def test_what_is_published_stays_where_it_is_damaged_or_the_new_runs_do_not_belong_to_it(tmp_path):
    path = tmp_path / "results" / "hopper-medium-v2.csv"
    write_run(tmp_path / "old", "hopper-medium-v2", 1, 50)
    tidy(tmp_path / "old", path)
    files = {file: file.read_bytes() for file in path.parent.iterdir()}
    write_run(tmp_path / "new", "hopper-medium-v2", 2, 80)
    write_run(tmp_path / "again", "hopper-medium-v2", 2, 80, dataset_path="collected/resampled/hopper_medium-v2.hdf5")
    damages = [(file.name, content[:-99]) for file, content in files.items()]
    for name, content in [*damages, (path.name, files[path].replace(b",49,", b",what,"))]:
        (path.parent / name).write_bytes(content)
        before = {file: file.read_bytes() for file in files}
        with pytest.raises(SystemExit, match="damaged, restore it"):
            tidy(tmp_path / "new", path)
        assert before == {file: file.read_bytes() for file in path.parent.iterdir()}
        (path.parent / name).write_bytes(files[path.parent / name])
    with pytest.raises(SystemExit, match="do not belong into one file"):
        tidy(tmp_path / "again", path)
    assert files == {file: file.read_bytes() for file in path.parent.iterdir()}


def test_a_run_that_diverged_before_its_first_row_stays_in_the_log(tmp_path):
    for seed in (1, 2):
        folder = write_run(tmp_path / "runs", "hopper-medium-v2", seed, 50, status=("diverged", "finished")[seed - 1])
        if seed == 1:
            for name in ("evaluations.csv", "metrics.csv"):
                (folder / name).write_text("")
    tidy(tmp_path / "runs", tmp_path / "hopper-medium-v2.csv")
    assert {run.seed: run.status for run in report.read(tmp_path)} == {1: "diverged", 2: "finished"}


def test_a_diverged_run_has_no_score_where_scores_are_returns(tmp_path):
    """0, which it counts as where scores are normalised, would be the pendulum's best return."""
    for seed in (1, 2):
        write_run(tmp_path, "Pendulum-v1", seed, -150, status=("diverged", "finished")[seed - 1])
        write_run(tmp_path, "Pendulum-v1", seed, -170, adv_weight=0.0)
    runs, _, _ = report.group_runs(report.read(tmp_path), unfinished=False)
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in report.summary_table(runs, samples=100).splitlines()]
    assert rows[2][1].startswith("-, ") and rows[2][2] == "-" and "p" not in rows[0]
    assert rows[3][1:3] == ["-170.1, -170.1", "-170.1 ± 0.0"]


def test_a_negative_value_does_not_pass_the_bound(tmp_path):
    run = report.read_folder(write_run(tmp_path, "hopper-medium-v2", 1, 50, q=-2 * LIMIT))  # its ratio was written as 2
    assert run.bound_passed is None and run.curve(report.RATIO)[1][-1] == -2


def spoil(folder: Path, name: str, text: str | None) -> None:
    (folder / name).unlink() if text is None else (folder / name).write_text(text)


def test_a_damaged_or_foreign_run_is_named_and_left_out(tmp_path, capsys):
    """None stops the report; unequal seeds do not, either."""
    for seed in (1, 2, 3):
        write_run(tmp_path, "hopper-medium-v2", seed, 50)
    write_run(tmp_path, "hopper-medium-v2", 1, 50, adv_weight=0.0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "args.json").write_text("[1, 2]")
    damages = [("args.json", ""), ("args.json", '{"env": "Hopper", "seed": 1, "total_iterations": 10}'), ("result.json", "[]")]
    damages += [("result.json", "{}"), ("evaluations.csv", ""), ("evaluations.csv", None), ("args.json", '{"seed": [1]}')]
    damages += [("metrics.csv", "iteration,losses/qf_values\n1,what\n"), ("metrics.csv", "iteration\nx\n")]
    for seed, damage in enumerate(damages, 10):
        spoil(write_run(tmp_path, "hopper-medium-v2", seed, 99), *damage)
    (tmp_path / "broken.csv").write_text("method,seed\n1,2\n")
    (tmp_path / "broken.args.json").write_text('{"methods": {}}')
    write_run(tmp_path, "walker2d-medium-v2", 1, 50)
    spoil(write_run(tmp_path, "walker2d-medium-v2", 1, 50, rollout_length=1), "metrics.csv", "")  # no Q-value to choose by
    report.main(report.Args((tmp_path,), output=tmp_path / "r.md", figures=tmp_path / "figures", bootstrap_samples=5))
    page, errors = (tmp_path / "r.md").read_text(encoding="utf-8"), capsys.readouterr().err.splitlines()
    assert len(errors) == len(damages) + 2 and all(line.startswith("left out: ") for line in errors)
    (rows,) = tables(page, "### hopper-medium-v2")
    assert rows["RAMBO, k = 5, λ = 0.0003"][1] == "1: 49.0, 2: 49.0, 3: 49.0"
    assert "no Q-value logged" in page


def test_methods_are_told_apart_by_what_differs_from_the_defaults_also_where_older_runs_lack_the_argument(tmp_path):
    for changes in ({}, {"real_ratio": 1.0, "total_iterations": 0, "bc_epochs": 50}, {"gamma": 0.95}):
        folder = write_run(
            tmp_path, "hopper-medium-v2", 1, 50, dataset_path="collected/resampled/hopper_medium-v2.hdf5", **changes
        )
        if "gamma" not in changes:  # an older version
            args = json.loads((folder / "args.json").read_text())
            (folder / "args.json").write_text(json.dumps({key: args[key] for key in args if key not in ("gamma", "tau")}))
    name = "RAMBO, k = 5, λ = 0.0003"
    assert method_names(tmp_path) == {name, f"{name}, gamma 0.95", "behaviour cloning, 50 epochs"}
    runs, left_out, flags = report.group_runs(report.read(tmp_path), unfinished=False)
    assert flags == {"hopper-medium-v2 (resampled)": "--total-iterations 20"}, "not to be taken for D4RL's own"
    assert "Learnt from `collected/resampled/hopper_medium-v2.hdf5`." in report.seeds_section(runs, left_out, flags)


def test_tables_of_a_page_are_made_again_and_its_text_stays(logs):
    runs, _, _ = report.group_runs(report.read(logs), unfinished=False)
    page = "before\n<!-- walker2d-medium-v2 -->\nold\n<!-- end -->\nafter\n<!-- unknown -->\nstays\n<!-- end -->\n"
    fresh = report.refresh_tables(page, runs, samples=100)
    assert fresh.startswith("before\n") and "old" not in fresh and fresh.endswith("stays\n<!-- end -->\n")
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in fresh.splitlines() if line.startswith("|")]
    assert rows[0][:3] == ["mean of the last 10", "each seed", "mean ± std"]
    assert rows[2][:3] == ["RAMBO, k = 5, λ = 0.0003", "49.9, -, 49.9", "-"]
    assert rows[3] == ["RAMBO, k = 5, λ = 0", "74.9, 84.9, 94.9", "84.9 ± 8.2", "0.1", "-5.0 ± 0.0", "0.31"]
    alone = report.summary_table({key: group for key, group in runs.items() if key == next(iter(runs))}, samples=100)
    assert "| p |" not in alone and alone.count("|\n|---") == 1 and "| p |" in fresh
