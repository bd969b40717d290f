"""The examination in order: everything that waits is started first, then what is read from files."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.doctor import devices, runtimes
from quantkit.doctor.hub import hub_cache, hub_rows
from quantkit.doctor.kernels import kernel_rows
from quantkit.doctor.machine import cpu_flags, machine_rows, read_memory
from quantkit.doctor.packages import Packages, package_rows
from quantkit.doctor.probes import Probes
from quantkit.doctor.rows import Row, Section


@dataclass(frozen=True)
class Options:
    """cache: where quantkit keeps prepared samples; model: what to estimate for; deep: import everything, too."""

    cache: Path
    model: str | None = None
    deep: bool = False


def examine(options: Options, packages: Packages | None = None) -> list[Section]:
    """Everything about this machine that decides whether and how quantkit runs on it."""
    packages = packages or Packages()
    probes = Probes({**devices.PROGRAMS, **runtimes.PROGRAMS})
    needed = [_python(packages), *package_rows(packages)]
    machine = machine_rows(options.cache, hub_cache())
    hub = hub_rows()
    answers = probes.answers()
    found = devices.examine_devices(packages, answers)
    imports: list[Row] = []
    kernels: dict[str, str] = {}
    if options.deep:
        from quantkit.doctor.deep import ask

        said = ask(packages)
        imports, kernels = said.rows, said.kernels
        if any(name.startswith("cuda") for name in said.devices) and found.kind == "cpu":
            found = replace(found, kind="cuda")
    sections = [
        Section("needed", tuple(needed)),
        Section("machine", (*machine, *found.rows)),
        Section("hub", tuple(hub)),
        Section("runtimes", tuple(runtimes.runtime_rows(packages, answers, bool(found.gpus)))),
        Section("kernels that will be used", tuple(kernel_rows(packages, found, answers, cpu_flags(), kernels))),
    ]
    if imports:
        sections.append(Section("imports", tuple(imports)))
    if options.model is not None:
        from quantkit.doctor.estimate import estimate_rows

        sections.append(Section("estimate", tuple(estimate_rows(options.model, read_memory()))))
    return sections


def _python(packages: Packages) -> Row:
    """The Python that runs, against what quantkit asks for."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    version = platform.python_version()
    found = packages.distribution("quantkit")
    wanted = next(iter((found.metadata.get_all("Requires-Python") if found else None) or []), "")
    said = f"{version} ({platform.python_implementation()}), {platform.system()} {platform.machine()}"
    values = {"version": version, "wanted": wanted, "executable": sys.executable}
    try:
        fits = SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidSpecifier:
        fits = True
    if not fits:
        return Row("Python", "fault", f"{said}: needed: {wanted}", None, values)
    return Row("Python", "ok", said + (f" ({wanted})" if wanted else ""), None, values)
