"""What a run has measured so far, which also decides when it ends."""


class Results:
    """The rows of metrics.csv, one for every epoch; every rank keeps them."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    @property
    def best(self) -> dict | None:
        """The row of the highest validation top-1, the earliest of equals."""
        evaluated = [row for row in self.rows if row["val_top1"] is not None]
        return max(evaluated, key=lambda row: row["val_top1"], default=None)

    @property
    def best_top1(self) -> float | None:
        """The highest validation top-1 in percent; None before the first evaluation."""
        return self.best and self.best["val_top1"]

    def has_top1(self, target: float) -> bool:
        """Whether the best validation top-1 is at least `target` percent; 0 is no target."""
        return bool(target and self.best and self.best["val_top1"] >= target)

    def has_row(self, step: int) -> bool:
        return bool(self.rows) and self.rows[-1]["step"] >= step
