"""The service over a real connection on loopback, beside the model in this process."""

import concurrent.futures
import importlib.util
import io
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jax_arcface.export.formats import FORMATS
from jax_arcface.models.lenet import LeNet
from jax_arcface.models.trained import Model

for name in ("onnx", "onnxruntime", "faiss", "starlette", "python_multipart"):
    pytest.importorskip(name, reason="needs the extra serve")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

pytestmark = pytest.mark.slow

SHAPE = (12, 12, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def model():
    backbone = LeNet(SHAPE, 8, 0.125, rngs=nnx.Rngs(0))
    backbone.eval()
    return Model(backbone, SHAPE, 8, (), None, None, np.full(3, 128.0), np.full(3, 60.0))


@pytest.fixture(scope="module")
def unit(model):
    embeddings = model.embed(IMAGES)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def client(model, tmp_path_factory):
    """A client of a service with a gallery of two names, ann with two images and eve with one."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "model.onnx").write_bytes(FORMATS["onnx"].write(model, {"threshold": '{"threshold": 0.99}'}))
    for image, file in zip(IMAGES, ("ann/1.png", "ann/2.png", "eve/1.png"), strict=False):
        (folder / "people" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "people" / file).write_bytes(png(image))
    spec = importlib.util.spec_from_file_location("serve", Path(__file__).with_name("serve.py"))
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    app = serve.application(serve.Recogniser(folder / "model.onnx", folder / "people"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
            yield client
        server.should_exit = True
        thread.join()


def test_answers_are_those_of_the_model(client, unit):
    files = [png(image) for image in IMAGES]
    found = client.post("/embed", files={"image": files[3]}).json()["embedding"]
    np.testing.assert_allclose(found, unit[3], atol=1e-5)
    for other, same in ((1, True), (2, False)):
        cosine = unit[1] @ unit[other]
        assert (cosine >= 0.99) == same
        answer = client.post("/verify", files={"first": files[1], "second": files[other]}).json()
        assert answer == {"cosine": pytest.approx(cosine, abs=1e-5), "same": same}
    answer = client.post("/identify", files={"image": files[2]}).json()
    assert answer["name"] == "eve"
    order = np.argsort(-(unit[:3] @ unit[2]))
    assert [match["name"] for match in answer["matches"]] == [("ann", "ann", "eve")[n] for n in order]
    np.testing.assert_allclose([m["cosine"] for m in answer["matches"]], (unit[:3] @ unit[2])[order], atol=1e-5)
    assert client.get("/").json()["gallery"] == 3


def test_many_at_once(client, unit):
    files = [png(image) for image in IMAGES]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(client.post, "/embed", files={"image": files[n % 4]}) for n in range(40)]
        for n, answer in enumerate(sent):
            np.testing.assert_allclose(answer.result().json()["embedding"], unit[n % 4], atol=1e-5)


def test_mistakes_are_answered_in_words(client):
    good = png(IMAGES[0])
    bomb = png(np.zeros((9, 9), np.uint8)).replace((9).to_bytes(4, "big") * 2, (60_000).to_bytes(4, "big") * 2)
    for status, path, files in (
        (400, "/embed", {"image": b"no image"}),
        (400, "/embed", {"image": good[:60]}),
        (400, "/embed", {"image": bomb}),
        (400, "/embed", {"picture": good}),
        (400, "/verify", {"first": good}),
        (400, "/embed", {"image": good, "more": good}),
        (413, "/embed", {"image": bytes(9 * 2**20)}),
        (404, "/nowhere", {"image": good}),
    ):
        answer = client.post(path, files=files)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"]
    assert client.post("/embed", content=b"raw").status_code == 400
    assert client.get("/embed").status_code == 405
    assert client.post("/embed", files={"image": good}).status_code == 200
