"""--size_stages: how much of the compute goes to which size of the training crops."""

from collections.abc import Iterator

NONE = "none"
STAGE = "SIZE:PERCENT, such as 96:20,160:40,224:40"


def parse(text: str) -> list[tuple[int, float]]:
    """Sides in pixels and percentages, in their order; of `none` an empty list.

    Raises ValueError if `text` is something else, or if the percentages do not add up.
    """
    if text == NONE:
        return []
    try:
        stages = [(int(size), float(share)) for size, share in _pairs(text)]
    except ValueError:
        raise ValueError(f"--size_stages {text}: must be {STAGE}, or {NONE}") from None
    if not all(share > 0 for _, share in stages):
        raise ValueError(f"--size_stages {text}: the percentages must be above 0")
    total = sum(share for _, share in stages)
    if abs(total - 100) > 0.01:
        raise ValueError(f"--size_stages {text}: the percentages add up to {total:g}, not to 100")
    return stages


def _pairs(text: str) -> Iterator[list[str]]:
    for stage in text.split(","):
        yield stage.split(":")


def epoch_sizes(stages: list[tuple[int, float]], epochs: int) -> list[int]:
    """Side of the training crops in every epoch.

    An epoch of larger crops takes more compute, in proportion to their area, so a stage gets epochs
    in proportion to percent / side^2, rounded to whole ones: an epoch belongs to the stage that its
    middle falls into. EfficientTrain++ (Wang et al. 2024, arXiv:2405.08768) divides the compute
    in this way.
    """
    weights = [share / size**2 for size, share in stages]
    sizes = []
    last = 0.0
    for (size, _), weight in zip(stages, weights, strict=True):
        last += weight / sum(weights) * epochs
        sizes += [size] * (round(last) - len(sizes))
    return sizes


def fewest_epochs(stages: list[tuple[int, float]]) -> int:
    """From so many epochs on every stage has one; 0 without stages."""
    if not stages:
        return 0
    weights = [share / size**2 for size, share in stages]
    # With more than one epoch to a stage, rounding cannot leave it without.
    epochs, sizes = int(sum(weights) / min(weights)) + 1, {size for size, _ in stages}
    while epochs > 1 and set(epoch_sizes(stages, epochs - 1)) == sizes:
        epochs -= 1
    return epochs
