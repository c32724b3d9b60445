"""How fast RAMBO runs on this machine, part by part, next to the loop that one would write first.

    python benchmark/speed.py --output speed.json    # every loop that this machine can run
    python benchmark/speed.py --before ../v1.0       # and those of the version before, from a checkout of v1.0 (6ec55d8)
    python benchmark/speed.py --count-kernels        # how many instructions XLA makes of an update; measures no time

The loops are in loops.py: yardstick, torch (rambo_continuous.py --no-cudagraphs), torch-compile, torch-graphs and
torch-compile-graphs (the same with these flags), jax-N (rambo_continuous_jax.py --num-seeds N). They are warmed up, then take
turns, round after round, so that whatever else the machine does hits all alike. The data is made up, in hopper's dimensions or
those of --training.env-id.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rambo_continuous as rambo  # noqa: E402
from benchmark.loops import Problem, compile_jax, jax_loop, torch_loop, yardstick_loop  # noqa: E402

SCRIPTS = ("rambo_continuous", "rambo_continuous_jax")
PARTS = {"agent": "agent update", "adversarial": "adversarial update", "rollout": "rollouts"}
PARTS |= {"iteration": "iteration", "evaluation": "evaluation"}
UPDATES = ("agent", "adversarial")  # a timed block holds --updates of them


@dataclass
class Args:
    loops: tuple[str, ...] = ()  # yardstick, torch, torch-compile, ..., jax-1, jax-4, ...; default: all that run here
    before: Path | None = None  # a checkout of v1.0: its loops, as its own speed.py builds them, take turns with ours
    count_kernels: bool = False  # count instructions in the loops that XLA makes of JAX's updates instead
    repeats: int = 5  # rounds in which the loops take turns
    updates: int = 50  # updates in a timed block, at least 5: a CUDA graph is captured at the fourth
    rows: int = 1_000_000  # transitions in the made-up dataset
    cuda: bool = True  # measure on the GPU if there is one
    output: Path | None = None  # also write the figures to this JSON file
    training: rambo.Args = field(default_factory=rambo.Args)  # the scripts' arguments


def make_problem(args: Args) -> Problem:
    env = rambo.make_env(args.training.env_id)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((args.rows, 2 * obs_dim + action_dim + 2), np.float32)
    rows[:, obs_dim : obs_dim + action_dim] = rng.uniform(-1, 1, (args.rows, action_dim))
    rows[:, -1] = 0
    obs_mean, obs_std = np.zeros(obs_dim, np.float32), np.full(obs_dim, 0.01, np.float32)
    obs_mean[0] = 1.25  # hopper and walker2d stand: no rollout terminates, so that every loop has the same to do
    rule, device = rambo.termination_rule(env), "cuda" if args.cuda and torch.cuda.is_available() else "cpu"
    return Problem(args.training, args.updates, rows, obs_dim, action_dim, obs_mean, obs_std, rule, device)


def run_torch(problem: Problem, deterministic: bool, function: Callable) -> None:
    """`deterministic` is torch's switch, on by default in the script, not in CleanRL."""
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("highest" if problem.args.matmul_precision == "float32" else "high")
    torch.utils.deterministic.fill_uninitialized_memory = False  # as the script sets it
    function()
    torch.set_float32_matmul_precision("highest")  # for the product that tells the machine's speed
    torch.utils.deterministic.fill_uninitialized_memory = True
    if problem.device == "cuda":
        torch.cuda.synchronize()


def evaluation(problem: Problem, policy: Callable) -> Callable:
    """A timed block: an evaluation by itself, whose episodes all last to the time limit. In training it runs beside it."""
    make_env = partial(rambo.make_env, problem.args.env_id)
    endless = {"terminate_when_unhealthy": False} if hasattr(make_env().unwrapped, "_terminate_when_unhealthy") else {}
    envs = gym.vector.SyncVectorEnv([partial(make_env, **endless)] * problem.args.eval_episodes)
    return lambda: rambo.evaluate(policy, envs, 1, problem.args.gamma)


def seeds_of(name: str) -> int:
    return int(name.split("-")[-1]) if "jax" in name else 1


def build_loop(name: str, problem: Problem) -> dict[str, Callable]:
    """The timed blocks of this loop, by part."""
    kind, *flags = name.split("-")
    if kind == "jax" and "".join(flags).isdecimal():
        functions, policy = jax_loop(problem, seeds_of(name))
        return functions | ({"evaluation": evaluation(problem, policy)} if seeds_of(name) == 1 else {})
    if name != "yardstick" and (kind != "torch" or not {"compile", "graphs"} >= set(flags)):
        raise rambo.InputError(f"--loops {name}: no such loop, see --help")
    functions, policy = yardstick_loop(problem) if kind == "yardstick" else torch_loop(problem, flags)
    deterministic = problem.args.torch_deterministic and kind == "torch"
    blocks = {part: partial(run_torch, problem, deterministic, function) for part, function in functions.items()}
    return blocks | {"evaluation": evaluation(problem, policy)}


def available_loops(device: str) -> list[str]:
    can_compile = importlib.util.find_spec("triton") if device == "cuda" else shutil.which("g++") or shutil.which("clang++")
    loops = ["yardstick", "torch"] + ["torch-compile"] * bool(can_compile) + ["torch-graphs"] * (device == "cuda")
    loops += ["torch-compile-graphs"] * bool(can_compile and device == "cuda")
    has_jax = all(map(importlib.util.find_spec, ("jax", "flax", "optax")))
    return loops + ["jax-1", "jax-8" if device == "cuda" else "jax-4"] * has_jax


def build_before(args: Args, names: list[str]) -> dict[str, dict[str, Callable]]:
    """The loops of v1.0, built by its own speed.py, which imports its own scripts."""

    def load(path: str, name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, args.before / path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    ours = {name: importlib.import_module(name) for name in SCRIPTS}
    sys.modules.update({name: load(f"{name}.py", f"{name}_before") for name in SCRIPTS})
    try:
        speed = load("benchmark/speed.py", "speed_before")
        settings = vars(args) | vars(args.training)
        problem = speed.make_problem(speed.Args(**{name: settings[name] for name in vars(speed.Args()) if name in settings}))
        return {f"before: {name}": speed.build_loop(name, problem).blocks for name in names if name != "yardstick"}
    finally:
        sys.modules.update(ours)


def count_gflop(name: str, problem: Problem) -> dict[str, float]:
    """Matrix arithmetic of one update, or of an iteration's rollouts, as torch counts it."""
    blocks, gflop = build_loop(name, problem._replace(device="cpu", updates=1, rows=problem.rows[:1000])), {}
    for part in (*UPDATES, "rollout"):
        with FlopCounterMode(display=False) as counter:
            blocks[part]()
        gflop[part] = counter.get_total_flops() / 1e9
    return gflop


def matrix_block(device: str) -> tuple[Callable, float]:
    """Large float32 products, and their arithmetic in GFLOP."""
    width, count = (8192, 20) if device == "cuda" else (2048, 1)
    x, out = torch.randn(2, width, width, device=device)
    return lambda: ([torch.mm(x, x, out=out) for _ in range(count)], out[0, 0].item()), count * 2 * width**3 / 1e9


def take_turns(blocks: dict, repeats: int) -> dict[tuple, list[float]]:
    """Seconds of every block in every round."""
    times = {key: [] for key in blocks}
    for _ in tqdm(range(repeats), desc="Rounds", unit="round"):
        for key, block in blocks.items():
            start = time.perf_counter()
            block()
            times[key].append(time.perf_counter() - start)
    return times


def add_iteration(costs: dict, updates_per_iteration: int) -> dict:
    """With the cost of an iteration: rollouts and all updates. Evaluation goes on beside it."""
    return costs | {"iteration": costs["rollout"] + updates_per_iteration * (costs["agent"] + costs["adversarial"])}


def measure(args: Args, problem: Problem, names: list[str]) -> dict:
    """Medians over the rounds. Ratios are of the time for one seed, taken within a round."""
    loops = {name: build_loop(name, problem) for name in tqdm(names, desc="Building", unit="loop")}
    loops |= build_before(args, names) if args.before else {}
    blocks = {(name, part): block for name, loop in loops.items() for part, block in loop.items() if part in PARTS}
    blocks["matrix", ""], matrix_gflop = matrix_block(problem.device)
    for block in tqdm(blocks.values(), desc="Warm-up", unit="part"):
        block()
    seconds = {name: {} for name in (*loops, "matrix")}
    for (name, part), values in take_turns(blocks, args.repeats).items():
        seconds[name][part] = np.array(values) / (problem.updates if part in UPDATES else 1)
    matrix_speed, updates = matrix_gflop / np.median(seconds.pop("matrix")[""]), args.training.updates_per_iteration
    seconds = {name: add_iteration(costs, updates) for name, costs in seconds.items()}
    gflop = {name: add_iteration(count_gflop(name, problem), updates) for name in ("yardstick", "torch")}

    results = {name: {} for name in seconds}
    for name, part in [(name, part) for part in PARTS for name in seconds if part in seconds[name]]:
        values, seeds = seconds[name][part], seeds_of(name)
        work = seeds * gflop["yardstick" if name == "yardstick" else "torch"].get(part, 0)
        result = {"seconds": np.median(values), "low": values.min(), "high": values.max(), "gflop": work}
        result["share"] = work / result["seconds"] / matrix_speed
        for other in ("yardstick", f"before: {name}"):
            if part in seconds.get(other, {}):
                per_seed = values / seconds[other][part] / (seeds if other == "yardstick" else 1)
                result[f"to {other.split(':')[0]}"] = np.median(per_seed)
        results[name][part] = {key: float(value) for key, value in result.items()}
    return {"matrix_gflops": float(matrix_speed), "loops": results}


def table(header: str, rows: list[list]) -> str:
    lines = [header.split(" | "), ["---"] * (header.count(" | ") + 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def figure(value: float | None, form: str = "#.3g") -> str:
    return f"{value:{form}}".rstrip(".") if value else ""


def describe(results: dict) -> str:
    rows = []
    for part, name in [(part, name) for part in PARTS for name in results["loops"] if part in results["loops"][name]]:
        r = results["loops"][name][part]
        low, middle, high = (figure(1000 * r[key]) for key in ("low", "seconds", "high"))
        ratios = [figure(r.get(key), ".2f") for key in ("to yardstick", "to before")]
        rows.append([PARTS[part], name, middle, f"{low} to {high}", *ratios, figure(r["gflop"]), figure(r["share"], ".0%")])
    header = "part | loop | ms | lowest to highest | to yardstick, per seed | to before | GFLOP | of matrix speed"
    return f"{table(header, rows)}\n\nMatrix speed: {results['matrix_gflops']:,.0f} GFLOP/s, a large float32 product."


def machine(device: str) -> dict:
    """Whatever the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    libraries = [name for name in ("torch", "jax", "mujoco") if importlib.util.find_spec(name)]
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": ", ".join([platform.python_version(), *(f"{name} {metadata.version(name)}" for name in libraries)]),
    }


def count_kernels(hlo: str) -> tuple[int, int]:
    """Instructions in the longest loop body of a compiled module that are more than bookkeeping (kernels, on a GPU), and the
    longest chain of them in which each waits for the one before."""
    computations, free = {}, ("parameter", "constant", "get-tuple-element", "tuple", "bitcast")
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computations[header[1]] = body = []
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\((.*)", line):
            name, opcode, rest = instruction.groups()
            body.append((name, opcode, re.search(r"to_apply=%?([\w.-]+)|$", rest)[1], re.findall(r"%([\w.-]+)", rest)))

    def count(computation: str) -> tuple[int, int]:
        total, chains = 0, {}
        for name, opcode, called, operands in computations[computation]:
            kernels, chain = count(called) if opcode == "call" else (int(opcode not in free),) * 2
            total += kernels
            chains[name] = chain + max((chains[operand] for operand in operands if operand in chains), default=0)
        return total, max(chains.values())

    return max(count(name) for name in re.findall(r" while\(.*body=%?([\w.-]+)", hlo))


def main(args: Args) -> None:
    if args.updates < 5 or args.repeats < 1:
        raise rambo.InputError("--updates must be at least 5 and --repeats at least 1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the script sets it; read when CUDA starts
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves torch some of the GPU's memory
    problem = make_problem(args)
    names = list(args.loops) or available_loops(problem.device)
    results = {"machine": machine(problem.device), "arguments": asdict(args)}
    print(*(f"{key}: {value}" for key, value in results["machine"].items()), sep="; ", end="\n\n")
    if args.count_kernels:
        results["kernels"] = {}
        for name in (name for name in names if "jax" in name):
            parts, _ = compile_jax(problem, seeds_of(name))
            results["kernels"][name] = {part: count_kernels(function.as_text()) for part, (function, _, _) in parts.items()}
        print(
            table(
                "loop | agent update | adversarial update | rollout step",
                [[n, *(f"{total}, {chain} in a row" for total, chain in c.values())] for n, c in results["kernels"].items()],
            )
        )
    else:
        results |= measure(args, problem, names)
        print(describe(results))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except rambo.InputError as problem:
        sys.exit(f"error: {problem}")
