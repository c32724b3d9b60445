"""The README and benchmark/'s pages point at lines, files, sections and metrics: they must not go stale."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "benchmark").glob("*.md")), ROOT / "benchmark" / "datasets" / "README.md"]


@pytest.mark.parametrize("name, file, line", re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README))
def test_line_anchors_point_at_what_they_name(name, file, line):
    text = (ROOT / file).read_text().splitlines()[int(line) - 1]
    assert re.match(rf"(def|class) {name}\b|{name} = ", text), f"README: {file}#L{line} is not {name} but: {text}"


def sections(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_sections_that_are_linked_exist(page):
    for name, _, section in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), f"{page}: {name}"
        if section and target.suffix == ".md":
            assert section in sections(target), f"{page}: {name}#{section}"


def test_every_flag_in_the_readme_exists():
    fields = set(re.findall(r"^    (\w+): .*= ", (ROOT / "rambo_continuous.py").read_text(), re.M))
    commands = re.findall(r"python rambo_continuous\.py[^\n`#]*", README)
    flags = {flag.removeprefix("no-").replace("-", "_") for command in commands for flag in re.findall(r"--([\w-]+)", command)}
    assert flags and flags - fields - {"help"} == set()


def test_every_metric_is_explained():
    script = (ROOT / "rambo_continuous.py").read_text()
    groups = {"AGENT_METRICS": "losses", "ROLLOUT_METRICS": "rollout", "MODEL_METRICS": "model"}
    for constant, group in groups.items():
        for name in re.findall(r'"(\w+)"', re.search(rf"^{constant} = (.*)$", script, re.M).group(1)):
            assert f"`{group}/{name}`" in README, f"{group}/{name} is not explained"
    for name in re.findall(r'metrics\["(\w+/\w+)"\] =', script):
        assert f"`{name}`" in README, f"{name} is not explained"
