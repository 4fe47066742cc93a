"""Triton's interpreter made strict, for tests; import it in a process that has TRITON_INTERPRET=1 from its beginning.

Of the interpreter as it comes, products of bfloat16 are wrong (it multiplies the bit patterns), TF32 is float32, and an
access out of bounds reads or writes whatever is there. Here products are right; every access must lie in an argument of
the kernel; and what a program writes no other program of the launch may touch, so that the order in which programs run
cannot matter. It reaches into the interpreter of Triton 3.6 to 3.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Builder = type(interpreter.interpreter_builder)
Executor = interpreter.GridExecutor


class Launch:
    """What the programs of one launch have touched so far."""

    def __init__(self, tensors: list[Any]) -> None:
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.ranges = [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]
        self.before: dict[str, np.ndarray] = {}  # by the programs that are done
        self.own: dict[str, list[np.ndarray]] = {"read": [], "written": []}  # by the one that runs

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        addresses, active = np.broadcast_arrays(pointers.data, mask.data)
        addresses = addresses[active.astype(bool)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(addresses.shape, dtype=bool)
        for begin, end in self.ranges:
            inside |= (addresses >= begin) & (addresses + size <= end)
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} numbers {kind} out of bounds")
        self.own[kind].append(addresses)

    def program_ends(self) -> None:
        own = {kind: np.unique(np.concatenate([*a, np.empty(0, np.int64)])) for kind, a in self.own.items()}
        for mine, others in (("written", "written"), ("written", "read"), ("read", "written")):
            shared = np.intersect1d(own[mine], self.before.get(others, own[mine][:0]), assume_unique=True)
            if shared.size:
                raise RuntimeError(f"{shared.size} numbers are {mine} by one program and {others} by another")
        self.before = {kind: np.union1d(a, self.before.get(kind, a[:0])) for kind, a in own.items()}
        self.own = {"read": [], "written": []}


_launch: Launch | None = None


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def _prepare(original: Any, self: Any, args: Any, kwargs: Any) -> Any:
    global _launch
    on_host = original(self, args, kwargs)
    _launch = Launch([a for a in (*on_host[0], *on_host[1].values()) if hasattr(a, "untyped_storage")])
    return on_host


def _next_program(original: Any, self: Any, *place: int) -> None:
    _launch.program_ends()
    original(self, *place)


def _run(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    _launch.program_ends()


def _load(original: Any, self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
    _launch.access("read", pointers, mask)
    return original(self, pointers, mask, *rest)


def _store(original: Any, self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    _launch.access("written", pointers, mask)
    return original(self, pointers, value, mask, *rest)


def _factor(handle: Any, tf32: bool) -> Any:
    """A factor of a product as float32 numbers, rounded to TF32's 10 bits, halfway cases away from zero, if asked."""
    if handle.dtype.scalar == tl.bfloat16:
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if tf32 and handle.dtype.scalar == tl.float32:
        bits = (np.ascontiguousarray(handle.data).view(np.uint32) + 0x1000) & 0xFFFFE000
        return interpreter.TensorHandle(bits.astype(np.uint32).view(np.float32), tl.float32)
    return handle


def _dot(original: Any, self: Any, a: Any, b: Any, c: Any, precision: Any, *rest: Any) -> Any:
    tf32 = precision.name == "TF32"
    return original(self, _factor(a, tf32), _factor(b, tf32), c, precision, *rest)


_patched: set[int] = set()  # the modules that are patched while functions run


def _patch(original: Any, function: Any) -> Any:
    """Patch Triton's modules for a function once, and not again for each that it calls: half the time."""
    modules = {id(module) for module in function.__globals__.values() if module is tl or module is tl.core}
    if modules <= _patched:
        return interpreter._LangPatchScope()
    scope, new = original(function), modules - _patched
    restore = scope.restore

    def ends() -> None:
        restore()
        _patched.difference_update(new)

    _patched.update(new)
    scope.restore = ends
    return scope


_wrap(interpreter, "_patch_lang", _patch)
_wrap(Executor, "_init_args_hst", _prepare)
_wrap(Executor, "__call__", _run)
_wrap(Builder, "set_grid_idx", _next_program)
_wrap(Builder, "create_masked_load", _load)
_wrap(Builder, "create_masked_store", _store)
_wrap(Builder, "create_dot", _dot)
