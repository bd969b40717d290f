"""One schema for every option: name, type, default, help and limits stand once, for the command line, YAML and Python.

Plain dataclasses, so that nothing heavy is imported before a command runs. `quantkit.cli.options` makes the flags of a
command from the fields, `recipe.document` what a recipe in YAML may say; making an object checks limits and choices.
"""

from quantkit.recipe.ask import ChatOptions
from quantkit.recipe.commands import COMMANDS, Command, command_of, make_options, recorded
from quantkit.recipe.common import SAMPLES, CalibrationOptions, ModelOptions, StatisticsOptions, WriteOptions
from quantkit.recipe.fields import (
    ASK,
    DATA,
    PANELS,
    RUN,
    Options,
    flag_of,
    option,
    parse_budget,
    parse_size,
    parse_widths,
)
from quantkit.recipe.measure import LIMITS, MeasureOptions, VerifyCommandOptions
from quantkit.recipe.methods import KEPT_BITS, BnbOptions, GgufOptions, ImatrixOptions, QuantizeOptions

__all__ = [
    "COMMANDS",
    "ASK",
    "DATA",
    "KEPT_BITS",
    "LIMITS",
    "PANELS",
    "RUN",
    "SAMPLES",
    "BnbOptions",
    "CalibrationOptions",
    "ChatOptions",
    "Command",
    "GgufOptions",
    "ImatrixOptions",
    "MeasureOptions",
    "ModelOptions",
    "Options",
    "QuantizeOptions",
    "StatisticsOptions",
    "VerifyCommandOptions",
    "WriteOptions",
    "command_of",
    "flag_of",
    "make_options",
    "option",
    "parse_budget",
    "parse_size",
    "parse_widths",
    "recorded",
]
