"""benchmark/gpu.sh without a GPU and with the smallest settings: what comes back, and that it goes on from there."""

import csv
import os
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path

import gpu_summary
from conftest import ROOT

RUN = "--updates-per-iteration 5 --rollout-batch-size 100 --model-max-pretrain-epochs 1 --model-hidden-dim 32 --batch-size 512"
RUN += " --eval-episodes 1 --rollout-length 2 --eval-workers 0 --eval-interval 1 --rollout-retain-iterations 2"
SPEED = "--no-cuda --rows 500 --updates 5 --repeats 1 --loops torch --training.batch-size 16 --training.rollout-batch-size 60"
SPEED += " --training.rollout-length 2 --training.model-hidden-dim 24 --training.eval-episodes 1"


def run_gpu(out: Path, *steps: str, **environment: str) -> tuple[int, str]:
    """Exit code, and summary.md."""
    tiny = dict(
        ALLOW_CPU="1",
        PYTHON=os.path.relpath(sys.executable, ROOT),
        OUT=str(out),
        JAX_PLATFORMS="cpu",
        SPEED_ARGS=SPEED,
        RUN_ARGS=RUN,
    )
    tiny |= dict(DATASETS="hopper-mini-v2", NUM_SEEDS="1", ITERATIONS="3", PATHS="torch-graphs") | environment
    command = ["bash", str(ROOT / "benchmark" / "gpu.sh"), *steps]
    process = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | tiny)
    summary = out / "summary.md"
    return process.returncode, summary.read_text() if summary.exists() else process.stderr


def read_csv(archive: Path, name: str) -> list[dict[str, str]]:
    with tarfile.open(archive) as files:
        (member,) = [member for member in files.getnames() if fnmatch(member, f"*{name}")]
        return list(csv.DictReader(files.extractfile(member).read().decode().splitlines()))


def read_rows(summary: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in summary.splitlines() if line.startswith("| ")]


def test_measures(tmp_path):
    code, summary = run_gpu(tmp_path, "speed", "runs")
    assert code == 0, summary
    rows = read_rows(summary)
    assert [row[:2] for row in rows[:4] if row[1] == "ok"] == [["speed", "ok"], ["torch-graphs", "ok"]]
    assert any(row[:2] == ["agent update", "torch"] for row in rows)  # the table of speed.py
    (run,) = (row for row in rows if row[:2] == ["torch-graphs", "hopper-mini-v2"])
    assert run[2:4] == ["1", "5"] and run[5].endswith(" over 2") and run[7].endswith("%") and run[8].startswith("3: ")
    assert len(read_csv(tmp_path / "measurements.tar.gz", "torch-graphs/runs/*/metrics.csv")) == 3


def test_a_long_run_goes_on_from_what_came_back(tmp_path):
    code, summary = run_gpu(tmp_path / "a", "long", LONG_ARGS=f"{RUN} --total-iterations 2")
    assert code == 0 and ["long hopper-mini-v2", "finished"] in [row[:2] for row in read_rows(summary)], summary
    (checkpoint,) = (tmp_path / "a").glob("hopper-mini-v2__*.tar.gz")
    assert [row["iteration"] for row in read_csv(checkpoint, "metrics.csv")] == ["1", "2"]

    more = dict(RESUME=str(tmp_path / "a"), LONG_ARGS=f"{RUN} --total-iterations 3")
    code, summary = run_gpu(tmp_path / "b", "long", **more)
    assert code == 0, summary
    assert [row["iteration"] for row in read_csv(tmp_path / "b" / checkpoint.name, "metrics.csv")] == ["1", "2", "3"]


def test_what_fails_or_has_no_time_is_said(tmp_path):
    code, summary = run_gpu(tmp_path / "a", "runs", RUN_ARGS="--no-such-flag")
    assert code == 1 and "| torch-graphs | failed (" in summary and "no-such-flag" in summary
    code, summary = run_gpu(tmp_path / "b", "speed", BUDGET="0")
    assert code == 1 and "| speed | no time left |" in summary
    code, summary = run_gpu(tmp_path / "c", "speed", BUDGET="2")  # what had begun by then counts
    assert code == 0 and "| speed | stopped |" in summary and "failed" not in summary
    code, message = run_gpu(tmp_path / "d", "fast")
    assert code == 1 and "no such step: fast" in message
    code, message = run_gpu(tmp_path / "e", "long", RESUME=str(tmp_path), BUDGET="2")
    assert code == 1 and "No such file" in message


def test_a_run_that_was_stopped_before_its_first_evaluation_leaves_the_others_their_summary(tmp_path, capsys):
    (tmp_path / "steps.md").write_text("steps")
    for path, row in (("jax-1", ""), ("jax-8", "0,12.5,3.0\n")):
        folder = tmp_path / path / "runs" / "hopper-mini-v2__rambo_continuous_jax__1__0"
        folder.mkdir(parents=True)
        (folder / "args.json").write_text(
            '{"updates_per_iteration": 5, "num_seeds": 1, "total_iterations": 3, "env_id": "hopper"}'
        )
        (folder / "evaluations.csv").write_text(row and "iteration,charts/normalized_score,seconds\n" + row)
        (folder / "metrics.csv").write_text(row and "iteration,charts/SPS,charts/model_SPS\n1,5,5\n2,5,5\n")
    gpu_summary.main(tmp_path)
    rows = read_rows(capsys.readouterr().out)
    assert [row[0] for row in rows[2:]] == ["jax-8"] and rows[2][-1] == "0: 12.5"
