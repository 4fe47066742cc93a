"""Microbenchmarks of fused_rnn against what else runs an LSTM or a GRU: ``python -m bench --help``."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which says what ran, else reports on itself
os.environ.setdefault("FUSED_RNN_TUNED", "0")  # measure the kernels without choices of fused_rnn.tune
