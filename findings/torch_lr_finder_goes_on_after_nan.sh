#!/usr/bin/env bash
# torch-lr-finder 0.2.2: a range test does not stop when the loss becomes NaN.
#
# Expected: `range_test(..., diverge_th=5)` ends early, "since the loss diverged", once the loss is
# NaN.
# Behavior: it compares `loss > diverge_th * best_loss`, and no comparison with NaN is true. All
# iterations run, at ever higher rates, and `history["loss"]` ends in NaN.
# Seen: calls 50, losses that are NaN 40
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 torch-lr-finder==0.2.2

cat >"$folder/nan.py" <<'PY'
import contextlib
import io
import math

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_lr_finder import LRFinder

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
data = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), batch_size=8)
calls = 0


def loss_of(outputs, targets):
    global calls
    calls += 1
    loss = torch.nn.functional.mse_loss(outputs, targets)
    return loss * math.nan if calls > 10 else loss


finder = LRFinder(model, torch.optim.SGD(model.parameters(), lr=1e-3), loss_of)
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    finder.range_test(data, start_lr=1e-4, end_lr=1e-2, num_iter=50, diverge_th=5)
num_nan = sum(math.isnan(loss) for loss in finder.history["loss"])
print(f"calls {calls}, losses that are NaN {num_nan}")
PY
seen=$("$folder/venv/bin/python" "$folder/nan.py")
echo "$seen"
[[ $seen == "calls 50, losses that are NaN 40" ]] || { echo "the behavior has changed" && exit 1; }
