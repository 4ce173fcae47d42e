"""infinity's server, asked over HTTP for one image by URL at a time, many at once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from open_clip_layout import save_as_hugging_face
from progress import done, versions

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
AT_ONCE = 48  # as many as a worker of ours has in work


def ask(path: str, body: object = None) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/{path}",
        json.dumps(body).encode() if body else None,
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def embed(url: str) -> None:
    answer = json.loads(ask("embeddings", {"model": "m", "modality": "image", "input": [url]}))
    if len(answer["data"][0]["embedding"]) != 512:
        raise RuntimeError(f"no embedding of {url}")


def main(checkpoint: str, urls: list[str]) -> None:
    versions("infinity-emb", "transformers")
    with tempfile.TemporaryDirectory() as weights:
        save_as_hugging_face(checkpoint, Path(weights))
        options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer"]
        command = [str(Path(sys.executable).with_name("infinity_emb")), "v2"]
        command += ["--model-id", weights, "--served-model-name", "m", "--port", str(PORT)]
        command += ["--host", "127.0.0.1"]
        with subprocess.Popen([*command, *options, "--no-model-warmup"]) as server:
            try:
                wait_until_up(server)
                with ThreadPoolExecutor(AT_ONCE) as threads:
                    for one in as_completed(threads.submit(embed, url) for url in urls):
                        one.result()
                        done(1)
            finally:
                server.kill()


def wait_until_up(server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            ask("health")
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"its server ended with {server.returncode}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])
