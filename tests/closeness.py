"""The error budget: how far a result may be from the float64 truth."""

import torch


def assert_within_budget(name, got, truth, plain, plain_truth=None, *, factor=1.5, dtype=None):
    """Each of `got` may be `factor` times as far from `truth` as PyTorch in the same dtype is, plus one ulp.

    got, truth, plain: sequences of tensors, one for each draw of the same problem: the result under test, the float64
    truth, and what plain PyTorch gives in the dtype under test, which is that of `got` unless told.
    plain_truth: the truth for `plain`, where that is another one (problems.Layer.truth).
    """
    error = loss = scale = 0.0
    for g, t, p, p_t in zip(got, truth, plain, plain_truth or truth, strict=True):
        assert g.shape == t.shape, f"{name} must be {list(t.shape)}, got {list(g.shape)}"
        if t.numel() == 0:
            continue
        assert torch.isfinite(g).all(), f"{name} is not finite"
        error = max(error, (g.double() - t).abs().max().item())
        loss = max(loss, (p.double() - p_t).abs().max().item())
        scale = max(scale, t.abs().max().item())
    dtype = dtype or got[0].dtype
    budget = factor * loss + torch.finfo(dtype).eps * scale
    if dtype == torch.float64:  # nothing more exact to compare with
        budget = 1e-12 * scale
    assert error <= budget, (
        f"{name} is off by {error:.2e}, budget {budget:.2e} (PyTorch in {dtype} is off by {loss:.2e})"
    )
