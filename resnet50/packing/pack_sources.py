"""Places that packs are fetched from: a bucket, a folder of a web server, a folder of this machine.

    source = open_source("s3://my-bucket/imagenet")
    for part in source.read("train.pack", 0, 32_000_000): ...

All of them send parts of a file, and none keeps on trying: packing/transfer.py does.
"""

import http.client
import ssl
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from urllib.parse import urlsplit

from resnet50.system.store import Store, StoreError, is_bucket, open_store

OPTION = "--data_from"
WEB = ("http://", "https://")
PART_BYTES = 8_000_000  # of one request to a bucket: all of it is in memory, for each range
# Where a part takes longer than the client waits, smaller ones are asked for.
SMALLEST_PART_BYTES = 250_000
BLOCK_BYTES = 1 << 20  # of a web server's answer, which is read as it comes
TIMEOUT_S = 30.0  # for a web server to answer, and between its bytes


class UnreachableError(Exception):
    """A place did not answer, or not to the end; it may when it is asked again."""


class PackSource(ABC):
    """A folder somewhere else. Methods raise UnreachableError, or ValueError if asking again would
    not help; both name the URL."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") or "/"

    def url_of(self, name: str) -> str:
        """What a file is called in messages."""
        return f"{self._url}/{name}"

    @abstractmethod
    def size_of(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from start to end, in parts; fewer if the connection ends early."""


class StoreSource(PackSource):
    """A bucket or a folder of this machine."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.url)
        self._store = store
        self._part_bytes = PART_BYTES

    def size_of(self, name: str) -> int:
        """Bytes of a file; which of bucket and file is not there is told apart."""
        with _StoreErrors():
            found = self._store.entry(name)
            if found is None:
                self._store.get(name)  # whose error says if it is the bucket that is not there
                what = f"{OPTION} {self._url}: there is no {name}"
                raise ValueError(f"{what}: give the folder that holds train.pack and val.pack")
            return found.num_bytes

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from start to end, in parts that get smaller where they come too slowly."""
        at = start
        while at < end:
            num_bytes = min(self._part_bytes, end - at)
            try:
                with _StoreErrors():
                    part = self._store.read(name, at, num_bytes)
            except UnreachableError:
                self._part_bytes = max(num_bytes // 2, SMALLEST_PART_BYTES)
                raise
            if not part:
                return
            yield part
            at += len(part)


class _StoreErrors:
    """Turns a store's errors in its block into those of a PackSource."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StoreError):
            if error.is_passing:
                raise UnreachableError(str(error)) from error
            raise ValueError(f"{OPTION} {error}") from error


class WebSource(PackSource):
    """A folder of a web server that sends parts of files, as all the usual ones do."""

    def size_of(self, name: str) -> int:
        with self._open(name, 0, 1) as answer:
            total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
        if not total.isdigit():
            raise ValueError(f"{self.url_of(name)}: the server does not say how long the file is")
        return int(total)

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        with self._open(name, start, end) as answer:
            while part := self._next(answer, name):
                yield part

    def _next(self, answer: http.client.HTTPResponse, name: str) -> bytes:
        try:
            return answer.read(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self.url_of(name)}: {_described(error)}") from error

    def _open(self, name: str, start: int, end: int) -> http.client.HTTPResponse:
        url = self.url_of(name)
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{end - 1}"})
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            what = f"{url}: the server answers {error.code} {error.reason}"
            error.close()
            if error.code >= 500 or error.code in (408, 429):
                raise UnreachableError(what) from None
            remedy = f"does {OPTION} name the folder that holds it, and may anyone read it?"
            raise ValueError(f"{what}: {remedy}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                what = f"{url}: its certificate is not trusted ({error.reason.verify_message})"
                raise ValueError(f"{what}: check the address, or the host's certificates") from None
            raise UnreachableError(f"{url}: {_described(error.reason)}") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{url}: {_described(error)}") from None
        if answer.status != http.client.PARTIAL_CONTENT:
            answer.close()
            raise ValueError(
                f"{url}: the server sends no parts of files (Range), as Python's http.server: "
                "serve the folder by another one, such as nginx, or give a bucket"
            )
        return answer


def _described(error: object) -> str:
    """One line about what went wrong on the network."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"no answer within {TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else text


def open_source(url: str) -> PackSource:
    """The source at s3://BUCKET/PREFIX, http(s)://HOST/FOLDER or a folder. Asks no server yet.

    Raises ValueError naming the option, the URL and the remedy.
    """
    if url.lower().startswith(WEB):
        parts = urlsplit(url)
        if "@" in parts.netloc:  # without the URL, which holds a secret
            raise ValueError(f"{OPTION}: leave user and password out of the URL: they are shown")
        if parts.query or parts.fragment or not parts.netloc:
            raise ValueError(f"{OPTION} {url}: give the URL of a folder, without ? and #")
        return WebSource(url)
    if "://" in url and not is_bucket(url):
        kinds = "s3://BUCKET/PREFIX, https://HOST/FOLDER or a folder"
        raise ValueError(f"{OPTION} {url.partition('://')[0]}://...: give {kinds}")
    return StoreSource(open_store(url, OPTION))
