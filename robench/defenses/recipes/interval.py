"""Training on interval bounds: networks whose robustness can be verified."""

from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robench.bounds.affine_graph import AffineGraph
from robench.bounds.propagation import lowest_margins
from robench.defenses.computation import in_float32
from robench.defenses.recipe import Context, Paper, Recipe
from robench.defenses.training_data import Batch
from robench.errors import TrainingError
from robench.probes import eval_mode

_graphs: WeakKeyDictionary[nn.Module, AffineGraph] = WeakKeyDictionary()
"""A network is traced once; its graph follows its parameters."""


class Ibp(Recipe):
    """(1 − κ)·CE(x, y) + κ·CE of the worst logits that interval bounds allow in the ball.

    Gowal et al., ICCV 2019 (their equation 12, κ at its final ½); ε should grow from 0 over much
    of the run: ``eps_warmup``. The bounds are IBP's with the last affine layers folded into the
    margins, as theirs.
    """

    name = "ibp"
    paper = Paper(
        "Scalable Verified Training for Provably Robust Image Classification (Gowal et al.)",
        "https://arxiv.org/abs/1810.12715",
        "ICCV",
        2019,
    )
    notes = "`robench verify-bounds` gives its verified accuracy."

    verified_weight: float = Field(0.5, ge=0, le=1)
    """κ, the weight of the bounds."""

    def check(self, network: nn.Module, inputs: Tensor, num_classes: int) -> None:
        """Bounds must be known for every operation.

        Raises:
            ModelError: for one they are not.
            TrainingError: fewer than two classes.
        """
        if num_classes < 2:
            raise TrainingError("one class alone has no margins")
        with eval_mode(network):
            AffineGraph(network, inputs)

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``clean``: cross-entropy of x; ``verified``: of the lowest margins; weighted."""
        clean = F.cross_entropy(context.network(batch.inputs), batch.labels)
        # Rounded to bfloat16 they would bound nothing.
        network = in_float32(context.network)
        with eval_mode(network):
            graph = _graphs.get(network)
            if graph is None or graph.example.shape != batch.inputs.shape:
                graph = _graphs[network] = AffineGraph(network, batch.inputs)
            margins = lowest_margins(graph, batch.inputs, batch.labels, context.threat_model, "ibp")
        # The label's logit is 0, the others' are their least distances below it.
        worst = F.pad(-margins, (1, 0))
        verified = torch.logsumexp(worst, dim=1).mean()
        weight = self.verified_weight
        return {"clean": (1 - weight) * clean, "verified": weight * verified}
