"""prepare_data.py, committing ten times a second: a kill then finds progress in a small pack."""

import sys

import prepare_data
from resnet50.packing import writer

if __name__ == "__main__":
    writer.COMMIT_EVERY_S = 0.1
    sys.exit(prepare_data.main())
