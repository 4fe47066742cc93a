"""Measured choices of a kernel: the table that calls look into, and its files.

A choice is for a kind of call: its cell, dtype, form and sizes, and on a CPU the number of threads. T and B are in
bands of a factor of two. What :func:`fused_rnn.tune` finds on this machine stands in one file for each device and
version of PyTorch and of this package, in the user's cache folder, or in that which ``FUSED_RNN_TUNED`` names.
``choices.csv``, which comes with the package, has what was measured on some kinds of processors; ``python -m bench
report`` writes it. With ``FUSED_RNN_TUNED=0`` there are no choices at all.
"""

from __future__ import annotations

import csv
import functools
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import native, private
from .call import Call, Problem, short
from .evidence import gpu_name
from .native import constant

SHIPPED = Path(__file__).with_name("choices.csv")
LONGEST = 128  # steps: longer sequences are more of the same


class Kind(NamedTuple):
    """The key of a choice: the properties that all calls it is for have in common."""

    device: str  # of a GPU its name, of a CPU also its instruction set
    threads: int  # on a CPU
    cell: str
    dtype: str
    math: str  # tf32 or bfloat16 where float32 products may round their factors, else the dtype
    weights: str  # their dtype if they are quantised
    training: bool
    step: bool
    layers: int
    directions: int
    ragged: bool
    packed: bool
    projection: int  # proj_size
    T: int  # the lowest of its band, as B
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        named = ("training", "step", "ragged", "packed")
        flags = [f"weights={self.weights}"] * bool(self.weights) + [name for name in named if getattr(self, name)]
        flags += [f"proj_size={self.projection}"] * bool(self.projection)
        flags += [f"layers={self.layers}"] * (self.layers > 1) + ["bidirectional"] * (self.directions > 1)
        flags += [f"threads={self.threads}"] * bool(self.threads)
        math = self.dtype if self.math == self.dtype else f"{self.dtype} in {self.math}"
        return " ".join([self.cell, math, f"T={self.T}.. B={self.B}.. I={self.I} H={self.H}", *flags])


class Choice(NamedTuple):
    """The route that runs a kind of call, and the evidence for it."""

    route: str  # a name of backends.ROUTES
    speedup: float  # PyTorch's time by its; 0 where PyTorch cannot run the call, or its results are wrong
    day: str
    is_own: bool = True  # measured on this machine, and not on another of its kind

    def __str__(self) -> str:
        where = "tuned here" if self.is_own else "measured on this kind of processor"
        return f"{where} on {self.day}" + (f": {self.speedup:.2f} times torch" if self.speedup else "")


class Choices(dict[Kind, Choice]):
    """The result of :func:`tuned`: from kinds of call to choices; print it."""

    def __str__(self) -> str:
        return "\n".join(f"{kind}\n  {choice.route}: {choice}" for kind, choice in self.items()) or "nothing is tuned"


COLUMNS = (*Kind._fields, "route", "speedup", "day")
_TEXTS = ("device", "cell", "dtype", "math", "weights")

_table: dict[Kind, Choice] = {}
input_sizes: set[int] = set()  # of the kinds in the table: a quick check that spares most calls the look-up
_found: dict[tuple[Any, ...], Choice | None] = {}  # cache of `choice`, with cheaper keys
_MOST_FOUND = 1024  # sequences of any length may come, each once


def tuned() -> Choices:
    """All choices that hold in this process: what :func:`fused_rnn.tune` found here, now or in an earlier process.

    Example:
        >>> print(fused_rnn.tuned())
    """
    return Choices({kind: choice for kind, choice in _table.items() if choice.is_own})


def choice(problem: Problem | Call) -> Choice | None:
    """The choice for a call, if such calls were measured. There is none in a graph for any T and B."""
    if torch.compiler.is_compiling():
        is_static = private.is_static(problem.T) and private.is_static(problem.B)
        return _find(*kind_of(problem)) if is_static else None
    if type(problem) is not Call or problem.batch_sizes is not None:
        return _find(*kind_of(problem))
    p, x = problem, problem.input
    form: tuple[Any, ...] = p.cell.name, p.form, p.lengths is None, p.training, torch.get_num_threads()
    rounds = native.allow_bfloat16() if x.is_cpu else native.allow_tf32()
    key = *form, rounds, x.shape, x.dtype, x.device, p.weights[1].shape  # which has H and proj_size
    try:
        return _found[key]
    except KeyError:
        if len(_found) >= _MOST_FOUND:
            _found.clear()
        return _found.setdefault(key, _find(*kind_of(p)))
    except TypeError:  # a size is a symbol: make_fx traces
        return None


@constant
def _find(*kind: Any) -> Choice | None:
    return _table.get(kind)  # type: ignore[call-overload]  # a tuple like a Kind


def kind_of(p: Problem | Call) -> Kind:
    """The kind of a call."""
    dtype, math = short(p.dtype), native.math_of(p.dtype, p.device)
    device = _device_name(p.device.type, p.device.index)
    threads = _threads() if p.device.type == "cpu" else 0
    weights = short(p.quantized) if p.quantized else ""
    form = p.training, p.step, p.layers, p.directions, p.ragged, p.packed, p.projection
    T = LONGEST if p.T > LONGEST else _lowest(p.T)
    return Kind(device, threads, str(p.cell), dtype, math, weights, *form, T, _lowest(p.B), p.I, p.H)


def _lowest(size: int) -> int:
    """Of the band of a size: the greatest power of two that is not above it."""
    return 1 << max(size.bit_length() - 1, 0)


@constant
def _threads() -> int:
    return torch.get_num_threads()


@constant
def _device_name(device_type: str, index: int | None) -> str:
    if device_type == "cpu":
        return processor()
    is_here = device_type in ("cuda", "xpu") and torch.get_device_module(device_type).is_available()
    return gpu_name(device_type, index) if is_here else device_type


@functools.cache
def processor() -> str:
    """The name of the processor and of the instruction set of the CPU kernels."""
    return f"{cpu_name()}, {'no kernels' if native.load_error else native.cpu_instruction_set()}"


def processor_kind(processor: str) -> str:
    """The maker and the instruction set of a :func:`processor`, which share the choices of ``choices.csv``."""
    maker, _, instruction_set = re.split("[^A-Za-z]", processor, maxsplit=1)[0], *processor.rpartition(", ")[1:]
    return f"{maker} {instruction_set}"


@functools.cache
def cpu_name() -> str:
    """The model name of the processor, or its architecture where the operating system has no name."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = ""
    found = re.search(r"^(?:model name|Model)\s*: (.*)$", about, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


# ---- Change ----


def put(found: Mapping[Kind, Choice]) -> None:
    """Add choices to the table."""
    _table.update(found)
    _found.clear()
    input_sizes.update(kind.I for kind in found)


def keep(found: Mapping[Kind, Choice]) -> None:
    """Add own choices to the table, and to the files of their devices.

    Raises:
        OSError: a file cannot be written. The table has the choices all the same.
    """
    put(found)
    folder = own_folder()
    if folder is None:
        return
    for device in sorted({kind.device for kind in found}):
        path = folder / _file_name(device)
        others = _read(path) if path.exists() else {}  # perhaps of another process
        _write(path, others | {kind: choice for kind, choice in tuned().items() if kind.device == device})


def clear() -> list[Path]:
    """Forget all own choices and remove their files; those that there were."""
    folder = own_folder()
    files = sorted(folder.glob("*-torch-*-fused_rnn-*.csv")) if folder and folder.is_dir() else []
    for path in files:
        path.unlink()
    load()
    return files


def load() -> None:
    """Make the table from what comes with the package and the user's own files of these versions."""
    _table.clear()
    _found.clear()
    input_sizes.clear()
    if os.environ.get("FUSED_RNN_TUNED") == "0":
        return
    name, kind_here = processor(), processor_kind(processor())
    put(
        {
            kind._replace(device=name): choice._replace(is_own=False)
            for kind, choice in _read(SHIPPED).items()
            if kind.device == kind_here
        }
    )
    folder = own_folder()
    for path in sorted(folder.glob(f"*{_versions()}.csv")) if folder and folder.is_dir() else ():
        put(_read(path))


# ---- Files ----


def own_folder() -> Path | None:
    """Where the user's own files are: what ``FUSED_RNN_TUNED`` names, or in the cache folder; None if that is 0."""
    given = os.environ.get("FUSED_RNN_TUNED")
    if given:
        return None if given == "0" else Path(given)
    import platformdirs  # machines that only measure kernels need not have it

    return platformdirs.user_cache_path("fused_rnn", appauthor=False) / "tuned"


def check_folder() -> None:
    """Raise OSError if own choices could not be written."""
    folder = own_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        told = f"choices could not be kept (with FUSED_RNN_TUNED=0 they need not be): {error.strerror}"
        raise type(error)(error.errno, told, str(folder)) from None


def _versions() -> str:
    try:
        own = metadata.version("fused-rnn")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return f"torch-{torch.__version__}-fused_rnn-{own}"


def _file_name(device: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-") + f"-{_versions()}.csv"


def _read(path: Path) -> dict[Kind, Choice]:
    """The choices in a file. One that cannot be read is named in a warning, and has none."""
    try:
        with path.open(newline="") as file:
            return dict(parsed(csv.DictReader(file)))
    except (OSError, ValueError, csv.Error) as error:
        warnings.warn(f"fused_rnn ignores {path}, where choices should be: {error}", RuntimeWarning, stacklevel=2)
        return {}


def parsed(reader: csv.DictReader[str]) -> Iterator[tuple[Kind, Choice]]:
    """The rows of a file.

    Raises:
        ValueError: it has other columns, or something else than a number where one must be.
    """
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"its columns must be {', '.join(COLUMNS)}, got {', '.join(reader.fieldnames or ())}")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} must have {len(COLUMNS)} columns")
        # As keys, 0 and 1 are False and True.
        kind = [row[name] if name in _TEXTS else int(row[name]) for name in Kind._fields]
        yield Kind(*kind), Choice(row["route"], float(row["speedup"]), row["day"])  # type: ignore[arg-type]


def rows(choices: Mapping[Kind, Choice]) -> Iterator[dict[str, Any]]:
    """The rows of a file."""
    for kind, choice in choices.items():
        values = {name: int(value) if isinstance(value, bool) else value for name, value in kind._asdict().items()}
        yield values | {"route": choice.route, "speedup": f"{choice.speedup:.3f}", "day": choice.day}


def _write(path: Path, choices: Mapping[Kind, Choice]) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.part")
    try:
        with new.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows(choices))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


load()
