"""Versions against the bounds that the installed quantkit declares, and the command that installs what is missing.

Everything comes from the metadata in `*.dist-info`: what quantkit needs and which of its extras brings which package
stand in pyproject.toml alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from quantkit import __version__
from quantkit.doctor.rows import Row

OURS = "quantkit"
CHECKS_ITS_OWN = "transformers"  # it refuses to be imported where a bound of its own is not kept
_LOCAL_BUILDS = ("torch", "torchvision")  # wheels of one index carry one label: +cpu, +cu130


@dataclass(frozen=True)
class Unmet:
    """A requirement of `holder` that this environment does not keep; found: the version, None where there is none."""

    holder: str
    requirement: Requirement
    found: str | None

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    def __str__(self) -> str:
        has = f"{self.name} {self.found} is installed" if self.found else f"{self.name} is missing"
        return f"needs {self.name}{self.requirement.specifier}, and {has}"


class Packages:
    """The installed distributions; `path`: where to look instead of sys.path."""

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._path = None if path is None else list(path)
        self.version = lru_cache(maxsize=None)(self._version)

    def distribution(self, name: str) -> importlib.metadata.Distribution | None:
        """The one that Python would import, None where it is not installed."""
        where = sys.path if self._path is None else self._path
        return next(iter(importlib.metadata.distributions(name=name, path=where)), None)

    def _version(self, name: str) -> str | None:
        """The installed version; "?" where the metadata does not say."""
        found = self.distribution(name)
        if found is None:
            return None
        try:
            version = found.metadata["Version"]
        except KeyError:
            version = None
        return version or "?"

    def requirements(self, name: str, extra: str = "") -> Iterator[Requirement]:
        """What a distribution needs here: without an extra, or what that extra adds."""
        found = self.distribution(name)
        for text in (found.requires if found else None) or ():
            try:
                requirement = Requirement(text)
                inside = "extra" in str(requirement.marker or "")
                if inside == bool(extra) and (not requirement.marker or requirement.marker.evaluate({"extra": extra})):
                    yield requirement
            except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
                continue  # what nobody can read binds nobody

    @cached_property
    def needed(self) -> dict[str, Requirement]:
        """What quantkit itself needs, by name."""
        return {canonicalize_name(one.name): one for one in self.requirements(OURS)}

    @cached_property
    def extras(self) -> dict[str, dict[str, Requirement]]:
        """What each extra of quantkit adds, by name."""
        ours = self.distribution(OURS)
        names = (ours.metadata.get_all("Provides-Extra") if ours else None) or []
        return {name: {canonicalize_name(one.name): one for one in self.requirements(OURS, name)} for name in names}

    def extra_of(self, package: str) -> str | None:
        """The smallest extra that brings a package: `test` brings most of them, and is not what a user wants."""
        holding = [extra for extra, members in self.extras.items() if package in members]
        return min(holding, key=lambda extra: len(self.extras[extra]), default=None)

    def bound(self, package: str) -> Requirement | None:
        """What quantkit asks of a package's version, by itself or in the extra that brings it."""
        extra = self.extra_of(package)
        return self.needed.get(package) or (self.extras[extra][package] if extra else None)

    def meets(self, requirement: Requirement) -> bool:
        """Whether the installed version is one that is asked for; one that cannot be read is believed."""
        found = self.version(requirement.name)
        if found is None:
            return False
        try:
            return requirement.specifier.contains(Version(found), prereleases=True)
        except InvalidVersion:
            return True

    def unmet(self, holder: str) -> list[Unmet]:
        """The requirements of an installed package that this environment does not keep."""
        return [Unmet(holder, one, self.version(one.name)) for one in self.requirements(holder) if not self.meets(one)]

    # ---- commands ---------------------------------------------------------------------------------------------------

    def install(self, *packages: str) -> str:
        """The command that installs packages: by quantkit's extras where they are in some."""
        by_package = {package: self.extra_of(package) for package in packages}
        extras = dict.fromkeys(extra for extra in by_package.values() if extra)
        wanted = [f"{OURS}[{','.join(extras)}]"] if extras else []
        return self.pip("install", *wanted, *(package for package, extra in by_package.items() if extra is None))

    def upgrade(self, requirement: str) -> str:
        """The command that brings a package up to a bound, and what it needs along with it."""
        return self.pip("install", "-U", requirement)

    def pip(self, *arguments: str) -> str:
        """pip, or uv where the environment has no pip of its own. (To look for the module would have setuptools' hook
        take its distutils out of this process.)"""
        program = ["pip"] if self.version("pip") else ["uv", "pip"]
        return shlex.join([*program, *arguments])


# ---- rows -----------------------------------------------------------------------------------------------------------


def package_rows(packages: Packages) -> list[Row]:
    """quantkit and everything that it needs."""
    return [_ours(packages), *(_needed(packages, name) for name in packages.needed)]


def _ours(packages: Packages) -> Row:
    values = {"version": __version__}
    stated = packages.version(OURS)
    if stated is None:
        said = f"{__version__}, not installed: it runs from its source, and nothing says which versions it needs"
        return Row(OURS, "fault", said, packages.pip("install", "-e", "."), values)
    if stated != __version__:
        said = f"{__version__} runs, {stated} is installed: its bounds may be another version's"
        return Row(OURS, "note", said, None, values)
    extras = [
        name for name, members in packages.extras.items() if members and all(map(packages.meets, members.values()))
    ]
    said = f"{__version__}{_editable(packages)}; extras complete: {', '.join(sorted(extras)) or 'none'}"
    return Row(OURS, "ok", said, None, values | {"extras": sorted(extras)})


def _editable(packages: Packages) -> str:
    found = packages.distribution(OURS)
    try:
        origin = json.loads((found.read_text("direct_url.json") if found else None) or "{}")
    except ValueError:
        return ""
    return ", editable" if origin.get("dir_info", {}).get("editable") else ""


def _needed(packages: Packages, name: str) -> Row:
    requirement, found = packages.needed[name], packages.version(name)
    wanted = f"{name}{requirement.specifier}"
    values = {"version": found, "wanted": str(requirement.specifier)}
    if found is None:
        return Row(name, "fault", f"missing, needed: {wanted}", packages.pip("install", wanted), values)
    if not packages.meets(requirement):
        said = f"{found}: too old, needed: {wanted}"
        return Row(name, "fault", said, packages.upgrade(wanted), values)
    for conflict in packages.unmet(name):
        grave = conflict.name in packages.needed or name == CHECKS_ITS_OWN
        return Row(name, "fault" if grave else "note", f"{found}: {conflict}", packages.upgrade(name), values)
    if name == "torchvision" and (labels := _labels(packages)):
        said = f"{found}: torch and torchvision are builds of two indexes ({labels}); install both from one"
        return Row(name, "note", said, None, values)
    asked = f" ({requirement.specifier})" if requirement.specifier else ""
    return Row(name, "ok", found + asked, None, values)


def _labels(packages: Packages) -> str:
    """The local labels of torch and torchvision where both state one and they differ: +cpu beside +cu130."""
    found = {name: (packages.version(name) or "").partition("+")[2] for name in _LOCAL_BUILDS}
    return " and ".join(found.values()) if all(found.values()) and len(set(found.values())) > 1 else ""
