"""Microbenchmarks of fused_rnn against what else runs an LSTM or a GRU: ``python -m bench --help``."""
