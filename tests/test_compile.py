"""With --compile and with --cudagraphs whole runs compute the same as without."""

import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum_log, read_run, run_here, write_hdf5

import rambo_continuous as rambo

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def train(tmp_path, *flags):
    """The metrics of a run [iterations, metrics] but for its speed, and its final dynamics and policy."""
    torch.compiler.reset()
    flags = [*TINY, "--adv-weight", 0.01, "--save-model", "--checkpoint-minutes", 0, *flags]
    if not (tmp_path / "pendulum.hdf5").exists():
        write_hdf5(tmp_path / "pendulum.hdf5", pendulum_log())
    run = read_run(run_here(rambo, "--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *flags))
    names = [name for name in run.metrics[0] if not name.endswith(("SPS", "termination_rate"))]  # a pendulum never terminates
    return np.array([[float(row[name]) for name in names] for row in run.metrics]), run.dynamics, run.policy


def assert_same(accelerated, plain):
    metrics, *models = accelerated
    np.testing.assert_allclose(metrics[:, 1:], plain[0][:, 1:], rtol=1e-3, atol=1e-4)
    for one, other in zip(models, plain[1:], strict=True):
        for name in one:
            if one[name].dtype.kind == "f":  # Adam magnifies the rounding of gradients near zero
                off = np.abs(one[name] - other[name])
                assert np.mean(off > 1e-5 + 1e-3 * np.abs(other[name])) < 0.02 and off.max(initial=0) < 1e-2, name


@needs_compiler
@pytest.mark.timeout(900)  # compiling takes a minute of computing time
def test_a_compiled_run_computes_the_same_on_the_cpu(tmp_path, monkeypatch):
    """Compiled losses are called again after optimiser steps, of Adam with the settings that a GPU needs."""
    monkeypatch.chdir(tmp_path)
    compiled, settings, compile_function = [], [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: (compiled.append(function.__name__), compile_function(function))[1])
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (settings.append(self.defaults), step(self))[1])
    flags = ["--no-cuda", "--batch-size", 36]  # three batches of the same size in pretraining
    plain = train(tmp_path, *flags, "--no-compile")
    assert not compiled and plain[0][:, 1:].std(0).min() > 0, "every metric moves: there is something to compare"
    assert_same(train(tmp_path, *flags, "--compile"), plain)
    assert sorted(compiled) == ["actor_loss", "critic_loss", "model_loss", "pretraining_loss"]
    assert len(settings) == 2 * (3 + 2 * 5 * 4) and all(setting["capturable"] and setting["fused"] for setting in settings)


@needs_gpu
def test_accelerated_runs_compute_the_same_on_the_gpu(tmp_path, monkeypatch):
    """Cudagraphs alone, compilation alone, both. The last batch of pretraining is smaller than a captured one."""
    monkeypatch.chdir(tmp_path)
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (replays.append(self), replay(self))[1])
    flags = ["--updates-per-iteration", 20, "--batch-size", 20, "--model-max-pretrain-epochs", 3]
    plain = train(tmp_path, *flags, "--no-compile", "--no-cudagraphs")
    for options in (["--no-compile", "--cudagraphs"], ["--compile", "--no-cudagraphs"], ["--compile", "--cudagraphs"]):
        replays.clear()
        assert_same(train(tmp_path, *flags, *options), plain)
        assert len(set(replays)) == (3 if "--cudagraphs" in options else 0), "pretraining, agent and model"


@needs_gpu
def test_a_graph_replays_its_function_and_leaves_other_shapes_to_it():
    calls = []

    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return 2 * x

    graph = rambo.CudaGraph(double)
    for i in range(10):
        x = torch.full((4,), float(i), device="cuda")
        assert torch.equal(graph(x), 2 * x)
    assert len(calls) == 4  # three to warm up, one to capture
    assert torch.equal(graph(torch.ones(3, device="cuda")), torch.full((3,), 2.0, device="cuda"))
