"""benchmark/speed.py on tiny sizes: what is timed, its arithmetic, its table. No time is asserted."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rambo_continuous as rambo
from benchmark import speed

TINY = "--rollout-batch-size 60 --rollout-length 2 --num-models 3 --num-elites 2 --model-hidden-dim 24 --batch-size 1000"
TINY = [*TINY.split(), "--updates-per-iteration", "20", "--eval-episodes", "1", "--no-cuda"]


def test_every_part_of_either_script_is_timed(script, tmp_path, capsys):
    args = speed.Args(script.stem.endswith("jax"), env_id="pendulum-mini", updates=3, repeats=2, output=tmp_path / "s.json")
    results = speed.main(args, TINY)
    assert json.loads(args.output.read_text()) == results and results["rows"] == 16_000
    parts = results["parts"]
    assert set(parts) == {
        "epoch of pretraining",
        "rollouts",
        "agent update",
        "adversarial model update",
        "evaluation",
        "iteration",
    }
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines] == ["part", *parts]
    for name, part in parts.items():
        assert part["least"] <= part["seconds"] <= part["most"]
        if name != "evaluation":
            work = part["seconds"] * results["matrix_gflop_per_second"]
            assert part["multiple"] == pytest.approx(work / part["gflop"])
    updates = 20 * (parts["agent update"]["gflop"] + parts["adversarial model update"]["gflop"])
    assert parts["iteration"]["gflop"] == pytest.approx(parts["rollouts"]["gflop"] + updates)


def counted(function) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def test_the_arithmetic_is_what_torch_counts():
    """Of the scripts' own functions, in Hopper's dimensions."""
    args = rambo.Args(rollout_batch_size=1000)
    agent, dynamics = rambo.Agent(11, 3, 1.0), rambo.Dynamics(args.num_elites, 11, 3, args.model_hidden_dim)
    adam = {"actor": agent.actor.parameters(), "critic": agent.critic.parameters(), "alpha": [agent.log_alpha]}
    optimizers = {name: torch.optim.Adam(parameters) for name, parameters in adam.items()}
    rows, size = torch.rand(1000, 27), args.batch_size
    batch, never = rambo.split_rows(rows[:size], 11), lambda rewards, x: (rewards, x[..., 0] > 1e9)
    members = rambo.split_rows(rows[:size].expand(args.num_elites, size, 27), 11)
    draws = torch.randint(args.num_elites, (size,)), torch.randn(size, 15)
    model = torch.optim.Adam(dynamics.parameters())
    start = batch.observations
    gflop = speed.count_gflop(args, 11, 3, size)
    found = {
        "epoch of pretraining": lambda: rambo.pretraining_loss(dynamics, members).backward(),
        "rollouts": lambda: rambo.rollout_models(agent, dynamics, rows, never, args),
        "agent update": lambda: rambo.update_agent(agent, optimizers, batch, torch.randn(2, size, 3), args),
        "adversarial model update": lambda: rambo.update_model(
            agent, dynamics, model, start, start, members, *draws, never, args
        ),
    }
    ensemble = args.num_models / args.num_elites
    for name, function in found.items():
        assert counted(function) * (ensemble if "epoch" in name else 1) == pytest.approx(gflop[name]), name
