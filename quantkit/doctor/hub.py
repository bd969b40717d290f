"""The Hugging Face hub as this process would meet it: cache, login and what the environment says. Nothing is fetched,
and a token is never shown, only whether there is one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quantkit.doctor.rows import Row, tidy
from quantkit.errors import QuantkitError

_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_cache() -> Path | None:
    """Where the hub's files lie; None without huggingface_hub, whose rules these are."""
    library = _library()
    return None if library is None else Path(library.constants.HF_HUB_CACHE)


def hub_rows() -> list[Row]:
    """Cache, login, mode."""
    library = _library()
    if library is None:
        return [Row("hub", "note", "not known: huggingface_hub cannot be imported")]
    return [_cache_row(Path(library.constants.HF_HUB_CACHE)), _login_row(library), _mode_row(library.constants)]


def cached_snapshot(model: str) -> Path | None:
    """The folder of a hub id in the cache; None where it is not there. Whether it is complete is not looked at."""
    library = _library()
    if library is None:
        return None
    try:
        found = library.try_to_load_from_cache(model, "config.json")
    except ValueError as error:  # the library's own rules for a name
        raise QuantkitError(f"--model {model!r}: no such folder, and no id that the hub could have") from error
    return Path(found).parent if isinstance(found, str) else None


def is_offline() -> bool:
    library = _library()
    return bool(library and library.constants.HF_HUB_OFFLINE)


def _library() -> Any:
    """huggingface_hub; None where it is missing or broken, which the row of its package says."""
    try:
        import huggingface_hub
        from huggingface_hub import constants, get_token, try_to_load_from_cache  # noqa: F401 - loads what is lazy
    except Exception:  # noqa: BLE001 - half an installation fails in any way; the packages' rows name it
        return None
    return huggingface_hub


def _cache_row(cache: Path) -> Row:
    try:
        models = sum(path.name.startswith("models--") for path in cache.iterdir())
    except OSError:
        models = 0
    stated = next((name for name in ("HF_HUB_CACHE", "HF_HOME") if os.environ.get(name)), None)
    source = f" (from {stated})" if stated else ""
    said = f"{tidy(cache)}{source}, {models} model{'' if models == 1 else 's'}"
    return Row("hub cache", "ok", said, None, {"path": str(cache), "models": models})


def _login_row(library: Any) -> Row:
    try:
        there = bool(library.get_token())
    except Exception as error:  # noqa: BLE001 - an unreadable file, a notebook's own vault: no reason to stop here
        return Row("hub login", "note", f"a token cannot be read ({type(error).__name__})")
    variable = next((name for name in _TOKENS if os.environ.get(name, "").strip()), None)
    where = f"in {variable}" if variable else f"in {tidy(library.constants.HF_TOKEN_PATH)}"
    if there:
        return Row("hub login", "ok", f"a token is set {where} (not shown, not tried)", None, {"token": True})
    said = "no token: public models load, gated ones and quantkit publish need one"
    return Row("hub login", "none", said, "hf auth login", {"token": False})


def _mode_row(constants: Any) -> Row:
    values = {"offline": bool(constants.HF_HUB_OFFLINE), "endpoint": _host(constants.ENDPOINT)}
    if values["offline"]:
        return Row("hub access", "note", "HF_HUB_OFFLINE is set: only what is in the cache loads", None, values)
    return Row("hub access", "ok", f"{values['endpoint']} (not tried)", None, values)


def _host(address: str) -> str:
    """The address without a user's name and password."""
    return urlsplit(address).netloc.rpartition("@")[2] or "an endpoint that is no address"
