"""The image tower run by ONNX Runtime, which takes half to two thirds of torch's time on a CPU.

The graph is exported from the torch module itself, kept in a folder for the next start, and held
against torch on test images whenever it is loaded. Its rows differ from torch's in the seventh
digit, far less than the float16 that is kept of them can tell. So embeddings and calibrations are
those of the precision, fp32, whichever engine computed them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import tempfile
from pathlib import Path
from typing import Final

import structlog
import torch

from worker.canaries import canaries, worst_cosine
from worker.torch_engine import ImageEngine, ImageTower
from worker.types import Float32Rows, Pixels, digest_of

# Before it is imported: otherwise it keeps a device id in the home folder, to be sent to its maker
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

_log = structlog.get_logger(__name__)

#: Of what ``_export`` makes of a module.
_EXPORT_VERSION: Final = 1
_PACKAGES: Final = ("torch", "open_clip_torch", "timm", "onnxscript", "onnxruntime")

#: Between an embedding by torch and its like. Found: .9999998 for pocket, .9999996 for ViT-B-32.
_MIN_COSINE: Final = 0.9999

_DIGEST_BYTES: Final = hashlib.sha256().digest_size


class OnnxEngine:
    """A graph that ``load_onnx`` made, on ``cores`` that ``streams`` callers share."""

    name: Final = "onnx"

    # Two streams on two cores, by rows in a call: pocket 395, 371, 335, 304 images/s with 1, 4, 8,
    # 16, ViT-B-32 34, 44, 46, 44; and in each stream pocket takes 10 MB of activations a row.
    preferred_batch: Final = 4

    def __init__(self, graph: bytes, *, streams: int, cores: int) -> None:
        options = onnxruntime.SessionOptions()
        # callers work too, beside what the session has of its own
        options.intra_op_num_threads = cores - streams + 1
        # threads that spin while they wait take the cores from decoders
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, pixels: Pixels) -> Float32Rows:
        rows: Float32Rows
        (rows,) = self._session.run(None, {"pixels": pixels})
        return rows


def load_onnx(
    tower: ImageTower, torch_engine: ImageEngine, *, weights_digest: str, streams: int, cores: int
) -> OnnxEngine | None:
    """``tower`` as a graph; None, with a warning in the log, where there is no graph of it or its
    rows are not those of ``torch_engine``. ``tower`` is on a CPU in float32."""
    try:
        graph = _graph(tower, weights_digest)
        engine = OnnxEngine(graph, streams=streams, cores=cores)
        images = canaries(*tower.preprocess.size)
        cosine = worst_cosine(engine, torch_engine, images, (len(images), 1, 2))
    except Exception as error:  # noqa: BLE001 - whatever an exporter cannot do, torch can
        _log.warning("onnx_failed_so_torch_runs_the_model", error=repr(error)[:300])
        return None
    if not cosine >= _MIN_COSINE:  # or it is not a number
        _log.warning("onnx_differs_so_torch_runs_the_model", cosine=cosine, needed=_MIN_COSINE)
        return None
    _log.debug("onnx_agrees_with_torch", cosine=cosine)
    return engine


def cache_folder() -> Path:
    """Where graphs are kept. Raises ``RuntimeError`` where there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return root / "imagewarden" / "onnx"


def _graph(tower: ImageTower, weights_digest: str) -> bytes:
    """From the cache, else exported; a cache that cannot be used costs seconds and no more."""
    made_by = [f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES]
    # the module's text tells activations and sizes, which no weight does
    of = [_EXPORT_VERSION, weights_digest, tower.preprocess.digest, repr(tower.model.visual)]
    key = digest_of([*of, *made_by]).removeprefix("sha256:")
    try:
        kept = cache_folder() / key
        graph = _read(kept)
    except (OSError, RuntimeError):
        return _export(tower)
    if graph is None:
        graph = _export(tower)
        try:
            _write(kept, graph)
        except OSError as error:
            _log.info("onnx_graph_not_kept", folder=str(kept.parent), error=repr(error))
    return graph


def _export(tower: ImageTower) -> bytes:
    # Two rows: of one, the exporter would conclude that there is always one. The older exporter
    # (dynamo=False) takes .25 s in place of 4 for pocket, but its graph does 270 images/s in place
    # of 371, and it cannot export ViT-B-32's attention.
    height, width = tower.preprocess.size
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.onnx.export(
            tower,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("rows", min=1)}},
        )
    assert program is not None  # it is where the exporter is asked for no file
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


def _read(path: Path) -> bytes | None:
    """What ``_write`` kept; None where there is nothing, or not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, graph = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return graph if hashlib.sha256(graph).digest() == digest else None


def _write(path: Path, graph: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(hashlib.sha256(graph).digest() + graph)
            file.close()
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink()
            raise
