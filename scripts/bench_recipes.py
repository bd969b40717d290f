"""What each recipe of recipes/ gives: its size at the published shapes, and what it loses on `tiny`.

    python scripts/bench_recipes.py [RECIPE ...]

The size follows from headers: a checkpoint of the published shapes without data. The loss is the mean KL divergence at
the answers' tokens over all 410 held-out items, of `quantkit run RECIPE --model tiny` and `quantkit verify tiny`; for
GGUF files what the blocks stand for, in llama.cpp. Prints the third comment line of each recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from make_checkpoint import published_checkpoint

from quantkit.bnb import plan_bnb
from quantkit.checkpoint import Checkpoint
from quantkit.cli.recipe import execute
from quantkit.cli.shared import console
from quantkit.gguf.plan import Variant, plan_gguf
from quantkit.plan import make_plan
from quantkit.recipe import VerifyCommandOptions
from quantkit.recipe.document import read_recipe
from quantkit.verify.asked import measured_files, verify_as_asked

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, default=sorted(RECIPES.glob("*.yaml")))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        checkpoint = published_checkpoint(Path(place) / "published")
        for recipe in arguments.recipes:
            print(f"{recipe.stem}: {size(recipe, checkpoint)}; {loss(recipe, Path(place) / recipe.stem)}", flush=True)


def size(recipe: Path, checkpoint: Checkpoint) -> str:
    """What a checkpoint comes to under a recipe: "1.90 GB", or each text file's and the vision file's tensors in MB."""
    found = read_recipe(recipe)
    options = found.options()
    if found.method == "gguf":
        plan = plan_gguf(checkpoint, options)
        texts = ", ".join(f"{variant.kind} {_weights(variant):.0f}" for variant in plan.texts)
        return f"{texts}, vision {_weights(plan.visions[0]):.0f} MB"
    if found.method == "bnb":
        return f"{plan_bnb(checkpoint, options).bytes_after / 1e9:.2f} GB"
    made = make_plan(checkpoint, options)
    after = made.bytes_after
    if made.allowance is not None:
        after += made.allowance.bytes - sum(min(by_width.values()) for by_width in made.allowance.sizes.values())
    return f"{after / 1e9:.2f} GB"


def _weights(variant: Variant) -> float:
    """Megabytes of its tensors: the vocabulary in the header is another than the published one."""
    return sum(file.nbytes - len(file.header) for file in variant.files) / 1e6


def loss(recipe: Path, out: Path) -> str:
    """KL at the answers' tokens, 0.001 nats: of the folder, or of each text file in the recipe's order."""
    found = read_recipe(recipe)
    options = found.options({"model": "tiny", "out": out})
    console.quiet = True
    execute(found.method, options, dry_run=False)
    losses = {}
    for candidate, _report in measured_files(out):
        report = verify_as_asked("tiny", candidate, VerifyCommandOptions(max_new_tokens=1))
        group = next(one for one in report.engines[0].groups if one.value == "all")
        assert group.answer is not None
        losses[candidate.name.removesuffix(".gguf")] = f"{group.answer.kl_mean.value * 1000:.2g}"
    if found.method == "gguf":
        return "loss on tiny " + ", ".join(losses[f"tiny-{kind}"] for kind in options.type)
    return f"loss on tiny {losses[out.name]}"


if __name__ == "__main__":
    main()
