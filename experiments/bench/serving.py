"""`examples/serve.py` under load: requests a second and the time of one, beside the model alone.

    python -m experiments bench serving model.onnx --clients 8 --requests 400

The service runs in a process of its own, on loopback, and answers `/embed` with one PNG of noise a request; the model
alone embeds the same image, already decoded, as often, one at a time, with as many threads.
"""

from __future__ import annotations

import concurrent.futures
import io
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from experiments._arguments import Parser, UserError, check_at_least
from experiments._machine import machine

_SERVICE = Path(__file__).parents[2] / "examples" / "serve.py"


def answer_times(url: str, content: bytes, clients: int, requests: int) -> tuple[float, list[float]]:
    """The seconds that all requests took, and each of them."""
    import httpx

    def ask(client: httpx.Client) -> float:
        start = time.perf_counter()
        client.post(f"{url}/embed", files={"image": content}).raise_for_status()
        return time.perf_counter() - start

    with httpx.Client(timeout=60) as client, concurrent.futures.ThreadPoolExecutor(clients) as pool:
        ask(client)
        start = time.perf_counter()
        times = list(pool.map(ask, [client] * requests))
        return time.perf_counter() - start, times


def started(model: Path, port: int) -> subprocess.Popen[bytes]:
    """The service, once it answers."""
    service = subprocess.Popen([sys.executable, str(_SERVICE), str(model), "--port", str(port)])
    for _ in range(600):
        if service.poll() is not None:
            raise UserError(f"the service ended with status {service.returncode}: is {model} an exported model?")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return service
        except OSError:
            time.sleep(0.1)
    service.kill()
    raise UserError("the service did not start within a minute")


def main(words: list[str]) -> int:
    """Measures what the words say and prints it."""
    import onnxruntime

    parser = Parser("bench serving", __doc__)
    parser.add_argument("model", type=Path, help="ONNX file that `export` wrote")
    parser.add_argument("--clients", type=int, default=8, help="requests at a time (default: 8)")
    parser.add_argument("--requests", type=int, default=400, help="requests in all (default: 400)")
    options = parser.parse_args(words)
    check_at_least(1, clients=options.clients, requests=options.requests)
    if not options.model.is_file():
        raise UserError(f"{options.model} is not a file")
    session = onnxruntime.InferenceSession(str(options.model), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if shape[-1] == 1 else image).save(content, "PNG")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = started(options.model, port)
    try:
        taken, times = answer_times(f"http://127.0.0.1:{port}", content.getvalue(), options.clients, options.requests)
    finally:
        service.terminate()
        service.wait()
    session.run(None, {"images": image[None]})
    start = time.perf_counter()
    for _ in range(options.requests):
        session.run(None, {"images": image[None]})
    alone = options.requests / (time.perf_counter() - start)
    slowest = sorted(times)[int(0.99 * (len(times) - 1))]
    print(machine())
    print(
        f"{options.requests / taken:,.0f} requests/s from {options.clients} clients; one takes "
        f"{1000 * statistics.median(times):.1f} ms (median), {1000 * slowest:.1f} ms (99 %); "
        f"the model alone: {alone:,.0f} images/s, one at a time"
    )
    return 0
