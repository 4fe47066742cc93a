"""FlashRNN, Haste and TorchRL's Triton kernels: layers of one direction, written for GPUs.

They have layouts of their own. What they are given are views and copies of torch.nn's parameters made inside the call,
a few copies of a weight against all steps of a sequence, so that gradients come back under torch.nn's names.
None of them has run here yet: a peer that fails is a row with the error as its note.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import Task
from .system import Layer


def flashrnn(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """One head of H; the projection of the input by PyTorch, as it has none."""
    from flashrnn import flashrnn as run_flashrnn

    w = dict(rnn.named_parameters())
    B, H, G = x.size(1), rnn.hidden_size, 4

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        gates_x = F.linear(x.transpose(0, 1), w["weight_ih_l0"]).reshape(B, -1, G, 1, H)
        bias = (w["bias_ih_l0"] + w["bias_hh_l0"]).reshape(G, 1, H)
        weight = w["weight_hh_l0"].reshape(G, 1, H, H)
        dtype = str(x.dtype).removeprefix("torch.")
        steps, last = run_flashrnn(gates_x, weight, bias, function="lstm", dtype=dtype, backend="cuda_fused")
        return steps[0, :, :, 0].transpose(0, 1), tuple(state.reshape(1, B, H) for state in last)

    return Layer(run, w, path=lambda x: "cuda_fused")


def haste(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """The gates of its LSTM are in the order i, g, f, o, those of its GRU z, r, n."""
    import haste_pytorch

    w = dict(rnn.named_parameters())
    lstm = rnn.mode == "LSTM"
    order = (0, 2, 1, 3) if lstm else (1, 0, 2)
    function = (haste_pytorch.lstm if lstm else haste_pytorch.gru).__dict__["LSTMFunction" if lstm else "GRUFunction"]

    def arranged(parameter: Tensor) -> Tensor:
        gates = parameter.chunk(len(order))
        return torch.cat([gates[k] for k in order]).t().contiguous()

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        weights = [arranged(w["weight_ih_l0"]), arranged(w["weight_hh_l0"])]
        biases = [arranged(w["bias_ih_l0"]), arranged(w["bias_hh_l0"])]
        biases = [biases[0] + biases[1]] if lstm else biases
        mask = x.new_empty((0,) if lstm else (0, 0, 0))
        found = function.apply(torch.is_grad_enabled(), 0.0, x.contiguous(), *weights, *biases, mask)
        steps = found if lstm else (found,)
        return steps[0][-x.size(0) :], tuple(state[-1:] for state in steps)

    return Layer(run, w, path=lambda x: "a matmul and a kernel a step")


def torchrl(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """Its kernels take [B, T, ...] and a state for every step where a sequence may begin anew; none does here."""
    from torchrl.modules.tensordict_module import _rnn_triton

    w = dict(rnn.named_parameters())
    T, B, _ = x.shape
    states_everywhere = [x.new_zeros(B, T, rnn.hidden_size) for _ in range(2 if rnn.mode == "LSTM" else 1)]
    begins = torch.zeros(B, T, dtype=torch.bool, device=x.device)
    function = _rnn_triton.lstm_triton if rnn.mode == "LSTM" else _rnn_triton.gru_triton

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        weights = [w[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        precision = "tf32" if task.tf32 else "ieee"
        found = function(
            x.transpose(0, 1).contiguous(), *states_everywhere, *weights, begins, input_precision=precision
        )
        final = found[2:] if rnn.mode == "LSTM" else found[1:]
        return found[0].transpose(0, 1), tuple(state.unsqueeze(0) for state in final)

    return Layer(run, w, path=lambda x: "Triton")
