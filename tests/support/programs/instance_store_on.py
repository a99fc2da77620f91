"""host/instance_store.py where one loop device has the model of an instance's own NVMe.

usage: instance_store_on.py DEVICE FLAG ...
"""

import dataclasses
import sys

from host import disks, instance_store

read = disks.read


def read_with_store() -> list[disks.Disk]:
    return [
        dataclasses.replace(disk, model=disks.INSTANCE_STORE) if disk.path == sys.argv[1] else disk
        for disk in read()
    ]


disks.read = read_with_store
instance_store.FREE_BYTES = 64 << 20  # every byte of a blank store is read: small ones will do
sys.exit(instance_store.main(sys.argv[2:]))
