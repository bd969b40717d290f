"""Model cards, English and Chinese, from what is recorded and measured; needs no torch for safetensors.

facts   everything a card says, gathered once      page    the card of one language
files   README.md and README_zh.md on disk         texts   the words
"""

from quantkit.card.facts import Facts, gather
from quantkit.card.page import render

__all__ = ["Facts", "gather", "render"]
