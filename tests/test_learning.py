"""Does it learn? RAMBO on the bundled pendulum-mini through the command line, against its log and its imitation.

Returns of Pendulum-v1: a random policy about -1200, an expert about -150, the log of pendulum-mini -1160 on average and
-963 at best. Measured with the commands below and seeds 1, 2, 3, torch on one CPU core: RAMBO -159, -151, -163 after its 15
iterations (75 seconds each), behaviour cloning -1258, -1289, -1284.
"""

import pytest
from conftest import read_run, run_script

COMMON = "--env-id pendulum-mini --model-hidden-dim 64 --checkpoint-interval 0".split()
RAMBO = "--total-iterations 15 --updates-per-iteration 250 --batch-size 128 --rollout-batch-size 5000 --policy-lr 3e-4".split()
RAMBO += "--q-lr 1e-3 --model-lr 1e-3 --model-max-pretrain-epochs 15 --eval-interval 5".split()
CLONING = "--total-iterations 0 --bc-epochs 20 --policy-lr 1e-3 --model-max-pretrain-epochs 0".split()


@pytest.fixture(autouse=True)
def in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(script, tmp_path, *flags):
    """The one run in this test's folder."""
    process = run_script(script, *COMMON, *flags)
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    return read_run(folder)


def test_rambo_learns_to_swing_up_from_a_log_of_failures(script, tmp_path):
    run = train(script, tmp_path, *RAMBO)
    assert run.result["last"] > -400
    gap = [abs(float(row["value_gap"])) for row in run.evaluations]
    assert gap[-1] < 0.3 * gap[0], "the critic has learnt what the policy is worth"
    errors = [float(row["model/holdout_mse"]) for row in run.metrics]
    assert max(errors) < 0.1, "the adversarial updates have not spoilt the model"


def test_imitating_the_log_does_not(script, tmp_path):
    assert train(script, tmp_path, *CLONING).result["last"] < -900
