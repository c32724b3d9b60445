"""benchmark/runner.py, the lists and rambo.slurm. Most tests run a stand-in that trains nothing, one the real script."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import runner

import rambo_continuous
from rambo_continuous import D4RL_FILES

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "benchmark" / "runner.py"

# What the runner relies on: parse_args and InputError; args.json, result.json,
# checkpoint.pt, dynamics_pretrained.npz.
# --fate diverge | fail | hang: what happens to the first attempt at its second iteration; a second attempt goes on.
STAND_IN = r"""
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

def main(args):
    print("threads", os.environ["OMP_NUM_THREADS"], os.environ["NPROC"])
    start, resume = 0, args.resume
    if resume:
        folders = [Path(resume)]
        args = Args(**json.loads((folders[0] / "args.json").read_text()))
        start = int((folders[0] / "checkpoint.pt").read_text()) + 1
    else:
        start_time = time.time_ns()
        names = [f"{args.env_id}__{args.exp_name}__{args.seed + i}__{start_time}" for i in range(args.num_seeds)]
        folders = [Path("runs") / name for name in names]
        for i, folder in enumerate(folders):
            folder.mkdir(parents=True)
            (folder / "args.json").write_text(json.dumps(asdict(args) | dict(seed=args.seed + i, num_seeds=1)))
        (folders[0] / "seeds.json").write_text(json.dumps(names))
    for folder in folders:
        if not resume and args.load_model is None and args.save_model:
            time.sleep(0.3)
            (folder / "dynamics_pretrained.npz").write_text("weights")
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
    sys.stdout.buffer.write("100 % \u2588 1 \u00b5s/it".encode())

if __name__ == "__main__":
    main(parse_args())
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    monkeypatch.delitem(sys.modules, "stand_in", raising=False)
    return tmp_path


@pytest.fixture
def run_list(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of the runner on a list of commands."""

    def run_list(*lines: str, **environment: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
            for key, value in environment.items():
                patch.setenv(key, value)
            return runner.main(), *capsys.readouterr()

    return run_list


def start_runner(*lines: str, **environment: str) -> subprocess.Popen:
    """The runner as a process of its own."""
    Path("list.txt").write_text("\n".join(lines), encoding="utf-8")
    with open("list.txt") as stdin:
        pipes = dict(stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        return subprocess.Popen([sys.executable, str(RUNNER)], env=os.environ | environment, **pipes)


def run_folders() -> list[Path]:
    return sorted(Path("runs").glob("*__*"))


def read_args(folder: Path) -> dict:
    return json.loads((folder / "args.json").read_text())


def test_dry_run_prints_the_commands_and_runs_nothing():
    weights = ["", " --adv-weight 0"]
    lines = [f"python stand_in.py --seed {seed}{weight}" for seed in (1, 2) for weight in weights[: 3 - seed]]
    process = start_runner(*lines, "# a comment", DRY_RUN="1")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.splitlines() == [
        "python stand_in.py --seed 1 --save-model",
        "python stand_in.py --seed 1 --adv-weight 0 --load-model runs/toy__stand_in__1__*/dynamics_pretrained.npz",
        "python stand_in.py --seed 2 --save-model",
        "# 3 commands, 2 groups of one dataset and seed: GROUP=0 to 1",
    ]
    assert not Path("runs").exists()


def test_pretrains_once_skips_the_finished_and_only_the_same(run_list):
    pairs = [f"python stand_in.py --adv-weight {weight}" for weight in (1, 2, 3)]
    code, output, _ = run_list(*pairs, pairs[0], WORKERS="3")
    assert code == 0 and output.splitlines()[-1] == "3 finished"  # the repeated line counts once
    args = [read_args(folder) for folder in run_folders()]
    models = [str(path) for path in Path("runs").glob("*/dynamics_pretrained.npz")]
    assert sorted((a["adv_weight"], a["load_model"]) for a in args) == [(1, None), (2, *models), (3, *models)]

    code, output, _ = run_list(*pairs)
    assert code == 0 and "3 skipped" in output and "started" not in output
    code, output, _ = run_list(f"{pairs[0]} --total-iterations 4", f"{pairs[0]} --real-ratio 1")
    assert code == 0 and "2 finished" in output and len(run_folders()) == 5


def test_an_ensemble_serves_other_lists_and_if_told_all_seeds(run_list, monkeypatch):
    lines = [f"python stand_in.py --seed {seed}" for seed in (2, 1, 3)]
    assert "3 finished" in run_list(*lines)[1] and len(list(Path("runs").glob("*/dynamics_pretrained.npz"))) == 3
    assert "--load-model runs/toy__stand_in__2__" in run_list("python stand_in.py --seed 2 --adv-weight 0")[1]
    monkeypatch.setenv("SHARE_ENSEMBLE", "1")
    code, output, _ = run_list("python stand_in.py --seed 4", *(f"{line} --env-id new" for line in lines), WORKERS="3")
    assert code == 0 and "--seed 4 --load-model runs/toy__stand_in__1__" in output
    assert [path.parent.name[:16] for path in Path("runs").glob("new*/dynamics_pretrained.npz")] == ["new__stand_in__2"]
    output = run_list(*lines, lines[0] + " --env-id new", DRY_RUN="1", GROUP="1")[1]
    assert "--env-id new" in output and "\n# 1 commands, 1 groups of one dataset: GROUP=0 to 0" in output


def test_without_a_model_its_arguments_do_not_make_another_run(run_list):
    line = "python stand_in.py --real-ratio 1"
    assert "1 finished" in run_list(line)[1]
    code, output, _ = run_list(f"{line} --num-elites 1 --model-lr 0.1 --adv-weight 2")
    assert code == 0 and "1 skipped" in output and "started" not in output
    assert "2 finished" in run_list(f"{line} --batch-size 2", "python stand_in.py --num-elites 1")[1]


def test_a_run_of_the_other_script_under_the_same_name_is_another_run(run_list):
    """With the same --exp-name both scripts' folders are named alike: torch's arguments have no num_seeds."""
    line = "python stand_in.py"
    assert "1 finished" in run_list(line)[1]
    saved = run_folders()[0] / "args.json"
    args = json.loads(saved.read_text())
    del args["num_seeds"]
    saved.write_text(json.dumps(args))
    assert "1 finished" in run_list(line)[1] and len(run_folders()) == 2


def test_group_runs_one_dataset_and_seed(run_list):
    lines = [f"python stand_in.py --seed {seed} --adv-weight {weight}" for seed in (1, 2) for weight in (1, 2)]
    assert "2 finished" in run_list(*lines, GROUP="0")[1]
    assert {read_args(folder)["seed"] for folder in run_folders()} == {1}
    code, output, _ = run_list(*lines, GROUP="2")  # an array job may have more tasks than the list has groups
    assert code == 0 and output.strip() == "nothing to run"


def test_failed_and_diverged_runs_are_reported_and_fail_the_runner(run_list):
    lines = [f"python stand_in.py --seed {i} --fate {fate}" for i, fate in enumerate(("fail", "diverge", "well"))]
    code, output, errors = run_list(*lines)
    assert code == 1 and "1 failed, 1 diverged, 1 finished" in output
    assert "failed: python stand_in.py --seed 0 --fate fail: exit code 1, error: out of luck (see runs/logs/" in errors
    assert "diverged: python stand_in.py --seed 1 --fate diverge" in errors and "--seed 2" not in errors

    code, output, errors = run_list(*lines)  # the failed one is resumed, the diverged one would only diverge again
    assert code == 1 and "1 finished, 1 diverged, 1 skipped" in output and "before this call" in errors
    resumed = next(folder for folder in run_folders() if "__0__" in folder.name)
    assert (resumed / "evaluations.csv").read_text().split() == ["0", "1", "2", "3"] and len(run_folders()) == 3


def test_a_killed_runner_takes_its_runs_along_and_the_next_resumes_them(run_list):
    line = "python stand_in.py --fate hang"
    process = start_runner(line)
    deadline = time.time() + 30
    while not [path for path in Path("runs").glob("*__*/checkpoint.pt") if path.read_text() == "1"]:
        assert time.time() < deadline
        time.sleep(0.05)
    code, output, errors = run_list(line)
    assert code == 1 and "locked" in errors and "started" not in output  # two runners, one folder
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143

    code, output, _ = run_list(line)
    assert code == 0 and f"--resume {run_folders()[0]}" in output and len(run_folders()) == 1
    assert (run_folders()[0] / "evaluations.csv").read_text().split() == ["0", "1", "2", "3"]


def test_seeds_side_by_side_that_stopped_apart_go_on_one_by_one(run_list):
    line = "python stand_in.py --num-seeds 3"
    assert "1 finished" in run_list(line)[1] and len(run_folders()) == 3
    assert "1 skipped" in run_list(line)[1]
    (run_folders()[1] / "result.json").unlink()
    (run_folders()[1] / "checkpoint.pt").write_text("2")
    code, output, _ = run_list(line)
    assert code == 0 and "2 skipped, 1 finished" in output
    assert f"--resume {run_folders()[1]}" in output and len(run_folders()) == 3
    for iterations, jobs in (([2, 2, 2], 1), ([2, 1, 2], 3)):  # checkpoints are written seed by seed
        for folder, iteration in zip(run_folders(), iterations, strict=True):
            (folder / "result.json").unlink(missing_ok=True)
            np.savez(folder / "checkpoint.npz", iteration=iteration)
        output = run_list(line, "python stand_in.py --env-id other", DRY_RUN="1")[1]
        assert output.count("--resume") == jobs and f"# {jobs + 1} commands, 2 groups" in output
        output = run_list(line, "python stand_in.py --env-id other", DRY_RUN="1", GROUP="1")[1]
        assert "--env-id other" in output and "# 1 commands" in output


def test_seeds_side_by_side_that_broke_off_in_their_pretraining_go_on_together(run_list):
    """The first one's folder holds the pretraining of all."""
    line = "python stand_in.py --num-seeds 3"
    run_list(line)
    for folder in run_folders():
        for name in ("result.json", "checkpoint.pt"):
            (folder / name).unlink()
    (run_folders()[0] / "pretraining.npz").touch()
    output = run_list(line, DRY_RUN="1")[1]
    assert f"--resume {run_folders()[0]} --num-seeds 3" in output and "# 1 commands" in output
    assert "--resume" not in run_list("python stand_in.py", DRY_RUN="1")[1]  # one seed alone cannot


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(run_list, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
    runner.warn.cache_clear()
    code, output, errors = run_list("python stand_in.py", "python stand_in.py --seed 2")
    assert code == 0 and "2 finished" in output
    assert errors.count("without locks") == 1 and os.strerror(number) in errors


def test_a_wrong_command_stops_the_list_before_it_starts(run_list, subtests):
    for line, problem in [
        ("python stand_in.py --adv-weight -1", "must not be negative"),
        ("python stand_in.py --no-such-flag", "--no-such-flag"),
        ("python stand_in.py --exp-name it's", "No closing quotation"),
        ("python nowhere.py", "no such file"),
        ("rm -r stand_in.py", "not of the form"),
    ]:
        with subtests.test(line=str(line), problem=str(problem)):
            code, _, errors = run_list("python stand_in.py", line)
            assert code == 1 and problem in errors
            assert not Path("runs").exists()


def test_a_wrong_number_of_workers_is_refused_in_one_line(run_list, subtests):
    code, _, errors = run_list("python stand_in.py", GROUP="-1")
    assert code == 1 and errors == "error: GROUP=-1: must be a whole number, 0 or more\n"
    for workers in ["0", "-1", "four"]:
        with subtests.test(workers=str(workers)):
            code, _, errors = run_list("python stand_in.py", WORKERS=workers)
            assert code == 1 and errors == f"error: WORKERS={workers}: must be a whole number, 1 or more\n"


def test_windows_is_told_in_one_line(run_list, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    code, _, errors = run_list("python stand_in.py")
    assert code == 1 and errors == "error: runner.py needs Linux or macOS; on Windows use WSL\n"


def test_runs_side_by_side_share_the_cores(run_list, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    code, _, errors = run_list("python stand_in.py", "python stand_in.py --seed 2", WORKERS="2", OMP_NUM_THREADS="7")
    assert code == 0, errors
    logs = [log.read_text() for log in Path("runs/logs").glob("*.log")]
    assert len(logs) == 2 and all("threads 7 3\n" in log for log in logs)


def test_where_the_system_does_not_tell_the_cores_of_a_process_all_count(run_list, monkeypatch, subtests):
    """macOS has no os.sched_getaffinity."""
    for workers, threads in [(1, "8"), (3, "2"), (9, "1")]:
        with subtests.test(workers=str(workers), threads=str(threads)):
            monkeypatch.delattr(os, "sched_getaffinity", raising=False)
            monkeypatch.setattr(os, "cpu_count", lambda: 8)
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            assert runner.run_environment(workers)["OMP_NUM_THREADS"] == threads
            assert run_list("python stand_in.py")[0] == 0


def test_jax_runs_side_by_side_do_not_reserve_the_gpu(monkeypatch):
    """By default JAX's first process takes three quarters of the memory."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    assert runner.run_environment(2)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in runner.run_environment(1)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    assert runner.run_environment(2)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


def test_spaces_and_quotes_in_paths_and_values(run_list, here):
    (here / "my scripts").mkdir()
    (here / "stand_in.py").rename(here / "my scripts" / "stand_in.py")
    lines = [f"python 'my scripts/stand_in.py' --exp-name \"it's  mine\" --adv-weight {weight}" for weight in (1, 2)]
    code, output, _ = run_list(*lines)
    assert code == 0 and "2 finished" in output
    assert {read_args(folder)["exp_name"] for folder in run_folders()} == {"it's  mine"}
    assert "2 skipped" in run_list(*lines)[1]


def test_a_terminal_that_knows_only_ascii():
    """The command has an accent, and the last line of the log the block of a progress bar."""
    ascii_only = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    for outcome in ("1 finished", "1 skipped"):
        process = start_runner("python stand_in.py --exp-name été", **ascii_only)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and outcome in output, errors
    assert len(list(Path("runs").glob("toy__été__1__*"))) == 1


# The number of commands with one seed and with all of them
LISTS = {"table1": (12, 60), "table3": (48, 240), "neurips": (12, 60), "ablations": (27, 135)}
LISTS |= {"own_logs": (10, 40), "resampled": (18, 42)}


@pytest.fixture
def lines_of(tmp_path) -> Callable[..., list[str]]:
    """What a list of benchmark/ pipes into the runner."""
    stand_in = f"""#!/bin/sh
case $1 in -c) exec {sys.executable} "$@" ;; *resample.py) exec echo "$@" ;; *) exec cat ;; esac
"""
    (tmp_path / "python").write_text(stand_in)
    (tmp_path / "python").chmod(0o755)

    def lines_of(name: str, *flags: str, **settings: str) -> list[str]:
        environment = os.environ | {"DRY_RUN": "1"} | settings | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = [ROOT / "benchmark" / f"{name}.sh", *flags]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, check=True
        ).stdout.splitlines()

    return lines_of


def read_list(lines: list[str]) -> list[runner.Job]:
    """The commands as the scripts understand them."""
    return runner.read_jobs([line.replace("python rambo", f"python {ROOT}/rambo") for line in lines])


def test_the_lists_are_what_the_scripts_accept(lines_of, subtests):
    for name, counts in LISTS.items():
        for script in ["rambo_continuous.py", "rambo_continuous_jax.py"]:
            with subtests.test(name=str(name), counts=str(counts), script=str(script)):
                assert len(lines_of(name)) == counts[1]
                lines = lines_of(name, SEEDS="1", SCRIPT=script)
                jobs = read_list(lines)
                assert len(lines) == len(jobs) == counts[0] and all(script in job.script for job in jobs)
                if name != "own_logs":
                    assert {job.seeds[0]["env_id"] for job in jobs} <= set(D4RL_FILES)


def test_table1_is_part_of_table3(lines_of):
    """The paper's pair of each dataset is among the four."""
    table1, table3 = ({job.log for job in read_list(lines_of(name, SEEDS="1"))} for name in ("table1", "table3"))
    assert len(table1) == 12 and table1 < table3


def test_the_lists_pass_flags_on_as_they_are(lines_of, subtests):
    for name in LISTS:
        with subtests.test(name=str(name)):
            flags = ["--exp-name", "it's my  été $HOME", "--batch-size", "17"]
            jobs = read_list(lines_of(name, *flags, SEEDS="1", LC_ALL="C"))
            assert all(job.seeds[0]["exp_name"] == flags[1] and job.seeds[0]["batch_size"] == 17 for job in jobs)


def test_what_a_list_says_of_a_method_stays(lines_of):
    """Behaviour cloning is no agent's training, however short the other runs are made."""
    iterations = [
        job.seeds[0]["total_iterations"] for job in read_list(lines_of("own_logs", "--total-iterations", "3", SEEDS="1"))
    ]
    assert iterations == [3, 3, 3, 3, 0] * 2


OWN_LOGS = {"medium-replay": "hopper halfcheetah", "full-replay": "hopper walker2d", "medium": "hopper halfcheetah walker2d"}


def test_what_own_logs_learns_from_lies_in_git(lines_of, subtests):
    for quality, envs in OWN_LOGS.items():
        with subtests.test(quality=str(quality), envs=str(envs)):
            jobs = read_list(lines_of("own_logs", QUALITY=quality, SEEDS="1"))
            ids = [f"{env}-sbx-{quality}-v2" for env in envs.split() for _ in range(5)]
            assert [job.seeds[0]["env_id"] for job in jobs] == ids
            for job in jobs:
                log = Path(job.seeds[0]["dataset_path"])
                assert log.stem == job.seeds[0]["env_id"].replace("-", "_").removesuffix("_v2") + "-v2"
                assert (ROOT / "benchmark" / "datasets" / f"{log.stem}.npz").is_file()


def test_resampled_files_are_made_first_where_missing_and_their_runs_keep_the_defaults(lines_of):
    names = "hopper-never-medium-v2 walker2d-never-random-v2"
    lines = lines_of("resampled", DATASETS=names, DRY_RUN="0", D4RL_DATASET_DIR="/d4rl")
    made = "python benchmark/datasets/resample.py {} --output collected/resampled/{}"
    assert [f"python {line}" for line in lines[:2]] == [
        made.format("/d4rl/hopper_never_medium-v2.hdf5", "hopper_never_medium-v2.hdf5"),
        made.format("walker2d-never-random-v2", "walker2d_never_random-v2.hdf5"),
    ]
    assert len(lines) == 2 + 18
    for job in read_list(lines_of("resampled")):
        args, paper = job.seeds[0], rambo_continuous.parse_args(["--env-id", job.seeds[0]["env_id"]])
        assert args["dataset_path"] == f"collected/resampled/{args['env_id'].removesuffix('-v2').replace('-', '_')}-v2.hdf5"
        ours = args["halt_outside"] and args["policy_average"] == 0.9 and args["total_iterations"] == 100
        expected = (20, 0) if ours else (paper.rollout_length, paper.adv_weight)
        assert (args["rollout_length"], args["adv_weight"]) == expected


def test_longer_rollouts_add_as_many_rows_and_leave_the_methods_without_a_model_alone(lines_of):
    short, long = (read_list(lines_of("own_logs", ENVS="hopper", SEEDS="1", K=k)) for k in ("5", "20"))
    for job, k in [(short[0], 5), (long[0], 20)]:
        assert job.seeds[0]["rollout_length"] == k and job.seeds[0]["rollout_batch_size"] * k == 250_000
    assert [a.log == b.log for a, b in zip(short, long, strict=True)] == [False, False, True, True, True]


def test_a_list_reaches_the_runner(here):
    (here / "my data").mkdir()
    environment = os.environ | {"DRY_RUN": "1", "DATASETS": "Pendulum-v1", "SEEDS": "4"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [ROOT / "benchmark" / "table1.sh", "--dataset-path", "my data/log.hdf5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "python rambo_continuous.py --dataset-path 'my data/log.hdf5' --env-id Pendulum-v1 --seed 4 --save-model",
        "# 1 commands, 1 groups of one dataset and seed: GROUP=0 to 0",
    ]


@pytest.mark.parametrize(
    ("sent", "code", "requeued"), [(signal.SIGUSR1, 138, "70_3\n"), (signal.SIGTERM, 143, ""), (None, 5, "")]
)
def test_a_slurm_task_ends_its_runs_and_is_queued_again_only_near_the_time_limit(here, sent, code, requeued):
    list_file, scontrol = here / "my list.sh", here / "scontrol"
    end = "sleep 60 & wait" if sent else "exit 5"
    list_file.write_text(f'#!/bin/bash\ntrap "touch ended; exit 1" TERM\necho "$GROUP $*" >started\n{end}\n')
    scontrol.write_text(f'#!/bin/sh\n[ "$1" = requeue ] && echo "$2" >>{here}/requeued\n')
    for file in (list_file, scontrol):
        file.chmod(0o755)
    environment = os.environ | {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3", "PATH": f"{here}:{os.environ['PATH']}"}
    command = ["bash", ROOT / "benchmark" / "rambo.slurm", list_file, "--exp-name", "x"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)  # it signals all of its process group
    deadline = time.time() + 30
    while not (here / "started").exists() or not (here / "started").read_text():
        assert time.time() < deadline
        time.sleep(0.02)
    if sent:
        process.send_signal(sent)
    assert process.wait(timeout=30) == code
    assert (here / "started").read_text() == "3 --exp-name x\n" and (here / "ended").exists() == bool(sent)
    assert ((here / "requeued").read_text() if (here / "requeued").exists() else "") == requeued


def test_the_real_script_once(run_list):
    """Two weights on Pendulum: one ensemble, two finished runs, one made from the other's."""
    tiny = "--total-iterations 1 --updates-per-iteration 2 --rollout-batch-size 20 --model-max-pretrain-epochs 1"
    tiny += " --eval-episodes 1 --model-hidden-dim 8 --env-id pendulum-mini --batch-size 4096"
    lines = [f"python {ROOT}/rambo_continuous.py {tiny} --adv-weight {weight}" for weight in (3e-4, 0)]
    code, output, errors = run_list(*lines)
    assert code == 0 and "2 finished" in output, errors
    loaded = {read_args(folder)["adv_weight"]: read_args(folder)["load_model"] for folder in run_folders()}
    assert loaded[3e-4] is None and loaded[0].startswith("runs/pendulum-mini__rambo_continuous__1__")


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.npz", "pretraining.pt", "pretraining.npz"])
def test_what_a_run_goes_on_from(name, tmp_path, monkeypatch):
    """A checkpoint, or what there is of its pretraining; not a file that is still being written."""
    monkeypatch.chdir(tmp_path)
    args = {"seed": 1, "total_iterations": 3}
    folder = Path("runs") / "id__name__1__1"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(args))
    (folder / f"{name}.tmp").touch()
    assert runner.find_state(args) == ("new", None)
    (folder / name).touch()
    assert runner.find_state(args) == ("resumable", folder)
