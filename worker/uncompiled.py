"""open_clip and timm, imported without torch's compiler, which nothing here uses.

timm and torchvision ask the compiler for a function as soon as they are imported, which brings in
sympy, triton and torch.distributed as well: 140 MB and a second of every start.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import torch

_NAME: Final = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for that module; whatever else is asked of it comes from the module itself."""

    @staticmethod
    def is_compile_supported(device: Any) -> Any:  # torchvision asks for it, and may never call it
        return _the_module().is_compile_supported(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what importing asks of any module
            raise AttributeError(name)
        return getattr(_the_module(), name)


def _the_module() -> ModuleType:
    if isinstance(sys.modules.get(_NAME), _Later):
        del sys.modules[_NAME]
    return importlib.import_module(_NAME)


def _as_it_is(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    """For ``torch.compiler.disable``, with which timm says what is not to be compiled. It is called
    as a decorator, and for one."""
    return _as_it_is if function is None else function


@contextmanager
def without_compiler() -> Iterator[None]:
    """While packages are imported that ask for it and do not use it."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable = torch.compiler.disable
    torch.compiler.disable = _as_it_is
    sys.modules[_NAME] = _Later(_NAME)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if isinstance(sys.modules.get(_NAME), _Later):
            del sys.modules[_NAME]


with without_compiler():
    import open_clip
    import timm

__all__ = ["open_clip", "timm"]
