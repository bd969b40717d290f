"""What the bundled calibration set is drawn with: one kind of picture or text a module, `KINDS` its entries."""
