"""`recipes/mobile-*.yaml`: they load, run on tiny, and say the sizes that follow from the published shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from make_checkpoint import published_checkpoint
from test_gguf_inspect import write_planned

from quantkit.checkpoint import Checkpoint
from quantkit.gguf.inventory import memory_budget, take_gguf_inventory
from quantkit.gguf.plan import GgufPlan, plan_gguf
from quantkit.gguf.quantize import quantize_gguf
from quantkit.recipe import GgufOptions
from quantkit.recipe.document import read_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("mobile-*.yaml"))
# what llama.cpp of autumn 2026 rearranges for ARM's dotprod (ggml/src/ggml-cpu/repack.cpp), and what F32 needs not
REARRANGED = {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "F32"}

each = pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])


def options(path: Path, **settings: Any) -> GgufOptions:
    """A recipe's options, and what was typed after it."""
    made: GgufOptions = read_recipe(path).options(settings)
    return made


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return published_checkpoint(tmp_path_factory.mktemp("published") / "model")


def test_there_is_one_a_system() -> None:
    assert [path.stem for path in RECIPES] == ["mobile-android", "mobile-harmonyos", "mobile-ios"]


@each
def test_it_runs_and_inspect_shows_its_memory(
    recipe: Path, small_calibration: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    given = {"model": "tiny", "calib": (str(small_calibration),), "samples": 4, "no_cache": True}
    outcome = quantize_gguf(options(recipe, out=tmp_path / "out", **given))
    assert outcome.data is not None and len(outcome.data.samples) == 4
    kind = outcome.plan.texts[0].kind
    code, output, errors = run("inspect", tmp_path / "out")
    assert code == 0, errors
    for words in (f"tiny-{kind}.gguf", "weights: mmproj-tiny-Q8_0.gguf", "memory at 4096 positions", "solver refine"):
        assert words in output
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / f"tiny-{kind}.gguf").tensors}
    assert types <= REARRANGED


@each
def test_its_third_line_says_the_memory_that_follows_from_the_published_shapes(
    recipe: Path, published: Checkpoint, tmp_path: Path
) -> None:
    lines = recipe.read_text().splitlines()
    plan = plan_gguf(published, options(recipe))
    assert set(plan.texts[0].types.values()) <= REARRANGED
    assert lines[2].endswith(f"; {_memory(plan, tmp_path)}.")


def _memory(plan: GgufPlan, folder: Path) -> str:
    text, vision = (take_gguf_inventory(write_planned(folder, variant.files[0])) for variant in plan.variants)
    budget = memory_budget(text, vision, 4096)
    assert budget is not None and budget.total is not None
    return f"{budget.total / 1e9:.2f} GB of memory at 4096 positions"


def test_what_the_comments_say_of_alternatives(published: Checkpoint, tmp_path: Path) -> None:
    """381 MB between F16 and Q8_0; 308 MB kept twice; Q4_1 in Q4_0's mixture without the override."""
    ios = ROOT / "recipes" / "mobile-ios.yaml"
    small, large = (plan_gguf(published, options(ios, mmproj_type=kind)).visions[0].nbytes for kind in ("q8_0", "f16"))
    for recipe in RECIPES:
        assert f"# {(large - small) / 1e6:.0f} MB less than F16" in recipe.read_text()
    text = take_gguf_inventory(write_planned(tmp_path, plan_gguf(published, options(ios)).texts[0].files[0]))
    budget = memory_budget(text, None)
    assert budget is not None and re.search(rf"keeps {budget.copies / 1e6:.0f} MB of them", ios.read_text())
    android = ROOT / "recipes" / "mobile-android.yaml"
    assert "Q4_1" in plan_gguf(published, options(android, tensor_type=())).texts[0].types.values()
