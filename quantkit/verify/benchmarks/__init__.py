"""Published benchmarks by name, as conversations with their own prompts, metrics and total scores.

    rows = load_benchmark("MMBench:dev", limit=200)          # streamed from the hub
    rows = load_benchmark("MMMU=/data/MMMU")                 # a local copy: parquet files or save_to_disk
    totals = aggregate("MMBench", [(row, score(row.metric, text, row.accepted, row.choices)) for row, text in ...])

Read through `datasets` (`pip install 'quantkit[data]'`), pictures as the bytes that the table holds, not encoded
again. No code from a data set is ever run. The prompts ask for short answers, in the form each benchmark
is usually given; where a published rule asks another model to judge or guesses at random, the rule here is exact
instead (see `scoring`), so totals may lie a little below published ones. What counts here is the difference of two
models under one rule.
"""

from quantkit.verify.benchmarks.load import is_benchmark, load_benchmark, parse_name
from quantkit.verify.benchmarks.totals import aggregate

__all__ = ["aggregate", "is_benchmark", "load_benchmark", "parse_name"]
