"""The result of `quantkit sweep`: its rows as tables, a page and plots; needs no torch.

row_of, unfinished    the row of a variant's folder, and of a cell without one
write_sweep           sweep.csv, sweep.parquet, sweep.tex, sweep.html, plots/
"""

from quantkit.report.sweep.rows import Estimate, Figures, SweepRow, row_of, unfinished
from quantkit.report.sweep.write import write_sweep

__all__ = ["Estimate", "Figures", "SweepRow", "row_of", "unfinished", "write_sweep"]
