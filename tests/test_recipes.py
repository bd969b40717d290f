"""`recipes/*.yaml`: each opens with three lines that hold, and runs on tiny as a user would run it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_recipes import RECIPES, size
from make_checkpoint import published_checkpoint

from quantkit.checkpoint import Checkpoint

PUBLISHED = {f"{method}{kind}" for method in ("awq", "gptq", "bnb", "gguf") for kind in ("", "-thinking")}
PATHS = sorted(RECIPES.glob("*.yaml"))

each = pytest.mark.parametrize("recipe", PATHS, ids=[path.stem for path in PATHS])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return published_checkpoint(tmp_path_factory.mktemp("published") / "model")


def test_there_is_one_for_each_purpose() -> None:
    assert PUBLISHED | {"smallest", "best-quality"} <= {path.stem for path in PATHS}
    assert {f"mobile-{system}" for system in ("ios", "android", "harmonyos")} <= {path.stem for path in PATHS}


@each
def test_its_first_lines_say_what_when_and_the_size_that_follows_from_the_published_shapes(
    recipe: Path, published: Checkpoint
) -> None:
    lines = recipe.read_text().splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["# What", "# When", "# Size"]
    assert not lines[3].startswith("#") and max(map(len, lines)) <= 120
    assert size(recipe, published) in lines[2]
    assert re.search(r"; loss on tiny [0-9]", lines[2])


@each
def test_it_runs_on_tiny(
    recipe: Path, small_calibration: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    given = ["--model", "tiny", "--out", tmp_path / "out"]
    if "bnb" not in recipe.stem:
        given += ["--calib", small_calibration, "--samples", 4, "--no-cache"]
    code, output, errors = run("run", recipe, *given)
    assert code == 0, errors
    code, output, errors = run("inspect", tmp_path / "out")
    assert code == 0 and "made by: quantkit" in output, errors
