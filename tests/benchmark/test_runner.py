"""benchmark/runner.py and the lists of commands. Most tests run a stand-in that trains nothing, one the real script."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "benchmark" / "runner.py"

# What the runner relies on: parse_args, find_dataset, InputError, main; args.json, result.json, checkpoint.pt,
# dynamics_pretrained.npz.
# --fate diverge | fail | hang: what happens to the first attempt at its second iteration; a second attempt goes on.
STAND_IN = '''
import argparse, json, os, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path

@dataclass
class Args:
    env_id: str = "toy"
    exp_name: str = "stand_in"
    seed: int = 1
    num_seeds: int = 1
    total_iterations: int = 3
    real_ratio: float = 0.5
    adv_weight: float = 1.0
    fate: str = "well"
    dataset_path: str = None
    batch_size: int = 1
    num_models: int = 7
    num_elites: int = 5
    model_hidden_dim: int = 8
    model_lr: float = 1.0
    model_max_pretrain_epochs: int = 1
    save_model: bool = False
    load_model: str = None
    resume: str = None

class InputError(Exception):
    pass

def parse_args(argv=None):
    parser = argparse.ArgumentParser()
    for key, value in asdict(Args()).items():
        kind = dict(action="store_true") if value is False else dict(type=type(value) if value is not None else str)
        parser.add_argument("--" + key.replace("_", "-"), default=value, **kind)
    args = Args(**vars(parser.parse_args(argv)))
    if args.adv_weight < 0:
        raise InputError("--adv-weight must not be negative")
    return args

def find_dataset(env_id, dataset_path):
    if env_id != "toy":
        raise InputError(f"no dataset is known as {env_id}")
    path = Path("dataset")
    if not path.exists():
        Path("part").open("x").close()  # fails if another is at it
        time.sleep(0.3)
        Path("part").rename(path)
    return path

def main(args):
    print("threads", os.environ["OMP_NUM_THREADS"], os.environ["NPROC"])
    if args.env_id == "toy":
        find_dataset(args.env_id, args.dataset_path)
    time.sleep(0.2)
    start, resume = 0, args.resume
    if resume:
        folders = [Path(resume)]
        args = Args(**json.loads((folders[0] / "args.json").read_text()))
        start = int((folders[0] / "checkpoint.pt").read_text()) + 1
    else:
        names = [f"{args.env_id}__{args.exp_name}__{args.seed + i}__{int(time.time())}" for i in range(args.num_seeds)]
        folders = [Path("runs") / name for name in names]
        for i, folder in enumerate(folders):
            folder.mkdir(parents=True)
            (folder / "args.json").write_text(json.dumps(asdict(args) | dict(seed=args.seed + i, num_seeds=1)))
    for folder in folders:
        if not resume and args.load_model is None and args.save_model:
            time.sleep(0.5)
            (folder / "dynamics_pretrained.npz").write_text(f"{folder}")
        status = "finished"
        for iteration in range(start, args.total_iterations + 1):
            with (folder / "evaluations.csv").open("a") as file:
                print(iteration, file=file)
            (folder / "checkpoint.pt").write_text(str(iteration))
            if iteration == 1 and args.fate == "hang":
                time.sleep(60)
            if iteration == 1 and args.fate == "fail":
                sys.exit("error: out of luck")
            if iteration == 1 and args.fate == "diverge":
                status = "diverged"
                break
        (folder / "result.json").write_text(json.dumps(dict(status=status, iteration=iteration)))
        if status == "diverged":
            print("error: diverged in iteration 1")
            sys.exit(3)

if __name__ == "__main__":
    main(parse_args())
'''


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start_runner(*lines: str, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    process.stdin.write("\n".join(lines))
    process.stdin.close()
    process.stdin = None
    return process


def runner(*lines: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the runner on a list of commands."""
    process = start_runner(*lines, **environment)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def run_folders() -> list[Path]:
    return sorted(Path("runs").glob("*__*"))


def test_dry_run_prints_the_commands_and_runs_nothing():
    code, output, _ = runner(
        "python stand_in.py --seed 1",
        "# a comment",
        "python stand_in.py --seed 1 --adv-weight 0",
        "python stand_in.py --seed 2",
        DRY_RUN="1",
    )
    assert code == 0
    assert output.splitlines() == [
        "python stand_in.py --seed 1 --save-model",
        "python stand_in.py --seed 1 --adv-weight 0 --load-model runs/toy__stand_in__1__*/dynamics_pretrained.npz",
        "python stand_in.py --seed 2 --save-model",
        "# 3 commands, 2 groups of one dataset and seed: GROUP=0 to 1",
    ]
    assert not Path("runs").exists()


def test_pretrains_once_skips_the_finished_and_only_the_same():
    pairs = [f"python stand_in.py --adv-weight {weight}" for weight in (1, 2, 3)]
    code, output, _ = runner(*pairs, pairs[0], WORKERS="3")
    assert code == 0 and "3 finished" in output  # the repeated line counts once
    args = [json.loads((folder / "args.json").read_text()) for folder in run_folders()]
    ensemble = [str(folder / "dynamics_pretrained.npz") for folder in run_folders() if "stand_in" in folder.name][0]
    assert sorted((a["adv_weight"], a["load_model"]) for a in args) == [(1, None), (2, ensemble), (3, ensemble)]

    code, output, _ = runner(*pairs)
    assert code == 0 and "3 skipped" in output and "started" not in output
    code, output, _ = runner(f"{pairs[0]} --total-iterations 4", f"{pairs[0]} --real-ratio 1")
    assert code == 0 and "2 finished" in output and len(run_folders()) == 5


def test_without_a_model_its_arguments_do_not_make_another_run():
    line = "python stand_in.py --real-ratio 1"
    assert "1 finished" in runner(line)[1]
    code, output, _ = runner(f"{line} --num-elites 1 --model-lr 0.1 --adv-weight 2")
    assert code == 0 and "1 skipped" in output and "started" not in output
    assert "2 finished" in runner(f"{line} --batch-size 2", "python stand_in.py --num-elites 1")[1]


def test_a_dataset_is_fetched_once_before_the_runs_of_two_runners_start():
    """The stand-in fails when two of its processes download at the same time."""
    runners = [start_runner(*(f"python stand_in.py --seed {seed + i}" for i in range(2)), WORKERS="2") for seed in (1, 3)]
    for process in runners:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "2 finished" in output, output + errors
    assert Path("dataset").exists()
    assert runner("python stand_in.py --env-id other --seed 9")[0] == 0  # the runner leaves it to the run to complain


def test_group_runs_one_dataset_and_seed():
    lines = [f"python stand_in.py --seed {seed} --adv-weight {weight}" for seed in (1, 2) for weight in (1, 2)]
    assert "2 finished" in runner(*lines, GROUP="1")[1]
    assert {json.loads((folder / "args.json").read_text())["seed"] for folder in run_folders()} == {2}
    code, output, _ = runner(*lines, GROUP="2")  # an array job may have more tasks than the list has groups
    assert code == 0 and output.strip() == "nothing to run"


def test_failed_and_diverged_runs_are_reported_and_fail_the_runner():
    lines = [f"python stand_in.py --seed {i} --fate {fate}" for i, fate in enumerate(("fail", "diverge", "well"))]
    code, output, errors = runner(*lines)
    assert code == 1 and "1 failed, 1 diverged, 1 finished" in output
    assert "failed: python stand_in.py --seed 0 --fate fail: exit code 1, error: out of luck (see runs/logs/" in errors
    assert "diverged: python stand_in.py --seed 1 --fate diverge" in errors and "--seed 2" not in errors

    code, output, errors = runner(*lines)  # the failed one is resumed, the diverged one would only diverge again
    assert code == 1 and "1 finished, 1 diverged, 1 skipped" in output and "before this call" in errors
    resumed = next(folder for folder in run_folders() if "__0__" in folder.name)
    assert (resumed / "evaluations.csv").read_text().split() == ["0", "1", "2", "3"] and len(run_folders()) == 3


def test_a_killed_runner_takes_its_runs_along_and_the_next_resumes_them():
    line = "python stand_in.py --fate hang"
    process = start_runner(line)
    deadline = time.time() + 30
    while not list(Path("runs").glob("*__*/checkpoint.pt")):
        assert time.time() < deadline
        time.sleep(0.1)
    time.sleep(0.3)
    code, output, errors = runner(line)
    assert code == 1 and "locked" in errors and "started" not in output  # two runners, one folder
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143

    code, output, _ = runner(line)
    assert code == 0 and f"--resume {run_folders()[0]}" in output and len(run_folders()) == 1
    assert (run_folders()[0] / "evaluations.csv").read_text().split() == ["0", "1", "2", "3"]


def test_seeds_side_by_side_that_stopped_apart_go_on_one_by_one():
    line = "python stand_in.py --num-seeds 3"
    assert "1 finished" in runner(line)[1] and len(run_folders()) == 3
    assert "1 skipped" in runner(line)[1]
    (run_folders()[1] / "result.json").unlink()
    (run_folders()[1] / "checkpoint.pt").write_text("2")
    code, output, _ = runner(line)
    assert code == 0 and "2 skipped, 1 finished" in output
    assert f"--resume {run_folders()[1]}" in output and len(run_folders()) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python stand_in.py --adv-weight -1", "must not be negative"),
        ("python stand_in.py --no-such-flag", "--no-such-flag"),
        ("python nowhere.py", "no such file"),
        ("rm -r stand_in.py", "not of the form"),
    ],
)
def test_a_wrong_command_stops_the_list_before_it_starts(line, problem):
    code, _, errors = runner("python stand_in.py", line)
    assert code == 1 and problem in errors
    assert not Path("runs").exists()


def test_runs_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    code, _, errors = runner("python stand_in.py", "python stand_in.py --seed 2", WORKERS="2", OMP_NUM_THREADS="7")
    assert code == 0, errors
    cores = max(1, len(os.sched_getaffinity(0)) // 2)
    logs = [log.read_text() for log in Path("runs/logs").glob("*.log")]
    assert len(logs) == 2 and all(f"threads 7 {cores}\n" in log for log in logs)


def dry_run(name: str, **settings: str) -> str:
    """The commands of a list of benchmark/."""
    environment = os.environ | settings | {"DRY_RUN": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [ROOT / "benchmark" / f"{name}.sh"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_lists_are_what_the_scripts_accept():
    """Every list parses; the paper's pair of each dataset is among the four of Table 3."""
    counts = {"rambo_continuous": 60, "rambo_table3": 240, "rambo_neurips": 60, "ablations": 120, "collected": 32}
    groups = {"ablations": 15, "collected": 8}
    for name, count in counts.items():
        output = dry_run(name)
        assert f"# {count} commands, {groups.get(name, 60)} groups" in output
        if name == "rambo_table3":
            assert output.count("--save-model") == 60


COLLECTED = {"medium-replay": "hopper halfcheetah", "full-replay": "hopper walker2d", "medium": "hopper halfcheetah walker2d"}


@pytest.mark.parametrize(("quality", "envs"), COLLECTED.items())
def test_what_collected_learns_from_lies_in_git(quality, envs):
    output = dry_run("collected", QUALITY=quality, SEEDS="99")  # a seed that nobody's runs/ has finished
    lines = [line.split() for line in output.splitlines() if "--env-id" in line]
    assert len(lines) == 4 * len(envs.split())
    for line in lines:
        env_id, log = line[line.index("--env-id") + 1], Path(line[line.index("--dataset-path") + 1])
        assert env_id in [f"{env}-sbx-{quality}-v2" for env in envs.split()]
        assert log.stem == env_id.removesuffix("-v2").replace("-", "_") + "-v2"
        assert (ROOT / "benchmark" / "datasets" / f"{log.stem}.npz").is_file()


def test_the_real_script_once():
    """Two weights on Pendulum: one ensemble, two finished runs, one made from the other's."""
    tiny = "--total-iterations 1 --updates-per-iteration 2 --rollout-batch-size 20 --model-max-pretrain-epochs 1"
    tiny += " --eval-episodes 1 --model-hidden-dim 8 --env-id pendulum-mini --batch-size 4096"
    code, output, errors = runner(*[f"python {ROOT}/rambo_continuous.py {tiny} --adv-weight {weight}" for weight in (3e-4, 0)])
    assert code == 0 and "2 finished" in output, errors
    first, second = (json.loads((folder / "args.json").read_text()) for folder in run_folders())
    assert first["load_model"] is None and second["load_model"].startswith("runs/pendulum-mini__rambo_continuous__1__")
