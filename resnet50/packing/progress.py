"""How far a file that is being fetched is, for the user: a bar on a terminal, elsewhere lines."""

import sys
import time

from tqdm import tqdm

from resnet50.packing.transfer import Event

SAY_EVERY_S = 30.0  # without a terminal


class Progress:
    """Bytes, bytes per second and the time left."""

    def __init__(self, url: str, total: int) -> None:
        self._url, self._total = url, total
        self._num_there, self._num_came = 0, 0
        self._begin_s = self._said_s = time.monotonic()
        name = url.rpartition("/")[2]
        scale = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
        self._bar = tqdm(total=total, desc=name, **scale)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, event: Event) -> None:
        """Count an event, and say what there is to say."""
        if event.text:
            tqdm.write(event.text, file=sys.stderr)
        if event.done and event.was_there:
            self._num_there += event.done.end - event.done.start
            self._bar.initial = self._num_there  # what was here before does not count for the speed
        self._num_came += event.num_bytes
        now = min(self._num_there + self._num_came, self._total)  # some may come twice
        self._bar.update(now - self._bar.n)
        now_s = time.monotonic()
        if self._bar.disable and now_s - self._said_s > SAY_EVERY_S:
            self._said_s = now_s
            self._say(now, self._num_came / (now_s - self._begin_s))

    def _say(self, now: int, bytes_per_s: float) -> None:
        left = f", {(self._total - now) / bytes_per_s / 60:.0f} min left" if bytes_per_s else ""
        print(
            f"{self._url}: {now / 1e9:.2f} of {self._total / 1e9:.2f} GB, "
            f"{bytes_per_s / 1e6:.1f} MB/s{left}",
            file=sys.stderr,
            flush=True,
        )
