"""What a user can get wrong: one line that says how to put it right, a non-zero exit, no traceback, nothing left behind."""

import dataclasses
import importlib
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY, hopper_log, pendulum_log, run_as_main, run_here, write_hdf5

# The plumbing is word for word the same in both scripts, see test_twins.py: one of them is enough
one_script = pytest.mark.parametrize("rambo", [importlib.import_module("rambo_continuous")], ids=["torch"])


@pytest.fixture(autouse=True)
def in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def snapshot():
    """Every file below the current folder with its content."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def refused(rambo, *arguments):
    """The one line with which a command is refused; nothing on disk may have changed."""
    before = snapshot()
    with pytest.raises(rambo.InputError) as error:
        rambo.main(rambo.parse_args([*map(str, arguments)]))
    message = str(error.value)
    assert message and "\n" not in message
    assert snapshot() == before, "a file was left behind, or changed"
    return message


def assert_matches(message, *patterns):
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in {message!r}"


def hopper(**changes):
    """hopper_log with some columns replaced; None takes a column out."""
    log = hopper_log() | changes
    return {key: column for key, column in log.items() if column is not None}


def with_value(key, row, value):
    column = hopper_log()[key].copy()
    column[row] = value
    return {key: column}


def forty_episodes(**changes):
    """Of which 20 terminate; without the count of rows, which the rule would take for an unhealthy state."""
    log = hopper_log(40)
    log["observations"][:, 2] = log["next_observations"][:, 2] = 0
    return log | changes


BAD_COLUMNS = {
    "missing keys": (dict(rewards=None, terminals=None), "lacks rewards, terminals"),
    "an empty file": (dict.fromkeys(hopper_log()), "lacks observations"),
    "no rows": ({key: column[:0] for key, column in hopper_log().items()}, "too few"),
    "ten rows": ({key: column[:10] for key, column in hopper_log().items()}, "too few"),
    "numbers instead of arrays": (dict.fromkeys(hopper_log(), 1.0), "has shape"),
    "numbers and no next observations": (dict.fromkeys(hopper_log(), 1.0) | dict(next_observations=None), "has shape"),
    "another environment's observations": (dict(observations=np.zeros((48, 17))), r"observations.*\(48, 17\).*\(48, 11\)"),
    "other next observations": (dict(next_observations=np.zeros((48, 12))), r"next_observations.*\(48, 12\)"),
    "actions of two dimensions": (dict(actions=np.zeros((48, 2))), r"actions.*\(48, 2\).*\(48, 3\)"),
    "flat actions": (dict(actions=np.zeros(48)), r"actions.*\(48,\)"),
    "rewards in two columns": (dict(rewards=np.zeros((48, 2))), r"rewards.*\(48, 2\)"),
    "terminals in two columns": (dict(terminals=np.zeros((48, 2))), r"cannot be read.*\(48,"),
    "columns of different lengths": (dict(rewards=np.zeros(47)), "observations has shape"),
    "different lengths, no next observations": (dict(rewards=np.zeros(47), next_observations=None), "columns of one length"),
    "text": (dict(rewards=np.array([b"one"] * 48)), "rewards of .* cannot be read as numbers"),
    "NaN in the observations": (with_value("observations", (7, 3), np.nan), "observations.*NaN.*row 7"),
    "infinity in the rewards": (with_value("rewards", 9, np.inf), "rewards.*infinity in row 9"),
    "NaN in the next observations": (with_value("next_observations", (11, 0), np.nan), "next_observations.*row 11"),
    "NaN in the actions": (with_value("actions", (0, 0), np.nan), "actions.*row 0"),
    "more than float32 can hold": (dict(observations=hopper_log()["observations"].astype(float) * 1e39), "observations"),
    "actions above their bounds": (with_value("actions", (5, 1), 1.5), "actions.*bounds"),
    "actions below their bounds": (with_value("actions", (5, 1), -1.5), "actions.*bounds"),
    "terminals that contradict the rule": (
        dict(terminals=np.arange(48) % 2, next_observations=hopper_log()["next_observations"] * 1.001), "terminals.*rule"
    ),
    "states that all end an episode": (dict(next_observations=np.zeros((48, 11))), "terminals.*rule"),
    "time-outs as terminals": (forty_episodes(terminals=np.arange(480) % 12 == 11), "20 of 40 terminals contradict"),
    "no terminals where the rule ends": (forty_episodes(terminals=np.zeros(480)), "20 of 20 terminals contradict"),
}


@one_script
def test_bad_columns(rambo, subtests):
    for case in BAD_COLUMNS:
        with subtests.test(case=str(case)):
            changes, pattern = BAD_COLUMNS[case]
            write_hdf5(Path("bad.hdf5"), hopper(**changes))
            message = refused(rambo, "--env-id", "hopper-medium-v2", "--dataset-path", "bad.hdf5", *TINY)
            assert_matches(message, pattern, "bad.hdf5")


@one_script
def test_nobody_is_told_to_delete_a_file(rambo, monkeypatch):
    """It may be the only copy, locked by the process that records it."""

    def locked(*arguments):
        raise BlockingIOError("unable to lock file")

    write_hdf5(Path("log.hdf5"), hopper_log())
    monkeypatch.setattr(h5py, "File", locked)
    message = refused(rambo, "--dataset-path", "log.hdf5")
    assert_matches(message, "log.hdf5 cannot be read", "unable to lock file")
    assert "delete" not in message


def test_files_that_are_no_hdf5(rambo):
    Path("text.hdf5").write_text("observations, actions\n")
    Path("empty.hdf5").touch()
    whole = write_hdf5(Path("whole.hdf5"), hopper_log()).read_bytes()
    Path("truncated.hdf5").write_bytes(whole[: len(whole) // 2])
    for name in ("text.hdf5", "empty.hdf5", "truncated.hdf5"):
        assert_matches(refused(rambo, "--dataset-path", name), f"{name} cannot be read as HDF5")


@one_script
def test_a_dataset_file_with_damaged_chunks(rambo):
    """The file opens, but a compressed column cannot be read."""
    with h5py.File("damaged.hdf5", "w") as file:
        for key, column in hopper_log(episodes=400).items():
            file.create_dataset(key, data=column, compression="gzip", fletcher32=True)
    data = bytearray(Path("damaged.hdf5").read_bytes())
    data[len(data) // 3 : len(data) // 3 + 100] = bytes(100)
    Path("damaged.hdf5").write_bytes(data)
    assert_matches(refused(rambo, "--dataset-path", "damaged.hdf5"), "damaged.hdf5 cannot be read")


@one_script
def test_columns_that_are_groups(rambo):
    with h5py.File("groups.hdf5", "w") as file:
        file.create_group("observations")
    assert_matches(refused(rambo, "--dataset-path", "groups.hdf5"), "lacks observations")


@one_script
def test_paths_that_are_no_file(rambo):
    Path("folder").mkdir()
    for path in ("nowhere.hdf5", "folder"):
        assert_matches(refused(rambo, "--dataset-path", path), path, "no such file")


BAD_IDS = {
    "hoper-medium-v2": "hopper-medium-v2",
    "hopper-medum-v2": "hopper-medium-v2",
    "hopper-medium-v0": "hopper-medium-v2",
    "hopper_medium_replay-v2": "hopper-medium-replay-v2",
    "pendulum-mimi": "pendulum-mini",
    "Hoper-v4": "Hopper-v4",
    "Pendulum-v1": "that is an environment. Or give --dataset-path",
    "hopper-sbx-medium-v2": "rebuild.py makes it",
    "": "hopper",
    "no-such-thing-at-all": "hopper",
}


@one_script
def test_unknown_ids_come_with_a_suggestion(rambo, subtests):
    for env_id in BAD_IDS:
        with subtests.test(env_id=str(env_id)):
            assert_matches(refused(rambo, "--env-id", env_id), BAD_IDS[env_id])


@one_script
def test_environments_that_rambo_cannot_learn(rambo):
    write_hdf5(Path("any.hdf5"), hopper(actions=np.zeros((48, 1))))  # the shapes of InvertedDoublePendulum
    for env_id, pattern in {
        "CartPole-v1": "continuous actions", "FrozenLake-v1": "flat observations",
        "InvertedDoublePendulum-v4": "no termination rule.*InvertedDoublePendulum",
    }.items():  # fmt: skip
        assert_matches(refused(rambo, "--env-id", env_id, "--dataset-path", "any.hdf5"), pattern)


@one_script
def test_a_minari_id_that_does_not_exist(rambo, monkeypatch, tmp_path):
    pytest.importorskip("minari", reason="the optional package minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path.parent / "minari"))
    assert_matches(refused(rambo, "--env-id", "mujoco/hoper/medium-v0"), "mujoco/hoper/medium-v0")


@one_script
def test_optional_packages_that_are_missing(rambo, monkeypatch):
    path = write_hdf5(Path("hopper.hdf5"), hopper_log())
    for package, flags in {
        "minari": ["--env-id", "mujoco/hopper/medium-v0"],
        "wandb": ["--track", "--dataset-path", path, *TINY],
        "moviepy": ["--capture-video", "--dataset-path", path, *TINY],
    }.items():
        with monkeypatch.context() as context:
            context.setitem(sys.modules, package, None)
            assert_matches(refused(rambo, *flags), f"pip install '?{package}")


BAD_FLAGS = {
    "--gamma 1.5": "--gamma",
    "--gamma nan": "--gamma",
    "--tau 0": "--tau",
    "--real-ratio 1.5": "--real-ratio",
    "--real-ratio 0.999": "--real-ratio must leave a row of the dataset and one of the model",
    "--real-ratio 0.001": "--real-ratio must leave a row of the dataset and one of the model",
    "--adv-weight -1": "--adv-weight",
    "--adv-weight inf": "--adv-weight",
    "--num-elites 8": "--num-elites",
    "--num-elites 0": "--num-elites",
    "--num-elites 3": "--num-elites must divide --rollout-batch-size",
    "--rollout-batch-size 0": "--rollout-batch-size",
    "--rollout-length 0": "--rollout-length",
    "--rollout-retain-iterations 0": "--rollout-retain-iterations",
    "--batch-size 0": "--batch-size",
    "--updates-per-iteration 0": "--updates-per-iteration",
    "--total-iterations -1": "--total-iterations",
    "--policy-lr 0": "--policy-lr",
    "--q-lr -1": "--q-lr",
    "--model-lr nan": "--model-lr",
    "--alpha 0": "--alpha",
    "--bc-epochs -1": "--bc-epochs",
    "--eval-episodes 0": "--eval-episodes",
    "--eval-interval 0": "--eval-interval",
    "--checkpoint-minutes -5": "--checkpoint-minutes",
    "--seed -1": "--seed",
    "--seed 36893488147419103232": "--seed",
    "--load-model nowhere.npz": "nowhere.npz",
    "--resume runs/nowhere": "runs/nowhere",
}


@one_script
def test_flags_out_of_range_or_that_make_no_sense_together(rambo, subtests):
    for flags in BAD_FLAGS:
        with subtests.test(flags=str(flags)):
            write_hdf5(Path("hopper.hdf5"), hopper_log())
            assert_matches(refused(rambo, "--dataset-path", "hopper.hdf5", *TINY, *flags.split()), BAD_FLAGS[flags])


@pytest.mark.parametrize("compiler", [None, "", "nowhere/c++", "g++"])  # Inductor takes CXX as the name of a program
def test_compiling_without_a_compiler(monkeypatch, compiler):
    rambo = importlib.import_module("rambo_continuous")  # the JAX script needs none
    monkeypatch.delenv("CXX", raising=False)
    if compiler:
        monkeypatch.setenv("CXX", f"ccache {compiler}")
    else:
        monkeypatch.setenv("PATH", str(Path("empty").absolute()))
        if compiler == "":
            monkeypatch.setenv("CXX", "")
    assert_matches(refused(rambo, "--compile"), "--compile.*compiler", "CXX")
    monkeypatch.setenv("CXX", sys.executable)
    assert rambo.parse_args(["--compile"]).compile


def test_numbers_of_seeds_that_make_no_sense(subtests):
    twin = importlib.import_module("rambo_continuous_jax")
    for flags in (["--num-seeds", "0"], ["--num-seeds", "2", "--track"], ["--num-seeds", "2", "--seed", str(2**32 - 1)]):
        with subtests.test(flags=str(flags)):
            assert_matches(refused(twin, *flags), "-seed")


@one_script
def test_a_model_without_a_use(rambo):
    Path("model.npz").touch()
    assert_matches(refused(rambo, "--load-model", "model.npz", "--real-ratio", 1), "--load-model", "--real-ratio")


# Models and checkpoints of other runs
TWO_RUNS = pytest.mark.xdist_group("two_runs")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A function that puts run1 and run2, of one dataset and two seeds, into the current folder; each is trained once."""
    made = {}

    def make(rambo):
        if rambo.__name__ not in made:
            folder = tmp_path_factory.mktemp("two_runs")
            with pytest.MonkeyPatch.context() as context:
                context.chdir(folder)
                write_hdf5(Path("pendulum.hdf5"), pendulum_log())
                flags = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY, "--save-model"]
                for seed in (1, 2):
                    run_here(rambo, *flags, "--seed", seed).rename(f"run{seed}")
            made[rambo.__name__] = folder
        shutil.copytree(made[rambo.__name__], ".", dirs_exist_ok=True)
        return ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY]

    return make


@TWO_RUNS
def test_models_that_do_not_fit(rambo, two_runs):
    flags = two_runs(rambo)
    np.save("array.npy", np.zeros(3))
    np.savez("other.npz", weights=np.zeros(3))
    np.savez("pickled.npz", weights=np.array([{"a": 1}], dtype=object))
    Path("text.npz").write_text("no zip")
    whole = Path("run1/dynamics_pretrained.npz").read_bytes()
    Path("truncated.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("array.npy", "other.npz", "pickled.npz", "text.npz", "truncated.npz", "run1/policy.npz"):
        assert_matches(refused(rambo, *flags, "--load-model", name), name)
    assert_matches(refused(rambo, *flags, "--load-model", "run1/dynamics.npz"), "adversary: take dynamics_pretrained.npz")
    message = refused(rambo, *flags, "--load-model", "run1/dynamics_pretrained.npz", "--model-hidden-dim", 16)
    assert_matches(message, "dynamics_pretrained.npz")
    message = refused(rambo, *flags, "--load-model", "run1/dynamics_pretrained.npz", "--num-elites", 4)
    assert_matches(message, "dynamics_pretrained.npz")


@TWO_RUNS
def test_a_model_of_another_dataset(rambo, two_runs):
    flags = two_runs(rambo)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log(seed=1))
    assert_matches(refused(rambo, *flags, "--load-model", "run1/dynamics_pretrained.npz"), "another dataset")


@TWO_RUNS
def test_a_model_of_the_same_observations_with_something_else_changed(rambo, two_runs, subtests):
    for changed in ["rewards", "actions", "next_observations"]:
        with subtests.test(changed=str(changed)):
            flags, log = two_runs(rambo), pendulum_log()
            write_hdf5(Path("pendulum.hdf5"), log | {changed: log[changed] * 0.5})
            assert_matches(refused(rambo, *flags, "--load-model", "run1/dynamics_pretrained.npz"), "another dataset")


def checkpoint_file(folder):
    """The one file that holds the checkpoint: checkpoint.pt, checkpoint.npz, ..."""
    (path,) = Path(folder).glob("checkpoint.*")
    return path


@TWO_RUNS
def test_checkpoints_that_cannot_be_gone_on_from(rambo, two_runs):
    two_runs(rambo)
    checkpoint = checkpoint_file("run1")
    whole = checkpoint.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:-10]):
        checkpoint.write_bytes(content)
        assert_matches(refused(rambo, "--resume", "run1"), "run1", "checkpoint")
    checkpoint.unlink()
    assert_matches(refused(rambo, "--resume", "run1"), "run1", "checkpoint")


@TWO_RUNS
def test_a_checkpoint_of_other_networks_leaves_the_run_as_it_was(rambo, two_runs):
    two_runs(rambo)
    path, texts = checkpoint_file("run1"), {file: file.read_text() for file in Path("run1").glob("*.[cj]s*")}
    if path.suffix == ".pt":
        checkpoint = torch.load(path)
        checkpoint["states"][0].popitem()
        torch.save(checkpoint, path)
    else:
        np.savez(path, **{name: array for name, array in np.load(path).items() if "critic.fc1" not in name})
    assert_matches(refused(rambo, "--resume", "run1", "--total-iterations", "3"), "run1", "checkpoint")
    assert len(texts) > 3 and all(file.read_text() == text for file, text in texts.items())


class Exploit:
    """Unpickling this writes a file."""

    def __reduce__(self):
        return (Path.write_text, (Path("exploited"), "code was executed"))


@TWO_RUNS
def test_a_checkpoint_with_pickled_code_is_refused_and_the_code_not_run(rambo, two_runs):
    two_runs(rambo)
    checkpoint_file("run1").write_bytes(pickle.dumps(Exploit()))
    refused(rambo, "--resume", "run1")
    torch.save({"states": Exploit()}, checkpoint_file("run1"))
    refused(rambo, "--resume", "run1")
    assert not Path("exploited").exists()


@TWO_RUNS
def test_a_checkpoint_of_another_run(rambo, two_runs):
    two_runs(rambo)
    shutil.copy(checkpoint_file("run2"), checkpoint_file("run1"))
    assert_matches(refused(rambo, "--resume", "run1"), "run1", "another run")


@TWO_RUNS
def test_resuming_with_another_dataset_in_the_same_place(rambo, two_runs):
    two_runs(rambo)
    write_hdf5(Path("pendulum.hdf5"), pendulum_log(seed=1))
    assert_matches(refused(rambo, "--resume", "run1"), "another run, dataset or version")


@TWO_RUNS
def test_arguments_that_contradict_the_run_to_go_on_with(rambo, two_runs):
    two_runs(rambo)
    assert_matches(refused(rambo, "--resume", "run1", "--total-iterations", 0), "iteration \\d, raise --total-iterations")
    for flags in (["--seed", 7], ["--gamma", 0.5], ["--load-model", "other.npz"], ["--env-id", "hopper-medium-v2"]):
        old = getattr(rambo.parse_args(["--resume", "run1"]), flags[0].removeprefix("--").replace("-", "_"))
        assert_matches(refused(rambo, "--resume", "run1", *flags), f"that run has {flags[0]} {old}; leave it out")
    message = refused(rambo, "--resume", "run1", "--seed", 7, "--tau", 0.5)
    assert_matches(message, "--seed 1", "--tau 0.005")
    assert rambo.parse_args(["--resume", "run1", "--wandb-project-name", "another"]).wandb_project_name == "another"


@TWO_RUNS
@one_script
def test_a_run_folder_whose_arguments_are_damaged(rambo, two_runs, subtests):
    for content in ["", "[]", "{", '{"seed": 1, "no_such_field": 2}', '"text"']:
        with subtests.test(content=str(content)):
            two_runs(rambo)
            Path("run1/args.json").write_text(content)
            assert_matches(refused(rambo, "--resume", "run1"), "run1", "args.json")
    Path("run1/args.json").write_text('{"num_seeds": 1}')
    assert_matches(refused(rambo, "--resume", "run1"), "run1: a run of the other script.*rambo_continuous_jax.py")


@TWO_RUNS
def test_a_run_of_an_older_script_without_some_field_goes_on_with_its_default(rambo, two_runs):
    """No refusal, and no crash: args.json of today without checkpoint_minutes."""
    two_runs(rambo)
    args = json.loads(Path("run1/args.json").read_text())
    del args["checkpoint_minutes"]
    Path("run1/args.json").write_text(json.dumps(args))
    assert rambo.parse_args(["--resume", "run1"]).checkpoint_minutes == rambo.Args().checkpoint_minutes


# The command line itself
def test_the_command_line_says_it_in_one_line_and_exits_with_1(script, subtests):
    for arguments, pattern in [
        ("--env-id hoper-medium-v2", "hopper-medium-v2"),
        ("--dataset-path nowhere.hdf5", "nowhere.hdf5"),
        ("--dataset-path nan.hdf5", "NaN"),
        ("--dataset-path text.hdf5", "HDF5"),
        ("--gamma 2", "--gamma"),
        ("--resume runs/nowhere", "runs/nowhere"),
    ]:
        with subtests.test(arguments=str(arguments), pattern=str(pattern)):
            write_hdf5(Path("nan.hdf5"), hopper(**with_value("observations", (7, 3), np.nan)))
            Path("text.hdf5").write_text("observations")
            before = snapshot()
            process = run_as_main(script, *arguments.split())
            assert process.returncode == 1
            lines = process.stderr.strip().splitlines()
            assert len(lines) == 1 and lines[0].startswith("error: "), process.stderr
            assert_matches(lines[0], pattern)
            assert snapshot() == before


@one_script
def test_flags_that_tyro_cannot_parse(rambo, capsys, subtests):
    for arguments in ["--no-such-flag", "--seed one", "--gamma", "positional"]:
        with subtests.test(arguments=str(arguments)):
            with pytest.raises(SystemExit) as error:
                rambo.parse_args(arguments.split())
            assert error.value.code not in (0, None)
            assert not Path("runs").exists() and "Traceback" not in capsys.readouterr().err


@one_script
def test_switches_as_sweep_agents_write_them(rambo):
    for words in ("--autotune=False", "--autotune false", "--no-autotune", "--no_autotune"):
        assert not rambo.parse_args(words.split()).autotune, words
    args = rambo.parse_args("--save_model=True --exp-name false --autotune true --seed=3 --checkpoint_interval 50".split())
    assert (args.save_model, args.exp_name, args.autotune, args.seed) == (True, "false", True, 3)


def test_help_explains_every_flag_with_the_datasets_defaults(rambo, capsys):
    with pytest.raises(SystemExit) as error:
        rambo.parse_args(["--env-id", "hopper-mini-v2", "--help"])
    assert not error.value.code
    text = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    for field in dataclasses.fields(rambo.Args):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Algorithm 1) (default: 40)" in text
