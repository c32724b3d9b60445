"""Runs the training commands that the lists of this folder pipe into it, one `python SCRIPT --flag ...` a line.

    DRY_RUN=1   print the commands that would run, and run none
    WORKERS=4   so many at once (default: 1), which share the cores (unless OMP_NUM_THREADS for torch, NPROC for JAX are set)
    GROUP=7     only one dataset and seed of the list, counted from 0: what one task of a Slurm array does
    SHARE_ENSEMBLE=1   the seeds of a dataset share one pretrained ensemble, the lowest seed's that there is, and one GROUP

A run that is finished with the same arguments (runs/*/args.json, result.json) is skipped, one that broke off is resumed from
its checkpoint. The ensemble of a dataset and seed is pretrained once, the first command gets --save-model, and is loaded by
all others, of other lists too. Every run writes to runs/logs/; two runners can share a folder: a run whose
output file is locked is another's.

Exit code: 0 if every run of the list is finished, 1 if one failed, diverged or belongs to another runner, or if a command is
wrong (then nothing was started).
"""

import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RUNS = Path("runs")
POLL_SECONDS = 0.5
RESUMED_FROM = ("checkpoint.pt", "checkpoint.npz", "pretraining.pt", "pretraining.npz")
# Arguments without influence on the result, which a run may have or not; checkpoint_interval: of older versions
IRRELEVANT = "resume load_model save_model checkpoint_minutes checkpoint_interval checkpoint_buffer capture_video cuda"
IRRELEVANT += " device num_seeds eval_workers compile cudagraphs track wandb_project_name wandb_entity"
# The same for runs on the dataset alone (--real-ratio 1): arguments of the model and its rollouts, by the start of their names
OF_THE_MODEL = ("model_", "num_models", "num_elites", "rollout_", "halt_", "adv_", "norm_adv")
# What the pretrained ensemble depends on
PRETRAINING = "env_id dataset_path seed batch_size num_models num_elites model_hidden_dim model_lr model_max_pretrain_epochs"


class CommandError(Exception):
    """A line of the list, or a setting, with which nothing can be run."""


def relevant(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the result depends on: where they are equal, one run stands for the other."""
    unused = OF_THE_MODEL if args.get("real_ratio") == 1 else ()
    return {key: value for key, value in args.items() if key not in IRRELEVANT.split() and not key.startswith(unused)}


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; an empty one where the file is missing or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def find_folders(args: dict[str, Any]) -> list[Path]:
    """The run folders of this script with these arguments, newest first. The last parts of their names are seed and time."""
    saved = {folder: read_json(folder / "args.json") for folder in RUNS.glob(f"*__{args['seed']}__*")}
    same_script = {folder: own for folder, own in saved.items() if ("num_seeds" in own) == ("num_seeds" in args)}
    found = [folder for folder, own in same_script.items() if relevant(own) == relevant(args)]
    return sorted(found, key=lambda folder: folder.name.rpartition("__")[2], reverse=True)


def find_state(args: dict[str, Any]) -> tuple[str, Path | None]:
    """finished, diverged, resumable (there is a checkpoint) or new, and the run folder that says so."""
    states = {}
    for folder in find_folders(args):
        result = read_json(folder / "result.json")
        if result.get("status") == "diverged" or result.get("iteration") == args["total_iterations"]:
            states.setdefault(result["status"], folder)
        elif any((folder / name).exists() for name in RESUMED_FROM):
            states.setdefault("resumable", folder)
    best = next((state for state in ("finished", "diverged", "resumable") if state in states), "new")
    return best, states.get(best)


@functools.cache
def warn(text: str) -> None:
    """Once."""
    print(text, file=sys.stderr, flush=True)


def switched_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def pretraining(args: dict[str, Any]) -> tuple:
    """What the pretrained ensemble depends on. JAX's arguments have num_seeds, torch's have not."""
    keys = [key for key in PRETRAINING.split() if not (key == "seed" and switched_on("SHARE_ENSEMBLE"))]
    return ("num_seeds" in args, *(args.get(key) for key in keys))


def find_ensemble(args: dict[str, Any]) -> Path | None:
    """The ensemble that another run has pretrained for these arguments: the lowest seed's, the newest."""
    found = [(read_json(model.parent / "args.json"), model) for model in RUNS.glob("*/dynamics_pretrained.npz")]
    models = [(own["seed"], model) for own, model in found if own and pretraining(own) == pretraining(args)]
    lowest = min((seed for seed, _ in models), default=None)
    newest = sorted((model.parent.name.rpartition("__")[2], model) for seed, model in models if seed == lowest)
    return newest[-1][1] if newest else None


def can_go_on_together(folders: list[Path]) -> bool:
    """Were these seeds started at once, and are their checkpoints of the same iteration? Those are written one by one."""

    def iteration(folder: Path) -> int | None:
        try:
            with np.load(folder / "checkpoint.npz") as file:
                return int(file["iteration"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    names = list(read_json(folders[0] / "seeds.json"))[: len(folders)]
    return names == [folder.name for folder in folders] and len(set(map(iteration, folders))) == 1


@dataclass
class Job:
    """One command of the list, for one seed or, with the JAX script, for several side by side."""

    script: str
    argv: list[str]
    seeds: list[dict[str, Any]]
    """the arguments of the run folder of each seed"""
    group: tuple
    """the dataset and the first seed of its line; None for the seed where seeds share an ensemble"""
    process: subprocess.Popen | None = None

    def __str__(self) -> str:
        return shlex.join(["python", self.script, *self.argv])

    @property
    def name(self) -> str:
        """The run folder's name without the time."""
        return re.sub(r"[^\w.-]+", "-", "{env_id}__{exp_name}__{seed}".format(**self.seeds[0]))

    @property
    def log(self) -> Path:
        """The file of its output, the same for the same command."""
        key = json.dumps([self.script, len(self.seeds), relevant(self.seeds[0])], sort_keys=True)
        return RUNS / "logs" / f"{self.name}__{hashlib.sha256(key.encode()).hexdigest()[:8]}.log"

    @property
    def ensemble(self) -> tuple | None:
        """Jobs with the same one share their ensemble; None: the job shares none."""
        args = self.seeds[0]
        if len(self.seeds) > 1 or args["real_ratio"] == 1 or args["load_model"] is not None:
            return None
        return pretraining(args)

    def state(self) -> tuple[str, Path | None]:
        """The state that its seeds have in common, or mixed, and the folder of the first."""
        found = [find_state(args) for args in self.seeds]
        resumable = [folder for state, folder in found if state == "resumable"]
        if found[0][0] == "resumable" and (found[0][1] / "pretraining.npz").exists():  # the first folder holds that of all
            together = len(read_json(found[0][1] / "seeds.json")) == len(found)
        else:
            together = len({state for state, _ in found}) == 1 and (len(resumable) < 2 or can_go_on_together(resumable))
        return found[0] if together else ("mixed", None)

    def command(self) -> list[str]:
        """What to run now: resume, or start with or without the ensemble of another run."""
        state, folder = self.state()
        if state == "resumable":
            more = ["--num-seeds", str(len(self.seeds))] if "num_seeds" in self.seeds[0] else []  # else all of seeds.json
            return ["python", self.script, "--resume", str(folder), *more]
        command = ["python", self.script, *self.argv]
        if self.ensemble is None:
            return command
        model = find_ensemble(self.seeds[0])
        return [*command, "--save-model"] if model is None else [*command, "--load-model", str(model)]

    def start(self, environment: dict[str, str]) -> list[str] | None:
        """Starts the process and returns its command; None if another process runs it: the log is locked that long."""
        import fcntl  # not on Windows, where `relevant` can be imported all the same

        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8", errors="backslashreplace") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError as error:  # ENOSYS, ENOLCK: some Lustre and NFS
                warn(f"warning: {RUNS} is on a file system without locks ({error}): start no second runner on this list")
            command = self.command()
            print("$", shlex.join(command), file=log, flush=True)
            words = [sys.executable, *command[1:]]
            self.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return command

    def outcome(self) -> tuple[str, str]:
        """How its process ended (finished, diverged or failed) and the last line of its log, which says why."""
        text = self.log.read_bytes()[-4000:].decode("utf-8", errors="replace").replace("\r", "\n")
        last_line = ([line.strip() for line in text.split("\n") if line.strip()] or ["no output"])[-1]
        code = self.process.returncode
        if code == 3 or (code == 0 and self.state()[0] == "finished"):
            return "diverged" if code == 3 else "finished", last_line
        return "failed", f"exit code {code}, {last_line} (see {self.log})"


def load_script(script: str) -> ModuleType:
    """A training script as a module, for its parse_args."""
    path = Path(script).resolve()
    if not path.is_file():
        raise CommandError(f"{script}: no such file")
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    except ImportError as error:
        raise CommandError(f"{script}: {error} (is the virtual environment active?)") from error


def read_jobs(lines: Iterable[str]) -> list[Job]:
    """The commands of the list, checked by their own script. The same command counts once. Raises CommandError."""
    jobs: dict[Path, Job] = {}
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise CommandError(f"{line.strip()}: {error}") from error
        if not words:
            continue
        if words[0] != "python" or len(words) < 2:
            raise CommandError(f"{line.strip()}: not of the form 'python SCRIPT --flag ...'")
        script, argv = words[1], words[2:]
        module = load_script(script)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                args = asdict(module.parse_args(argv))
        except (module.InputError, SystemExit) as error:
            raise CommandError(f"{line.strip()}: {error}") from error
        seeds = [args | {"seed": args["seed"] + i} for i in range(args.get("num_seeds", 1))]
        group = (args["env_id"], args["dataset_path"], None if switched_on("SHARE_ENSEMBLE") else args["seed"])
        new = [Job(script, argv, seeds, group)]
        if new[0].state()[0] == "mixed":  # seeds that stopped at different points go on one by one
            new = [Job(script, [*argv, "--seed", str(seed["seed"]), "--num-seeds", "1"], [seed], group) for seed in seeds]
        for job in new:
            jobs.setdefault(job.log, job)
    return list(jobs.values())


def dry_run(jobs: list[Job]) -> None:
    """Prints the commands, those that need not run as comments."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for | head
    pretraining: dict[tuple, str] = {}  # ensemble: name of the run that would pretrain it
    for job in jobs:
        state, command = job.state()[0], job.command()
        if state in ("finished", "diverged"):
            print(f"# {state}: {job}")
        elif command[-1] == "--save-model" and job.ensemble in pretraining:
            print(f"{shlex.join(command[:-1])} --load-model {RUNS}/{pretraining[job.ensemble]}__*/dynamics_pretrained.npz")
        else:
            if job.ensemble is not None:
                pretraining[job.ensemble] = job.name
            print(shlex.join(command))
    groups = len({job.group for job in jobs})
    unit = "dataset" if switched_on("SHARE_ENSEMBLE") else "dataset and seed"
    print(f"# {len(jobs)} commands, {groups} groups of one {unit}: GROUP=0 to {groups - 1}")


def run_environment(workers: int) -> dict[str, str]:
    """The environment of each run: its share of the cores and of a GPU's memory, unless the user has set them."""
    # The cores that this process may use, which macOS does not say
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // workers))
    shares = {"OMP_NUM_THREADS": threads, "NPROC": threads}  # torch reads the first, JAX the second
    if workers > 1:
        shares["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX's first process would take 75 % of the GPU's memory
    return shares | os.environ


def run(jobs: list[Job], workers: int) -> int:
    """Runs what is not finished, so many at once, and reports. Returns the exit code."""
    environment, outcomes, problems = run_environment(workers), Counter(), []
    numbers = {id(job): f"[{i}/{len(jobs)}]" for i, job in enumerate(jobs, 1)}
    waiting, running = list(jobs), []

    def note(job: Job, outcome: str, detail: object) -> None:
        outcomes[outcome] += 1
        text = f"{outcome}: {job}: {detail}"
        print(numbers[id(job)], text, flush=True)
        if outcome not in ("finished", "skipped"):
            problems.append(text)

    def try_to_start(job: Job) -> None:
        state, folder = job.state()
        shared = [other for other in running if job.ensemble is not None and other.ensemble == job.ensemble]
        if state == "new" and shared and find_ensemble(job.seeds[0]) is None:
            return  # it is being pretrained
        waiting.remove(job)
        if state in ("finished", "diverged"):
            note(job, "skipped" if state == "finished" else "diverged", f"{folder} (before this call)")
        elif command := job.start(environment):
            print(numbers[id(job)], "started:", shlex.join(command), flush=True)
            running.append(job)
        else:
            note(job, "locked", f"another process runs it, see {job.log}")

    try:
        while waiting or running:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                note(job, *job.outcome())
            for job in list(waiting):
                if len(running) < workers:
                    try_to_start(job)
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "nothing to run")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def main() -> int:
    workers, group = os.environ.get("WORKERS") or "1", os.environ.get("GROUP") or ""
    try:
        if sys.platform == "win32":
            raise CommandError("runner.py needs Linux or macOS; on Windows use WSL")
        if not workers.isdecimal() or int(workers) < 1:
            raise CommandError(f"WORKERS={workers}: must be a whole number, 1 or more")
        if group and not group.isdecimal():
            raise CommandError(f"GROUP={group}: must be a whole number, 0 or more")
        jobs = read_jobs(sys.stdin)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if group:
        wanted = list(dict.fromkeys(job.group for job in jobs))[int(group) :][:1]
        jobs = [job for job in jobs if job.group in wanted]
    if switched_on("DRY_RUN"):
        dry_run(jobs)
        return 0
    return run(jobs, int(workers))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # the last line of a log may have signs that the terminal lacks
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally above: the runs are ended, too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the checkpoints")
