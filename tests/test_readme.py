"""What the README and benchmark/'s pages name exists: flags, metrics, files, sections."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import rambo_continuous
import rambo_continuous_jax

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "benchmark").glob("*.md")), ROOT / "benchmark" / "datasets" / "README.md"]
SCRIPTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("rambo_continuous.py", "rambo_continuous_jax.py")}
FLAGS = {
    "rambo_continuous.py": {field.name for field in fields(rambo_continuous.Args)},
    "rambo_continuous_jax.py": {field.name for field in fields(rambo_continuous_jax.Args)},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[list[str]]:
    """The words of every command in the README's shell blocks, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(command, comments=True) for line in lines for command in line.split(" && ")]


def section(heading: str) -> str:
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def table(heading: str) -> list[list[str]]:
    """The rows of a section's first table, cell by cell, without its head."""
    lines = re.search(r"(?:^\|.*\n)+", section(heading), re.M)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def sections(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_and_sections_that_are_linked_exist(subtests):
    for page in PAGES:
        with subtests.test(page=str(page)):
            for name, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
                target = page.parent / name if name else page
                assert target.exists(), f"{page}: {name}"
                if anchor:
                    assert target.suffix == ".md" and anchor in sections(target), f"{page}: {name}#{anchor}"


def test_files_that_the_commands_name_exist():
    named = {word for words in commands() for word in words if re.search(r"\.(py|sh|txt|slurm)$", word)}
    assert len(named) >= 7
    assert {name for name in named if not (ROOT / name).exists()} == set()


def field_of(flag: str) -> str:
    return flag.removeprefix("--").removeprefix("no-").replace("-", "_")


def test_the_commands_flags_exist():
    given = [(words[1], word) for words in commands() if words[:1] == ["python"] for word in words if word.startswith("--")]
    assert len(given) > 10
    for program, flag in given:
        known = FLAGS.get(program) or set(re.findall(r"^    (\w+): .*= ", (ROOT / program).read_text(), re.M))
        assert field_of(flag) in known, f"{program} has no {flag}"


def test_the_flags_in_the_text_exist():
    text = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    codes = [code for code in re.findall(r"`([^`\n]+)`", text) if "benchmark/" not in code]  # other programs' flags
    flags = {flag for code in codes for flag in re.findall(r"(?<![\w-])--[\w-]+", code)}
    assert len(flags) > 10
    assert {flag for flag in flags if field_of(flag) not in set.union(*FLAGS.values()) | {"help"}} == set()
    both = set.intersection(*FLAGS.values())
    for name in re.findall(r"--([\w-]+)", "".join(code for row in table("The two files") for code in row)):
        assert field_of(name) not in both, f"--{name} is no difference between the scripts"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_metrics_explained_are_those_logged(script):
    explained = [name for row in table("Logged metrics") for name in re.findall(r"`([\w/]+)`", row[0])]
    assert len(explained) == len(set(explained))
    assert set(explained) == set(re.findall(r'"((?:charts|losses|model|rollout)/\w+)"', SCRIPTS[script]))


def test_the_files_of_a_run_folder_are_those_written():
    names = [name for row in table("Usage") for name in re.findall(r"`([\w.]+)`", row[0])]
    assert len(names) == len(set(names)) > 5
    for name in names:
        assert any(f'"{name}"' in text for text in SCRIPTS.values()), f"no script writes {name}"


def test_the_import_examples_work():
    imports = "\n".join(line for block in blocks("python") for line in block.splitlines() if "import" in line)
    exec(imports, namespace := {})
    assert all(namespace[name] is getattr(rambo_continuous, name) for name in namespace if name != "__builtins__")


