"""Does an adversarial input survive being saved as an ordinary picture, of 256 grey levels?"""

from dataclasses import fields

import torch
from torch import Tensor

from robench.evaluation.adjudicate import Adjudicator, Verdicts

_WHITE = 255


def in_eight_bits(
    points: Tensor, inputs: Tensor, classes: Tensor, judge: Adjudicator
) -> tuple[Tensor, Verdicts]:
    """Points rounded to multiples of 1/255, and the verdicts on them.

    Each pixel goes to its nearest grey level. Where a point leaves the ball by that, every pixel of
    it goes to the next level towards the clean one instead: around a clean image of 8 bits that stays
    in the ball.

    Args:
        points: float (N, C, H, W) in [0, 1].
        inputs: the clean ones, of the same shape.
        classes: int64 (N,), their labels, or the targets if the judge's threat model has any.
        judge: says what is in the ball and a find.
    """
    level = (points * _WHITE).round()
    rounded = level / _WHITE
    verdicts = judge.judge(rounded, inputs, classes)
    left = (~verdicts.allowed).nonzero().squeeze(1)
    if len(left) == 0:
        return rounded, verdicts
    away = (rounded - inputs).abs() > (points - inputs).abs()
    towards = (level - torch.where(away, (rounded - points).sign(), 0.0)) / _WHITE
    again = judge.judge(towards[left], inputs[left], classes[left])
    merged = Verdicts(
        *(
            getattr(verdicts, f.name).index_copy(0, left, getattr(again, f.name))
            for f in fields(again)
        )
    )
    return rounded.index_copy(0, left, towards[left]), merged
