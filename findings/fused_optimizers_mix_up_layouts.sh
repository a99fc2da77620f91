#!/usr/bin/env bash
# torch 2.14.1 on the CPU: a fused optimizer pairs a weight's elements with those of its gradient as
# they lie in memory, whatever their layouts.
#
# Expected: the same step as without `fused=True`, or an error, where a gradient is laid out
# otherwise than its weight; a gradient that is set by hand may be.
# Behavior: no error; each element of a channels_last weight gets another element's gradient.
# Gradients that autograd accumulates are laid out as their weights, and are not affected.
# Seen: SGD, gradient laid out as the weight: same step
#       SGD, gradient contiguous, weight channels_last: another step
#       AdamW, gradient laid out as the weight: same step
#       AdamW, gradient contiguous, weight channels_last: another step
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy

cat >"$folder/step.py" <<'PY'
import torch

torch.manual_seed(0)
start = torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last)
laid_out_as_weight = torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last)
for kind in (torch.optim.SGD, torch.optim.AdamW):
    for name, gradient in (
        ("laid out as the weight", laid_out_as_weight),
        ("contiguous, weight channels_last", laid_out_as_weight.contiguous()),
    ):
        ends = []
        for fused in (False, True):
            weight = torch.nn.Parameter(start.clone())
            weight.grad = gradient.clone()
            kind([weight], lr=0.1, fused=fused).step()
            ends.append(weight.detach())
        same = torch.allclose(*ends, atol=1e-6)
        print(f"{kind.__name__}, gradient {name}: {'same' if same else 'another'} step")
PY
seen=$(CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" "$folder/step.py")
echo "$seen"
expected="SGD, gradient laid out as the weight: same step
SGD, gradient contiguous, weight channels_last: another step
AdamW, gradient laid out as the weight: same step
AdamW, gradient contiguous, weight channels_last: another step"
[[ $seen == "$expected" ]] || { echo "the behavior has changed" && exit 1; }
