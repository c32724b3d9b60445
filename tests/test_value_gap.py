"""benchmark/value_gap.py: its parts add up to the gap that the run logged, and each part answers to its own cause."""

import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, read_run, run_here, run_script

SCRIPT = ROOT / "benchmark" / "value_gap.py"
sys.path.insert(0, str(SCRIPT.parent))
import value_gap  # noqa: E402

RUN = [*TINY, "--checkpoint-interval", 1, "--env-id"]
PARTS = ("model's optimism", "critic's error", "time limit")


@pytest.mark.parametrize("env_id", ["hopper-mini-v2", "pendulum-mini"])  # ends with a fall; with the time limit
def test_the_parts_add_up_to_the_gap_of_the_log(rambo, env_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo, *RUN, env_id)
    logged, found = read_run(folder).evaluations[-1], value_gap.analyse(folder, episodes=2, model_samples=2)
    assert found["iteration"] == int(logged["iteration"]) == 2
    np.testing.assert_allclose(found["return"], float(logged["episodic_return_mean"]), rtol=1e-4)
    parts = np.array([found[part] for part in PARTS])
    assert (found["time limit"] == 0) == (env_id == "hopper-mini-v2")
    np.testing.assert_allclose(parts.sum(), found["value gap"], atol=1e-3)
    np.testing.assert_allclose(found["value gap"], float(logged["value_gap"]), atol=0.05)
    assert found["error on the log"] > 0 and found["on its own way"] > 0


def test_a_model_that_promises_more_is_more_optimistic(tmp_path, monkeypatch):
    import rambo_continuous_jax

    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo_continuous_jax, *RUN, "pendulum-mini")
    before = value_gap.analyse(folder, episodes=1, model_samples=1)
    with np.load(folder / "checkpoint.npz") as file:
        arrays = dict(file)
    arrays["dynamics.layers.4.bias"][..., 3] += 0.5  # the mean of the reward, after those of three observations
    np.savez(folder / "checkpoint.npz", **arrays)
    after = value_gap.analyse(folder, episodes=1, model_samples=1)
    promised = 0.5 * (1 - 0.99**200) / (1 - 0.99)
    np.testing.assert_allclose(after["model's optimism"] - before["model's optimism"], promised, rtol=1e-4)
    np.testing.assert_allclose(after["critic's error"] - before["critic's error"], -promised, rtol=1e-4)
    assert after["value gap"] == before["value gap"]


def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch):
    import rambo_continuous

    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo_continuous, *RUN, "pendulum-mini", "--real-ratio", 1, "--total-iterations", 0)
    with pytest.raises(value_gap.InputError, match="there is no model"):
        value_gap.analyse(folder, episodes=1, model_samples=1)
    (folder / "checkpoint.pt").write_bytes(b"cut off")
    for name in (folder, tmp_path / "nowhere"):
        result = run_script(SCRIPT, name)
        assert result.returncode == 1 and "Traceback" not in result.stderr and not result.stdout
        assert result.stderr.splitlines()[-1].startswith(f"error: {name}: no usable args.json and checkpoint there")
