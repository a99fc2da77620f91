"""A store in a bucket of S3, or of a server that speaks its protocol, through the package obstore.

    AWS_ENDPOINT_URL    another server than Amazon's: MinIO, Cloudflare R2, and so on
    AWS_REGION          the bucket's region
    AWS_SKIP_SIGNATURE=true    no credentials, for public data

obstore, because it is imported in 0.02 s, is one package of 16 MB without others, repeats a request
that failed, and has conditional writes; boto3 and s3fs bring many packages. It reads all of the
usual credentials but ~/.aws, which `shared_credentials` does.
"""

import configparser
import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, TypeVar

from resnet50.system.store_types import Entry, Store, StoreError

PACKAGE = "obstore==0.12.1"
# A bucket's name becomes a part of a host's name (docs.aws.amazon.com, bucket naming rules).
URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.IGNORECASE)
CONNECT_TIMEOUT = timedelta(seconds=5)
TIMEOUT = timedelta(seconds=60)  # of one request: a part of 8 MiB at 140 kB/s
# A hiccup is none of the caller's business; whatever takes longer is, since only it knows what can
# wait.
RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
PART_BYTES = 8 << 20
CONCURRENT_PARTS = 4  # 32 MiB in memory
METADATA = r"/latest/api/token|/latest/meta-data|169\.254\.170\.2"
# Where credentials may come from before the machine's role is asked for.
SOURCES = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
KEYS = ("aws_access_key_id", "aws_secret_access_key")
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials, or give the machine "
    "a role"
)
REFUSED = (
    r"status(?: code)?:? 40[13]\b|Unauthorized|AccessDenied|InvalidAccessKeyId|"
    "SignatureDoesNotMatch|ExpiredToken"
)
NO_VERSION = '"00000000000000000000000000000000"'  # an ETag that no file has
T = TypeVar("T")


class BucketStore(Store):
    """A prefix of a bucket. Raises ValueError, naming option and remedy, for a URL that is none."""

    def __init__(self, url: str, option: str) -> None:
        # Before anything shows the URL: what stands before an @ is a password.
        if "@" in url:
            raise ValueError(f"{option}: no credentials in the URL: {CREDENTIALS}")
        match = URL.fullmatch(url.rstrip("/"))
        if match is None or "?" in url or "#" in url or "//" in url[len("s3://") :]:
            raise ValueError(
                f"{option} {url}: give s3://BUCKET/PREFIX, such as s3://my-bucket/runs"
            )
        self.bucket, self.prefix = match[1], match[2] or ""
        super().__init__(f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else ""))
        self._obstore = import_obstore(f"{option} {self.url}")
        self._client = self._connect(option)

    def _connect(self, option: str) -> object:
        config = shared_credentials(option)
        # The AWS SDKs' own variable, which obstore does not know.
        has_role = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true"
        if not has_role and KEYS[0] not in config and not any(map(os.environ.get, SOURCES)):
            raise ValueError(f"{option} {self.url}: no credentials: {CREDENTIALS}")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        options = {
            "connect_timeout": CONNECT_TIMEOUT,
            "timeout": TIMEOUT,
            "allow_http": endpoint.startswith("http://"),
        }
        try:
            return self._obstore.store.S3Store(
                self.bucket,
                prefix=self.prefix or None,
                config=config,
                client_options=options,
                retry_config=RETRIES,
            )
        except Exception as error:
            text = f"{option} {self.url}: {_summary(str(error))}: check the variables AWS_*"
            raise ValueError(text) from None

    def put(self, name: str, data: bytes) -> None:
        with self._errors(name):
            self._obstore.put(self._client, name, data, use_multipart=False)

    def put_file(self, name: str, file: BinaryIO) -> None:
        """In parts, each with its own limit of time; S3 shows the whole file or none."""
        with self._errors(name):
            self._obstore.put(
                self._client,
                name,
                file,
                chunk_size=PART_BYTES,
                max_concurrency=CONCURRENT_PARTS,
            )

    def create(self, name: str, data: bytes) -> str | None:
        return self._put_if(name, data, "create")

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        return self._put_if(name, data, {"e_tag": version})

    def test_conditions(self, name: str) -> None:
        for mode in ("create", {"e_tag": NO_VERSION}):
            found = self.get(name)
            # Some servers ignore the conditions of a request, and write.
            if found and self.is_conditional and self._put_if(name, found[0], mode):
                self.is_conditional = False

    def _put_if(self, name: str, data: bytes, mode: object) -> str | None:
        if not self.is_conditional:
            return self._put_after_a_look(name, data, mode)
        exceptions = self._obstore.exceptions
        with self._errors(name):
            try:
                return self._obstore.put(self._client, name, data, mode=mode)["e_tag"]
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return None
            except FileNotFoundError as error:
                if "NoSuchKey" in str(error):  # If-Match of a file that is gone
                    return None
                raise
            except Exception as error:
                if "NotImplemented" not in str(error):
                    raise
        self.is_conditional = False
        return self._put_after_a_look(name, data, mode)

    def _put_after_a_look(self, name: str, data: bytes, mode: object) -> str | None:
        """`_put_if` on a server without conditions: another writer may come in between."""
        entry = self.entry(name)
        wanted = None if mode == "create" else mode["e_tag"]
        if (entry.version if entry else None) != wanted:
            return None
        self.put(name, data)
        return self.entry(name).version

    def get(self, name: str) -> tuple[bytes, str] | None:
        def read() -> tuple[bytes, str]:
            found = self._obstore.get(self._client, name)
            version = found.meta["e_tag"]
            return bytes(found.bytes()), version

        return self._unless_missing(name, read)

    def read(self, name: str, start: int, length: int) -> bytes:
        with self._errors(name):
            return bytes(self._obstore.get_range(self._client, name, start=start, length=length))

    def entry(self, name: str) -> Entry | None:
        return self._unless_missing(name, lambda: _entry(self._obstore.head(self._client, name)))

    def list(self, under: str = "", limit: int = 0) -> dict[str, Entry]:
        with self._errors(under):
            pages = self._obstore.list(self._client, under or None, chunk_size=1000)
            entries = ((found["path"], _entry(found)) for page in pages for found in page)
            return dict(islice(entries, limit or None))

    def delete(self, name: str) -> None:
        def delete() -> None:
            self._obstore.delete(self._client, name)

        self._unless_missing(name, delete)

    def _unless_missing(self, name: str, ask: Callable[[], T]) -> T | None:
        with self._errors(name):
            try:
                return ask()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # obstore has classes of its own, ValueError and OSError
            where = f"{self.url}/{name}" if name else self.url
            raise explained(error, where, self.bucket) from None


def import_obstore(what: str) -> ModuleType:
    """The package obstore. Raises ValueError naming the command that installs it."""
    try:
        for name in ("obstore.exceptions", "obstore.store"):
            importlib.import_module(name)
        return importlib.import_module("obstore")
    except ImportError:
        raise ValueError(f"{what} needs a package: python -m pip install {PACKAGE}") from None


def explained(error: Exception, where: str, bucket: str) -> StoreError:
    """An error of obstore in one line: what the server said or did not, and what to do."""
    text = str(error)
    said = _summary(text)
    reasons = (
        (METADATA, f"no credentials: {CREDENTIALS}"),
        (
            "NoSuchBucket",
            f"there is no bucket {bucket}: make it, or check its name and AWS_ENDPOINT_URL",
        ),
        ("[Rr]edirect", "the bucket is in another region: set AWS_REGION"),
        (REFUSED, f"the server refuses these credentials ({said}): {CREDENTIALS}"),
    )
    sign, reason = next((pair for pair in reasons if re.search(pair[0], text)), ("", ""))
    if not reason and isinstance(error, FileNotFoundError):
        reason = "it is not there"
    # An answer to a HEAD has no code, so the reasons of one trouble differ in what was said.
    return StoreError(where, reason or said, is_passing=not reason, trouble=sign)


def _summary(text: str) -> str:
    """What matters of obstore's text, which has many lines, with whatever the server sent."""
    if code := re.search(r"<Code>(\w{1,60})</Code>", text):
        return code[1]
    if status := re.search(r"(?:status(?: code)?:? ?|response error \")(\d{3})\b", text):
        return f"it answers {status[1]}"
    lower = text.lower()
    for sign, meaning in (
        ("connection refused", "it does not answer (connection refused)"),
        ("dns error", "its host's name is not known"),
        ("timed out", "it does not answer in time"),
        ("timeout", "it does not answer in time"),
        ("connection reset", "it broke the connection"),
        ("error sending request", "it does not answer"),
    ):
        if sign in lower:
            return meaning
    return "it failed"


def _entry(meta: dict) -> Entry:
    return Entry(meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or "")


def shared_credentials(option: str) -> dict[str, str]:
    """What ~/.aws adds to the environment: keys and region, in obstore's names.

    As the AWS SDKs have it: the environment first, then the profile AWS_PROFILE or "default".
    Raises ValueError for a profile that gets its keys by a program or a login: theirs to run.
    """
    environment = os.environ
    home = os.path.expanduser("~/.aws")  # noqa: PTH111 (Path raises without a HOME)
    profile = environment.get("AWS_PROFILE", "default")
    keys_of = _section(
        environment.get("AWS_SHARED_CREDENTIALS_FILE") or f"{home}/credentials", profile
    )
    name = profile if profile == "default" else f"profile {profile}"
    settings = _section(environment.get("AWS_CONFIG_FILE") or f"{home}/config", name)
    found = {}
    if "region" in settings and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & environment.keys():
        found["region"] = settings["region"]
    if any(map(environment.get, SOURCES[:3])):
        return found
    both = settings | keys_of
    if all(key in both for key in KEYS):
        found |= {key: both[key] for key in KEYS}
        if "aws_session_token" in both:
            found["aws_session_token"] = both["aws_session_token"]
    elif way := next((n for n in both if n.startswith(("sso_", "role_", "credential_p"))), ""):
        raise ValueError(
            f"{option}: the AWS profile {profile} gets its keys by {way}: put them into the "
            'environment first: eval "$(aws configure export-credentials --format env)"'
        )
    return found


def _section(path: str | Path, name: str) -> dict[str, str]:
    """A section of one of the files of ~/.aws; empty without one."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(Path(path).read_text())
        return dict(parser[name])
    except (OSError, UnicodeDecodeError, KeyError, configparser.Error):
        return {}
