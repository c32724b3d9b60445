"""benchmark/speed.py: its tables and its arithmetic, on tiny sizes. No time is asserted."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "benchmark"))
import products  # noqa: E402
import speed  # noqa: E402

TINY = dict(rows=500, batch_size=16, updates=5, updates_per_iteration=5, repeats=2, matrix_gflop=0.02, eval_episodes=2)
TINY |= dict(rollout_batch_size=60, rollout_length=2, num_models=3, num_elites=2, model_hidden_dim=24, cuda=False)


@pytest.fixture
def args() -> speed.Args:
    return speed.Args(**TINY)


@pytest.fixture(autouse=True)
def restore():
    yield
    torch.use_deterministic_algorithms(False)


def run_speed(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmark" / "speed.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | environment)


def flags(settings: dict) -> list[str]:
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in settings.items() if name != "cuda"]
    return ["--no-cuda", *(str(item) for pair in pairs for item in pair)]


def read_table(text: str, first_column: str) -> list[dict[str, str]]:
    """The Markdown table whose header starts with this column."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    start = next(i for i, cells in enumerate(lines) if cells[0] == first_column)
    end = next((i for i in range(start, len(lines)) if lines[i] == [""]), len(lines))
    assert all(len(cells) == len(lines[start]) for cells in lines[start:end])
    return [dict(zip(lines[start], cells, strict=True)) for cells in lines[start + 2 : end]]


def test_tables_of_the_command_line(tmp_path):
    loops = ["yardstick", "torch", "jax-2"]
    fast = "--xla_backend_optimization_level=0"  # compiles in a third of the time
    run = run_speed(*flags(TINY), "--output", tmp_path / "speed.json", "--loops", *loops, XLA_FLAGS=fast)
    assert run.returncode == 0, run.stderr
    rows = read_table(run.stdout, "part")
    assert [(row["part"], row["loop"]) for row in rows] == [(p, loop) for p in speed.PARTS.values() for loop in loops]
    assert all(row["time"] and row["ratio to yardstick"] for row in rows)
    assert [row["loop"] for row in read_table(run.stdout, "loop")] == loops
    assert [row["part"] for row in read_table(run.stdout, "products")] == [*list(speed.PARTS.values())[:4], "large"]

    results = json.loads((tmp_path / "speed.json").read_text())
    assert results["arguments"]["rows"] == TINY["rows"] and "jax" in results["machine"]["versions"]
    shapes = [*list(speed.PARTS)[:4], "large"]
    assert set(results["matrix_gflops"]) == {f"{library} {shape}" for library in ("torch", "XLA") for shape in shapes}
    for name in loops:
        loop = results["loops"][name]
        for part in speed.PARTS:
            assert loop[part]["low"] <= loop[part]["seconds"] <= loop[part]["high"]
            if part != "evaluation":
                assert loop[part]["gflops"] == pytest.approx(loop[part]["gflop"] / loop[part]["seconds"])
        updates = TINY["updates_per_iteration"] * (loop["agent"]["seconds"] + loop["adversarial"]["seconds"])
        whole = loop["rollout"]["seconds"] + updates + loop["evaluation"]["seconds"]
        assert loop["iteration"]["seconds"] == pytest.approx(whole)
        assert loop["iteration"]["evaluation_share"] == pytest.approx(loop["evaluation"]["seconds"] / whole)
    assert all(results["loops"]["yardstick"][part]["ratio"] == 1 for part in (*speed.PARTS, "iteration"))
    assert results["loops"]["jax-2"]["agent"]["gflop"] == pytest.approx(2 * results["loops"]["torch"]["agent"]["gflop"])


@pytest.mark.parametrize("loop", ["yardstick", "torch"])
def test_arithmetic_is_what_torch_counts(args, loop):
    problem = speed.make_problem(args)
    blocks = speed.build_loop(loop, problem).blocks
    for part in ("agent", "adversarial", "pretraining", "rollout"):
        with FlopCounterMode(display=False) as counter:
            blocks[part]()
        count = args.updates if part in speed.UPDATES else 1
        assert counter.get_total_flops() == count * speed.count_flop(part, problem, loop == "yardstick"), part


def test_arithmetic_by_hand():
    """Hopper, the scripts' defaults: the figures of the paper's sizes."""
    problem = speed.make_problem(speed.Args(rows=10))
    actor = 2 * (11 * 256 + 256 * 256 + 256 * 6)
    critic = 2 * (14 * 256 + 256 * 256 + 256 * 1)
    model = 2 * (14 * 200 + 3 * 200 * 200 + 200 * 24)
    assert speed.count_flop("rollout", problem) == 50_000 * 5 * (actor + model)
    assert speed.count_flop("rollout", problem, is_yardstick=True) == 50_000 * 5 * (actor + 7 * model)
    backward = 2 * model - 2 * 14 * 200
    assert speed.count_flop("pretraining", problem) == 7 * 256 * (model + backward)
    assert speed.count_flop("adversarial", problem) == 5 * 512 * (model + backward) + 256 * (2 * actor + 4 * critic)
    assert speed.count_flop("agent", problem) / 1e9 == pytest.approx(0.564, abs=1e-3)


@pytest.mark.parametrize("loop", ["yardstick", "torch"])
def test_the_policy_still_acts_after_an_iteration(args, loop):
    problem = speed.make_problem(args)
    loop = speed.build_loop(loop, problem)
    loop.iteration()
    actions = loop.policy(problem.rows[:7, :11] * problem.obs_std + problem.obs_mean)
    assert actions.shape == (7, 3) and abs(actions).max() < 1


def test_scaling_profile_and_whole_iterations(args, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SCALES", {"batch_size": ((8,), ("agent",)), "ensemble": ((1,), ("adversarial", "rollout"))})
    args = replace(args, loops=("torch",), repeats=1)
    speed.main(replace(args, scaling=True, output=tmp_path / "scaling.json"))
    rows = read_table(capsys.readouterr().out, "what grows")
    assert [(row["what grows"], row["value"]) for row in rows] == [
        ("batch_size", "8"), ("batch_size", "16"), ("ensemble", "1"), ("ensemble", "2")
    ]
    assert rows[1]["agent update"].endswith("(1.00)") and not rows[1]["rollouts"] and not rows[2]["agent update"]
    assert len(json.loads((tmp_path / "scaling.json").read_text())["scaling"]) == 4

    speed.main(replace(args, profile=True))
    rows = read_table(capsys.readouterr().out, "loop")
    assert {row["part"] for row in rows} == set(list(speed.PARTS.values())[:4])
    assert any("addmm" in row["operation"] for row in rows)

    speed.main(replace(args, iterations=1))
    text = capsys.readouterr().out
    assert "median of 1 whole ones" in text
    assert [row["ratio to yardstick"] for row in read_table(text, "loop")] == [""]  # it was not asked for


def test_loading(args, capsys):
    speed.main(replace(args, loading=True, loading_rows=20_000))
    text = capsys.readouterr().out
    assert "20,000 rows" in text
    assert [row["step"] for row in read_table(text, "step")] == ["load_dataset", "and the rows in random order"]


def test_a_loop_that_does_not_exist():
    run = run_speed("--loops", "tensorflow", "--rows", 100)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "no such loop" in run.stderr


def test_the_ways_of_the_ensembles_products_compute_the_same(capsys):
    torch.manual_seed(1)
    widths = (3, 8, 8, 4)
    weights = [torch.randn(2, *pair) for pair in zip(widths, widths[1:], strict=False)]
    biases = [torch.randn(2, 1, width) for width in widths[1:]]
    x = torch.randn(2, 6, 3)
    arguments = weights, biases, x, torch.nn.functional.silu, torch.stack
    batched = products.network("batched", *arguments)
    for way in ("layers", "members"):
        torch.testing.assert_close(products.network(way, *arguments), batched)
    halves = products.network("halves", *arguments)  # [2, E, B / 2, D]
    torch.testing.assert_close(halves.swapaxes(0, 1).reshape(batched.shape), batched)

    products.main(products.Args(repeats=2, updates=1, rows=8, widths=widths))
    rows = read_table(capsys.readouterr().out, "library")
    assert [(row["library"], row["way"]) for row in rows] == [(lib, way) for lib in ("torch", "XLA") for way in products.WAYS]
    assert rows[0]["ratio to batched"] == rows[4]["ratio to batched"] == "1.00"
