"""Runs the training commands that the scripts of this folder pipe into it, one `python SCRIPT --flag ...` a line.

    DRY_RUN=1   print the commands that would run, and run none
    WORKERS=4   so many at once (default: 1), which share the cores (unless OMP_NUM_THREADS for torch, NPROC for JAX are set)
    GROUP=7     only one dataset and seed of the list, counted from 0: what one task of a Slurm array does

A run that is finished with the same arguments (runs/*/args.json, result.json) is skipped, one that broke off is resumed from
its checkpoint. The ensemble of a dataset and seed is pretrained once: the first command gets --save-model, the others get
--load-model. Every run writes to runs/logs/; two runners can share a folder, a log that is locked is another's run.

Exit code: 0 if every run of the list is finished, 1 if one failed, diverged or belongs to another runner, or if a command is
wrong (then nothing was started).
"""

import contextlib
import fcntl
import hashlib
import importlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

RUNS = Path("runs")
POLL_SECONDS = 1.0
# Arguments without influence on the result, which a run may have or not
IRRELEVANT = "resume load_model save_model checkpoint_interval capture_video cuda num_seeds"
IRRELEVANT += " compile cudagraphs track wandb_project_name wandb_entity"
# The same for runs on the log alone (--real-ratio 1): arguments of the model and its rollouts, by the start of their names
OF_THE_MODEL = ("model_", "num_", "rollout_", "adv_")
# What the pretrained ensemble depends on
PRETRAINING = "env_id dataset_path seed batch_size num_models num_elites model_hidden_dim model_lr model_max_pretrain_epochs"


class CommandError(Exception):
    """A line of the list that cannot be run."""


def relevant(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the result depends on: where they are equal, one run stands for the other."""
    unused = OF_THE_MODEL if args.get("real_ratio") == 1 else ()
    return {key: value for key, value in args.items() if key not in IRRELEVANT.split() and not key.startswith(unused)}


@dataclass(frozen=True)
class Seed:
    """One seed of a command: the arguments of one run folder."""

    args: dict[str, Any]

    @property
    def name(self) -> str:
        """The run folder's name without the time."""
        return f"{self.args['env_id'].replace('/', '-')}__{self.args['exp_name']}__{self.args['seed']}"

    def folders(self) -> list[Path]:
        """The run folders with these arguments, newest first."""
        found = []
        for folder in RUNS.glob(f"{self.name}__*"):
            with contextlib.suppress(OSError, ValueError):
                if relevant(json.loads((folder / "args.json").read_text())) == relevant(self.args):
                    found.append(folder)
        return sorted(found, reverse=True)

    def state(self) -> tuple[str, Path | None]:
        """finished, diverged, resumable (there is a checkpoint) or new, and the folder that says so."""
        folders, states = self.folders(), {}
        for folder in folders:
            with contextlib.suppress(OSError, ValueError, KeyError):
                result = json.loads((folder / "result.json").read_text())
                if result["status"] != "finished" or result["iteration"] == self.args["total_iterations"]:
                    states.setdefault(result["status"], folder)
        for state in ("finished", "diverged"):
            if state in states:
                return state, states[state]
        for folder in folders:
            if (folder / "checkpoint.pt").exists() or (folder / "checkpoint.npz").exists():
                return "resumable", folder
        return "new", None


@dataclass
class Job:
    """One command of the list, and what became of it."""

    script: str
    argv: list[str]
    family: str
    seeds: list[Seed]
    log: Path = field(init=False)
    process: subprocess.Popen | None = None
    started: float = 0.0
    folders_before: list[Path] = field(default_factory=list)
    pretrains: bool = False

    def __post_init__(self):
        key = json.dumps([len(self.seeds), relevant(self.seeds[0].args)], sort_keys=True)
        self.log = RUNS / "logs" / f"{self.seeds[0].name}__{hashlib.sha256(key.encode()).hexdigest()[:8]}.log"

    @property
    def group(self) -> tuple:
        """The dataset and the seed."""
        return tuple(self.seeds[0].args[key] for key in ("env_id", "dataset_path", "seed"))

    @property
    def ensemble(self) -> tuple | None:
        """Jobs of the same ensemble share it; None: the job shares none."""
        args = self.seeds[0].args
        if len(self.seeds) > 1 or args["real_ratio"] == 1 or args["load_model"] is not None:
            return None
        return (self.family, *(args[key] for key in PRETRAINING.split()))

    def state(self) -> str:
        """The state that its seeds have in common, or mixed."""
        found = [seed.state() for seed in self.seeds]
        starts = {folder.name.rpartition("__")[2] for state, folder in found if state == "resumable"}
        return found[0][0] if len({state for state, _ in found}) == 1 and len(starts) <= 1 else "mixed"

    def command(self, jobs: list["Job"]) -> list[str]:
        """What to run now: resume, or start with or without the ensemble of one of the jobs. Sets `pretrains`."""
        self.pretrains = False
        state, folder = self.seeds[0].state()
        if state == "resumable":
            more = ["--num-seeds", str(len(self.seeds))] if len(self.seeds) > 1 else []
            return ["python", self.script, "--resume", str(folder), *more]
        command = ["python", self.script, *self.argv]
        if self.ensemble is None:
            return command
        model = find_ensemble(self, jobs)
        self.pretrains = model is None
        return [*command, "--save-model"] if model is None else [*command, "--load-model", str(model)]

    def last_line(self) -> str:
        """The last line of the log, which says what went wrong."""
        text = self.log.read_bytes()[-4000:].decode(errors="replace").replace("\r", "\n").split("\n")
        return ([line.strip() for line in text if line.strip()] or ["no output"])[-1]


def find_ensemble(job: Job, jobs: list[Job]) -> Path | None:
    """The pretrained ensemble that a job of the list left for this one."""
    for other in jobs:
        if other.ensemble == job.ensemble:
            for folder in other.seeds[0].folders():
                if (folder / "dynamics_pretrained.npz").exists():
                    return folder / "dynamics_pretrained.npz"
    return None


def load_script(script: str) -> ModuleType:
    """A training script as a module, for its parse_args."""
    path = Path(script).resolve()
    if not path.is_file():
        raise CommandError(f"{script}: no such file")
    sys.path[:0] = [str(path.parent)]
    try:
        return importlib.import_module(path.stem)
    except ImportError as error:
        raise CommandError(f"{script}: {error} (is the virtual environment active?)") from error


def read_jobs(lines: Iterable[str]) -> list[Job]:
    """The commands of the list, checked by their own script. The same command counts once. Raises CommandError."""
    jobs: list[Job] = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "python" or len(words) < 2:
            raise CommandError(f"{line.strip()}: not of the form 'python SCRIPT --flag ...'")
        module, argv = load_script(words[1]), words[2:]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                args = asdict(module.parse_args(argv))
        except (module.InputError, SystemExit) as error:
            raise CommandError(f"{line.strip()}: {error}") from error
        count = args.get("num_seeds", 1)
        seeds = [Seed(args | {"seed": args["seed"] + i}) for i in range(count)]
        job = Job(words[1], argv, module.main.__module__, seeds)
        new = [job]
        if job.state() == "mixed":  # seeds that were trained side by side and stopped at different points go on one by one
            singles = [[*argv, "--seed", str(seed.args["seed"]), "--num-seeds", "1"] for seed in seeds]
            new = [Job(words[1], single, job.family, [seed]) for single, seed in zip(singles, seeds, strict=True)]
        jobs += [job for job in new if job.log not in {other.log for other in jobs}]
    return jobs


def lock(job: Job) -> TextIO | None:
    """The job's log, locked as long as the runner or the run has it open; None if another has."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("a")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    return log


def must_wait(job: Job, running: list[Job], jobs: list[Job]) -> bool:
    """Is a new job's ensemble being pretrained, or could its run folder, named by the second, get the name of another's?"""
    name = job.seeds[0].name
    if (RUNS / f"{name}__{int(time.time())}").exists():
        return True
    for other in running:
        if other.seeds[0].name == name and other.seeds[0].folders() == other.folders_before:
            return True
        if other.pretrains and other.ensemble == job.ensemble and find_ensemble(job, jobs) is None:
            return True
    return False


def fetch_datasets(jobs: list[Job]) -> None:
    """Downloads what is not here yet, one file at a time also where several runners share a folder: runs that start side by
    side would write to the same file. What cannot be had, the run itself explains."""
    wanted = {(job.family, job.group[0]) for job in jobs if job.group[1] is None and job.state() in ("new", "resumable")}
    (RUNS / "logs").mkdir(parents=True, exist_ok=True)
    with (RUNS / "logs" / "download.lock").open("a") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        for family, env_id in sorted(wanted):
            with contextlib.suppress(sys.modules[family].InputError):
                sys.modules[family].find_dataset(env_id, None)


def dry_run(jobs: list[Job]) -> None:
    """Prints the commands, those that need not run as comments."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for | head
    pretraining: dict[tuple, str] = {}  # ensemble: name of the run that would pretrain it
    for job in jobs:
        state = job.state()
        if state in ("finished", "diverged"):
            print(f"# {state}: {shlex.join(['python', job.script, *job.argv])}")
            continue
        command = shlex.join(job.command(jobs))
        if job.pretrains and job.ensemble in pretraining:
            model = f"{RUNS}/{pretraining[job.ensemble]}__*/dynamics_pretrained.npz"
            command = command.removesuffix("--save-model") + f"--load-model {model}"
        elif job.pretrains:
            pretraining[job.ensemble] = job.seeds[0].name
        print(command)
    groups = len({job.group for job in jobs})
    print(f"# {len(jobs)} commands, {groups} groups of one dataset and seed: GROUP=0 to {groups - 1}")


def run(jobs: list[Job], workers: int) -> int:
    """Runs what is not finished, so many at once, and reports. Returns the exit code."""
    cores = str(max(1, len(os.sched_getaffinity(0)) // workers))
    environment = {"OMP_NUM_THREADS": cores, "NPROC": cores} | os.environ  # torch reads the first, JAX the second
    outcomes, lines = Counter(), []
    numbers = {id(job): f"[{i}/{len(jobs)}]" for i, job in enumerate(jobs, 1)}

    def note(job: Job, outcome: str, detail: str) -> None:
        outcomes[outcome] += 1
        text = f"{outcome}: {shlex.join(['python', job.script, *job.argv])}: {detail}"
        print(numbers[id(job)], text, flush=True)
        if outcome not in ("finished", "skipped"):
            lines.append(text)

    def finish(job: Job) -> None:
        code, seconds = job.process.returncode, round(time.time() - job.started)
        state = job.state()
        if code == 0 and state == "finished":
            note(job, "finished", f"{seconds} s, {job.last_line()}")
        elif code == 3:
            note(job, "diverged", job.last_line())
        else:
            note(job, "failed", f"exit code {code}, {job.last_line()} (see {job.log})")

    waiting, running = list(jobs), []
    try:
        while waiting or running:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                finish(job)
            for job in list(waiting):
                if len(running) >= workers:
                    break
                state = job.state()
                if state in ("finished", "diverged"):
                    waiting.remove(job)
                    folder = job.seeds[0].state()[1]
                    note(job, "skipped" if state == "finished" else "diverged", f"{folder} (before this call)")
                elif state == "resumable" or not must_wait(job, running, jobs):
                    waiting.remove(job)
                    log = lock(job)
                    if log is None:
                        note(job, "locked", f"another process runs it, see {job.log}")
                        continue
                    with log:
                        command = job.command(jobs)
                        print(numbers[id(job)], "started:", shlex.join(command), flush=True)
                        print("$", shlex.join(command), file=log, flush=True)
                        job.started, job.folders_before = time.time(), job.seeds[0].folders()
                        if "--resume" in command:
                            job.folders_before = []  # its folder is there
                        words = [sys.executable, *command[1:]]
                        job.process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
                    running.append(job)
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "nothing to run")
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


def main() -> int:
    try:
        jobs = read_jobs(sys.stdin)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    groups = list(dict.fromkeys(job.group for job in jobs))
    if os.environ.get("GROUP"):
        wanted = groups[int(os.environ["GROUP"]) :][:1]
        jobs = [job for job in jobs if job.group in wanted]
    if os.environ.get("DRY_RUN", "0") not in ("", "0"):
        dry_run(jobs)
        return 0
    fetch_datasets(jobs)
    return run(jobs, int(os.environ.get("WORKERS") or 1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally above: the runs are ended, too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the checkpoints")
