"""The logs in git are the files that benchmark/datasets/README.md describes."""

import hashlib
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import tyro

from benchmark.datasets.collect import SAC_SETTINGS, Args, checkpoint_path, episode_returns

FOLDER = Path(__file__).resolve().parents[2] / "benchmark" / "datasets"
TABLE = (
    r"\| `([\w-]+)` \| `([\w-]+\.(?:hdf5|npz))` \| (\d+) \| `(\w{64})` \| ([\d,]+) \| ([\d,]+) \| (\S+) \| (\S+) \| (\S+) \|"
)
ROWS = re.findall(TABLE, (FOLDER / "README.md").read_text(encoding="utf-8"))


def describe(columns: dict[str, np.ndarray]) -> list[str]:
    """Rows, episodes, mean, best and last 20 returns as the table has them."""
    returns = episode_returns(columns)
    values = [f"{value:.1f}" for value in (returns.mean(), returns.max(), returns[-20:].mean())]
    return [f"{len(columns['rewards']):,}", f"{len(returns):,}", *values]


def test_every_log_is_described():
    assert sorted(row[1] for row in ROWS) == sorted(path.name for path in FOLDER.glob("*") if path.suffix in (".hdf5", ".npz"))


def test_the_description_is_true(subtests):
    """The returns of what is in git as actions: test_rebuild.py."""
    for row in ROWS:
        with subtests.test(row=str(row)):
            env_id, name, size, sha256, *numbers = row
            content = (FOLDER / name).read_bytes()
            assert name.removesuffix(".npz").removesuffix(".hdf5").replace("_", "-") == env_id
            assert len(content) == int(size) and hashlib.sha256(content).hexdigest() == sha256
            if name.endswith(".hdf5"):
                with h5py.File(FOLDER / name) as file:
                    assert describe({key: file[key][()] for key in ("rewards", "terminals", "timeouts")}) == numbers
            else:
                with np.load(FOLDER / name) as file:
                    counts = [f"{len(file['actions']):,}", f"{len(file['lengths']):,}"]
                    assert [str(file["env_id"]), *counts] == [env_id, *numbers[:2]]


def test_the_commands_do_not_refuse_each_others_checkpoints():
    """Those that share the checkpoint of a SAC run have the same settings of SAC."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    settings = {}
    for command in re.findall(r"^python benchmark/datasets/collect.py (.*)$", text, re.M):
        args = tyro.cli(Args, args=shlex.split(command))
        settings.setdefault(checkpoint_path(args, "sac"), set()).add(tuple(getattr(args, name) for name in SAC_SETTINGS))
    assert len(settings) > 3 and {len(found) for found in settings.values()} == {1}
