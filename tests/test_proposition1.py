"""benchmark/proposition1.py: shares of lower bounds on made-up run folders, one by one refusals."""

import json

import numpy as np
from conftest import ROOT, run_script
from PIL import Image

SCRIPT = ROOT / "benchmark" / "proposition1.py"


def write_run(folder, adv_weight, gaps):
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"adv_weight": adv_weight}))
    rows = ["iteration,discounted_return_mean,value_gap,seconds", *(f"{i},{100 + i},{gap},1" for i, gap in enumerate(gaps))]
    (folder / "evaluations.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_shares(tmp_path):
    """Iteration 0 does not count; the last evaluation is the run's; whatever holds no evaluations is named and skipped."""
    folders = [
        write_run(tmp_path / "a", 3e-4, [50, -1, -2, 3, -4]),
        write_run(tmp_path / "b", 1e-3, [50, -1, -2, -3, 4]),
        write_run(tmp_path / "c", 0.0, [-50, 1, 2, 3]),
        write_run(tmp_path / "untrained", 0.0, [-50]),
    ]
    (tmp_path / "empty").mkdir()
    result = run_script(SCRIPT, *folders, tmp_path / "empty", "--output", tmp_path / "figures" / "p.png")
    assert result.returncode == 0, result.stderr
    shares = {line[:5]: line.split()[3:] for line in result.stdout.splitlines() if line.startswith("λ")}
    assert shares["λ = 0"] == ["0", "of", "1", "0", "of", "3", "(0%)", "2.0"]
    assert shares["λ > 0"] == ["1", "of", "2", "6", "of", "8", "(75%)", "-1.5"]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        f"skipped {tmp_path / 'untrained'}",
        f"skipped {tmp_path / 'empty'}",
    ]
    picture = np.asarray(Image.open(tmp_path / "figures" / "p.png").convert("RGB"))
    assert (picture.min(-1) < 200).mean() > 0.005


def test_no_runs(tmp_path):
    result = run_script(SCRIPT, tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: no run folder with evaluations among the arguments"
