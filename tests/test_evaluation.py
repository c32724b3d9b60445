"""Evaluations beside training: the policy in numpy, the processes that run episodes, and what becomes of their results."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, TINY, pendulum_log, read_csv, read_run, run_here, run_script, write_hdf5

PENDULUM = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY]


@pytest.fixture(autouse=True)
def pendulum_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log())


# The policy in numpy
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_numpy_policy_is_the_network(name):
    import jax
    import torch

    rambo = importlib.import_module(Path(name).stem)
    rng = np.random.default_rng(0)
    observations, mean, std = rng.normal(3, 5, (100, 11)), rng.normal(size=11), rng.uniform(0.5, 2, 11)
    states = ((observations - mean) / std).astype(np.float32)
    if "jax" in name:
        agent = rambo.init_agent(jax.random.PRNGKey(0), 11, 3, 1.0)._replace(actor=None)
    else:
        torch.manual_seed(0)
        agent, states = rambo.Agent(11, 3, 1.0), torch.as_tensor(states)
        agent.actor = None
    with torch.no_grad():
        actions = agent.policy.mode(states)
        values = np.asarray(agent.critic(states, actions)).min(0)
    numpy_agent = rambo.NumpyAgent(rambo.to_numpy(agent), mean, std)
    ours = numpy_agent.mode(observations), numpy_agent.value(observations)
    np.testing.assert_allclose(ours[0], actions, atol=1e-5)
    np.testing.assert_allclose(ours[1], values, atol=1e-5)
    assert np.ptp(ours[0]) > 0.1 and np.ptp(ours[1]) > 0.01


# The order of events, with a pool whose evaluations end when the test says so
class Pool:
    def __init__(self):
        self.futures, self.policies = [], []

    def submit(self, function, args, policy, seed):
        self.policies.append(policy)
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def run(rambo):
    """A run that has just begun, and whose evaluations are the test's."""
    args = rambo.parse_args(PENDULUM)
    run = rambo.Run(args, rambo.load_dataset("Pendulum-v1", "pendulum.hdf5", rambo.make_env("Pendulum-v1")), "cpu")
    run.evaluations.pool = Pool()
    return run


def metrics_of(score):
    return {"charts/normalized_score": np.nan, "charts/episodic_return": score, "episodic_returns": "1 2"}


def logged(run):
    return [(row["iteration"], float(row["charts/episodic_return"])) for row in read_csv(run.folder / "evaluations.csv")]


def test_results_are_logged_in_order_with_their_iteration(run):
    for iteration in (0, 10, 20):
        run.evaluate(iteration, {"weight": np.ones(3)})
    run.evaluations.pool.futures[1].set_result(metrics_of(1.0))
    run.evaluations.collect()
    assert logged(run) == []
    run.evaluations.pool.futures[0].set_result(metrics_of(0.0))
    run.evaluations.collect()
    assert logged(run) == [("0", 0.0), ("10", 1.0)] and run.evaluations.latest == (10, 1)
    run.evaluations.pool.futures[2].set_result(metrics_of(2.0))
    run.finish()
    assert logged(run)[2:] == [("20", 2.0)] and json.loads((run.folder / "result.json").read_text())["last"] == 2


def test_evaluations_are_waited_for_when_too_many_are_under_way(run, monkeypatch):
    run.evaluate(0, {"weight": np.ones(3)})
    monkeypatch.setattr(Future, "result", lambda future: metrics_of(5.0))  # what waiting gives
    monkeypatch.setattr(Future, "exception", lambda future: None)
    run.evaluations.collect()
    assert logged(run) == []
    run.evaluations.collect(0)
    assert logged(run) == [("0", 5.0)]


def test_the_next_update_does_not_change_the_policy_under_evaluation(run):
    weights = {"weight": np.ones(3)}
    run.evaluate(0, weights)
    weights["weight"][:] = 7
    assert run.evaluations.pool.policies[0].weights["weight"].tolist() == [1, 1, 1]


def test_weights_that_are_no_numbers_are_a_divergence_and_its_result_is_json(rambo, run):
    with pytest.raises(rambo.Diverged):
        run.evaluate(2, {"weight": np.array([1, np.nan])})

    def no_json(constant):
        raise ValueError(constant)

    assert json.loads((run.folder / "result.json").read_text(), parse_constant=no_json)["status"] == "diverged"


def test_a_process_that_dies_is_one_error_that_says_how_to_go_on(rambo, run):
    run.evaluate(0, {"weight": np.ones(3)})
    run.evaluations.pool.futures[0].set_exception(BrokenProcessPool("A process in the process pool was terminated abruptly"))
    with pytest.raises(rambo.InputError, match=f"died.*--resume {run.folder} --eval-workers 0"):
        run.evaluations.collect()

    def submit(*arguments):  # it died while it had nothing to do
        raise BrokenProcessPool("A child process terminated abruptly")

    run.evaluations.pool.submit = submit
    with pytest.raises(rambo.InputError, match=f"--resume {run.folder} --eval-workers 0.*terminated"):
        run.evaluate(10, {"weight": np.ones(3)})


def test_tensorboard_is_on_disk_after_an_evaluation_and_in_a_checkpoint(run, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    synchronised = []
    monkeypatch.setattr("os.fsync", synchronised.append)

    def on_disk():
        return {
            name: len(events.Scalars(name))
            for events in [EventAccumulator(str(run.folder)).Reload()]
            for name in events.Tags()["scalars"]
        }

    for iteration in (1, 2, 3):
        run.log(iteration, {"losses/qf_values": 1.0})
    assert not synchronised, "the disk would be waited for in every iteration"
    run.evaluate(3, {"weight": np.ones(3)})
    run.evaluations.pool.futures[0].set_result(metrics_of(-100.0))
    run.evaluations.collect()
    expected = {"losses/qf_values": 3, "losses/value_bound_ratio": 3, "charts/episodic_return": 1}
    assert on_disk() == expected and synchronised
    run.log(4, {"losses/qf_values": 1.0})
    run.state(4)
    assert on_disk() == expected | {"losses/qf_values": 4, "losses/value_bound_ratio": 4}


def test_the_value_bound_keeps_the_sign_of_the_value(rambo):
    for rewards, mean_q, ratio in [
        ([-1, 2, 3], 15, 0.5),  # at most 3 / (1 - 0.9)
        ([-1, 2, 3], -20, -2),  # at least -1 / (1 - 0.9)
        ([1, 2, 3], -15, -0.5),  # below 0 although no reward is: against the only scale there is
        ([-4, -2, -1], 20, 0.5),
        ([0, 0, 0], 0, 0),
        ([-1, 2, 3], -np.inf, -np.inf),
    ]:
        assert rambo.value_bound_ratio(mean_q, np.float32(rewards), 0.9) == pytest.approx(ratio)


def test_a_value_beyond_its_bound_is_warned_of_once(run, capsys):
    for iteration, sign, word in ((1, 1, "more"), (2, -1, "less")):
        run.warned, run.dataset.rows[:, 4] = False, 1  # 3 observations, an action, the reward
        for mean_q in (99, 101, 102):
            run.log(iteration, {"losses/qf_values": sign * mean_q})
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"warning: in iteration {iteration} the mean Q, {sign * 101}, is {word} than")


def test_every_environment_that_an_evaluation_made_is_closed(rambo, run, monkeypatch):
    open_ones, make_env = [], rambo.make_env

    class Counted(gym.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            open_ones.append(self)

        def close(self):
            open_ones.remove(self)

    monkeypatch.setattr(rambo, "make_env", lambda *arguments: Counted(make_env(*arguments)))
    policy = SimpleNamespace(mode=lambda x: np.zeros((len(x), 1), np.float32), value=lambda x: np.zeros(len(x)))
    rambo.run_evaluation(run.args, policy, [1, 0])
    policy.mode = lambda x: open_ones[len(x)]  # an error in the midst
    with pytest.raises(IndexError):
        rambo.run_evaluation(run.args, policy, [1, 0])
    assert not open_ones


def test_a_thread_evaluates_where_no_processes_can(rambo, monkeypatch, capsys):
    def no_shared_memory(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(rambo, "ProcessPoolExecutor", no_shared_memory)
    rambo.worker_pool.cache_clear()
    assert isinstance(rambo.worker_pool(3), ThreadPoolExecutor) and "Read-only" in capsys.readouterr().out
    rambo.worker_pool.cache_clear()


# Processes
def test_the_default_leaves_a_core_to_training(rambo, monkeypatch):
    def workers():
        rambo.worker_pool.cache_clear()
        pool = rambo.worker_pool(None)
        return pool._max_workers if isinstance(pool, ProcessPoolExecutor) else 0

    assert workers() == 0, "imported: in this process, which knows its environments"
    monkeypatch.setattr(rambo, "__name__", "__main__")
    for threads, expected in (("8", 7), ("2", 1), ("1", 1)):  # benchmark/runner.py sets it where runs share the cores
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert workers() == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert workers() == 15
    rambo.worker_pool.cache_clear()


def test_processes_give_the_same_returns_as_this_process():
    """By the torch script alone; that of both an evaluation in a process is that of the saved policy: test_command_line.py."""
    here = read_run(run_here(importlib.import_module("rambo_continuous"), *PENDULUM, "--exp-name", "here"))
    process = run_script(ROOT / "rambo_continuous.py", *PENDULUM, "--exp-name", "there", "--eval-workers", 2)
    assert process.returncode == 0, process.stderr
    there = read_run(next(Path("runs").glob("*there*")))
    for name in ("iteration", "episodic_returns", "charts/value_gap"):
        assert [row[name] for row in here.evaluations] == [row[name] for row in there.evaluations]


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
@pytest.mark.parametrize("end", ["Ctrl-C", "kill", "a process that evaluates is killed", "... is terminated"])
def test_no_process_is_left_behind(end):
    """By the torch script alone: the JAX script has the same lines."""
    command = [sys.executable, str(ROOT / "rambo_continuous.py"), *PENDULUM, "--eval-workers", "1"]
    command += ["--total-iterations", "100000", "--checkpoint-minutes", "0"]
    command += ["--eval-interval", "1000" if end == "Ctrl-C" else "1"]  # the process is idle, or at work
    # A shell that runs the tests in the background lets them ignore SIGINT, and Python then does so as well
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": True}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **default)
    while process.poll() is None and not any(read_csv(path) for path in Path("runs").glob("*/evaluations.csv")):
        time.sleep(0.1)
    others = children(process.pid)
    (worker,) = [pid for pid in others if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    if end == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    else:
        os.kill(process.pid if end == "kill" else worker, signal.SIGTERM if "terminated" in end else signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if end == "kill" else 1)
    last_line = stderr.strip().splitlines()[-1].split("\r")[-1]
    assert "Traceback" not in stderr
    if end != "kill":
        assert last_line.startswith("interrupted: " if end == "Ctrl-C" else "error: ")
        assert ("no checkpoint" if end == "Ctrl-C" else "--eval-workers 0") in last_line  # whether it was at work or idle
    for _ in range(100):
        if not any(map(alive, others)):
            break
        time.sleep(0.1)
    assert not any(map(alive, others))


def test_ctrl_c_while_the_first_evaluation_begins_ends_the_process():
    """The thread has started, but concurrent.futures does not know it yet and would wait for it at exit for ever."""
    program = f"""
import sys
from concurrent.futures import thread
sys.path.insert(0, {str(ROOT)!r})
import rambo_continuous as rambo
class Interrupted(dict):
    def __setitem__(self, key, value):
        raise KeyboardInterrupt
thread._threads_queues = Interrupted()
try:
    rambo.worker_pool(0).submit(print)
except KeyboardInterrupt:
    sys.exit(1)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
