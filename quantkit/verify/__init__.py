"""What quantization cost: two models over the same held-out conversations, one after the other.

    prepare -> pass over the reference -> pass over the candidate -> metrics -> Report

The two models are never in memory together. What is kept of the reference is the final hidden state of every scored
position, a thousandth of the logits' size at the real vocabulary, together with its output head: the product of the two
gives the very logits again, so nothing is approximated.
"""

from quantkit.verify.engines import ENGINES, load_dequantized, load_transformers
from quantkit.verify.report import Report
from quantkit.verify.run import VerifyOptions, verify
from quantkit.verify.table import to_table

__all__ = ["ENGINES", "Report", "VerifyOptions", "load_dequantized", "load_transformers", "to_table", "verify"]
