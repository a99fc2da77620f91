"""What a loader says of 64 workers where 60 files may be open."""

import resource

from resnet50.data import loader

resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
loader.allow_open_files(64)
