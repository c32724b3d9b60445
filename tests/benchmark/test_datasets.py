"""The bundled logs are the files that benchmark/datasets/README.md describes."""

import hashlib
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmark" / "datasets"
TEXT = (FOLDER / "README.md").read_text()
FILES = re.findall(r"\| `([\w-]+)` \| `([\w-]+\.hdf5)` \| (\d+) \| `(\w{64})` \|", TEXT)


def test_every_log_is_described():
    assert sorted(name for _, name, _, _ in FILES) == sorted(path.name for path in FOLDER.glob("*.hdf5"))


@pytest.mark.parametrize(("env_id", "name", "size", "sha256"), FILES)
def test_the_description_is_true(env_id, name, size, sha256):
    content = (FOLDER / name).read_bytes()
    assert len(content) == int(size) and hashlib.sha256(content).hexdigest() == sha256
    with h5py.File(FOLDER / name) as file:
        rewards = file["rewards"][()].astype(float)
        last_rows = np.flatnonzero(file["terminals"][()] | file["timeouts"][()])
    returns = np.diff(np.cumsum(rewards)[last_rows], prepend=0.0)
    paragraph = " ".join(TEXT.split(f"**`{env_id}`**")[1].split("```")[0].split())
    assert f"{len(rewards):,} rows in {len(returns)} episodes" in paragraph
    assert f"return mean {returns.mean():.1f}, best {returns.max():.1f}" in paragraph
