"""What is published comes from the logs: the report's pages and pictures are made again, the texts checked against them."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "benchmark" / "results").glob("*.md"))
RESULTS = (ROOT / "README.md").read_text().split("\n## Results\n")[1].split("\n## ")[0]
RESULTS += (ROOT / "benchmark" / "results.md").read_text()
RESULTS = RESULTS.replace("−", "-")
TABLES = "".join(page.read_text() for page in PAGES)
pytest.importorskip("rliable", reason="benchmark/requirements.txt is not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_on_a_page_makes_it_again(page, tmp_path):
    shutil.copy(ROOT / "rambo_continuous.py", tmp_path)
    shutil.copytree(ROOT / "benchmark", tmp_path / "benchmark", ignore=shutil.ignore_patterns("*.png", "*.md", "datasets"))
    command = shlex.split(page.read_text().split("`")[1])
    assert command[0] == "python" and "--figures" in command
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, timeout=300)
    again = tmp_path / "benchmark"
    assert (again / "results" / page.name).read_text() == page.read_text()
    pictures = sorted(again.rglob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        published = ROOT / picture.relative_to(tmp_path)
        assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(published))), published


def test_the_scores_of_each_seed_in_the_readme_are_on_a_page():
    lines = [line for line in RESULTS.splitlines() if line.startswith("| ")]
    rows = [[cell.strip(" *") for cell in line[1:-1].split("|")] for line in lines]
    rows = [[cell for cell in row[1:] if re.fullmatch(r"(-?\d+\.\d)?", cell)] for row in rows if "±" in row[-1]]
    rows = [row for row in rows if any(row)]  # a heading names seeds, not scores
    assert len(rows) > 60
    for *cells, median in rows:
        scores = {seed: score for seed, score in enumerate(cells, 1) if score}  # an empty cell: a seed that was not run
        assert ", ".join(f"{seed}: {score}" for seed, score in scores.items()) in TABLES, scores
        assert np.isclose(float(median), np.median([float(score) for score in scores.values()]), atol=0.051), scores


def test_every_mean_and_std_in_the_readme_is_on_a_page():
    found = re.findall(r"-?\d+\.\d ± \d+\.\d", RESULTS)
    assert len(found) > 100
    for mean_std in found:
        assert re.search(rf"(?<![\d.-]){re.escape(mean_std)}(?![\d.])", TABLES), mean_std


def test_q_and_rewards_prints_the_same_again():
    command, table = (ROOT / "benchmark" / "results" / "q_and_rewards.txt").read_text().split("\n\n")
    again = subprocess.run(command.replace("python", sys.executable, 1), cwd=ROOT, shell=True, check=True, capture_output=True)
    assert again.stdout.decode() == table


def evaluations(pattern, column):
    (path,) = (ROOT / "benchmark" / "results").glob(f"{pattern}/evaluations.csv")
    with open(path) as file:
        return [row[column] for row in csv.DictReader(file)]


def test_three_hundred_iterations_begin_as_the_published_hundred_and_do_not_rise():
    log = "walker2d-sbx-full-replay-v2"
    long, short = f"{log}_300-iterations/*", f"{log}/*__1__1795621929"
    assert evaluations(long, "episodic_returns")[:101] == evaluations(short, "episodic_returns")
    scores = np.array(evaluations(long, "normalized_score_mean"), float)[1:]
    tens = scores.reshape(-1, 10).mean(1)
    assert f"averages {tens[9:].min():.1f} to {tens[9:].max():.1f} over each ten evaluations" in RESULTS
    assert f"the last ten {tens[-1]:.1f}, and no evaluation is above {scores.max():.1f}" in RESULTS


def test_scores_and_gaps_with_the_adversary_without_and_frozen():
    found = []
    for run in ("_lambda-1e-9/*", "/*__1__1795651893", "/*__1__1795654190"):
        columns = [evaluations(f"halfcheetah-sbx-medium-v2{run}", name) for name in ("normalized_score_mean", "value_gap")]
        found += [f"{np.array(column[-10:], float).mean():.1f}" for column in columns]
    text = "the mean of the last 10 evaluations is {} and the value gap {} ("
    assert text.format(*found[:2]) in RESULTS
    assert "RAMBO's are {} and {}, those of λ = 0 {} and {}.".format(*found[2:]) in RESULTS
