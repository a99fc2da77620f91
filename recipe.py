"""What a named recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Settings of `TrainConfig` by name, and what somebody reached with them.

    top1, top5: percent, None where there is none; evaluated: at which size and how; source: who
    published it and where; gpu_hours: of training and evaluation there, all GPUs together, gpu:
    on which; differs: what is not done here as it was there.
    """

    summary: str
    settings: Mapping[str, object]
    top1: float | None
    top5: float | None
    evaluated: str
    source: str
    gpu_hours: float | None = None
    gpu: str = ""
    differs: str = ""

    @property
    def result(self) -> str:
        """What was reached, in one line."""
        if self.top1 is None:
            return "no figure yet"
        top5 = "" if self.top5 is None else f", top-5 {self.top5:g}"
        return f"top-1 {self.top1:g}{top5} ({self.evaluated})"
