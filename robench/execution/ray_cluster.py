"""A Ray cluster: calls are made by processes on its machines, or on this one.

A thread of this process waits for each call, so a cluster is an :class:`Executor` as any, with as many
workers as there are calls at a time. No process forks here once Ray runs: its threads would be missing.

Ray is told to do little: nothing is uploaded, nothing is reported, and it never tries again by itself,
which it does without end where memory is short. A call whose process or machine is lost is made again,
three times in all. Where no part is left to be begun, one that is late is given to a second worker too:
its machine may be slow.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from robench.errors import ExecutionError, MissingDependencyError, one_line
from robench.execution.scheduling import Taken, latest, parts_of
from robench.execution.threads import Threads
from robench.execution.worker import Progress, Save
from robench.registry import installed_versions

_ATTEMPTS = 3
_POLL = 0.5
"""Seconds between two looks at a call"""
_ANSWER = 60.0
"""Seconds that a machine has to say which versions it has"""
_REACH = 5.0
"""Seconds that a cluster's address has to answer"""

_ALIKE = ("robench", "torch")
"""Packages of which all machines must have the same version"""

log = logging.getLogger("robench.execution")


@dataclass(frozen=True)
class Wanted:
    """Which cluster, and what of it each call takes."""

    address: str = "local"
    """``local`` for one of this machine alone, ``auto``, or HOST:PORT"""
    cpus: float = 1.0
    gpus: float | None = None
    """None: one, if the cluster has any and the device is left open"""
    at_once: int | None = None
    """Calls at a time; None: as many as there is room for"""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``"""


@dataclass(frozen=True)
class RayCluster(Threads):
    """A cluster that is connected to; a context manager."""

    device: str = "cpu"
    """Of each call"""
    resources: dict[str, float] = field(default_factory=dict)
    _meter: Any = None
    _ours: bool = True
    """Whether this connected the process, and disconnects it at its end"""
    _machines: int = 1

    @classmethod
    def connect(cls, wanted: Wanted) -> RayCluster:
        """Start or reach a cluster, unless the process has one, and see that it can do the work.

        Raises:
            MissingDependencyError: Ray is not installed.
            ExecutionError: the cluster cannot be reached, has no room for one call, or a machine of it
                lacks robench or has another version.
        """
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            _join(ray, wanted.address)
        try:
            _check_nodes(ray)
            there = ray.cluster_resources()
            gpus = wanted.gpus
            if gpus is None:
                named = wanted.device.startswith("cuda")
                gpus = 1.0 if named or (wanted.device == "auto" and there.get("GPU", 0)) else 0.0
            takes = {"CPU": wanted.cpus, "GPU": gpus}
            room = min(int(there.get(k, 0) / v) for k, v in takes.items() if v)
            if room < 1:
                has = ", ".join(f"{there.get(name, 0):g} {name}" for name in takes)
                raise ExecutionError(
                    f"a call takes {wanted.cpus:g} CPU and {gpus:g} GPU, and the cluster has {has}",
                    where=wanted.address,
                    hint="Choose fewer with --cpus-per-task and --gpus-per-task",
                )
            meter = _meter(ray)
        except BaseException:
            if ours:
                ray.shutdown()
            raise
        size = min(room, wanted.at_once or room)
        resources = {"num_cpus": wanted.cpus, "num_gpus": gpus}
        machines = sum(bool(node["Alive"]) for node in ray.nodes())
        return cls(size, "cuda" if gpus else "cpu", resources, meter, ours, machines)

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ours:
            _ray().shutdown()

    def parts(self, n: int, share: float, least: int) -> int:
        """Into how many parts to divide a job; see :func:`robench.execution.scheduling.parts_of`."""
        return parts_of(n, share, self.size, least)

    def twice(self, running: Sequence[Taken], done: Sequence[Taken]) -> int | None:
        """As :func:`robench.execution.scheduling.latest` says, where another machine may be faster."""
        return latest(running, done) if self._machines > 1 else None

    def put(self, value: Any) -> Any:
        """What stands for a value in calls, which is sent to every machine once.

        NumPy's arrays in it arrive read-only.
        """
        return _ray().put(value)

    def call(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        progress: Progress,
        save: Save,
        what: str,
    ) -> Any:
        """``function(report, *arguments)`` somewhere in the cluster, where ``report`` takes steps.

        The function is found by its name on the other machine; among its arguments may be what
        :meth:`put` gave. ``save`` is called now and then: if it raises, the call is ended.

        Raises:
            ExecutionError: it died three times; ``what`` says what it was.
            Exception: whatever the function raises.
        """
        ray = _ray()
        told = ""
        for _ in range(_ATTEMPTS):
            token = uuid.uuid4().hex
            # A process that held a device's memory holds it for ever; elsewhere it is reused.
            once = 1 if self.resources.get("num_gpus") else 0
            task = ray.remote(
                max_retries=0, max_calls=once, scheduling_strategy="SPREAD", **self.resources
            )
            reference = task(_call).remote(
                installed_versions(*_ALIKE), self._meter, token, function, *arguments
            )
            try:
                return self._await(ray, reference, token, progress, save)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, Exception):
                    raise error.cause from None
                raise ExecutionError(f"{what} failed: {one_line(error)}") from None
            except ray.exceptions.RaySystemError as error:  # as of a module that is missing there
                raise ExecutionError(f"{what} failed: {one_line(error)}") from None
            except ray.exceptions.RayError as error:
                told = type(error).__name__
                log.warning("%s was lost (%s)", what, told)
        raise ExecutionError(
            f"{what} died {_ATTEMPTS} times ({told})",
            hint="Systems kill what needs more memory than there is: try a smaller --batch-size, fewer "
            "tasks at once (--workers), or more --cpus-per-task. What was done is kept",
        )

    def _await(self, ray: Any, reference: Any, token: str, progress: Progress, save: Save) -> Any:
        seen = 0
        try:
            while True:
                done, _ = ray.wait([reference], timeout=_POLL)
                with suppress(ray.exceptions.RayError):
                    steps = ray.get(self._meter.steps.remote(token), timeout=_ANSWER)
                    progress(steps - seen)
                    seen = steps
                save(dict)
                if done:
                    return ray.get(reference)
        except ray.exceptions.RayError:
            progress(-seen)
            raise
        except BaseException:
            with suppress(Exception):
                ray.cancel(reference, force=True)
            raise


def _call(
    versions: Mapping[str, str | None],
    meter: Any,
    token: str,
    function: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """What a process of the cluster does."""
    _check_versions(versions, installed_versions(*_ALIKE), socket.gethostname())
    waiting, told = 0, time.monotonic()

    def report(steps: int) -> None:
        nonlocal waiting, told
        waiting += steps
        if time.monotonic() - told > _POLL:
            meter.add.remote(token, waiting)
            waiting, told = 0, time.monotonic()

    return function(report, *arguments)


def _ray() -> Any:
    """The library, told to keep to itself.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # A call on the CPU sees the devices that the machine has, as torch wants it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # an extra, and slow to load
    except ImportError as error:
        raise MissingDependencyError(
            "Ray is not installed", where="--executor ray", hint="pip install 'robench[ray]'"
        ) from error
    return ray


def _join(ray: Any, address: str) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    host, _, port = address.rpartition(":")
    try:
        if address == "local":
            ray.init(address=address, include_dashboard=False, **quiet)
            return
        if "://" not in address and port.isdecimal():
            socket.create_connection((host, int(port)), timeout=_REACH).close()
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        told = one_line(error).rstrip(".")
        raise ExecutionError(
            f"no Ray cluster can be reached: {told}",
            where=f"--address {address}",
            hint="Start one with `ray start --head`, run this on a machine of it, or choose "
            "--address local",
        ) from error


def _meter(ray: Any) -> Any:
    """An actor of this machine: how far each call has come."""

    # Sent as it stands, so that its process loads neither robench nor torch.
    class Meter:
        def __init__(self) -> None:
            self.taken: dict[str, int] = {}

        def add(self, token: str, steps: int) -> None:
            self.taken[token] = self.taken.get(token, 0) + steps

        def steps(self, token: str) -> int:
            return self.taken.get(token, 0)

    here = _affinity(ray, ray.get_runtime_context().get_node_id())
    return ray.remote(Meter).options(num_cpus=0, scheduling_strategy=here).remote()


def _affinity(ray: Any, node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _check_nodes(ray: Any) -> None:
    """Ask every machine which versions it has."""

    # Sent as it stands: a machine without robench can answer too.
    def ask() -> dict[str, str | None]:
        from importlib.metadata import PackageNotFoundError, version

        told: dict[str, str | None] = {}
        for name in ("robench", "torch"):
            try:
                told[name] = version(name)
            except PackageNotFoundError:
                told[name] = None
        return told

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            options = {"num_cpus": 0, "max_retries": 0}
            affinity = _affinity(ray, node["NodeID"])
            task = ray.remote(ask).options(scheduling_strategy=affinity, **options)
            asked[task.remote()] = str(node.get("NodeManagerAddress"))
    for reference, name in asked.items():
        try:
            told = ray.get(reference, timeout=_ANSWER)
        except ray.exceptions.RayError as error:
            raise ExecutionError(
                f"the machine does not answer: {type(error).__name__}", where=name
            ) from error
        _check_versions(installed_versions(*_ALIKE), told, name)


def _check_versions(
    ours: Mapping[str, str | None], theirs: Mapping[str, str | None], machine: str
) -> None:
    for name, mine in ours.items():
        if theirs.get(name) != mine:
            has = f"{name} {theirs[name]}" if theirs.get(name) else f"no {name}"
            raise ExecutionError(
                f"it has {has}, and this machine has {mine}",
                where=f"machine {machine}",
                hint="Install the same versions everywhere; results would not be comparable",
            )
