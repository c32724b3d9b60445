"""benchmark/joint_stop.py: it finds the rows at the stop, and a model that predicts more velocity has more bias."""

import re
import sys

import numpy as np
from conftest import ROOT, TINY, run_here, run_script

SCRIPT = ROOT / "benchmark" / "joint_stop.py"
sys.path.insert(0, str(SCRIPT.parent))
import joint_stop  # noqa: E402

from rambo_continuous import BUNDLED_FILES, read_hdf5  # noqa: E402

RUN = [*TINY, "--checkpoint-interval", 1, "--env-id"]


def test_bias_is_what_the_model_adds(rambo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo, *RUN, "hopper-mini-v2", "--save-model")
    with np.load(folder / "dynamics.npz") as file:
        arrays = dict(file)
    arrays["layers.4.bias"][..., 8] += 0.1  # the mean of the thigh's velocity
    np.savez("shifted.npz", **arrays)
    found = joint_stop.analyse(folder, 0.02)
    assert found == joint_stop.analyse(folder, 0.02, folder / "dynamics.npz")
    shifted = joint_stop.analyse(folder, 0.02, tmp_path / "shifted.npz")
    data = read_hdf5(ROOT / "benchmark" / "datasets" / BUNDLED_FILES["hopper-mini-v2"])
    pressing = (data["observations"][:, 2] > -0.02) & (data["actions"][:, 0] > 0.9)
    assert [part["rows"] for part in found] == [pressing.sum(), len(pressing)]
    added = 0.1 * (data["observations"][:, 8].std() + 1e-3)
    for part, more in zip(found, shifted, strict=True):
        np.testing.assert_allclose(more["bias"] - part["bias"], added, atol=1e-4)
        assert part["sigma"] == more["sigma"] > 0 and part["error"] >= abs(part["bias"])


def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch):
    import rambo_continuous

    monkeypatch.chdir(tmp_path)
    pendulum = run_here(rambo_continuous, *RUN, "pendulum-mini", "--total-iterations", 0)
    for folder, message in [(pendulum, "only for hopper, not pendulum-mini"), (tmp_path, "no usable args.json")]:
        result = run_script(SCRIPT, folder)
        assert result.returncode == 1 and "Traceback" not in result.stderr and not result.stdout
        assert re.match(rf"error: .*{message}", result.stderr.splitlines()[-1]), result.stderr
