"""A sweep on a Ray cluster: one task a pass of statistics, one a cell, results through the sweep's folder.

The folder has to be one that all nodes see under the same path, and so has the model, unless it is a hub id. A task
whose worker or node dies is started again elsewhere: everything is written whole or not at all, so a second try finds
nothing half done. GPUs are resources: a cell with `device: cuda` takes one.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.sweep.local import Told, shared_statistics
from quantkit.sweep.plan import Cell, Sweep
from quantkit.sweep.store import Done, Store
from quantkit.sweep.work import Planned, gather_statistics, run_cell

PATIENCE = 10.0  # seconds to connect
TRIES = 3  # after the first, for a worker or a node that dies


def run_on_ray(
    sweep: Sweep,
    cells: Sequence[Cell],
    planned: Mapping[str, Planned],
    store: Store,
    cache: Path | None,
    told: Told,
    *,
    address: str,
    cpus: float = 1,
) -> None:
    """Do ``cells`` on the cluster at ``address`` ("auto": the one that this machine belongs to; "local": a new one).

    cpus: that each task takes. Raises QuantkitError where Ray is not installed or not to be reached.
    """
    if any(options.device.startswith("cuda:") for options in (sweep.verify, *(cell.options for cell in cells))):
        raise QuantkitError(f"{sweep.path}: device: a cluster hands its GPUs out itself; write cuda, without a number")
    ray = _connect(address)
    try:
        gpus = {cell.name: int(_on_gpu(cell.options) or _on_gpu(sweep.verify)) for cell in cells}
        _check_room(ray, address, cpus, max(gpus.values(), default=0))
        made = {cell.name for cell in cells if store.made(sweep, cell) is not None}
        settings = {"num_cpus": cpus, "max_retries": TRIES, "retry_exceptions": False}
        passes = {
            key: ray.remote(_gather).options(**settings, num_gpus=gpus[cell.name], name=f"statistics {key}").remote(
                cell, store.statistics(key), cache
            )
            for key, cell in shared_statistics([cell for cell in cells if cell.name not in made], planned).items()
        }  # fmt: skip
        waiting = {}
        for cell in cells:
            key = planned[cell.name].statistics
            after = passes.get(key) if key is not None and cell.name not in made else None
            folder = store.statistics(key) if key is not None and after is not None else None
            task = ray.remote(_cell).options(**settings, num_gpus=gpus[cell.name], name=cell.name)
            waiting[task.remote(sweep, cell, store, folder, cache, after)] = cell
        while waiting:
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                cell = waiting.pop(reference)
                told(cell, _result(ray, reference, sweep, cell, store))
        for key, reference in passes.items():
            if _came(ray, reference):
                store.write_pass(key, ray.get(reference))
    finally:
        ray.shutdown()


def _on_gpu(options: Any) -> bool:
    return str(options.device).startswith("cuda")


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise QuantkitError("--ray: needs Ray: pip install 'quantkit[ray]'") from error
    _check_reached(address)
    settings = {"include_dashboard": False} if address == "local" else {"address": address}
    try:
        ray.init(log_to_driver=False, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise QuantkitError(f"--ray {address}: no cluster to be reached ({why})") from error
    return ray


def _check_room(ray: Any, address: str, cpus: float, gpus: int) -> None:
    """Raise QuantkitError where no node has what a task takes: Ray would wait for one without a word."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if cpus > most:
        raise QuantkitError(f"--cpus {cpus:g}: the largest node of {address} has {most:g}; ask for fewer")
    if gpus and not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        raise QuantkitError(f"--ray {address}: a variant wants device cuda; no node has a GPU beside {cpus:g} cores")


def _check_reached(address: str) -> None:
    """Raise QuantkitError unless something listens at HOST:PORT: Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return  # "auto", "local", ray://HOST:PORT
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise QuantkitError(f"--ray {address}: no cluster to be reached ({error.strerror or error})") from error


def _gather(cell: Cell, folder: Path, cache: Path | None) -> float:
    return gather_statistics(cell, folder, cache, _silent)


def _cell(sweep: Sweep, cell: Cell, store: Store, folder: Path | None, cache: Path | None, after: float | None) -> Done:
    """``after`` is the pass of statistics that has to be there first."""
    del after
    if store.finished(sweep, cell):  # a first try that died after its work
        return store.record(cell) or run_cell(sweep, cell, store, folder, cache, _silent)
    return run_cell(sweep, cell, store, folder, cache, _silent)


def _result(ray: Any, reference: Any, sweep: Sweep, cell: Cell, store: Store) -> Done:
    try:
        done: Done = ray.get(reference)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        done = Done(*store.keys(sweep, cell), "failed", lines[-1][:300] if lines else type(error).__name__)
        store.write(cell, done)
    return done


def _came(ray: Any, reference: Any) -> bool:
    try:
        ray.get(reference)
    except ray.exceptions.RayError:  # its cells have said so
        return False
    return True


def _silent(_what: str, _done: int, _total: int) -> None:
    pass
