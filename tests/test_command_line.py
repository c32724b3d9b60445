"""Whole runs of the command line: what they leave behind, resuming, divergence, models, video, tracking, and importing."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    HOPPER,
    ROOT,
    SCRIPTS,
    TINY,
    pendulum_log,
    read_csv,
    read_run,
    run_as_main,
    run_here,
    run_script,
    write_hdf5,
)
from filelock import FileLock

PENDULUM = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY]
METRICS = """
    rollout/reward rollout/termination_rate rollout/max_abs_state
    losses/qf_loss losses/qf_values losses/max_abs_qf_value losses/actor_loss losses/alpha_loss losses/alpha losses/entropy
    losses/value_bound_ratio
    model/supervised_loss model/adversarial_loss model/advantage_mean model/advantage_std model/log_prob model/grad_norm
    model/holdout_mse charts/SPS charts/model_SPS
""".split()
CHARTS = """
    charts/normalized_score charts/normalized_score_std charts/episodic_return charts/discounted_return charts/episodic_length
    charts/value_gap
""".split()


# The plumbing is word for word the same in both scripts, see test_twins.py: one of them is enough
one_script = pytest.mark.parametrize("rambo", [importlib.import_module("rambo_continuous")], ids=["torch"])


@pytest.fixture(autouse=True)
def pendulum_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log())


def only_run():
    (folder,) = Path("runs").iterdir()
    return read_run(folder)


def without(rows, *names):
    """CSV rows less the columns that measure time."""
    assert rows and all(name in rows[0] for name in names)
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def assert_same_run(one, other):
    """Two runs went the same way to the last bit; only their clocks differ."""
    assert without(one.evaluations, "seconds") == without(other.evaluations, "seconds")
    assert without(one.metrics, "charts/SPS", "charts/model_SPS") == without(other.metrics, "charts/SPS", "charts/model_SPS")
    for name in ("policy", "dynamics"):
        for key, array in getattr(one, name).items():
            np.testing.assert_array_equal(array, getattr(other, name)[key])
    assert {**one.result} == {**other.result}


def same_arrays(one, other):
    return all(np.array_equal(array, other[key]) for key, array in one.items())


# What a run leaves behind
ONE_RUN = pytest.mark.xdist_group("finished_run")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """One run on the bundled hopper-mini-v2 by the real command line for each script: its folder and what it printed."""
    made = {}

    def run(script):
        if script not in made:
            folder = tmp_path_factory.mktemp("finished_run")
            with pytest.MonkeyPatch.context() as context:
                context.chdir(folder)
                arguments = [*HOPPER, "--eval-workers", 1, "--save-model", "--capture-video", "--seed", 3]
                if script.stem == "rambo_continuous" and importlib.util.find_spec("wandb"):  # the other has the same lines
                    arguments += ["--track", "--wandb-project-name", "rambo-test"]
                process = run_script(script, *arguments, WANDB_MODE="offline")
            assert process.returncode == 0, process.stderr
            made[script] = next((folder / "runs").iterdir()), process
        return made[script]

    return run


@ONE_RUN
def test_a_run_says_what_it_learns_from_and_how_it_ended(finished_run, script):
    folder, process = finished_run(script)
    run = read_run(folder)
    assert "hopper_mini-v2.hdf5" in process.stdout
    last, mean = run.result["last"], run.result["mean_of_last_10"]
    assert f"Seed 3, iteration 2: charts/normalized_score {last:.1f} (mean of 2 episodes)" in process.stdout
    assert f"Seed 3, mean of the last 3 evaluations: charts/normalized_score {mean:.1f}" in process.stdout
    for bar in ("Pretraining", "RAMBO"):
        assert bar in process.stderr
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr


@ONE_RUN
def test_the_run_folder_is_named_like_cleanrls_and_holds_arguments_and_results(finished_run, script):
    run = read_run(finished_run(script)[0])
    env_id, exp_name, seed, started = run.folder.name.split("__")
    assert (env_id, exp_name, seed) == ("hopper-mini-v2", script.stem, "3")
    assert abs(int(started) - time.time()) < 24 * 3600
    assert run.args["seed"] == 3 and run.args["rollout_length"] == 2 and run.args["adv_weight"] == 3e-4
    assert run.result["status"] == "finished" and run.result["score"] == "charts/normalized_score"
    assert run.result["iteration"] == 2
    scores = [float(row["charts/normalized_score"]) for row in run.evaluations]
    assert run.result["last"] == scores[-1] and run.result["mean_of_last_10"] == pytest.approx(np.mean(scores))
    assert run.args["device"] and f"training on {run.args['device']}" in finished_run(script)[1].stdout
    assert not list(run.folder.glob("*.tmp"))


@ONE_RUN
def test_evaluations_are_consistent_within_themselves(finished_run, script):
    run = read_run(finished_run(script)[0])
    assert [row["iteration"] for row in run.evaluations] == ["0", "1", "2"]
    for row in run.evaluations:
        returns = np.array(row["episodic_returns"].split(), float)
        assert len(returns) == 2
        assert float(row["charts/episodic_return"]) == pytest.approx(returns.mean(), abs=1e-2)
        scores = 100 * (returns + 20.272305) / (3234.3 + 20.272305)
        assert float(row["charts/normalized_score"]) == pytest.approx(scores.mean(), abs=1e-2)
        assert float(row["charts/normalized_score_std"]) == pytest.approx(scores.std(), abs=1e-2)
    # The critic starts near 0, so that the first value gap is minus what the policy earned
    gap, earned = (float(run.evaluations[0][f"charts/{name}"]) for name in ("value_gap", "discounted_return"))
    assert earned > 3 and abs(gap + earned) < 1
    seconds = [float(row["seconds"]) for row in run.evaluations]
    assert seconds == sorted(seconds) and seconds[0] > 0


def plain_policy(arrays):
    """The mode of a saved policy, from its file alone."""

    def policy(observations):
        x = (observations - arrays["obs_mean"]) / arrays["obs_std"]
        for name in ("fc1", "fc2"):
            x = np.maximum(x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"], 0)
        x = x @ arrays["fc3.weight"].T + arrays["fc3.bias"]
        return np.tanh(x[:, : x.shape[1] // 2])

    return policy


@ONE_RUN
def test_the_saved_policy_is_the_one_evaluated_last(finished_run, script, rambo):
    """Returns of the saved policy in the evaluation's own episodes, from its file and numpy alone."""
    run = read_run(finished_run(script)[0])
    policy, env = plain_policy(run.policy), rambo.make_env("hopper-mini-v2")
    returns = []
    for seed in np.random.SeedSequence([3, 2]).generate_state(2):  # of run 3, after iteration 2
        observation, _ = env.reset(seed=int(seed))
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy(observation[None])[0])
            total, done = total + reward, terminated or truncated
        returns.append(total)
    np.testing.assert_allclose(np.array(run.evaluations[-1]["episodic_returns"].split(), float), returns, rtol=1e-3)


@ONE_RUN
def test_saved_dynamics_are_the_elites_before_and_after_training(finished_run, script):
    run = read_run(finished_run(script)[0])
    assert run.dynamics["layers.0.weight"].shape == (5, 14, 32)
    assert run.dynamics["layers.4.bias"].shape == (5, 1, 24)
    for key in ("obs_mean", "obs_std", "input_mean", "input_std"):
        np.testing.assert_array_equal(run.dynamics[key], run.dynamics_pretrained[key])
    assert not same_arrays(run.dynamics_pretrained, run.dynamics)


@ONE_RUN
def test_metrics_are_in_the_csv_and_in_tensorboard(finished_run, script):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = read_run(finished_run(script)[0])
    assert set(run.metrics[0]) == {"iteration", *METRICS}
    events = EventAccumulator(str(run.folder))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {*METRICS, *CHARTS}
    for name in METRICS:
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(int(row["iteration"]), pytest.approx(float(row[name]), rel=1e-5)) for row in run.metrics]
        assert all(np.isfinite(value) for _, value in logged)
    for name in CHARTS:
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([float(row[name]) for row in run.evaluations], rel=1e-5)
    assert any("hyperparameters" in tag for tag in events.Tags()["tensors"])


@ONE_RUN
def test_metrics_mean_what_they_say(finished_run, script):
    first, second = ({key: float(value) for key, value in row.items()} for row in read_run(finished_run(script)[0]).metrics)
    assert 0.99 < second["losses/alpha"] < first["losses/alpha"] <= 1, "Adam moves log alpha by the learning rate"
    assert 0 < first["losses/entropy"] < 3 * np.log(2), "of three actions in [-1, 1], nearly uniform at first"
    for row in (first, second):
        assert 0 <= row["rollout/termination_rate"] <= 1 and row["rollout/max_abs_state"] > 1
        assert row["losses/max_abs_qf_value"] >= abs(row["losses/qf_values"])
        assert all(row[f"{name}"] > 0 for name in ("losses/qf_loss", "model/grad_norm", "model/advantage_std", "charts/SPS"))


@ONE_RUN
def test_a_video_of_one_episode_is_recorded(finished_run, script, rambo):
    imageio = pytest.importorskip("imageio.v3", reason="imageio reads the video back")
    run = read_run(finished_run(script)[0])
    (video,) = (run.folder / "videos").glob("*.mp4")
    frames = imageio.imread(video)
    assert frames.ndim == 4 and frames.shape[-1] == 3
    env = rambo.make_env("hopper-mini-v2")
    (observation, _), length, done = env.reset(seed=int(np.random.SeedSequence(3).generate_state(1)[0])), 0, False
    policy = plain_policy(run.policy)
    while not done:
        observation, _, terminated, truncated, _ = env.step(policy(observation[None])[0])
        length, done = length + 1, terminated or truncated
    assert abs(len(frames) - length) <= 1, "one episode, and no more"
    assert frames.std() > 10, "not a blank picture"
    assert np.abs(frames[-1].astype(float) - frames[0]).mean() > 1, "something moves"


@ONE_RUN
def test_tracking_with_wandb_offline(finished_run):
    pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    folder, _ = finished_run(ROOT / "rambo_continuous.py")
    (path,) = folder.parent.parent.glob("wandb/offline-run-*/*.wandb")
    log = path.read_bytes()  # protocol buffers, which hold names as plain text
    for name in ("rambo-test", "losses/qf_loss", "charts/episodic_return"):
        assert name.encode() in log, "TensorBoard's scalars are synchronised"


# Switches
def test_the_same_seed_gives_the_same_run_and_another_seed_another(rambo):
    runs = [
        read_run(run_here(rambo, *PENDULUM, "--save-model", "--exp-name", name, "--seed", seed))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    ]
    assert_same_run(runs[0], runs[1])
    assert not same_arrays(runs[0].policy, runs[2].policy)
    assert runs[0].evaluations[0]["episodic_returns"] != runs[2].evaluations[0]["episodic_returns"]


def test_lambda_0_leaves_the_model_as_it_was_pretrained(rambo):
    frozen = read_run(run_here(rambo, *PENDULUM, "--save-model", "--adv-weight", 0))
    assert same_arrays(frozen.dynamics_pretrained, frozen.dynamics)
    assert not any(key.startswith("model/") and key != "model/holdout_mse" for key in frozen.metrics[0])
    errors = [row["model/holdout_mse"] for row in frozen.metrics]
    assert errors[0] == errors[1]


@one_script
def test_any_other_lambda_trains_the_model(rambo):
    run = read_run(run_here(rambo, *PENDULUM, "--save-model", "--adv-weight", 1e-9))
    assert not same_arrays(run.dynamics_pretrained, run.dynamics)


def test_a_saved_model_spares_the_pretraining(rambo, capsys):
    first = read_run(run_here(rambo, *PENDULUM, "--save-model", "--adv-weight", 0))
    capsys.readouterr()
    model = first.folder / "dynamics_pretrained.npz"
    second = read_run(run_here(rambo, *PENDULUM, "--save-model", "--adv-weight", 0, "--seed", 2, "--load-model", model))
    assert "Pretraining" not in capsys.readouterr().err
    assert same_arrays(second.dynamics, first.dynamics)
    # Its hold-out rows are still those that it was not trained on, whatever the seed
    assert second.metrics[0]["model/holdout_mse"] == first.metrics[0]["model/holdout_mse"]


def test_real_ratio_1_trains_no_model(rambo, capsys):
    run = read_run(run_here(rambo, *PENDULUM, "--save-model", "--real-ratio", 1))
    assert "Pretraining" not in capsys.readouterr().err
    assert not list(run.folder.glob("dynamics*.npz"))
    assert all(key == "iteration" or key.startswith(("losses/", "charts/")) for key in run.metrics[0])


def test_behaviour_cloning_changes_the_policy_that_training_starts_from(rambo):
    flags = [*PENDULUM, "--save-model", "--real-ratio", 1, "--total-iterations", 0]
    fresh = read_run(run_here(rambo, *flags, "--exp-name", "fresh"))
    cloned = read_run(run_here(rambo, *flags, "--exp-name", "cloned", "--bc-epochs", 3))
    assert not same_arrays(fresh.policy, cloned.policy)
    assert [row["iteration"] for row in cloned.evaluations] == ["0"] and cloned.result["iteration"] == 0


def test_a_fixed_temperature_and_batches_from_the_model_alone(rambo):
    run = read_run(run_here(rambo, *PENDULUM, "--no-autotune", "--alpha", 0.25, "--real-ratio", 0))
    assert [float(row["losses/alpha"]) for row in run.metrics] == pytest.approx([0.25, 0.25])


def test_evaluations_keep_their_interval_and_the_last_ten_iterations_count(rambo):
    run = read_run(run_here(rambo, *PENDULUM, "--total-iterations", 13, "--eval-interval", 2, "--checkpoint-minutes", 0))
    assert [int(row["iteration"]) for row in run.evaluations] == [0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert not list(run.folder.glob("checkpoint*"))


# Going on after an interruption
LONG = [*PENDULUM, "--save-model", "--total-iterations", 5, "--model-max-pretrain-epochs", 4]
LONG += ["--checkpoint-minutes", 1e-9]  # at every iteration and every epoch of pretraining


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """A copy of the run that LONG makes if nothing interrupts it; each script makes it once."""
    made = {}

    def copy(rambo):
        if rambo not in made:
            with pytest.MonkeyPatch.context() as context:
                context.chdir(tmp_path_factory.mktemp("straight_run"))
                write_hdf5(Path("pendulum.hdf5"), pendulum_log())
                made[rambo] = run_here(rambo, *LONG, "--exp-name", "straight").absolute()
        return Path(shutil.copytree(made[rambo], "straight"))

    return copy


def test_a_resumed_run_ends_as_if_it_had_never_stopped(rambo, straight_run):
    straight = read_run(straight_run(rambo))
    folder = run_here(rambo, *LONG, "--exp-name", "resumed", "--total-iterations", 3)
    assert [row["iteration"] for row in read_run(folder).evaluations] == ["0", "1", "2", "3"]
    run_here(rambo, "--resume", folder, "--total-iterations", 5)
    resumed = read_run(folder)
    assert_same_run(straight, resumed)
    assert resumed.args["total_iterations"] == 5 and resumed.args["resume"] is None


def test_a_resumed_run_without_a_model_too(rambo):
    arguments = [*LONG, "--real-ratio", 1]
    straight = read_run(run_here(rambo, *arguments, "--exp-name", "straight"))
    folder = run_here(rambo, *arguments, "--exp-name", "resumed", "--total-iterations", 3)
    run_here(rambo, "--resume", folder, "--total-iterations", 5)
    resumed = read_run(folder)
    assert without(straight.evaluations, "seconds") == without(resumed.evaluations, "seconds")
    assert same_arrays(straight.policy, resumed.policy)


# Cuts a file off in the middle and kills this process, where the writer of these files thinks that it is done with number n
DIES_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import {module} as rambo
fsync, checkpoints = os.fsync, []
def dying_fsync(descriptor):
    if "{name}" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        checkpoints.append(descriptor)
        if len(checkpoints) == {n}:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying_fsync
rambo.main(rambo.parse_args(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the checkpoint's descriptor through /proc")
@pytest.mark.parametrize("name, evaluated", [("checkpoint", ["0", "1"]), ("pretraining", [])])
def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_previous_one_usable(rambo, script, straight_run, name, evaluated):
    """The third dies: the run goes on from iteration 1, or from the second epoch of its pretraining."""
    straight = read_run(straight_run(rambo))
    program = DIES_WHILE_WRITING.format(folder=str(ROOT), module=script.stem, name=name, n=3)
    command = [sys.executable, "-c", program, *map(str, LONG), "--exp-name", "killed"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (folder,) = Path("runs").glob("*killed*")
    assert [row["iteration"] for row in read_csv(folder / "evaluations.csv")] == evaluated
    run_here(rambo, "--resume", folder)
    assert not list(folder.glob("pretraining*")), "the first checkpoint takes its place"
    assert_same_run(straight, read_run(folder))


@one_script
def test_a_resumed_runs_tensorboard_has_every_step_once(rambo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_here(rambo, *PENDULUM, "--total-iterations", 0)
    for flags in (["1", "--checkpoint-minutes", 0], ["1", "--checkpoint-minutes", 1], ["3"]):  # from 0, from 0 again, from 1
        time.sleep(1.1)  # event files are named by the second in which they were opened
        run_here(rambo, "--resume", folder, "--total-iterations", *flags)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("losses/qf_loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("charts/episodic_return")] == [0, 1, 2, 3]


def test_a_finished_run_can_be_resumed_to_no_effect(rambo, straight_run):
    folder = straight_run(rambo)
    before = read_run(folder)
    run_here(rambo, "--resume", folder)
    assert_same_run(before, read_run(folder))


@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_ends_a_run_in_one_line_that_says_how_to_go_on(name):
    """Several seeds go on by the first one's folder."""
    command = [sys.executable, str(ROOT / name), *map(str, PENDULUM), "--total-iterations", "100000"]
    command += ["--seed", "4", *(["--num-seeds", "2"] if "jax" in name else [])]
    # A shell that runs the tests in the background lets them ignore SIGINT, and Python then does so as well
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **default)
    while process.poll() is None and not any(read_csv(path) for path in Path("runs").glob("*/metrics.csv")):
        time.sleep(0.1)
    stdout = stderr = ""
    for _ in range(3):  # one Ctrl-C may be lost in a callback of a library, as of XLA, which compiles now and then
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            stdout, stderr = process.communicate(timeout=60)
            break
    assert process.returncode not in (0, None) and "Traceback" not in stderr
    (folder,) = Path("runs").glob("*__4__*")
    assert f"Run folder: {folder}" in stdout
    assert stderr.strip().splitlines()[-1] == f"interrupted: --resume {folder} goes on from iteration 0"


@one_script
def test_a_refused_resume_leaves_the_runs_arguments_alone(rambo):
    """Else the next --resume would look for the wrong dataset."""
    folder = run_here(rambo, *PENDULUM)
    before = (folder / "args.json").read_text()
    write_hdf5(Path("other.hdf5"), pendulum_log(seed=1))
    with pytest.raises(rambo.InputError, match="another run, dataset or version"):
        run_here(rambo, "--resume", folder, "--dataset-path", "other.hdf5")
    assert (folder / "args.json").read_text() == before


@one_script
def test_a_row_that_a_crash_cut_off_is_forgotten(rambo):
    """Only the first digit of iteration 12 is left, which would be iteration 1."""
    args = rambo.parse_args([*PENDULUM, "--total-iterations", "11"])
    run = rambo.Run(args, rambo.load_dataset("Pendulum-v1", "pendulum.hdf5", rambo.make_env("Pendulum-v1")), "cpu")
    rows = ["iteration,value\n", *(f"{iteration},0.5\n" for iteration in range(1, 12))]
    for name in ("metrics.csv", "evaluations.csv"):
        (run.folder / name).write_text("".join(rows))
    checkpoint = run.state(11)
    for name in ("metrics.csv", "evaluations.csv"):
        with (run.folder / name).open("a") as file:
            file.write("1")
    (run.folder / "result.json").touch()
    run.go_on(checkpoint)
    assert not (run.folder / "result.json").exists(), "it is running again"
    for name in ("metrics.csv", "evaluations.csv"):
        assert (run.folder / name).read_text() == "".join(rows)


@one_script
def test_going_on_after_the_run_the_dataset_and_oneself_have_moved(rambo, tmp_path, monkeypatch):
    run_here(rambo, *PENDULUM).rename("best run #1")
    Path("data").mkdir()
    Path("pendulum.hdf5").rename("data/log.hdf5")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run_here(rambo, "--resume", "../best run #1", "--dataset-path", "../data/log.hdf5", "--total-iterations", 3)
    assert read_run(Path("../best run #1")).result["iteration"] == 3 and not Path("runs").exists()


def test_a_model_that_was_loaded_is_not_needed_to_go_on(rambo, straight_run):
    model = straight_run(rambo) / "dynamics_pretrained.npz"
    folder = run_here(rambo, *PENDULUM, "--load-model", model, "--seed", 2)
    model.unlink()
    run_here(rambo, "--resume", folder, "--total-iterations", 3)
    assert read_run(folder).result["iteration"] == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_goes_on_where_there_is_a_gpu_and_where_there_is_none(monkeypatch, device):
    """That of a CPU holds no random state of a GPU, that of a GPU one too many; it must be a tensor of the CPU."""
    torch, rambo = pytest.importorskip("torch"), importlib.import_module("rambo_continuous")
    folder = run_here(rambo, *PENDULUM, "--no-cuda")
    if device == "cpu":
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        checkpoint["cuda_rng_state"] = torch.zeros(16, dtype=torch.uint8)
        torch.save(checkpoint, folder / "checkpoint.pt")
    else:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # what the lines ask on a GPU
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.zeros(16, dtype=torch.uint8))
    run_here(rambo, "--resume", folder, "--total-iterations", 3)
    assert read_run(folder).result["iteration"] == 3
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["cuda_rng_state"]
    assert (state is None) == (device == "cpu")


def test_seeds_that_began_together_go_on_together():
    """Unless --num-seeds says otherwise; each seed's own args.json has one."""
    in_jax = importlib.import_module("rambo_continuous_jax")
    Path("first").mkdir()
    Path("first/args.json").write_text(json.dumps(vars(in_jax.Args()) | {"device": "cpu"}))
    Path("first/seeds.json").write_text('["first", "second"]')
    args = in_jax.parse_args(["--resume", "first"])
    assert [(own.seed, own.resume) for own in in_jax.split_seeds(args)] == [(1, "first"), (2, "second")]
    assert in_jax.parse_args(["--resume", "first", "--num-seeds", "1"]).num_seeds == 1


# Machines
@one_script
@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(37, "No locks available")])
def test_a_file_system_without_locks(rambo, monkeypatch, capsys, error):
    def acquire(self, *arguments, **options):
        raise error

    monkeypatch.setattr(rambo.FileLock, "acquire", acquire)
    assert read_run(run_here(rambo, *PENDULUM)).result["status"] == "finished"
    assert "cannot be locked" in capsys.readouterr().out


@one_script
def test_where_runs_leads(rambo, tmp_path):
    """To another disk; to one that is away; it is a file."""
    (tmp_path / "disk").mkdir()
    Path("runs").symlink_to(tmp_path / "disk")
    assert run_here(rambo, *PENDULUM, "--total-iterations", 0).resolve().parent == tmp_path / "disk"
    shutil.rmtree("disk")
    with pytest.raises(rambo.InputError, match=f"no run folder can be made in {tmp_path}/disk .FileExistsError"):
        run_here(rambo, *PENDULUM)
    Path("runs").unlink()
    Path("runs").touch()
    with pytest.raises(rambo.InputError, match=f"no run folder can be made in {tmp_path}/runs .FileExistsError"):
        run_here(rambo, *PENDULUM)


@one_script
def test_the_programs_way_in_and_the_saved_policys_way_out(rambo):
    """Dataset's defaults, checks, a result, and actions in the environment's bounds."""
    flags = ["--env-id", "halfcheetah-random-v2", "--seed", "3"]
    assert rambo.make_args("halfcheetah-random-v2", seed=3) == rambo.parse_args(flags)
    with pytest.raises(rambo.InputError, match="--num-elites must divide"):
        rambo.main(rambo.Args(num_elites=3))
    result = rambo.main(rambo.parse_args([*PENDULUM]))
    run = only_run()
    assert {**run.result, "folder": str(run.folder)} == result
    policy, env = rambo.load_policy(run.folder / "policy.npz"), rambo.make_env("Pendulum-v1")
    observations = np.random.default_rng(0).normal(size=(20, 3))
    expected = 2 * plain_policy(run.policy)(observations)
    np.testing.assert_allclose(policy(observations), expected, rtol=1e-4)
    assert env.action_space.contains(policy(observations[0]))
    with pytest.raises(rambo.InputError, match="holds no policy"):
        rambo.load_policy(run.folder / "args.json")


@pytest.mark.parametrize("host", ["a stream that can write alone", "no stream"])
def test_where_the_output_goes(host, tmp_path):
    """A notebook's streams; none."""
    program = f"""
import runpy, sys
class Stream:
    encoding = "UTF-8"
    write, flush, isatty = sys.__stderr__.write, sys.__stderr__.flush, sys.__stderr__.isatty
sys.argv = [{str(ROOT / "rambo_continuous.py")!r}, *sys.argv[1:]]
sys.stdout = Stream() if {host!r} != "no stream" else None
sys.stderr = Stream() if {host!r} != "no stream" else None
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    process = subprocess.run([sys.executable, "-c", program, *map(str, PENDULUM)], capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    assert only_run().result["status"] == "finished"


@one_script
def test_runs_that_start_in_the_same_second_get_folders_of_their_own(rambo):
    now = int(time.time())
    for second in range(now - 1, now + 60):
        Path(f"runs/Pendulum-v1__{rambo.__name__}__1__{second}").mkdir(parents=True)
    folder = run_here(rambo, *PENDULUM, "--total-iterations", 0)
    assert int(folder.name.split("__")[-1]) == now + 60


@one_script
def test_two_processes_do_not_train_in_one_folder(rambo):
    folder = run_here(rambo, *PENDULUM)
    metrics = (folder / "metrics.csv").read_text()
    with FileLock(folder / ".lock"), pytest.raises(rambo.InputError, match="another process trains in it"):
        run_here(rambo, "--resume", folder, "--total-iterations", 3)
    assert (folder / "metrics.csv").read_text() == metrics
    run_here(rambo, "--resume", folder, "--total-iterations", 3)
    assert len(read_run(folder).metrics) == 3


@one_script
def test_a_disk_that_is_full_while_a_checkpoint_is_written(rambo, monkeypatch, straight_run):
    """One line, and no half-written file that keeps the disk full; the last checkpoint stays."""
    folder = straight_run(rambo)
    (checkpoint,) = folder.glob("checkpoint.*")
    content = checkpoint.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context, pytest.raises(rambo.InputError, match="checkpoint.*No space left"):
        context.setattr(os, "fsync", lambda fd: full(fd) if "checkpoint" in os.readlink(f"/proc/self/fd/{fd}") else None)
        run_here(rambo, "--resume", folder, "--total-iterations", 6, "--checkpoint-minutes", 10)
    assert checkpoint.read_bytes() == content and not list(folder.glob("*.tmp"))
    assert rambo.CHECKPOINTS.pop(folder) == 5, "Ctrl-C would name a checkpoint that is not there"


@one_script
def test_a_disk_that_is_full_while_tensorboards_events_are_written(rambo, monkeypatch):
    """Its writer has a thread, in which the error would end as a traceback, and the run then hang on the thread's queue."""

    def full(self, event):
        raise OSError(28, "No space left on device")

    run = rambo.Run(
        rambo.parse_args(PENDULUM), rambo.load_dataset("Pendulum-v1", "pendulum.hdf5", rambo.make_env("Pendulum-v1")), "cpu"
    )
    run.log(1, {"losses/qf_values": 1.0})
    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)
    with pytest.raises(OSError, match="No space left"):
        run.log(2, {"losses/qf_values": 1.0})


class Wandb(types.ModuleType):
    """What this project uses of wandb, and the ids that wandb refuses."""

    def __init__(self, problem=None):
        super().__init__("wandb")
        self.__spec__, self.problem, self.calls = ModuleSpec("wandb", None), problem, []

    def init(self, **options):
        self.calls.append(options)
        if self.problem or len(options["id"]) > 128 or set(options["id"]) & set("/\\#?%: "):
            raise RuntimeError(self.problem or f"invalid id {options['id']}")

    def finish(self, exit_code):
        self.calls.append(exit_code)


@one_script
def test_wandb_ids_that_it_accepts_and_that_a_resumed_run_keeps(rambo, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = run_here(rambo, *PENDULUM, "--track", "--exp-name", "k=5, λ: a/b #1? 100% " + "long" * 40)
    assert folder.parent == Path("runs") and folder.is_dir()
    run_here(rambo, "--resume", folder, "--total-iterations", 3)
    assert wandb.calls[0]["id"] == wandb.calls[2]["id"]
    assert wandb.calls[1::2] == [0, 0], "else another run of this process would go on with the same one"


@one_script
def test_tracking_without_a_login_leaves_no_run_folder(rambo, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb("No API key configured."))
    with pytest.raises(rambo.InputError, match="wandb login.*No API key"):
        run_here(rambo, *PENDULUM, "--track")
    assert not list(Path("runs").iterdir())


def test_jax_set_to_64_bits():
    jax = pytest.importorskip("jax")
    rambo = importlib.import_module("rambo_continuous_jax")
    jax.config.update("jax_enable_x64", True)
    try:
        run = read_run(run_here(rambo, *PENDULUM, "--save-model"))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert run.policy["fc1.weight"].dtype == np.float32 and run.result["status"] == "finished"


# Divergence
def test_a_diverging_value_function_stops_the_run_with_exit_code_3(script):
    process = run_as_main(script, *PENDULUM, "--q-lr", 1e3)
    assert process.returncode == 3
    last_line = process.stderr.strip().splitlines()[-1]
    assert last_line.startswith("error: ") and "diverged in iteration 1" in last_line and "Traceback" not in process.stderr
    run = only_run()
    assert run.result["status"] == "diverged"
    assert 1e10 < float(run.metrics[-1]["losses/max_abs_qf_value"]) < np.inf, "finite, but no value any more"
    assert "mean of the last" not in process.stdout, "no score is announced for a diverged run"


def test_other_ways_to_diverge(rambo, subtests, tmp_path, monkeypatch):
    """The pretraining, the actor, the model, a critic that is not a number, the cloning, and the actor in the very last
    update, which no loss sees: each is noticed and marked."""
    ways = [
        "--model-lr 1e30",
        "--policy-lr 1e30 --real-ratio 1",
        "--adv-weight 1e38",
        "--q-lr 1e20 --real-ratio 1",
        "--policy-lr 1e30 --real-ratio 1 --bc-epochs 1 --total-iterations 0",
        "--policy-lr 1e38 --real-ratio 1 --total-iterations 1 --updates-per-iteration 1",
    ]
    for i, flags in enumerate(ways):
        with subtests.test(flags=flags):
            (tmp_path / str(i)).mkdir()
            monkeypatch.chdir(tmp_path / str(i))
            write_hdf5(Path("pendulum.hdf5"), pendulum_log())
            with pytest.raises(rambo.Diverged) as error:
                run_here(rambo, *PENDULUM, *flags.split())
            assert "diverged" in str(error.value) and "\n" not in str(error.value)
            assert only_run().result["status"] == "diverged"


def test_diverged_is_marked_as_well_when_rewards_blow_up(rambo):
    log = pendulum_log()
    log["rewards"] = log["rewards"] * 1e30
    write_hdf5(Path("pendulum.hdf5"), log)
    with pytest.raises(rambo.Diverged):
        run_here(rambo, *PENDULUM)
    assert only_run().result["status"] == "diverged"


# The file on its own
def test_importing_the_scripts_does_nothing(tmp_path):
    program = f"""
import os, random, socket, sys
import flax.nnx, gymnasium, jax, mujoco, numpy, optax, tensorboardX, torch  # what these set is their affair
def no_network(*arguments, **options):
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = no_network
sys.argv = ["program", "--no-such-flag"]
sys.path.insert(0, {str(ROOT)!r})
before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ)
import rambo_continuous, rambo_continuous_jax
after = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ)
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
assert not torch.are_deterministic_algorithms_enabled()
assert not torch.cuda.is_initialized()
"""
    (tmp_path / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path / "empty", env=environment)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert not list((tmp_path / "empty").iterdir())


def test_the_script_runs_when_copied_alone_and_where_the_terminal_lacks_letters(script, tmp_path):
    shutil.copy(script, tmp_path)
    Path("pendulum.hdf5").rename("données 日本.hdf5")
    flags = [*PENDULUM, "--dataset-path", "données 日本.hdf5"]
    process = run_script(tmp_path / script.name, *flags, PYTHONPATH="", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert process.returncode == 0, process.stderr
    assert only_run().result["status"] == "finished"


def test_a_bundled_dataset_that_is_not_there_is_explained(script, tmp_path):
    shutil.copy(script, tmp_path)
    process = run_as_main(tmp_path / script.name, "--env-id", "pendulum-mini")
    assert process.returncode == 1
    assert "--dataset-path" in process.stderr and len(process.stderr.strip().splitlines()) == 1
