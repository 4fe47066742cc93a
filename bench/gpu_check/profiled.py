"""One launch of each persistent kernel that matters most, for Nsight Compute to look at."""

from __future__ import annotations

import argparse

import torch

import fused_rnn

T, B = 256, 16
LAYERS = (
    (fused_rnn.LSTM, torch.bfloat16, 128),
    (fused_rnn.GRU, torch.bfloat16, 128),
    (fused_rnn.LSTM, torch.float32, 64),
    (fused_rnn.LSTM, torch.bfloat16, 512),
    (fused_rnn.GRU, torch.bfloat16, 1024),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU")
    dry = parser.parse_args().dry_run
    device, backend = ("cpu", "cpu") if dry else ("cuda", "cuda")
    with fused_rnn.use_backend(backend):
        for layer, dtype, H in LAYERS:
            rnn = layer(H, H, device=device, dtype=dtype)
            x = torch.randn(8 if dry else T, B, H, device=device, dtype=dtype)
            rnn(x)[0].sum().backward()
    print(f"{len(LAYERS)} layers ran, forward and backward")


if __name__ == "__main__":
    main()
