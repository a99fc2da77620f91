"""Files in a data set's folders that are not used: counted by reason, with the first names.

If pictures are skipped silently, nobody notices, and the accuracy is that of another data set.
"""

from collections import defaultdict
from collections.abc import Iterable

UNKNOWN = "unknown extension"
DEEPER = "deeper than a class"
LOOSE = "loose beside the classes"
ARCHIVE = "left-over archive"
DANGLING = "dangling link"
UNREADABLE = "unreadable"
EMPTY = "empty folder"
AFTER_END = "after an archive's end"
OUTSIDE = "outside the splits"
HIDDEN = "hidden"
# In the order of the message: likely mistakes first.
REASONS = (
    *(DEEPER, LOOSE, UNKNOWN, ARCHIVE, DANGLING, UNREADABLE, EMPTY, AFTER_END, OUTSIDE),
    HIDDEN,
)
KEPT_NAMES = 1000  # per reason
SHOWN_NAMES = 3
ARCHIVE_ENDS = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def is_archive(file_name: str) -> bool:
    """By its extension."""
    return file_name.lower().endswith(ARCHIVE_ENDS)


def printable(name: str) -> str:
    """A name that any terminal and file accepts: bytes that are not UTF-8 as \\udcNN."""
    return name.encode("utf-8", "backslashreplace").decode()


def counted(count: int, reason: str) -> str:
    """A count and its reason, as words of a sentence."""
    if reason == UNKNOWN:
        return f"{count:,} of {reason}"
    return f"{count:,} {reason}{'s' if count > 1 and reason in (ARCHIVE, DANGLING, EMPTY) else ''}"


class Unused:
    """Counts by reason, and the first names of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self.names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """Count a file or a folder."""
        self.counts[reason] += 1
        if len(self.names[reason]) < KEPT_NAMES:
            self.names[reason].append(name)

    def include(self, others: Iterable["Unused"]) -> "Unused":
        """Add the counts of others; returns itself."""
        for other in others:
            for reason, count in other.counts.items():
                self.counts[reason] += count
                room = KEPT_NAMES - len(self.names[reason])
                self.names[reason] += other.names[reason][:room]
        return self

    def line(self) -> str:
        """One line to print; "" if all is used."""
        parts = []
        for reason in REASONS:
            if not self.counts.get(reason):
                continue
            names = sorted(self.names[reason])[:SHOWN_NAMES]
            more = ", ..." if self.counts[reason] > len(names) else ""
            shown = ", ".join(printable(name) for name in names)
            parts.append(f"{counted(self.counts[reason], reason)} ({shown}{more})")
        return f"not used: {'; '.join(parts)}" if parts else ""

    def to_json(self) -> dict[str, dict[str, object]]:
        """Count and names by reason; of names, the first thousand."""
        return {
            reason: {
                "count": self.counts[reason],
                "names": [printable(name) for name in sorted(self.names[reason])],
            }
            for reason in REASONS
            if self.counts.get(reason)
        }
