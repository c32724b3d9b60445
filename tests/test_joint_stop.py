"""benchmark/joint_stop.py: it finds the rows at the stop, and a model that predicts more velocity has more bias."""

import re
import sys

import numpy as np
from conftest import ROOT, TINY, run_here, run_script

SCRIPT = ROOT / "benchmark" / "joint_stop.py"
sys.path.insert(0, str(SCRIPT.parent))
import joint_stop  # noqa: E402

from rambo_continuous import BUNDLED_FILES, read_hdf5  # noqa: E402


def table(text: str) -> list[list[float]]:
    """The numbers of each row."""
    return [[float(cell) for cell in line.split("|")[2:-1]] for line in text.splitlines()[2:]]


def test_bias_is_what_the_model_adds(rambo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = run_here(rambo, *TINY, "--env-id", "hopper-mini-v2", "--checkpoint-interval", 1, "--save-model")
    with np.load(folder / "dynamics.npz") as file:
        arrays = dict(file)
    arrays["layers.4.bias"][..., 8] += 0.1  # the mean of the thigh's velocity
    np.savez("shifted.npz", **arrays)
    capsys.readouterr()
    joint_stop.main(joint_stop.Args((folder, folder / "dynamics.npz", tmp_path / "shifted.npz")))
    checkpoint, saved, shifted = table(capsys.readouterr().out)
    assert checkpoint == saved and saved != shifted
    data = read_hdf5(ROOT / "benchmark" / "datasets" / BUNDLED_FILES["hopper-mini-v2"])
    pressing = (data["observations"][:, 2] > -0.02) & (data["actions"][:, 0] > 0.9)
    assert pressing.sum() * 0.8 < saved[0] <= pressing.sum() and saved[4] == len(pressing) - 1000  # without hold-out rows
    added = 0.1 * (data["observations"][:, 8].std() + 1e-3)
    for bias in (1, 5):
        np.testing.assert_allclose(shifted[bias] - saved[bias], added, atol=2e-3)
    for other in (0, 3, 4, 7):
        assert shifted[other] == saved[other]


def test_bad_input_is_refused_in_one_line(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"cut off")
    for arguments, message in [
        ((tmp_path / "cut.npz",), "cut.npz: not a dynamics"),
        ((tmp_path,), "no usable args.json and checkpoint there"),
        ((tmp_path, "--env-id", "pendulum-mini"), "only for hopper"),
    ]:
        result = run_script(SCRIPT, *arguments)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert re.match(rf"error: .*{message}", result.stderr.splitlines()[-1]), result.stderr
