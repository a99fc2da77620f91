"""train.py as on two hosts: rank 1 is the second one's, and has the flags in SECOND_HOST too."""

import json
import os
import sys

import train
from resnet50.run import consistency

consistency.PATIENCE_S = 1.0
os.environ["LOCAL_RANK"] = "0"  # every host's first rank prints
second = json.loads(os.environ["SECOND_HOST"]) if os.environ["RANK"] == "1" else []
sys.exit(train.main([*sys.argv[1:], *second]))
