"""benchmark/speed.py: its loops, its arithmetic and its table, on tiny sizes. No time is asserted."""

import json
import sys

import pytest
import torch

from benchmark import loops, speed

TINY = dict(rollout_batch_size=60, rollout_length=2, num_models=3, num_elites=2, model_hidden_dim=24, batch_size=16)
TINY |= dict(updates_per_iteration=20, eval_episodes=1)

V1 = """
from dataclasses import dataclass
from types import SimpleNamespace
import rambo_continuous as rambo

@dataclass
class Args:
    rows: int = 0
    batch_size: int = 0
    scaling: bool = False

def make_problem(args):
    return args

def build_loop(name, args):
    assert (rambo.VERSION, args.rows, args.batch_size, args.scaling) == ("v1.0", 500, 16, False)
    parts = "agent", "adversarial", "rollout", "evaluation", "pretraining"
    return SimpleNamespace(blocks={part: lambda: rambo.calls.append((name, part)) for part in parts})
"""


@pytest.fixture
def args(monkeypatch) -> speed.Args:
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)  # it would stay switched on
    return speed.Args(rows=500, updates=5, repeats=2, cuda=False, training=speed.rambo.Args(adv_weight=3e-4, **TINY))


def read_table(text: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[2:]]


def test_table_and_json_with_the_version_before(args, tmp_path, capsys):
    (tmp_path / "v1.0" / "benchmark").mkdir(parents=True)
    (tmp_path / "v1.0" / "rambo_continuous.py").write_text("VERSION, calls = 'v1.0', []")
    (tmp_path / "v1.0" / "rambo_continuous_jax.py").touch()
    (tmp_path / "v1.0" / "benchmark" / "speed.py").write_text(V1)
    args.loops, args.before, args.output = ("yardstick", "torch"), tmp_path / "v1.0", tmp_path / "speed.json"
    ours = sys.modules["rambo_continuous"]
    speed.main(args)
    assert sys.modules["rambo_continuous"] is ours is speed.rambo
    assert len(sys.modules["rambo_continuous_before"].calls) == 4 * 3  # parts, each warmed up and in two rounds

    results = json.loads((tmp_path / "speed.json").read_text())
    timed = results["loops"]
    assert list(timed) == ["yardstick", "torch", "before: torch"] and results["arguments"]["rows"] == 500
    rows = read_table(capsys.readouterr().out)
    assert [(row["part"], row["loop"]) for row in rows] == [(p, name) for p in speed.PARTS.values() for name in timed]
    for loop in timed.values():
        assert list(loop) == list(speed.PARTS)
        for part in loop.values():
            assert 0 < part["low"] <= part["seconds"] <= part["high"]
            assert part["share"] == pytest.approx(part["gflop"] / part["seconds"] / results["matrix_gflops"])
        updates = 20 * (loop["agent"]["low"] + loop["adversarial"]["low"])
        assert loop["iteration"]["low"] >= 0.999 * (loop["rollout"]["low"] + updates)
        assert loop["iteration"]["gflop"] == pytest.approx(
            loop["rollout"]["gflop"] + 20 * (loop["agent"]["gflop"] + loop["adversarial"]["gflop"])
        )
    assert all(part["to yardstick"] == 1 and "to before" not in part for part in timed["yardstick"].values())
    assert all(part["to before"] > 1 for part in timed["torch"].values())  # that one does nothing


def test_arithmetic_by_hand():
    """Hopper, the scripts' defaults; backward costs two passes, but nothing asks for the gradient of a model's inputs."""
    problem = speed.make_problem(speed.Args(rows=10, training=speed.rambo.Args(rollout_batch_size=1000)))
    actor, critic = 11 * 256 + 256 * 256 + 256 * 6, 14 * 256 + 256 * 256 + 256 * 1
    model = 14 * 200 + 3 * 200 * 200 + 200 * 24
    for name, members in (("torch", 5), ("yardstick", 7)):
        gflop = speed.count_gflop(name, problem)
        rolled_out = actor + (model if name == "torch" else 7 * model)
        assert gflop["rollout"] == pytest.approx(2e-9 * 5000 * rolled_out)
        update = 512 * members * (3 * model - 14 * 200) + 256 * (2 * actor + 4 * critic)
        assert gflop["adversarial"] == pytest.approx(2e-9 * update)
    assert speed.count_gflop("torch", problem)["agent"] == pytest.approx(0.564, abs=1e-3)


def test_jax_loop_updates_only_its_part(args, monkeypatch):
    problem = speed.make_problem(args)
    parts, policy = loops.compile_jax(problem, 2)
    assert policy(problem.rows[:7, :11]).shape == (7, 3)
    monkeypatch.setattr(loops, "compile_jax", lambda *_: (parts, policy))
    functions, _ = loops.jax_loop(problem, 2)
    assert set(functions) == set(parts) == {"agent", "adversarial", "rollout"}

    def weights(part: str) -> tuple[float, float]:
        _, state, _ = parts[part]
        return float(state.agent.critic.fc1.weight.sum()), float(state.dynamics.layers[0].weight.sum())

    for part in ("agent", "adversarial"):
        before = weights(part)
        functions[part]()
        functions[part]()
        assert [a != b for a, b in zip(weights(part), before, strict=True)] == [part == "agent", part == "adversarial"]
        kernels, chain = speed.count_kernels(parts[part][0].as_text())
        assert kernels > chain > 20
    key = parts["rollout"][1].copy()
    functions["rollout"]()
    assert (key != parts["rollout"][1]).all()


def test_kernels_in_a_loop_are_counted():
    import jax

    def compile_scan(products: int, side: int = 0):
        def step(carry, _):
            x, y = carry
            for _ in range(products):
                x = x @ x
            for _ in range(side):
                y = y @ y
            return (x, y), None

        start = jax.numpy.ones((64, 64)), jax.numpy.ones((64, 64))
        return jax.jit(lambda x: jax.lax.scan(step, x, length=3)).lower(start).compile().as_text()

    counts = [speed.count_kernels(compile_scan(products)) for products in (2, 3, 6)]
    for extra, (total, chain) in zip((0, 1, 4), counts, strict=True):
        assert (total, chain) == (counts[0][0] + extra, counts[0][1] + extra)
    total, chain = speed.count_kernels(compile_scan(6, side=3))
    assert (total, chain) == (counts[2][0] + 3, counts[2][1]), "products that do not wait for each other"


def test_kernels_in_a_called_computation_are_counted():
    hlo = """
%called (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %left = f32[2]{0} negate(%x)
  %right = f32[2]{0} exponential(%x)
  ROOT %both = f32[2]{0} add(%left, %right)
}

%body (carry: f32[2]) -> f32[2] {
  %carry = f32[2]{0} parameter(0)
  %first = f32[2]{0} call(%carry), to_apply=%called
  ROOT %last = f32[2]{0} negate(%first)
}

ENTRY %main (start: f32[2]) -> f32[2] {
  %start = f32[2]{0} parameter(0)
  ROOT %loop = f32[2]{0} while(%start), condition=%condition, body=%body
}
"""
    assert speed.count_kernels(hlo) == (4, 3)


def test_a_loop_that_does_not_exist(args):
    for name in ("tensorflow", "jax", "torch-fast"):
        args.loops = (name,)
        with pytest.raises(speed.rambo.InputError, match=f"--loops {name}: no such loop"):
            speed.main(args)
