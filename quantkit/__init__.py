"""quantkit: quantized variants of MiniCPM-V 4.6 that people can trust. See README.md for the way of the data."""

__version__ = "0.1.0"
