"""Algorithm 1 as main puts it together: which function gets which rows, in which order."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, pendulum_log, run_here, write_hdf5

import rambo_continuous as rambo

WATCHED = ("pretrain_dynamics", "rollout_models", "agent_update", "adversarial_update")
UPDATES, BATCH, NUM_ELITES, K, RETAIN = 5, 32, 5, 2, 2


def copied(value):
    """Tensors as they are now, within named tuples too."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return type(value)(*map(copied, value)) if isinstance(value, rambo.Batch) else value


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Runs three iterations and returns the calls of WATCHED in order: name, arguments (before the call), result."""

    def run(*flags):
        calls = []

        def watch(name):
            original = getattr(rambo, name)

            def watching(*positional, **named):
                arguments = inspect.signature(original).bind(*positional, **named).arguments
                before = {key: copied(value) for key, value in arguments.items()}
                optimizer = arguments.get("optimizer")
                call = SimpleNamespace(name=name, **before, adam_is_fresh=optimizer is not None and not optimizer.state)
                calls.append(call)
                call.result = original(*positional, **named)
                if name == "rollout_models":
                    call.buffer_after = arguments["buffer"].clone()
                return call.result

            monkeypatch.setattr(rambo, name, watching)

        monkeypatch.chdir(tmp_path)
        for name in WATCHED:
            watch(name)
        kept = []
        keep = rambo.Dynamics.keep
        monkeypatch.setattr(rambo.Dynamics, "keep", lambda self, members: (kept.append(members), keep(self, members))[1])
        write_hdf5(Path("pendulum.hdf5"), pendulum_log())
        defaults = ["--env-id", "Pendulum-v1", "--dataset-path", "pendulum.hdf5", *TINY]
        defaults += ["--total-iterations", 3, "--rollout-retain-iterations", RETAIN]
        run_here(rambo, *defaults, *flags)
        return SimpleNamespace(calls=calls, kept=kept, named=lambda name: [call for call in calls if call.name == name])

    return run


def as_set(rows):
    return {tuple(row) for row in rows.flatten(0, -2).tolist()}


def pack(batch):
    """A batch as rows again."""
    columns = [c.unsqueeze(-1) if c.dim() < batch.observations.dim() else c for c in batch]
    return torch.cat(columns, -1)


def test_each_iteration_rolls_out_then_trains_the_agent_then_the_model(trace):
    names = [call.name for call in trace().calls]
    iteration = ["rollout_models", *["agent_update"] * UPDATES, *["adversarial_update"] * UPDATES]
    assert names == ["pretrain_dynamics", *iteration * 3]


def test_lambda_0_never_updates_the_model(trace):
    names = [call.name for call in trace("--adv-weight", 0).calls]
    assert names == ["pretrain_dynamics", *["rollout_models", *["agent_update"] * UPDATES] * 3]


def test_the_elites_are_the_members_with_the_lowest_holdout_errors(trace):
    run = trace()
    (pretraining,) = run.named("pretrain_dynamics")
    errors = pretraining.result.tolist()
    assert len(errors) == 7
    (kept,) = run.kept
    assert sorted(kept.tolist()) == sorted(sorted(range(7), key=errors.__getitem__)[:NUM_ELITES])


def test_holdout_rows_are_a_tenth_at_random_and_never_trained_on(trace):
    run = trace()
    (pretraining,) = run.named("pretrain_dynamics")
    train, holdout = as_set(pretraining.train_rows), as_set(pack(pretraining.holdout))
    everything = as_set(run.named("rollout_models")[0].rows)
    assert len(holdout) == 12 and len(everything) == 120
    assert not train & holdout and train | holdout == everything
    first_rewards = pendulum_log()["rewards"][:12].tolist()
    assert sorted(pretraining.holdout.rewards.tolist()) != sorted(first_rewards), "not the first rows of the file"
    for call in run.named("adversarial_update"):
        assert as_set(pack(call.real)) <= train


def test_the_supervised_rows_of_each_member_are_drawn_independently(trace):
    for call in trace().named("adversarial_update"):
        assert call.real.observations.shape[:2] == (NUM_ELITES, BATCH)
        members = [tuple(map(tuple, pack(call.real)[member].tolist())) for member in range(NUM_ELITES)]
        assert len(set(members)) == NUM_ELITES


def test_adversarial_rollouts_go_on_for_k_steps_from_dataset_states(trace):
    run = trace("--rollout-length", 3)
    states = as_set(run.named("rollout_models")[0].rows[:, :3])
    calls = run.named("adversarial_update")
    for i, call in enumerate(calls):
        assert as_set(call.restarts) <= states
        if i % UPDATES % 3 == 0:
            assert as_set(call.observations) <= states
            assert i == 0 or not torch.equal(call.observations, calls[i - 3].observations)
        else:
            assert torch.equal(call.observations, calls[i - 1].result[0])


def test_the_models_adam_starts_afresh_after_pretraining(trace):
    freshness = [call.adam_is_fresh for call in trace().named("adversarial_update")]
    assert freshness == [True, *[False] * (3 * UPDATES - 1)]


@pytest.mark.parametrize("real_ratio, num_real", [(0.5, 16), (0.25, 8), (0.0, 0)])
def test_the_agents_batches_mix_dataset_and_newest_model_rows(trace, real_ratio, num_real):
    run, model_rows, batches = trace("--real-ratio", real_ratio), [], []
    for call in run.calls:
        if call.name == "rollout_models":
            dataset, before = as_set(call.rows), as_set(call.buffer)
            model_rows = (model_rows + [as_set(call.buffer_after) - before])[-RETAIN:]
        elif call.name == "agent_update":
            rows = list(map(tuple, pack(call.batch).tolist()))
            assert len(rows) == BATCH
            assert sum(row in dataset for row in rows) == num_real
            assert sum(any(row in part for part in model_rows) for row in rows) == BATCH - num_real
            batches.append(rows)
    assert len(set(map(tuple, batches))) == 3 * UPDATES
    assert len(model_rows[0]) == len(model_rows[1]) == 100 * K


def test_real_ratio_1_is_sac_on_the_dataset(trace):
    run = trace("--real-ratio", 1)
    assert {call.name for call in run.calls} == {"agent_update"}
