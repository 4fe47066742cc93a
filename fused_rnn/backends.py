"""Which backend runs a call: one table, best first.

``why_not`` returns ``None`` when the backend can run the problem and otherwise a sentence. That sentence is the
error of a forced backend, the line in ``explain()``, the reason of a skipped test and the report of
``python -m fused_rnn``. ``why_later`` is a sentence where the backend can run the problem, but PyTorch's kernels come
before it, as no measurement shows that they are slower.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import choices, evidence, layered, native, onnx, reference, segments, stock
from .call import JOINS, PROJECTS, REDUCED_PRECISION, Call, Form, Problem, short, time_major
from .cell import Cell
from .triton import plan as triton_plan

Asked = Problem | Call


@dataclass(frozen=True)
class Backend:
    """A way to run a whole call."""

    name: str
    refusal: Callable[[Asked], str | None]
    run: Callable[[Call], Sequence[Tensor]]  # to the results of the op
    plan: Callable[[Asked], str] = lambda problem: ""  # how it would run the problem, in a few words
    later: Callable[[Asked], str | None] | None = None  # why PyTorch's kernels come first
    device_type: str = ""  # the only one that it runs on
    inference_op: Callable[[Form], native.InferenceOp] | None = None  # what may run a call that is known

    def why_not(self, problem: Asked) -> str | None:
        """A sentence, or None if it can run the problem."""
        if self.device_type and native.load_error is None and problem.device.type != self.device_type:
            return f"it runs on {self.device_type}, and the input is on {problem.device}"
        return self.refusal(problem)

    def why_later(self, problem: Asked) -> str | None:
        """Why PyTorch's kernels come first, although it can run the problem: a sentence, or None if they do not."""
        return self.later(problem) if self.later else None


_NO_INT8 = "it has no kernel for int8 weights"  # weights of bfloat16 become float32


def _kernels_why_not(problem: Asked) -> str | None:
    """What none of our kernels can run, whatever the device."""
    if problem.transformed:
        return "its ops have no rule for torch.func transforms and forward-mode differentiation"
    if problem.subclass:
        return f"its ops know plain tensors only, and one is a {problem.subclass}"
    return None


def _native_why_not(problem: Asked, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if native.load_error is not None:
        return f"the extension could not be loaded: {native.load_error}"
    if problem.dtype not in dtypes:
        return f"it has no kernel for {problem.dtype}"
    if problem.quantized and problem.dtype != torch.float32:
        return f"its kernels for {short(problem.quantized)} weights take float32, and the input is {problem.dtype}"
    return _kernels_why_not(problem)


def _no_cuda_kernel(problem: Asked) -> str | None:
    """Why the CUDA kernels cannot run a problem, whatever the GPU."""
    return _NO_INT8 if problem.quantized is torch.int8 else _native_why_not(problem, native.CUDA_DTYPES)


def _cuda_why_not(problem: Asked) -> str | None:
    return _no_cuda_kernel(problem) or native.cuda_why_not(_cuda_index(problem.device), problem.dtype)


def _cuda_index(device: torch.device) -> int:
    if device.index is not None:
        return device.index
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _cuda_plan(problem: Asked) -> str:
    return plan_on(problem, f"cuda:{_cuda_index(problem.device)}")[0]


def plan_on(problem: Asked, gpu: str) -> tuple[str, str | None]:
    """How the CUDA kernels would run a problem on a GPU that need not be here, in words, and why they would not.

    Args:
        gpu: as in :func:`native.cuda_plan`.
    """
    p = problem
    if reason := _no_cuda_kernel(p):
        return "", reason
    shape = p.cell, p.dtype, p.T, p.B, p.H, p.layers, p.directions
    forward, reason = native.cuda_plan(*shape, False, gpu, p.projection)
    if reason or not p.training:
        return forward, reason
    backward, _ = native.cuda_plan(*shape, True, gpu, p.projection)
    return f"{forward}; backward: {backward}", None


_cpu_why_not = functools.partial(_native_why_not, dtypes=native.DTYPES)


def _cpu_plan(problem: Asked, plan: int = 0) -> str:
    p = problem
    return native.cpu_plan(p.cell, p.dtype, p.T, p.B, p.I, p.H, p.projection, p.training, p.quantized, plan)


def _why_later(name: str, problem: Asked) -> str | None:
    """Why PyTorch's kernels come before the GPU kernels of ours that have that name.

    Not where PyTorch has none: torch.compile would unroll its loop, step by step.
    """
    if torch.compiler.is_compiling() or _torch_why_not(problem) is not None:
        return None
    return evidence.why_later(problem, name)


def _torch_why_not(problem: Asked) -> str | None:
    if problem.has_resets:
        return "torch.nn has no resets inside a sequence"
    if problem.ragged:
        return "torch.nn packs ragged batches on the host"
    return _no_stock_kernel(problem)


def _segments_why_not(problem: Asked) -> str | None:
    if not problem.has_resets:
        return "it is for calls with resets"
    if torch.compiler.is_compiling():
        return "it cuts sequences on the host, which no graph can hold"
    if problem.subclass:
        return f"it cuts plain tensors only, and one is a {problem.subclass}"
    return _no_stock_kernel(problem)


def _no_stock_kernel(problem: Asked) -> str | None:
    """Why PyTorch's kernels cannot run a problem, whatever its rows."""
    if not problem.cell.stock:
        return f"torch.nn has no {problem.cell}"
    if problem.quantized is torch.int8:
        return "torch.nn has no int8 weights"
    if problem.transformed:
        return "torch.nn's kernels do not support every torch.func transform and forward-mode differentiation"
    if problem.device.type == "meta":
        return "a meta tensor needs shapes only"
    if 0 in (problem.T, problem.B, problem.I, problem.H):
        return "torch.nn's kernels need sizes above 0"
    return None


def _triton_why_not(problem: Asked) -> str | None:
    if problem.quantized is torch.int8:
        return _NO_INT8
    if problem.dtype not in triton_plan.DTYPES:
        return f"it has no kernel for {problem.dtype}"
    if problem.projection:
        return "it has no kernel for proj_size"
    return _kernels_why_not(problem) or triton_plan.why_not(problem.device)


def _triton_run(call: Call) -> Sequence[Tensor]:
    from .triton import ops  # imports Triton

    return layered.run(call, ops.run_layer)


def _triton_plan(problem: Asked) -> str:
    p, device = problem, triton_plan.device_of(problem.device)
    passes = (False, True) if p.training else (False,)
    plans = [triton_plan.make_plan(p.cell, p.dtype, p.B, p.H, b, native.allow_tf32(), device) for b in passes]
    return "; backward: ".join(map(str, plans))


def _reference_run(call: Call) -> Sequence[Tensor]:
    return layered.run(call, reference.run)


# Best first; the last one runs everything.
BACKENDS = (
    Backend("cuda", _cuda_why_not, native.run, _cuda_plan, functools.partial(_why_later, "cuda"), "cuda"),
    Backend("cpu", _cpu_why_not, native.run, _cpu_plan, device_type="cpu", inference_op=native.inference_op),
    Backend("triton", _triton_why_not, _triton_run, _triton_plan, functools.partial(_why_later, "triton")),
    Backend("torch", _torch_why_not, stock.run),
    Backend("segments", _segments_why_not, segments.run),
    Backend("reference", lambda problem: None, _reference_run),
)


def _routes() -> dict[str, Backend]:
    """All ways to run a call on this machine: the backends, and ways of the CPU kernels.

    ``"cpu avx2"`` has the loops of that instruction set. ``"cpu joined"`` multiplies x and h of a step in one tile,
    ``"cpu projected"`` x of several steps before.
    """
    found = {backend.name: backend for backend in BACKENDS}
    cpu = found["cpu"]
    for way, flags in {**native.cpu_set_flags(), "joined": JOINS, "projected": PROJECTS}.items():
        found[f"cpu {way}"] = dataclasses.replace(
            cpu,
            name=f"cpu {way}",
            run=functools.partial(native.run, plan=flags),
            plan=functools.partial(_cpu_plan, plan=flags),
            inference_op=functools.partial(native.inference_op, plan=flags),
        )
    return found


ROUTES = _routes()


def routes_for(problem: Asked) -> list[str]:
    """The names of the routes that can run a call and differ for it, the one without any measurement first.

    The reference is among them only if there is no other.
    """
    usual = choose(problem, by_choices=False).name
    names = [usual, *(b.name for b in BACKENDS[:-1] if b.name != usual and b.why_not(problem) is None)]
    if ROUTES["cpu"].why_not(problem) is None and not problem.quantized:
        here = native.cpu_instruction_sets(problem.cell, problem.dtype, native.allow_bfloat16())
        names += [f"cpu {name}" for name in here if name not in ("", "generic", native.cpu_instruction_set())]
        if problem.cell.joins and problem.T > 1:
            names += ["cpu joined", "cpu projected"]
    return names


# A plain global and no ContextVar: torch.compile guards on the one, not on the other.
_forced: str | None = os.environ.get("FUSED_RNN_BACKEND") or None


def by_name(name: str) -> Backend:
    """The backend called ``name``. Raises ValueError for an unknown name."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend {name!r} is not one of {', '.join(b.name for b in BACKENDS)}")


def forced() -> str | None:
    """The name of the backend that :func:`use_backend` or ``FUSED_RNN_BACKEND`` demands, if any."""
    return _forced


def choose(problem: Asked, by_choices: bool = True) -> Backend:
    """The forced backend, or else the route that was measured to be the fastest, or else the first backend that can run
    ``problem`` and need not come later.

    Args:
        by_choices: let measured choices count.

    Raises:
        ValueError: the forced backend does not exist or cannot run ``problem``.
    """
    if _forced is not None:
        backend = by_name(_forced)
        if reason := backend.why_not(problem):
            told = problem.problem if isinstance(problem, Call) else problem
            raise ValueError(f"backend {_forced!r} cannot run {told}: {reason}")
        return backend
    I = problem.I
    is_measured = by_choices and type(I) is int and I in choices.input_sizes
    if is_measured and (chosen := choices.choice(problem)) is not None:
        route = ROUTES.get(chosen.route)
        unrolled = chosen.route == "torch" and torch.compiler.is_compiling()  # into a graph of every step
        if route is not None and not unrolled and route.why_not(problem) is None:
            return route
    device_type = problem.device.type
    for backend in BACKENDS:
        if backend.device_type and backend.device_type != device_type:
            continue
        if backend.refusal(problem) is None and (backend.later is None or backend.later(problem) is None):
            return backend
    raise AssertionError("the last backend runs everything")


def run(call: Call, remember: bool = False) -> Sequence[Tensor]:
    """Choose the backend for a call and run it.

    Under autocast, input, states and weights are first cast to the autocast dtype (float64 and complex stay).

    Args:
        remember: let :func:`run_again` take calls like this one, if it is for them.

    Returns:
        The output, in the form of the input, and the final states, in that of the initial ones; of a step the states
        alone.

    Raises:
        RuntimeError: a state or weight has another dtype or device than the input.
        ValueError: the forced backend cannot run this.
    """
    if call.quantized and onnx.is_exporting():
        return onnx.run(call)
    cast = autocast(call)
    if _recorder is not None:
        _recorder(cast)
    backend = choose(cast)
    if backend.name == "torch" and cast.input.is_cuda:
        cast = call  # PyTorch's own autocast keeps the weights in one piece, which cuDNN wants
    if backend.device_type != "cpu":  # whose kernels alone take bfloat16 weights in panels
        cast = cast.widened()
    if torch.compiler.is_dynamo_compiling():
        call.check(call)
        return backend.run(cast)
    try:
        results = backend.run(cast)
    except (RuntimeError, TypeError):
        call.check(call)
        raise
    if remember and backend.inference_op is not None:
        _remember(call, backend.inference_op)
    return results


_recorder: Callable[[Call], None] | None = None


@contextlib.contextmanager
def recording(recorder: Callable[[Call], None]) -> Iterator[None]:
    """Within this context :func:`run` passes every call to ``recorder``, in the dtype of autocast, before it runs.

    Repetitions of an inference call may be left out: :func:`run_again` takes them.
    """
    global _recorder
    forget()
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None


# ---- Calls that are known ----

# By everything that the choice depends on in the calls that `run_again` takes: the op that runs them, and whether
# PyTorch's switch lets it round factors to bfloat16, or None where it does not.
_known: dict[tuple[Any, ...], tuple[native.InferenceOp, bool | None]] = {}
_MOST_KNOWN = 1024  # sequences of any length may come, each once


def _remember(call: Call, inference_op: Callable[[Form], native.InferenceOp]) -> None:
    x = call.input
    if call.packed or call.subclass or type(x) is not Tensor or not x.numel():
        return
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    op, is_spread, flags = inference_op(call.form)
    reduces = None
    if x.dtype == torch.float32 and 0 < native.cpu_reduced_rows() <= call.T * call.B:
        reduces = native.allow_bfloat16()
        flags |= REDUCED_PRECISION if reduces else 0
    key = call.cell.name, call.form, call.H, x.dtype, x.shape, call.resets is None, _forced, torch.get_num_threads()
    _known[key] = (op, is_spread, flags), reduces


def forget() -> None:
    """Clear the remembered calls, after a change of the choices."""
    _known.clear()


def run_again(
    cell: Cell,
    form: tuple[Any, ...],
    hidden_size: int,
    input: Any,
    weights: Sequence[Any],
    hx: Any,
    resets: Any = None,
) -> Sequence[Tensor] | None:
    """The results for the arguments of a module, if :func:`run` has run a call like this one; else None.

    A streaming step is so short that to make a :class:`Call` and to choose a backend would take as long as the step.
    What was chosen for the same sizes holds, and the op refuses what it cannot run. It is for calls without
    lengths and dropout, where :func:`private.is_plain`.

    Args:
        form: the fields of the module's :class:`Form`.
        weights: as the module has them; of a cell all four, each a tensor or None.
        resets: as the module gets them.
    """
    if type(input) is not Tensor or not input.is_cpu:
        return None
    key = cell.name, form, hidden_size, input.dtype, input.shape, resets is None, _forced, torch.get_num_threads()
    known = _known.get(key)
    if known is None:
        return None
    (op, is_spread, flags), reduces = known
    if reduces is not None and reduces is not native.allow_bfloat16():
        return None
    cx = None
    try:
        if type(hx) is tuple:
            hx, cx = hx
            if hx is None or cx is None:
                return None
        if resets is not None:
            resets = time_major(resets, input, Form(*form).batch_first)
            return torch.ops.fused_rnn.forward.default(cell.name, input, weights, hx, cx, None, resets, (), flags)
        if is_spread:
            return op(cell.name, input, *weights, hx, cx, flags)
        return op(cell.name, input, weights, hx, cx, flags)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # run raises torch.nn's error


def autocast(call: Call) -> Call:
    """The call in the autocast dtype of its device, if autocast is on."""
    device_type = call.input.device.type
    if device_type == "meta" or call.quantized or not torch.is_autocast_enabled(device_type):
        return call
    dtype = torch.get_autocast_dtype(device_type)

    def cast(tensor: Tensor) -> Tensor:
        castable = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        return tensor.to(dtype) if castable else tensor

    return call.changed(
        input=cast(call.input), states=tuple(map(cast, call.states)), weights=list(map(cast, call.weights))
    )


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within this context every layer runs on the backend called ``name``, or raises with the reason why not.

    It holds for all threads of the process. The environment variable ``FUSED_RNN_BACKEND``, read when the package is
    imported, does the same for all of the process.

    Raises:
        ValueError: there is no backend of that name.
    """
    global _forced
    before, _forced = _forced, by_name(name).name
    try:
        yield
    finally:
        _forced = before
