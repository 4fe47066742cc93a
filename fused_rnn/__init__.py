"""Drop-in LSTM, GRU and RNN for PyTorch on fused kernels: same constructor, ``state_dict`` and results, faster."""

from importlib import metadata
from typing import Any

from .backends import use_backend
from .cells import GRUCell, LSTMCell, RNNCell
from .choices import Choices, tuned
from .convert import convert, restore
from .explain import Explanation, explain
from .modules import GRU, LSTM, RNN
from .quantize import compare, quantize_
from .stream import Stream
from .tuning import Tuned, tune

try:
    __version__ = metadata.version("fused-rnn")
except metadata.PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Choices",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "Tuned",
    "compare",
    "convert",
    "explain",
    "quantize_",
    "restore",
    "tune",
    "tuned",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "Int8RNNConfig":  # torchao is not needed otherwise, and takes seconds to import
        from .torchao import Int8RNNConfig

        return Int8RNNConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
