"""benchmark/q_and_rewards.py on made-up logs: what is paid for ever, when Q is above it, and which runs are listed."""

import json

from conftest import ROOT, run_script

SCRIPT = ROOT / "benchmark" / "q_and_rewards.py"


def write_run(folder, columns, rows, gaps):
    folder.mkdir()
    args = {"env_id": "hopper-mini-v2", "adv_weight": 3e-4, "rollout_length": 5, "gamma": 0.9, "total_iterations": len(rows)}
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "metrics.csv").write_text("\n".join([columns, *rows]) + "\n")
    evaluations = ["iteration,value_gap,normalized_score_mean,seconds", *(f"{i},{gap},50,1" for i, gap in enumerate(gaps))]
    (folder / "evaluations.csv").write_text("\n".join(evaluations) + "\n")
    return folder


def test_q_above_what_is_paid(tmp_path):
    columns = "iteration,losses/qf_values,rollout/reward"
    wild = write_run(tmp_path / "wild", columns, ["1,20,3", "2,45,3", "3,60,3", "4,10,2"], [-5, 9, 70, 3, 1])
    tame = write_run(tmp_path / "tame", columns, ["1,20,3", "2,25,3"], [-5, -9, -7])
    without_model = write_run(tmp_path / "sac", "iteration,losses/qf_values", ["1,20"], [-5, -9])
    result = run_script(SCRIPT, wild, tame, without_model, "--iteration", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[2:] == [
        "| tame | 0.0003 | 5 | 2 | 30 | 25 | 0.83 | 0 |  |  | -5 |",
        "| wild | 0.0003 | 5 | 2 | 30 | 45 | 2.00 | 2 | 2 | 3 | 70 |",
    ]


def test_no_run_folder_is_one_line(tmp_path):
    result = run_script(SCRIPT, tmp_path)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
