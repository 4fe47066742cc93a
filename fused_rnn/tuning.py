"""Which kernel is fastest for a user's own calls on the user's own machine: measured, kept, chosen from then on."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import backends, choices, native
from .call import Call, Problem
from .cells import OneStep
from .choices import Choice, Kind
from .modules import Layers
from .timing import in_turns, once

MARGIN = 1.02  # the least gain for which another route is taken than the one without any measurement
_NEAR = 1.5  # routes whose single call takes more than _NEAR times the shortest are not timed in turns

# The largest accepted distance from float64, relative to the norm: well above the rounding errors of the compared
# steps, well below a wrong result. At least _TIMES_NEAREST times the smallest distance of a route: in a chaotic model
# all are large.
_LARGEST_ERROR = {"float64": 1e-9, "float32": 1e-4, "tf32": 0.02, "float16": 0.02, "bfloat16": 0.1}
_TIMES_NEAREST = 10
_CHECKED_STEPS, _CHECKED_ROWS = 16, 128  # the least steps, and rows of all steps, that are compared


@dataclass(frozen=True)
class Tuned:
    """The result of tuning one kind of call; ``str()`` is a report."""

    call: str
    microseconds: dict[str, float]  # of each route whose results are right, the fastest first
    wrong: dict[str, str]  # the other routes, each with a sentence
    choice: str
    speedup: float  # PyTorch's time by that of the choice; nan if PyTorch cannot run it, or its results are wrong
    gain: float  # the time of what runs without any measurement by that of the choice; nan if its results are wrong

    @property
    def chosen(self) -> Choice:
        """The choice that is kept."""
        speedup = 0.0 if math.isnan(self.speedup) else self.speedup
        return Choice(self.choice, speedup, datetime.date.today().isoformat())

    def __str__(self) -> str:
        times = ", ".join(f"{name} {us:.4g} us" for name, us in self.microseconds.items())
        gain = "" if math.isnan(self.speedup) else f", {self.speedup:.2f} times torch"
        lines = [self.call, f"  {self.choice}{gain}  [{times}]"]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.wrong.items())])


def tune(module: nn.Module, *inputs: Any, training: bool | None = None, seconds: float = 20.0) -> list[Tuned]:
    """Measure which kernel is fastest for the recurrent layers of a module, and choose it from now on.

    The module is run once on the inputs. Then every recurrent call in it is run by each route that can: our backends,
    on a CPU also each instruction set, and x multiplied with h or before, and PyTorch's own kernels. A route whose
    results are not those of float64 is out. The others take turns on the clock, and the fastest is chosen for all calls
    of that kind: of the same cell, dtype, form, sizes and number of threads, with T and B within a factor of two.
    Choices are kept in a file in the user's cache folder, and hold for later processes on such a processor or GPU, with
    the same versions of PyTorch and of this package. Nothing else changes the choices of a process; what torch.compile
    has compiled before keeps its kernels.

    Args:
        module: a model with layers or cells of this package, as it is in use.
        inputs: what it is called with.
        training: whether to measure forward and backward, or the forward alone; as the module is unless given.
        seconds: about how long to measure; longer if five calls of each route take longer.

    Returns:
        What was found for each kind of call; it is printed as well.

    Raises:
        TypeError: ``module`` is not an nn.Module.
        ValueError: it has no layer of this package, or called none, or one gave results that are not finite; or
            ``seconds`` is not above 0; or a backend is forced.
        OSError: the file cannot be written, which is tried before anything is measured.
        As the module does, where the inputs do not fit.

    Example:
        >>> fused_rnn.tune(model, torch.randn(100, 16, 80))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}")
    if not any(isinstance(child, (Layers, OneStep)) for child in module.modules()):
        raise ValueError("the module has no layer of fused_rnn to tune; fused_rnn.convert(module) makes them")
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    check_ready()
    posed = calls_of(module, inputs, module.training if training is None else training)
    if not posed:
        raise ValueError("the module called none of its layers of fused_rnn")
    found = []
    for one in posed:
        found.append(tune_call(one, seconds / len(posed)))
        print(found[-1])
    return found


def check_ready() -> None:
    """Raise if what is measured would not be used or kept.

    Raises:
        ValueError: a backend is forced.
        OSError: the file cannot be written.
    """
    if forced := backends.forced():
        raise ValueError(f"backend {forced!r} is forced, so no choice would be used: tune without that")
    choices.check_folder()


class Posed(NamedTuple):
    """A call as a module made it."""

    problem: Problem  # depends on whether gradients were on
    call: Call


def calls_of(module: nn.Module, inputs: Sequence[Any], training: bool) -> list[Posed]:
    """The recurrent calls of a module, one of each kind. The module is left as it was."""
    posed: dict[Kind, Posed] = {}

    def record(call: Call) -> None:
        problem = call.problem._replace(has_resets=False)  # which do not change what kernel is the fastest
        if not (problem.transformed or problem.subclass):
            # without the module's check, which would refuse the call in float64
            unchecked = call.changed(check=lambda call: None, resets=None)
            posed.setdefault(choices.kind_of(problem), Posed(problem, unchecked))

    modes = [(child, child.training) for child in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        module.train(training)
        eager = torch.compiler.set_stance("force_eager")  # a compiled module records nothing
        same_numbers = torch.random.fork_rng(range(torch.cuda.device_count()))
        with eager, same_numbers, backends.recording(record), torch.set_grad_enabled(training):
            module(*inputs)
    finally:
        for child, mode in modes:
            child.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return list(posed.values())


def tune_call(posed: Posed, seconds: float) -> Tuned:
    """Measure the routes of a call, and keep the choice for its kind."""
    found = measure(posed, seconds)
    choices.keep({choices.kind_of(posed.problem): found.chosen})
    backends.forget()
    return found


def measure(posed: Posed, seconds: float) -> Tuned:
    """Compare and time the routes of a call.

    Raises:
        ValueError: the results in float64 are not finite.
    """
    problem, call = posed
    names = backends.routes_for(problem)
    usual = names[0]
    wrong = _wrong(names, posed) if len(names) > 1 else {}
    runs = {name: _runner(name, call, problem.training) for name in names if name not in wrong}
    times = {name: once(run, call.device) for name, run in runs.items()}
    near = [name for name in runs if times[name] < _NEAR * min(times.values())]
    about = [times[name] for name in near]
    rounds = in_turns([runs[name] for name in near], call.device, seconds, about)
    # The least of many turns, as other load on the machine only lengthens them.
    times |= {name: min(own) / 1e6 for name, own in zip(near, rounds, strict=True)}

    def gain(over: str, name: str) -> float:
        return times[over] / times[name] if over in times else math.nan

    fastest = min(near, key=lambda name: times[name])
    chosen = usual if gain(usual, fastest) < MARGIN else fastest
    ordered = {name: times[name] * 1e6 for name in sorted(times, key=lambda name: times[name])}
    return Tuned(str(problem), ordered, wrong, chosen, gain("torch", chosen), gain(usual, chosen))


# ---- Right or wrong ----


def _wrong(names: Sequence[str], posed: Posed) -> dict[str, str]:
    """The routes whose results are not those of float64 or that fail, each with a sentence; never all of them.

    Raises:
        ValueError: the results in float64 or of all routes are not finite.
    """
    call = _shortened(posed.call)
    truth = _runner("reference", _doubled(call), posed.problem.training)()
    if not all(tensor.isfinite().all() for tensor in truth):
        raise ValueError(f"the results of {posed.problem} are not finite: tune it on inputs as in use")
    wrong, errors = {}, {}
    for name in names:
        try:
            errors[name] = max(map(_error, _runner(name, call, posed.problem.training)(), truth))
        except RuntimeError as error:
            wrong[name] = f"it failed: {error}"
    least = min(filter(math.isfinite, errors.values()), default=math.nan)
    if math.isnan(least):
        raise ValueError(f"no kernel gives finite results for {posed.problem}: tune it on inputs as in use")
    math_name = native.math_of(posed.problem.dtype, posed.problem.device)
    largest = max(_LARGEST_ERROR[math_name], _TIMES_NEAREST * least)
    off = {name: error for name, error in errors.items() if not error <= largest}
    return wrong | {name: f"its results are off by {error:.1e} of their size" for name, error in off.items()}


def _error(result: Tensor, truth: Tensor) -> float:
    size = truth.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return float((result.double() - truth).norm() / size)


def _shortened(call: Call) -> Call:
    """The first steps of a call."""
    steps = max(_CHECKED_STEPS, _CHECKED_ROWS // max(1, call.B))
    if steps >= call.T:
        return call
    if call.batch_sizes is not None:
        sizes = call.batch_sizes[:steps]
        return call.changed(input=call.input[: int(sizes.sum())], batch_sizes=sizes)
    lengths = None if call.lengths is None else call.lengths.clamp(max=steps)
    time = 1 if call.form.batch_first and call.is_batched else 0
    return call.changed(input=call.input.narrow(time, 0, steps), lengths=lengths)


def _doubled(call: Call) -> Call:
    """The call in float64; weights that are quantised stay so in their panels."""
    plain = call.widened()

    def double(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]

    return plain.changed(
        input=plain.input.double(), states=tuple(double(plain.states)), weights=double(plain.weights), dropout=0.0
    )


def _runner(name: str, call: Call, training: bool) -> Callable[[], Sequence[Tensor]]:
    """A function that runs a call by a route and gives its results, in training also the gradients after them."""
    route = backends.ROUTES[name]
    given = [
        tensor.detach().requires_grad_(training and tensor.requires_grad)
        for tensor in (call.input, *call.states, *call.weights)
    ]
    count = 1 + len(call.states)
    own = call.changed(input=given[0], states=tuple(given[1:count]), weights=given[count:], dropout=0.0)
    leaves = [tensor for tensor in given if tensor.requires_grad]
    grads: list[Tensor] = []

    def run() -> Sequence[Tensor]:
        with torch.set_grad_enabled(training):
            results = route.run(own if route.device_type == "cpu" else own.widened())
        if not training:
            return results
        if not grads:
            generator = torch.Generator().manual_seed(0)  # of numbers that every dtype has
            grads.extend(torch.randint(-8, 9, y.shape, generator=generator).to(y) / 8 for y in results)
        return [*(y.detach() for y in results), *torch.autograd.grad(results, leaves, grads)]

    return run
