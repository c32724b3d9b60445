"""With --compile and with --cudagraphs the updates compute the same as without."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

import rambo_continuous as rambo

OBS_DIM, ACTION_DIM = 11, 3
ARGS = rambo.Args(rollout_length=2, adv_weight=3e-4, batch_size=32, model_hidden_dim=16, model_max_pretrain_epochs=2)

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def deterministic():
    """As the script sets it; a compiled step knows under which setting it was compiled."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train(args: rambo.Args, device: str, updates: int = 200) -> torch.Tensor:
    """The metrics [updates, 13] of agent and adversarial model updates in turn, accelerated as args say."""
    torch.manual_seed(1)
    agent = rambo.Agent(OBS_DIM, ACTION_DIM, args.alpha).to(device)
    dynamics = rambo.Dynamics(args.num_elites, OBS_DIM, ACTION_DIM, args.model_hidden_dim).to(device)
    options = dict(fused=True, capturable=args.cudagraphs)
    optimizers = rambo.Optimizers(
        actor=torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr, **options),
        critic=torch.optim.Adam(agent.critic.parameters(), lr=args.q_lr, **options),
        alpha=torch.optim.Adam([agent.log_alpha], lr=args.policy_lr, **options),
        model=torch.optim.Adam(dynamics.parameters(), lr=args.model_lr, **options),
    )
    rows = make_rows(device)

    def agent_step(batch: torch.Tensor) -> torch.Tensor:
        return rambo.agent_update(agent, optimizers, rambo.split_rows(batch, OBS_DIM, ACTION_DIM), args)

    def model_step(observations: torch.Tensor, restarts: torch.Tensor, real_rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        real, terminated = rambo.split_rows(real_rows, OBS_DIM, ACTION_DIM), lambda x: x[..., 0] > 2
        return rambo.adversarial_update(agent, dynamics, optimizers.model, observations, restarts, real, terminated, args)

    agent_step, model_step = rambo.accelerate(agent_step, args), rambo.accelerate(model_step, args)
    history = torch.zeros(updates, len(rambo.AGENT_METRICS) + len(rambo.MODEL_METRICS), device=device)
    for i in range(updates):
        agent_metrics = agent_step(rambo.sample_rows(rows, args.batch_size))
        history[i, : len(agent_metrics)] = agent_metrics
        restarts = rambo.sample_rows(rows, args.batch_size)[:, :OBS_DIM]
        observations = restarts if i % args.rollout_length == 0 else observations  # noqa: F821
        real = rambo.sample_rows(rows, args.num_elites, args.batch_size)
        observations, history[i, len(agent_metrics) :] = model_step(observations, restarts, real)
    return history.cpu()


def make_rows(device: str) -> torch.Tensor:
    rows = torch.randn(1000, 2 * OBS_DIM + ACTION_DIM + 2, generator=torch.Generator().manual_seed(2))
    rows[:, OBS_DIM : OBS_DIM + ACTION_DIM].tanh_()
    rows[:, -1] = (rows[:, -1] > 1.5).float()
    return rows.to(device)


def roll_out(args: rambo.Args, device: str) -> torch.Tensor:
    """The ring buffer [2 * 2 * 40, 2O + A + 2] after four iterations of rollouts, some of which terminate."""
    torch.manual_seed(1)
    args = replace(args, rollout_batch_size=40, rollout_retain_iterations=2)
    agent = rambo.Agent(OBS_DIM, ACTION_DIM, args.alpha).to(device)
    dynamics = rambo.Dynamics(args.num_elites, OBS_DIM, ACTION_DIM, args.model_hidden_dim).to(device)
    rows, terminated = make_rows(device), lambda x: x[..., 0] > 1
    buffer = torch.zeros(2 * args.rollout_length * args.rollout_batch_size, rows.shape[1], device=device)
    step = rambo.accelerate(partial(rambo.rollout_step, agent, dynamics, rows, terminated), args)
    for iteration in range(4):
        rambo.rollout_models(agent, dynamics, rows, buffer, iteration, terminated, args, step)
    return buffer.cpu()


def assert_same(accelerated: torch.Tensor, plain: torch.Tensor) -> None:
    """Over the first updates but for rounding; later rounding has grown, yet other random numbers would differ by far more."""
    torch.testing.assert_close(accelerated[:10], plain[:10], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(accelerated, plain, rtol=2e-3, atol=2e-3)


@needs_compiler
@pytest.mark.timeout(900)  # compiling takes a minute of computing time
def test_compiled_updates_compute_the_same_on_the_cpu():
    plain = train(ARGS, "cpu")
    assert plain.std(0).min() > 1e-6  # every metric moves: there is something to compare
    assert_same(train(replace(ARGS, compile=True), "cpu"), plain)
    rollouts = roll_out(ARGS, "cpu")
    assert 0 < rollouts[:, -1].sum() < len(rollouts)
    torch.testing.assert_close(roll_out(replace(ARGS, compile=True), "cpu"), rollouts, rtol=1e-4, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("options", [{"cudagraphs": True}, {"compile": True}, {"compile": True, "cudagraphs": True}], ids=str)
def test_accelerated_updates_compute_the_same_on_the_gpu(options):
    assert_same(train(replace(ARGS, **options), "cuda"), train(ARGS, "cuda"))
    torch.testing.assert_close(roll_out(replace(ARGS, **options), "cuda"), roll_out(ARGS, "cuda"), rtol=1e-4, atol=1e-4)


@needs_gpu
def test_pretraining_in_graphs_computes_the_same():
    """Its last batch is smaller than the captured one."""
    errors = []
    for cudagraphs in (False, True):
        torch.manual_seed(1)
        dynamics = rambo.Dynamics(ARGS.num_models, OBS_DIM, ACTION_DIM, ARGS.model_hidden_dim).cuda()
        rows = make_rows("cuda")
        holdout = rambo.split_rows(rows[:100], OBS_DIM, ACTION_DIM)
        errors.append(rambo.pretrain_dynamics(dynamics, rows[100:], holdout, replace(ARGS, cudagraphs=cudagraphs)))
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-3, atol=1e-4)


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
