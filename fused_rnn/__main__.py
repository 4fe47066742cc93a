"""``python -m fused_rnn``: what is installed, which devices there are, and which backends run on them."""

from __future__ import annotations

import platform

import torch

from . import __version__, backends, evidence, native
from .cell import LSTM


def report() -> str:
    """The report as text."""
    devices = [torch.device("cpu"), *(torch.device("cuda", k) for k in range(torch.cuda.device_count()))]
    extension = native.load_error or str(native.library)
    lines = [
        f"fused_rnn  {__version__}",
        f"torch      {torch.__version__}",
        f"python     {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"extension  {extension}",
    ]
    if native.load_error is None:
        lines.append(f"CUDA code  {native.cuda_architectures() or 'none: the extension was built without CUDA'}")
    measured = sorted({gpu for gpu, _, _ in evidence.measurements()})
    lines.append(f"measured   {', '.join(measured) or 'no GPU: on every one, kernels of PyTorch come first'}")
    if forced := backends.forced():
        lines.append(f"forced     {forced}")
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        lines.append(f"{device} ({name}), a float32 layer in training:")
        problem = backends.Problem(LSTM, device, torch.float32, T=100, B=16, I=256, H=256, training=True)
        for backend in backends.BACKENDS:
            reason = backend.why_not(problem)
            later = backend.why_later(problem) if reason is None else None
            answer = f"no: {reason}" if reason else f"later: {later}" if later else "yes"
            plan = backend.plan(problem) if reason is None else ""
            lines.append(f"  {backend.name:<10} {answer}{plan and f' ({plan})'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
