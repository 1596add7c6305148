"""What happens on a Ray cluster, for a process of its own whose program this is."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

from robench.datasets import ArrayDataset
from robench.errors import RobenchError
from robench.evaluation.distribution import Distribution
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import evaluate_model
from robench.execution.ray_cluster import RayCluster, Wanted
from robench.models import wrap_module
from robench.records import AttackSpec, Suite
from robench.results import Store, StoredRecord
from robench.threat_models import ThreatModel

N = 24
THREAT = ThreatModel.of("Linf", "0.02")
PGD = AttackSpec(name="pgd", attack="pgd", params={"steps": 3})
SUITE = Suite(name="one", attacks=(PGD,))
SETTINGS = Settings(precision="fp32", batch_size=16, workers=1, save_adversarial=True)


class FromHere(ExactNetwork):
    """Of the program that is run, so that no other process can import it."""

    __module__ = "__main__"


class Dying(ExactNetwork):
    """Ends the process that it is in, other than the first one, while a file is not as long as it may
    become."""

    def __init__(self, file: Path, times: int) -> None:
        super().__init__()
        self.file, self.times, self.home = str(file), times, os.getpid()

    def forward(self, inputs: Tensor) -> Tensor:
        if os.getpid() != self.home:
            with open(self.file, "ab") as stream:
                if stream.tell() < self.times:
                    stream.write(b"x")
                    stream.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)


def data() -> ArrayDataset:
    inputs = images(N, seed=1)
    return ArrayDataset(inputs, predictions(ExactNetwork(), inputs), num_classes=6)


def content(stored: StoredRecord) -> str:
    """All of a record but times, passes and what the model is: one that writes files is like no other."""
    left_out = {"cost", "created", "environment", "stages", "model", "key", "flags"}
    table = stored.table.drop(columns=["forwards", "backwards"])
    return repr((stored.record.model_dump(exclude=left_out), table.to_dict("list")))


class Scenarios:
    """All on one cluster, each with a results folder of its own."""

    def __init__(self, folder: Path, cluster: RayCluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.warned: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.warned.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("robench.execution").addHandler(handler)

    def run(self, name: str, network: nn.Module, **options: Any) -> dict[str, Any]:
        """A model of this network in parts, and what came of it."""
        store, self.warned[:] = Store(self.folder / name), []
        jobs = Distribution(self.cluster, store, SUITE, SETTINGS, **{"shards": 3} | options)
        model = wrap_module(
            network, num_classes=6, input={"channels": 1}, threat_model=THREAT, share=True
        )
        told: dict[str, Any] = {}
        try:
            told["contents"] = [content(stored) for stored in jobs.run([(model, THREAT, data())])]
        except RobenchError as error:
            told["error"] = str(error)
        return told | {"warned": list(self.warned), "records": len(store.keys())}

    def alone(self) -> dict[str, Any]:
        """In this process, without a cluster."""
        model = wrap_module(
            ExactNetwork(), num_classes=6, input={"channels": 1}, threat_model=THREAT
        )
        store = Store(self.folder / "alone")
        found = evaluate_model(model, data(), SUITE, store=store, settings=SETTINGS)
        return {"contents": [content(stored) for stored in found]}


def main(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What these came to, one after the other on one cluster, by name.

    Where a name is a number, there are three machines, one of which is lost at a moment of that seed's.
    """
    if names[0].isdigit():
        return lose_a_machine(folder, int(names[0]))
    with RayCluster.connect(Wanted(at_once=1)) as cluster:
        scenarios = Scenarios(folder, cluster)
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "alone": scenarios.alone,
            "from_main": lambda: scenarios.run("from_main", FromHere()),
            "dies_once": lambda: scenarios.run("once", Dying(folder / "once.txt", 1)),
            "dies": lambda: scenarios.run("dies", Dying(folder / "dies.txt", 99), shards=1),
        }
        return {name: runs[name]() for name in names}


class Slow(ExactNetwork):
    """Takes a while for each pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(inputs)


def lose_a_machine(folder: Path, seed: int) -> dict[str, Any]:
    """Of three that Ray takes for machines, one is lost while they work."""
    from ray.cluster_utils import Cluster

    machines = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    others = [machines.add_node(num_cpus=1) for _ in range(2)]
    draw = random.Random(seed)
    told: dict[str, Any] = {}
    try:
        with RayCluster.connect(Wanted(machines.address)) as cluster:
            scenarios = Scenarios(folder, cluster)
            told["alone"] = scenarios.alone()
            lost = draw.choice(others)
            delay = draw.uniform(0, 15)
            timer = threading.Timer(delay, machines.remove_node, (lost, False))
            timer.start()
            told["lost"] = scenarios.run("lost", Slow(), shards=8) | {"delay": delay}
            timer.join()
    finally:
        machines.shutdown()
    return told
