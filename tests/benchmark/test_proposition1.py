"""benchmark/proposition1.py: shares of lower bounds on made-up runs, and the published ones."""

import json
import re
from dataclasses import asdict

import numpy as np
from conftest import ROOT, run_as_main, run_script
from PIL import Image

import rambo_continuous

SCRIPT = ROOT / "benchmark" / "proposition1.py"


def write_run(folder, adv_weight, gaps, real_ratio=0.5):
    folder.mkdir(parents=True)
    args = asdict(rambo_continuous.Args(env_id="hopper-medium-v2", total_iterations=9))
    (folder / "args.json").write_text(json.dumps(args | {"adv_weight": adv_weight, "real_ratio": real_ratio}))
    rows = [f"{i},{i},{100 + i},{gap}" for i, gap in enumerate(gaps)]
    header = "iteration,charts/normalized_score,charts/discounted_return,charts/value_gap"
    (folder / "evaluations.csv").write_text("\n".join([header, *rows]) + "\n")


def shares(output):
    return {line[:5]: line.split()[3:] for line in output.splitlines() if line.startswith("λ")}


def test_shares(tmp_path):
    """Iteration 0 does not count, the last evaluation is the run's; runs without a model or an evaluation are left out."""
    runs = tmp_path / "runs"
    write_run(runs / "a", 3e-4, [50, -1, -2, 3, -4])
    write_run(runs / "b", 1e-3, [50, -1, -2, -3, 4])
    write_run(runs / "c", 0.0, [-50, 1, 2, 3])
    write_run(runs / "untrained", 0.0, [-50])
    write_run(runs / "no_model", 0.0, [50, 60], real_ratio=1.0)
    result = run_as_main(SCRIPT, runs, "--output", tmp_path / "figures" / "p.png")
    assert result.returncode == 0, result.stderr
    assert shares(result.stdout) == {
        "λ = 0": ["0", "of", "1", "0", "of", "3", "(0%)", "2.0"],
        "λ > 0": ["1", "of", "2", "6", "of", "8", "(75%)", "-1.5"],
    }
    picture = np.asarray(Image.open(tmp_path / "figures" / "p.png").convert("RGB"))
    assert (picture.min(-1) < 200).mean() > 0.005


def test_the_published_runs(tmp_path):
    """The picture is that of the repository, the table that of adversary.md."""
    logs, page = ROOT / "benchmark" / "results" / "hopper-mini-v2.csv", ROOT / "benchmark" / "adversary.md"
    late = run_as_main(SCRIPT, logs, "--output", tmp_path / "late.png", "--min-iteration", 31)
    result = run_script(SCRIPT, logs, "--output", tmp_path / "p.png")
    assert result.returncode == late.returncode == 0, result.stderr + late.stderr
    for group, (*counts, _, _) in shares(result.stdout).items():
        (row,) = re.findall(rf"^\| {group},.*", page.read_text(encoding="utf-8"), re.M)
        last, every, median = row.strip("| ").split(" | ")[1:]
        assert [*last.split(), *every.split()] == counts and median.replace("−", "-") == shares(late.stdout)[group][-1]
    published = ROOT / "benchmark" / "figures" / "proposition1.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), np.asarray(Image.open(published)))


def test_no_runs(tmp_path):
    result = run_as_main(SCRIPT, tmp_path)
    assert result.returncode == 1 and result.stderr.startswith("error: no run with a model")
