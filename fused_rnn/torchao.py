"""A configuration of torchao that calls quantize_. Imported on first use, because torchao is optional."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from .quantize import quantize_


@dataclass
class Int8RNNConfig(AOBaseConfig):
    """int8 weights for recurrent layers: what :func:`fused_rnn.quantize_` does, in ``torchao.quantization.quantize_``.

    By itself torchao chooses linear layers only, so its ``filter_fn`` must name the recurrent ones.

    Example:
        >>> is_recurrent = lambda module, name: isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        >>> torchao.quantization.quantize_(model, fused_rnn.Int8RNNConfig(), is_recurrent)
    """


@register_quantize_module_handler(Int8RNNConfig)
def _quantized(module: nn.Module, config: Int8RNNConfig) -> nn.Module:
    return quantize_(module)
