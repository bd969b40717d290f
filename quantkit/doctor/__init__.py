"""What this machine can run: versions, devices, runtimes, kernels, what is missing and the command that installs it.

Everything is read from outside: package metadata, /proc, the cgroup, `nvidia-smi`. No torch and no runtime is imported,
so that an answer comes in about a second, and comes at all where one of them is broken. `deep` imports them in another
process (`worker`) and lets them speak for themselves.
"""

from quantkit.doctor.examine import Options, examine
from quantkit.doctor.rows import Row, Section, commands, healthy

__all__ = ["Options", "Row", "Section", "commands", "examine", "healthy"]
