#!/usr/bin/env bash
# torch 2.14.1: OneCycleLR(total_steps=N) gives N + 1 learning rates; the last may be negative.
#
# Expected: for total_steps=10 the scheduler has rates for 10 optimizer steps, and refuses to be
# stepped beyond its end, where the rate has reached its minimum.
# Behavior: stepped after each of the 10 optimizer steps, as the documentation's loop does, it gives
# an 11th rate before it refuses. That rate extrapolates the curve: with "linear" it is negative, so
# that an optimizer taking one more step would ascend; with "cos" it rises again.
# Seen: linear: 11 rates, the last two 0.000004 -0.142853
#       cos: 11 rates, the last two 0.000004 0.049519
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1

cat >"$folder/rates.py" <<'PY'
import torch

for strategy in ("linear", "cos"):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=10, anneal_strategy=strategy, cycle_momentum=False
    )
    rates = [scheduler.get_last_lr()[0]]
    try:
        while True:
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
    except ValueError:
        print(f"{strategy}: {len(rates)} rates, the last two {rates[-2]:.6f} {rates[-1]:.6f}")
PY
seen=$("$folder/venv/bin/python" "$folder/rates.py")
echo "$seen"
expected="linear: 11 rates, the last two 0.000004 -0.142853
cos: 11 rates, the last two 0.000004 0.049519"
[[ $seen == "$expected" ]] || { echo "the behavior has changed" && exit 1; }
