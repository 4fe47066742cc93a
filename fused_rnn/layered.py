"""Layers on top of each other, in one direction or both, for backends that run one layer in one direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as zeroed
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .call import Call, RunLayer


def run(call: Call, run_layer: RunLayer) -> tuple[Tensor, ...]:
    """The results of the op for a call: the output and the final states, of a step the states alone.

    Args:
        run_layer: has the signature of :func:`fused_rnn.reference.run`.
    """
    if call.packed:
        return run_padded(call.standard(), lambda padded: run(padded, run_layer))
    plain = with_masks(call.standard())
    x, finals = plain.input, []
    weights, directions = plain.layer_weights(), plain.directions
    for layer in range(plain.layers):
        if layer and plain.masks:
            x = x * plain.masks[layer - 1]
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            initial = tuple(state[k] for state in plain.states)
            is_reverse = plain.form.reverse != (direction == 1)
            output, final = run_layer(plain.cell, x, initial, weights[k], plain.lengths, is_reverse, plain.resets)
            outputs.append(output)
            finals.append(final)
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    return call.as_asked(x, tuple(torch.stack(state) for state in zip(*finals, strict=True)))


def run_padded(call: Call, run: Callable[[Call], Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """The results for a packed call of ``run``, which takes padded input only."""
    call = with_masks(call)
    assert call.batch_sizes is not None
    x, lengths = pad_packed_sequence(PackedSequence(call.input, call.batch_sizes))
    masks = [pad_packed_sequence(PackedSequence(mask, call.batch_sizes))[0] for mask in call.masks]
    options = dict(form=call.form._replace(batch_first=False), batch_sizes=None, check=lambda call: None)
    padded = call.changed(input=x, lengths=lengths.to(x.device), masks=masks, **options)
    output, *final = run(padded)
    if output.numel() == 0:  # which PyTorch does not pack
        return output.reshape(call.input.size(0), 0), *final
    return pack_padded_sequence(output, lengths).data, *final


def with_masks(call: Call) -> Call:
    """The same call with masks for dropout, drawn as torch.nn draws them: for packed input in packed form."""
    if call.dropout == 0:
        return call
    width = call.directions * call.output_size
    shape = (call.input.size(0), width) if call.packed else (call.T, call.B, width)
    ones = torch.ones(shape, dtype=call.dtype, device=call.device)
    masks = [zeroed(ones, call.dropout, training=True) for _ in range(call.layers - 1)]
    return call.changed(dropout=0.0, masks=masks)
