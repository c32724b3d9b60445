"""benchmark/report.py on a small set of made-up logs, written by the training script's own Run: the tables must say what the
logs say."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmark"))
pytest.importorskip("rliable", reason="benchmark/requirements.txt is not installed")
report = importlib.import_module("report")
rambo = importlib.import_module("rambo_continuous")

pytestmark = pytest.mark.xdist_group("report")  # one worker, so that the logs are written once
ITERATIONS = 20


def write_run(folder: Path, env_id: str, seed: int, score: float, q: float = 100.0, **changes) -> None:
    """A run whose score rises to `score` and falls by 1 at the last iteration, and whose Q rises to q and stays there.

    changes: arguments, or status (diverged, None: still going), until (the iteration reached), wobble (relative swings of Q).
    """
    status, until, wobble = changes.pop("status", "finished"), changes.pop("until", ITERATIONS), changes.pop("wobble", 0.0)
    args = rambo.Args(env_id=env_id, seed=seed, total_iterations=ITERATIONS, rollout_length=5, adv_weight=3e-4)
    args = rambo.replace(args, **changes)
    until = min(until, args.total_iterations)
    name = f"{env_id}__{args.exp_name}__{seed}__{len(list(folder.glob('*')))}"
    run = rambo.Run(args, folder / name)
    low, high = rambo.REFERENCE_RETURNS[env_id.split("-")[0]] if rambo.is_d4rl_id(env_id) else (0, 100)
    for iteration in range(until + 1):
        value = score * min(1, (iteration + 1) / 5) - (iteration == until)
        if iteration:
            swing = 1 + wobble * (-1) ** iteration
            run.log(iteration, {"losses/qf_values": q * swing * min(1, iteration / 5), "losses/max_abs_qf_value": 1.5 * q})
        returns = low + (high - low) / 100 * (value + np.array([-1.0, 1.0]))
        result = rambo.Evaluation(returns, np.array([50.0, 60.0]), np.array([1000, 1000]), np.zeros((2, 3)))
        run.log_evaluation(iteration, env_id, result, np.array([40.0, 60.0]), 10 + 2.5 * iteration)
    if status is not None:
        run.finish(status)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """hopper-medium-replay: four pairs, SAC, behaviour cloning. walker2d-medium: two pairs, one diverged. And odd ones."""
    folder = tmp_path_factory.mktemp("logs") / "runs"
    folder.mkdir()
    hopper, walker = "hopper-medium-replay-v2", "walker2d-medium-v2"
    for seed, offset in ((1, -10), (2, 0), (3, 10)):
        write_run(folder, hopper, seed, 90 + offset)
        write_run(folder, hopper, seed, 30 + offset, q=250, adv_weight=0.0)
        write_run(folder, hopper, seed, 95 + offset, q=400, rollout_length=2)  # above 323, what hopper's rewards allow
        write_run(folder, hopper, seed, 20 + offset, q=50, rollout_length=1, wobble=0.5)
        write_run(folder, hopper, seed, 15 + offset, real_ratio=1.0, adv_weight=0.0)
        write_run(folder, hopper, seed, 12, real_ratio=1.0, adv_weight=0.0, total_iterations=0, bc_epochs=50)
        write_run(folder, walker, seed, 85 + offset, adv_weight=0.0)
        write_run(folder, walker, seed, 50, **dict(status="diverged", until=7) if seed == 2 else {})
    write_run(folder, hopper, 4, 60, until=9, status=None)
    write_run(folder, hopper, 1, 1, dataset_path="elsewhere/log.hdf5")
    write_run(folder, "Pendulum-v1", 1, -150)
    write_run(folder, hopper, 1, 70, exp_name="no_advantage_normalisation")
    return folder


@pytest.fixture(scope="module")
def page(logs) -> str:
    """The page, made by the command line, with its pictures beside it."""
    command = [sys.executable, ROOT / "benchmark" / "report.py", logs.name, "--output", "report.md", "--figures", "figures"]
    command += ["--bootstrap-samples", "200"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=logs.parent)
    assert result.returncode == 0, result.stderr
    return (logs.parent / "report.md").read_text()


def tables(page: str, heading: str) -> list[dict[str, list[str]]]:
    """The tables of a section: first cell -> the other cells."""
    section = page.split(f"\n{heading}\n")[1].split("\n#")[0]
    found: list[dict[str, list[str]]] = []
    previous = ""
    for line in section.splitlines():
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
    assert rows["hopper-medium-replay-v2"][4] == "11.8" and len(rows) == 4  # behaviour cloning in the preprint
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
    assert rows["SAC on the log alone"][:3] == ["14.0 ± 8.2", "1: 4.0, 2: 14.0, 3: 24.0", "14.9 ± 8.2"]
    assert rows["RAMBO, k = 5, λ = 0.0003"][3:] == ["1: 79.9, 2: 89.9, 3: 99.9", "-5.0 ± 0.0", "2.5 ± 0.0"]
    assert rows["behaviour cloning, 50 epochs"][1] == "1: 1.4, 2: 1.4, 3: 1.4"
    assert rows["RAMBO, k = 5, λ = 0.0003, no advantage normalisation"][0] == "69.0"
    (rows,) = tables(page, "### walker2d-medium-v2")
    assert rows["RAMBO, k = 5, λ = 0.0003"][:2] == ["-", "1: 49.0, 2: -, 3: 49.0"]
    (rows,) = tables(page, "### Pendulum-v1")
    assert rows["RAMBO, k = 5, λ = 0.0003"][0] == "-151.0"
    (rows,) = tables(page, "### hopper-medium-replay-v2 (log.hdf5)")  # not D4RL's file: not in the tables above
    assert rows["RAMBO, k = 5, λ = 0.0003"][0] == "0.0"
    assert "still at iteration 9 of 20: hopper-medium-replay-v2, RAMBO, k = 5, λ = 0.0003, seed 4, score 59.0." in page
    assert "Iterations: 20. All runs with `--total-iterations 20`." in page


def test_aggregates_agree_with_their_definition(logs, page):
    (rows,) = tables(page, "## Aggregate statistics")
    assert set(rows) - {"method", "---"} == {
        *(f"RAMBO, k = {k}, λ = {adv_weight}" for k, adv_weight in ((1, 0.0003), (2, 0.0003), (5, 0.0003), (5, 0))),
        "RAMBO, k = 5, λ = 0.0003, no advantage normalisation", "SAC on the log alone", "behaviour cloning, 50 epochs",
    }  # fmt: skip
    seeds, last, mean = rows["RAMBO, k = 5, λ = 0.0003"][:3]  # 79, 89 and 99: a quarter of three is none to leave out
    assert seeds == "3" and last.startswith("89.0 (79.0 to 9") and mean.startswith("89.9 (79.9 to 9")
    assert rows["RAMBO, k = 5, λ = 0.0003, no advantage normalisation"][:3] == ["1", "69.0", "69.9"]
    assert not any(rows["RAMBO, k = 5, λ = 0.0003, no advantage normalisation"][3:])  # one seed has no interval
    assert rows["SAC on the log alone"][-2:] == ["1.00 (1.00 to 1.00)", "0.100"]  # 2 of the 20 ways to split six values
    assert rows["RAMBO, k = 2, λ = 0.0003"][-2].startswith("0.33 (")  # 3 of 9 pairs: 99 beats 84 and 94, 89 beats 84
    assert rows["RAMBO, k = 2, λ = 0.0003"][-1] == "0.700"  # 14 of 20 are as far apart as 5 or farther

    runs, _, _ = report.read_runs((logs,), unfinished=False)
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
    assert verdicts[name.format(5, 0.0003)] == ["k = 5, λ = 0.0003", "100.0", "150.0", "0.0%", "**chosen**", "89.0 ± 8.2"]
    assert verdicts[name.format(2, 0.0003)][4] == "Q above what the rewards allow"
    assert verdicts[name.format(1, 0.0003)][3:5] == ["50.0%", "Q still varies"]
    assert verdicts[name.format(5, 0)][4] == "less pessimistic"
    assert verdicts["walker2d-medium-v2/k = 5, λ = 0.0003"][4] == "diverged"


def test_the_choice_when_no_pair_passes():
    verdicts = [report.Verdict((k, 3e-4), 100.0 * k, 200.0, 0.9 / k, "Q still varies") for k in (1, 2, 5)]
    assert report.choose(verdicts).pair == (5, 3e-4)
    assert report.choose([report.Verdict((1, 0.0), np.nan, np.nan, np.nan, "diverged")]) is None


def test_the_pictures(page, logs):
    for name in ("learning_curves", "value_gap", "q_values"):
        path = logs.parent / "figures" / f"{name}.png"
        assert path.stat().st_size < 300_000
        with Image.open(path) as image:
            image = image.convert("RGBA")
        assert image.getextrema()[3] == (255, 255) and image.getpixel((0, 0)) == (255, 255, 255, 255)  # legible on any page
        assert len(image.getcolors(1 << 20)) > 50


def test_names_of_experiments_only_tell_apart_what_else_is_the_same(tmp_path):
    hopper = "hopper-medium-v2"
    write_run(tmp_path, hopper, 1, 50)
    write_run(tmp_path, hopper, 1, 40, adv_weight=0.0, exp_name="frozen_model")
    write_run(tmp_path, hopper, 1, 45, exp_name="rambo_continuous_jax")
    write_run(tmp_path, hopper, 1, 30, exp_name="no_advantage_normalisation")
    names = {method.name for _, method in report.read_runs((tmp_path,), unfinished=False)[0]}
    common = "RAMBO, k = 5, λ = 0.0003"
    assert names == {common, "RAMBO, k = 5, λ = 0", f"{common}, JAX", f"{common}, no advantage normalisation"}
    write_run(tmp_path, hopper, 1, 55, exp_name="another_machine")
    names = {method.name for _, method in report.read_runs((tmp_path,), unfinished=False)[0]}
    assert {common, f"{common}, another_machine"} < names


def test_unfinished_runs_count_on_demand(logs):
    runs, left_out, _ = report.read_runs((logs,), unfinished=True)
    (group,) = [group for group in runs.values() if group[-1].status == "unfinished"]
    assert not left_out and report.each_seed(group, report.LAST_SCORE).endswith("4: 59.0 (iteration 9)")


def test_no_runs_is_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmark" / "report.py", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and "no run that has ended" in result.stderr
