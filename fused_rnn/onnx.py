"""LSTM layers with int8 weights in ``torch.onnx.export``: nodes DynamicQuantizeLSTM of ONNX Runtime.

ONNX has no recurrent node with small weights, and ONNX Runtime has this one only. It quantises x and h of a whole batch
by one scale where our kernels have one for each row, so its results are less exact than ours.

Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.DynamicQuantizeLSTM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cell, private
from .call import Call, short
from .cell import Weights
from .native import constant


@constant
def is_exporting() -> bool:
    """Whether ``torch.onnx.export`` captures a graph, unless by TorchScript."""
    return private.is_exporting() and torch.onnx.is_in_onnx_export()


def run(call: Call) -> tuple[Tensor, ...]:
    """The results of the op for a call with quantised weights, as nodes of the graph that is being exported.

    Raises:
        RuntimeError: there is no such node.
    """
    plain_rows = not (call.ragged or call.packed or call.has_resets)
    if call.cell is not cell.LSTM or call.quantized is not torch.int8 or not plain_rows:
        form = "" if plain_rows else " with lengths, resets or a packed sequence"
        raise RuntimeError(
            f"ONNX has no {call.cell} with {short(call.quantized or call.dtype)} weights{form}, and ONNX Runtime only "
            "the lstm with int8 weights; fused_rnn.restore(model, dequantize=True) makes layers that can be exported"
        )
    plain = call.standard()
    output, finals, weights, D = plain.input, [], plain.layer_weights(), plain.directions
    for layer in range(plain.layers):
        some = slice(layer * D, (layer + 1) * D)
        h, c = (state[some] for state in plain.states)
        y, *final = _node(output, h, c, weights[some])
        output = y.permute(0, 2, 1, 3).flatten(2)
        finals.append(final)
    return call.as_asked(output, tuple(torch.cat(states) for states in zip(*finals, strict=True)))


def _node(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Weights]) -> Sequence[Tensor]:
    """One layer in one direction or both: Y [T, D, B, H] and the final states [D, B, H]."""
    D, B, H = h.shape
    # As unsigned bytes around 128: without VNNI, ONNX Runtime's sums of products with signed ones saturate.
    matrices = [torch.stack([_unsigned(_in_onnx_order(getattr(w, n).numbers)).t() for w in weights]) for n in _MATRICES]
    scales = [torch.stack([_in_onnx_order(getattr(w, n).scale) for w in weights]) for n in _MATRICES]
    zeros = torch.full_like(scales[0], 128, dtype=torch.uint8)
    bias = None
    if weights[0].bias_ih is not None:
        both = [torch.cat([_in_onnx_order(b) for b in (w.bias_ih, w.bias_hh) if b is not None]) for w in weights]
        bias = torch.stack(both)
    return torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::DynamicQuantizeLSTM",
        [x, *matrices, bias, None, h, c, None, scales[0], zeros, scales[1], zeros],
        attrs={"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"},
        dtypes=[torch.float32] * 3,
        shapes=[(x.size(0), D, B, H), (D, B, H), (D, B, H)],
        version=1,
    )


_MATRICES = "weight_ih", "weight_hh"


def _unsigned(numbers: Tensor) -> Tensor:
    return (numbers.to(torch.int16) + 128).to(torch.uint8)


def _in_onnx_order(rows: Tensor) -> Tensor:
    """Gates i, f, g, o as i, o, f, g."""
    H = rows.size(0) // 4
    return torch.cat([rows[k * H : (k + 1) * H] for k in (0, 3, 1, 2)])
