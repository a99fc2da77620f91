"""Take this many bytes of the GPU's memory, say so, and keep them until standard input ends."""

import sys

import torch

hoard = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("full", flush=True)
sys.stdin.read()
