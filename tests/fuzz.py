"""Fuzzing: hostile calls to modules and raw ops. Each must raise an exception or give the right answer, never a signal.

    python tests/fuzz.py --seconds 600 [--seed 0] [--target NAME]
    python tests/fuzz.py --replay "Call(...)"

Hypothesis draws the calls in child processes, so that a signal or a sanitizer's report ends only the child. A call is
plain data whose repr makes it again; a child writes it to a file before it runs it. `make fuzz` runs this under ASan
and UBSan.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_calls
import hypothesis
import torch
from hostile_calls import FORWARD, HOSTILE, Call, Packed, specs_in
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from fused_rnn import autograd, layered, native, panels, reference
from fused_rnn.call import NEEDS_INPUT, NEEDS_STATES, NEEDS_WEIGHTS, PACKED, REDUCED_PRECISION, SAVE, STEP
from fused_rnn.cell import GRU_RESET_BEFORE

# ---- Checks ----

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.15, torch.float16: 0.03}
ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, OverflowError)
CPP_SOURCE = re.compile(r"API call failed at|\.(h|cpp|cu|cuh)\b")


def check_error(error: Exception, valid: bool) -> None:
    """An exception is right for a call that is not valid, if its text is for people."""
    if valid:
        raise AssertionError(f"a valid call was refused: {error}") from error
    of_torch = isinstance(error, NotImplementedError) or "DefaultCPUAllocator" in str(error)
    if not of_torch:  # the texts of the dispatcher and of the allocator name files of PyTorch
        assert not CPP_SOURCE.search(str(error)), f"the message has C++ source in it: {error}"


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a result or an argument, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (tuple, list)) else []


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same arguments with every tensor of floating point numbers changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return PackedSequence(*(changed(part, change) for part in value))
    return type(value)(changed(v, change) for v in value) if isinstance(value, (tuple, list)) else value


def doubled(tensor: Tensor) -> Tensor:
    return tensor.detach().double().resolve_neg().clone()


def check_close(got: list[Tensor], want: list[Tensor], nan: bool = False, reduces: bool = False) -> None:
    """Where both are finite they must be close; with `nan`, NaN must not become a number.

    With `reduces`, factors of float32 products may be bfloat16.
    """
    assert [t.shape for t in got] == [t.shape for t in want], "the shapes of the results differ"
    for k, (g, w) in enumerate(zip(got, want)):
        finite = g.isfinite() & w.isfinite()
        error = (g.double() - w).abs().where(finite, 0.0)
        is_rounded = reduces and g.dtype == torch.float32
        tolerance = TOLERANCE[torch.bfloat16 if is_rounded else g.dtype]
        assert (error <= tolerance * (1 + w.abs())).logical_or(~finite).all(), (
            f"result {k} of dtype {g.dtype} is off by {error.max().item():.2e}"
        )
        assert not (nan and (w.isnan() & g.isfinite()).any()), f"result {k} has a number in place of NaN"


def keep_nan(tensors: list[Tensor]) -> bool:
    """Whether results must have NaN where the truth has it: a gate that is not quite 0 times infinity is no NaN."""
    return not any(t.isinf().any() for t in tensors)


def check_unchanged(tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, old in zip(tensors, before):
        torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True, msg="an argument was written to")


def check_meta(tensors: list[Tensor], results: list[Tensor]) -> None:
    """Numbers that are on meta have no numbers as a result."""
    assert not any(t.is_meta for t in tensors) or all(t.is_meta for t in results), "numbers came of a meta tensor"


def is_dense(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor._is_zerotensor():
        return False
    return not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def have_truth(tensors: list[Tensor]) -> bool:
    """Whether the reference can compute with them."""
    return all(is_dense(t) and max(t.shape, default=0) < 1000 for t in tensors)


def grows_errors(a: dict[str, Any]) -> bool:
    """Whether rounding may become any difference: ReLU has states without a bound and gradients that jump, an RNN
    with the weights of the op calls, larger than torch.nn's initial ones, multiplies an error at every step, and int8
    makes a step of a last bit."""
    if a.get("flags", 0) & panels.FLAGS[torch.int8]:
        return True
    return a.get("cell") in ("rnn_tanh", "rnn_relu") or a.get("init", {}).get("nonlinearity") == "relu"


def is_honest(packed: PackedSequence) -> bool:
    """Whether its parts fit together. If not, torch.nn reads and writes past the end of its memory."""
    data, batch_sizes = packed[:2]
    if not isinstance(data, Tensor) or not have_truth([batch_sizes]) or data.dim() == 0:
        return False
    steps = batch_sizes.tolist() if batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 else []
    return bool(steps) and min(steps) > 0 and steps == sorted(steps, reverse=True) and sum(steps) == data.size(0)


def have_sizes(states: list[Tensor], module: Any, packed: PackedSequence) -> bool:
    """Whether initial states are as large as they must be. With a packed input, torch.nn.LSTM does not look at c_0."""
    B, order = int(packed.batch_sizes[0]), packed.sorted_indices
    if order is not None:
        try:
            states = [state.index_select(1, order) for state in states]  # as torch.nn does before it looks
        except ERRORS:
            return False
    count = module.num_layers * (1 + module.bidirectional)
    widths = (module.proj_size or module.hidden_size, module.hidden_size)
    return all(
        (is_dense(state) or state._is_zerotensor()) and state.shape == (count, B, width)
        for state, width in zip(states, widths)
    )


def built(call: Call) -> dict[str, Any]:
    """The arguments; Hypothesis draws another call if PyTorch cannot make them."""
    try:
        return call.build()
    except Exception:
        hypothesis.reject()


def true_results(a: dict[str, Any]) -> list[Tensor]:
    call = autograd.asked(*(a[name] for name in FORWARD))
    if call.T == 1 and not call.states:  # the reference multiplies weight_hh by zeros, where the op does not read it
        names = itertools.cycle(call._weight_names)
        unread = [name in ("weight_hh", "scale_hh") for name, _ in zip(names, call.weights)]
        call = call.changed(weights=[torch.zeros_like(w) if un else w for w, un in zip(call.weights, unread)])
    return list(layered.run(call, reference.run))


def true_gradients(a: dict[str, Any]) -> list[Tensor]:
    names = ("input", "weights", "hx", "cx")
    a = a | {name: changed(a[name], Tensor.requires_grad_) for name in names}
    results = true_results(a)
    grads = [a["grad_output"]] * (not a["flags"] & STEP) + [a["grad_hy"], a["grad_cy"]]
    pairs = [(y, g) for y, g in zip(results, grads) if g is not None]
    leaves = tensors_in([a[name] for name in names])
    loss = sum([(y * g).sum() for y, g in pairs], leaves[0].sum() * 0)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    needs = [a["flags"] & NEEDS_INPUT, *[a["flags"] & NEEDS_WEIGHTS] * len(a["weights"])]
    needs += [a["flags"] & NEEDS_STATES] * (len(leaves) - len(needs))
    return [gradient if need else gradient.new_empty(0) for gradient, need in zip(gradients, needs)]


def check_plan(call: Call) -> None:
    try:
        getattr(torch.ops.fused_rnn, call.name)(**call.build())
    except ERRORS as error:
        check_error(error, call.valid)


def check_op(call: Call) -> None:
    a = built(call)
    backward = call.name == "backward"
    inputs = [t for t in tensors_in(list(a.values())) if is_dense(t) and t.numel() < 10**6]
    before = [t.clone() for t in inputs]
    try:
        if backward and call.valid:
            first, *others = torch.ops.fused_rnn.forward(**{name: a[name] for name in FORWARD})
            a["kept"] = [first, *others[1 - len(a["kept"]) :]]
        got = getattr(torch.ops.fused_rnn, call.name)(**a)
    except ERRORS as error:
        return check_error(error, call.valid)
    check_unchanged(inputs, before)
    tensors = tensors_in(list(a.values()))
    check_meta(tensors, got)
    if not have_truth(tensors):
        return None
    check_shapes(got, call.name, a)
    made_up = backward and not call.valid  # an output and saved numbers that are not the forward's
    if grows_errors(a) or made_up:
        return None
    want = (true_gradients if backward else true_results)({name: changed(value, doubled) for name, value in a.items()})
    if not backward and not a["flags"] & SAVE:
        assert len(got) == len(want), "results were saved without a backward"
    reduces = bool(a["flags"] & REDUCED_PRECISION) and native.cpu_reduced_rows() > 0
    # From zeros, a single step computes no r * h, which in the reference is NaN if r is.
    posed = autograd.asked(*(a[name] for name in FORWARD))
    skips_r = posed.cell is GRU_RESET_BEFORE and posed.T == 1 and not posed.states
    nan = not backward and not skips_r and keep_nan(tensors)
    return check_close(got if backward else got[: len(want)], want, nan, reduces)


def check_shapes(got: list[Tensor], name: str, a: dict[str, Any]) -> None:
    """The results are what the fake kernel says."""
    on_meta = {name: changed(value, lambda t: t.to("meta")) for name, value in a.items()}
    on_meta["weights"] = [weight.to("meta") for weight in a["weights"]]  # those of int8, too
    on_meta["lengths"] = a["lengths"] if a["flags"] & PACKED else None
    on_meta["resets"] = None
    want = getattr(torch.ops.fused_rnn, name)(**on_meta)
    forms = [[(t.shape, t.stride(), t.dtype) for t in results] for results in (got, want)]
    assert forms[0] == forms[1], f"results have shapes, strides and dtypes {forms[0]}, the fake kernel says {forms[1]}"


# Calls of modules where one of torch.nn and we may refuse and the other accept.
DIFFERENCES: dict[str, Callable[[Call], bool]] = {
    "indices of a PackedSequence for another number of rows, with which torch.nn changes the batch": lambda call: (
        isinstance(call.arguments["input"], Packed) and not call.arguments["input"].orders_fit()
    ),
    "hx of more than two tensors, of which nn.LSTMCell ignores the others": lambda call: (
        isinstance(call.arguments["hx"], tuple) and len(call.arguments["hx"]) > 2
    ),
    "hx of another dtype than input, which fails in some combinations in torch.nn": lambda call: any(
        spec.dtype != call.arguments["init"]["dtype"] for spec in specs_in(call.arguments["hx"])
    ),
    "an empty input of more steps than torch.nn has memory to count": lambda call: any(
        0 in spec.shape and max(spec.shape) >= 2**31 for spec in specs_in(call.arguments["input"])
    ),
    "layouts that the matmuls of one happen to take, and tensors on meta beside weights on the CPU": lambda call: any(
        spec.form in HOSTILE for spec in specs_in([call.arguments["input"], call.arguments["hx"]])
    ),
}


def module_results(module: nn.Module, a: dict[str, Any]) -> list[Tensor]:
    """Outputs of a module and, if asked for, the gradients of its inputs and parameters."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().requires_grad_(a["grad"]))
        return leaves[-1]

    input, hx = changed(a["input"], leaf), changed(a["hx"], leaf)
    with torch.set_grad_enabled(a["grad"]):
        results = module(input, hx, **{name: a[name] for name in ("lengths", "resets") if a.get(name) is not None})
    outputs = [y for y in tensors_in(results) if y.is_floating_point()]
    if not a["grad"]:
        return outputs
    loss = sum(y.double().pow(2).sum() for y in outputs)
    leaves += module.parameters()
    return outputs + list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def check_module(call: Call) -> None:
    a = built(call)
    init = a["init"] | {"dtype": getattr(torch, a["init"]["dtype"])}
    torch.manual_seed(0)
    module = getattr(fused_rnn, call.name)(**init)
    has_equivalent = "lengths" not in a and a.get("resets") is None and init.pop("reset_after", True)
    is_packed = isinstance(a["input"], PackedSequence)
    if is_packed:
        fits = is_honest(a["input"]) and have_sizes(tensors_in(a["hx"]), module, a["input"])
    else:  # nn.LSTMCell ends the process if input and states differ in rank
        fits = not call.name.endswith("Cell") or len({t.dim() for t in tensors_in([a["input"], a["hx"]])}) == 1
    refusal = None
    stock: Any = None
    # torch.nn reads batch_sizes of any strides as if they were contiguous.
    if has_equivalent and fits and (not is_packed or a["input"].batch_sizes.is_contiguous()):
        stock = getattr(nn, call.name)(**init)
        stock.load_state_dict(module.state_dict())
        try:
            module_results(stock, a)
        except ERRORS as error:
            refusal = error
    may_differ = any(differ(call) for differ in DIFFERENCES.values())
    inputs = [t for t in tensors_in([a["input"], a["hx"]]) if is_dense(t) and t.numel() < 10**6]
    before = [t.clone() for t in inputs]
    try:
        got = module_results(module, a)
    except ERRORS as error:
        return check_error(error, call.valid or (stock is not None and refusal is None and not may_differ))
    assert refusal is None or may_differ, f"torch.nn refuses this call: {refusal}"
    assert fits, "a call with which torch.nn would read past its memory was accepted"
    check_unchanged(inputs, before)
    check_meta(tensors_in([a["input"], a["hx"]]), got)
    if grows_errors(a) or not have_truth(tensors_in([a["input"], a["hx"]])):
        return None
    a = a | {name: changed(a[name], doubled) for name in ("input", "hx")}
    nan = not a["grad"] and keep_nan(inputs)
    if stock is not None and refusal is None:
        return check_close(got, module_results(stock.double(), a), nan)
    with fused_rnn.use_backend("reference"):
        return check_close(got, module_results(module.double(), a), nan)


def check_quantized(call: Call) -> None:
    """The errors of the layer of floats, and results near its own."""
    a = built(call)
    torch.manual_seed(0)
    module = getattr(fused_rnn, call.name)(**a["init"] | {"dtype": torch.float32})
    quantized = fused_rnn.quantize_(copy.deepcopy(module), a["quantized"])
    want, refusal = None, None
    try:
        want = module_results(module, a)
    except ERRORS as error:
        refusal = error
    try:
        got = module_results(quantized, a)
    except ERRORS as error:
        return check_error(error, call.valid or refusal is None)
    assert want is not None, f"the layer of floats refuses this call: {refusal}"
    assert [t.shape for t in got] == [t.shape for t in want]
    if a["init"].get("nonlinearity") == "relu" or not have_truth(tensors_in([a["input"], a["hx"]])):
        return None
    for g, w in zip(got, want):
        assert ((g - w).abs() < 0.3).logical_or(~g.isfinite() | ~w.isfinite() | (w.abs() > 1)).all()
    return None


def check_stream(call: Call) -> None:
    """Each of two steps raises a readable error and leaves the state as it was, or agrees with the module."""
    a = built(call)
    torch.manual_seed(0)
    init, x = a["init"] | {"dtype": getattr(torch, a["init"]["dtype"])}, a["x"]
    module = getattr(fused_rnn, call.name)(**init)
    if a["quantized"]:
        fused_rnn.quantize_(module, a["quantized"])
    stream = fused_rnn.Stream(module, a["batch"])
    for _ in range(2):
        before = changed(stream.state, torch.clone)
        try:
            got = stream(x)
        except ERRORS as error:
            check_unchanged(tensors_in(stream.state), tensors_in(before))
            return check_error(error, call.valid)
        with torch.no_grad():
            plain = x.detach().resolve_neg().clone()
            is_cell = call.name.endswith("Cell")
            results = module(plain if is_cell else plain.unsqueeze(int(module.batch_first)), before)
        check_close([got], [tensors_in(results)[0].reshape(got.shape).double()])
    return None


TARGETS = {
    "modules": (hostile_calls.module_calls, check_module),
    "ops": (hostile_calls.op_calls, check_op),
    "quantized": (hostile_calls.quantized_calls, check_quantized),
    "streams": (hostile_calls.stream_calls, check_stream),
    "plans": (hostile_calls.plan_calls, check_plan),
}


# ---- Processes ----

MEMORY = 8 << 30  # bytes of a child's address space: what is too large must fail to be allocated
PATIENCE = 60  # seconds that a child may take for its start and its last batch of calls


def fuzz(target: str, seconds: float, seed: int, journal: Path) -> None:
    """Check calls until the time is over, each written to the journal before it runs. Raises what Hypothesis finds."""
    strategy, check = TARGETS[target]

    def check_written(call: Call) -> None:
        journal.write_text(repr(call))
        check(call)

    settings = hypothesis.settings(
        max_examples=200,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which has a limit of its own, and reserves terabytes
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hypothesis.seed(seed)(settings(hypothesis.given(strategy())(check_written)))()
        seed += 1000  # one for each batch of a run, which has its own range


def run_child(target: str, seconds: float, seed: int, isa: str = "") -> str:
    """Fuzz in a child process; what it found, with the call that shows it, or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "call")
        command = [sys.executable, "-X", "faulthandler", __file__, "--target", target, "--seed", str(seed)]
        command += ["--seconds", str(seconds), "--child", str(journal)]
        # The package that this process would import.
        environment = (
            os.environ
            | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            | ({"FUSED_RNN_ISA": isa} if isa else {})
        )
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, "a call that does not end", "", "")
        if done.returncode == 0:
            return ""
        call = journal.read_text() if journal.exists() else "none"
        how = f"{target}, instruction set {isa or 'chosen'}, status {done.returncode}"
        return f"{done.stdout}{done.stderr}\n{how}, last call:\n{call}"


def run(targets: list[str], seconds: float, seed: int) -> int:
    """Fuzz all targets in turn, on one instruction set after the other, until the time is over; the exit status."""
    from test_backends import instruction_sets

    sets, end, batch = instruction_sets(), time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        target, isa = targets[batch % len(targets)], sets[batch // len(targets) % len(sets)]
        if found := run_child(target, min(20, left), seed + batch, isa):
            print(found)
            return 1
        batch += 1
    return 0


def target_of(call: Call) -> str:
    if call.name in dir(nn):
        return "streams" if "batch" in call.arguments else "quantized" if "quantized" in call.arguments else "modules"
    return "ops" if call.name in ("forward", "backward") else "plans"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--replay", metavar="CALL", help="check one call, as a finding shows it")
    parser.add_argument("--child", type=Path, metavar="JOURNAL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.replay:
        call = eval(options.replay, vars(hostile_calls))
        TARGETS[target_of(call)][1](call)
    elif options.child:
        fuzz(options.target, options.seconds, options.seed, options.child)
    else:
        return run([options.target] if options.target else list(TARGETS), options.seconds, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
