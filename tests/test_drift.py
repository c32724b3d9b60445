"""benchmark/drift.py: its simulator is the one that made the logs, and its optimism is what the model adds."""

import re
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, run_here, run_script

SCRIPT = ROOT / "benchmark" / "drift.py"
sys.path.insert(0, str(SCRIPT.parent))
import drift  # noqa: E402

from rambo_continuous import make_env  # noqa: E402

RUN = [*TINY, "--checkpoint-interval", 1, "--env-id"]


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_the_simulator_goes_on_from_an_observation(name):
    env, rng, rows = make_env(f"{name}-own-v2"), np.random.default_rng(0), []
    low, high = env.action_space.low, env.action_space.high
    for episode in range(5):
        observation, _ = env.reset(seed=episode)
        for _ in range(200):
            action = 0.3 * rng.uniform(low, high)  # gently, so that velocities stay below 10
            following, reward, terminal, _, _ = env.step(action)
            rows.append((observation, action, following, reward, terminal))
            observation = following
            if terminal:
                break
    observations, actions, *expected = map(np.array, zip(*rows, strict=True))
    found = drift.simulate(env, observations, actions)
    whole = (abs(observations).max(1) < 10) | (name == "halfcheetah")  # no velocity was cut off
    assert whole.sum() > 20 and (name == "halfcheetah" or expected[2][whole].any())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[whole].astype(float), b[whole].astype(float), atol=1e-3)


def test_optimism_is_what_the_model_adds(rambo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo, *RUN, "hopper-mini-v2", "--save-model")
    with np.load(folder / "dynamics.npz") as file:
        arrays = dict(file)
    arrays["layers.4.bias"][..., 11] += 0.5  # the mean of the reward, after those of eleven observations
    np.savez("generous.npz", **arrays)
    iteration, table = drift.rollouts(folder, starts=100, depth=3)
    _, same = drift.rollouts(folder, starts=100, depth=3, dynamics_path=folder / "dynamics.npz")
    _, generous = drift.rollouts(folder, starts=100, depth=3, dynamics_path=tmp_path / "generous.npz")
    assert iteration == 2 and [row["depth"] for row in table] == [0, 1, 2, 3] and table == same
    assert table[0]["V model"] == table[0]["V simulator"] and table[3]["V model"] != table[3]["V simulator"]
    assert table[0]["alive"] == 1 and all(0 < row["error"] and 0 < row["sigma"] and 0 < row["disagreement"] for row in table)
    assert all(row["worst"] in range(11) and row["error"] < row["by"] for row in table)
    for row, more in zip(table, generous, strict=True):
        np.testing.assert_allclose(more.pop("optimism") - row.pop("optimism"), 0.5, atol=1e-4)
    assert generous == table


def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch):
    import rambo_continuous

    monkeypatch.chdir(tmp_path)
    names = "hopper-mini-v2", "pendulum-mini"
    hopper, pendulum = (run_here(rambo_continuous, *RUN, name, "--total-iterations", 0) for name in names)
    (tmp_path / "cut.npz").write_bytes(b"cut off")
    np.savez("other.npz", obs_mean=np.zeros(11))
    for arguments, message in [
        ((pendulum,), "only for hopper, halfcheetah, walker2d"),
        ((hopper, "--starts", 7), "--starts must be a multiple of 5"),
        ((hopper, "--dynamics", "cut.npz"), "--dynamics cut.npz: not a model for this run"),
        ((hopper, "--dynamics", "other.npz"), "--dynamics other.npz: .*another dataset"),
        ((tmp_path / "nowhere",), "no usable args.json and checkpoint there"),
    ]:
        result = run_script(SCRIPT, *arguments)
        assert result.returncode == 1 and "Traceback" not in result.stderr and not result.stdout
        assert re.match(rf"error: .*{message}", result.stderr.splitlines()[-1]), result.stderr
