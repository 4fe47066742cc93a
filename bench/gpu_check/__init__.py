"""Everything that needs an NVIDIA GPU, in one command: ``python -m bench.gpu_check --help``."""
