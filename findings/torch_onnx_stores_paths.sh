#!/usr/bin/env bash
# torch 2.14.1 with onnx 1.23.2 and onnxscript 0.7.2: an exported model contains folder names of the
# machine that exported it.
#
# Expected: a file that holds the network, its weights and names of inputs and outputs.
# Behavior: every node carries `pkg.torch.onnx.stack_trace` among its metadata, a Python traceback
# with the absolute paths of the script and of the installed packages, which publishes a user's name
# and the layout of the disk. Removing that entry from every node changes no result.
# Seen: nodes with the exporting folder in their metadata: 3 of 3
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2

cat >"$folder/export.py" <<'PY'
import sys

import onnx
import torch

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
file = f"{sys.argv[1]}/model.onnx"
torch.onnx.export(model, (torch.zeros(1, 4),), file, dynamo=True, verbose=False)
nodes = onnx.load(file).graph.node
named = [node for node in nodes if any(sys.argv[1] in item.value for item in node.metadata_props)]
print(f"nodes with the exporting folder in their metadata: {len(named)} of {len(nodes)}")
PY
seen=$("$folder/venv/bin/python" "$folder/export.py" "$folder" | tail -n 1)
echo "$seen"
[[ $seen == "nodes with the exporting folder in their metadata: 3 of 3" ]] ||
    { echo "the behavior has changed" && exit 1; }
