"""Files at a place that outlives this machine: a folder on another disk, or a bucket of S3.

    store = open_store("s3://my-bucket/runs/imagenet", "--mirror")    # or "/mnt/nfs/imagenet"
    store.put("config.json", data)
    for name, entry in store.list().items(): ...

Both kinds have the methods of `Store` (store_types.py). A file is there whole or not at all, under
a name with `/` between its parts. Nothing here keeps on trying: who calls knows how long that is
worth.

A bucket needs the package obstore, imported only for one. Credentials come from where other AWS
programs have them: the environment, ~/.aws, a web identity, the container, or the machine's role.
No text of an error holds any part of them.
"""

from pathlib import Path

from resnet50.system.bucket_store import BucketStore
from resnet50.system.folder_store import FolderStore
from resnet50.system.store_types import Entry, Store, StoreError

__all__ = ["Entry", "Store", "StoreError", "is_bucket", "open_store"]

S3 = "s3://"


def is_bucket(url: str) -> bool:
    """Whether it names a bucket; otherwise it is a folder."""
    return url.lower().startswith(S3)


def open_store(url: str, option: str) -> Store:
    """The store at a folder or s3://BUCKET/PREFIX. Asks no server yet.

    option: the user's, for errors. Raises ValueError naming option, URL and remedy.
    """
    if is_bucket(url):
        return BucketStore(url, option)
    if "://" in url:
        shown = url.partition("://")[0]
        raise ValueError(f"{option} {shown}://...: give s3://BUCKET/PREFIX, or a folder")
    return FolderStore(Path(url), option)
