"""An HTTP service on an exported model: embed an image, verify two, identify one among a gallery.

    python -m jax_arcface export RUN --out model.onnx
    python examples/serve.py model.onnx --gallery people/ --port 8000

    curl -F image=@ann.jpg localhost:8000/embed                        {"embedding": [0.01, ...]}
    curl -F first=@ann.jpg -F second=@eve.jpg localhost:8000/verify    {"cosine": 0.71, "same": true}
    curl -F image=@ann.jpg localhost:8000/identify                     {"name": "ann", "matches": [...]}
    curl localhost:8000/                                               the model card's facts

Images are prepared as in training: turned upright, cut or padded to the model's size. `same` and `name` are null where
no threshold is known; `people/` holds a folder of images for each name. Needs: pip install 'jax-arcface[serve]'.
"""

import argparse
import json
from pathlib import Path

import faiss
import onnxruntime
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from jax_arcface import UserError, data
from jax_arcface.data.images import Encoded, read_files

MAX_BYTES = 8 * 2**20  # of a request; what a file may claim about its pixels is checked by read_files
MATCHES = 5


class Recogniser:
    """The model, its threshold and the gallery: everything that needs no network."""

    def __init__(self, model, gallery=None, threshold=None):
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.facts = self.session.get_modelmeta().custom_metadata_map
        self.shape = tuple(self.session.get_inputs()[0].shape[1:])
        known = json.loads(self.facts.get("threshold", "{}")).get("threshold")
        self.threshold = known if threshold is None else threshold
        self.fit = json.loads(self.facts.get("config", "{}")).get("image_fit", "crop")
        self.names, self.index = [], faiss.IndexFlatIP(self.session.get_outputs()[0].shape[1])
        if gallery is not None:
            files, images = data.read_images(Path(gallery), self.shape, image_fit=self.fit)
            self.names = [Path(file).parent.name if len(Path(file).parts) > 1 else Path(file).stem for file in files]
            for start in range(0, len(images), 256):
                self.index.add(self.run(images[start : start + 256]))

    def run(self, images):
        return self.session.run(None, {"images": images})[0]

    def embed(self, *files):
        """Unit embeddings [N, D] of the bytes of N image files."""
        encoded = [Encoded(name, lambda content=content: content) for name, content in files]
        return self.run(read_files(encoded, self.shape, self.fit, "", progress=False))

    def verify(self, first, second):
        one, other = self.embed(first, second)
        cosine = float(one @ other)
        return {"cosine": cosine, "same": None if self.threshold is None else cosine >= self.threshold}

    def identify(self, image):
        if not self.names:
            raise HTTPException(409, "there is no gallery: start the service with --gallery FOLDER")
        cosines, numbers = self.index.search(self.embed(image), min(MATCHES, len(self.names)))
        matches = [{"name": self.names[n], "cosine": float(c)} for c, n in zip(cosines[0], numbers[0], strict=True)]
        known = self.threshold is not None and matches[0]["cosine"] >= self.threshold
        return {"name": matches[0]["name"] if known else None, "matches": matches}


def application(recogniser):
    """The service: one request computes in a thread of its own, while the loop answers others."""

    def endpoint(function, *fields):
        async def answer(request):
            async with request.form(max_files=len(fields), max_fields=0) as form:
                given = [form.get(field) for field in fields]
                if not all(isinstance(file, UploadFile) for file in given):
                    raise HTTPException(400, f"send {' and '.join(fields)} as files of multipart/form-data")
                files = [(field, await file.read()) for field, file in zip(fields, given, strict=True)]
            return JSONResponse(await run_in_threadpool(function, *files))

        return answer

    async def facts(_):
        return JSONResponse(recogniser.facts | {"gallery": len(recogniser.names), "threshold": recogniser.threshold})

    app = Starlette(
        routes=[
            Route("/", facts),
            Route(
                "/embed", endpoint(lambda f: {"embedding": recogniser.embed(f)[0].tolist()}, "image"), methods=["POST"]
            ),
            Route("/verify", endpoint(recogniser.verify, "first", "second"), methods=["POST"]),
            Route("/identify", endpoint(recogniser.identify, "image"), methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: lambda _, e: JSONResponse({"error": e.detail}, e.status_code),
            UserError: lambda _, e: JSONResponse({"error": str(e)}, 400),
            TooLarge: lambda _, e: JSONResponse({"error": str(e)}, 413),
        },
    )
    return limited(app)


class TooLarge(Exception):
    """A request of more than MAX_BYTES."""


def limited(app):
    """The application, which reads no more than MAX_BYTES of a request, whatever its header says."""

    async def limit(scope, receive, send):
        taken = 0

        async def counted():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BYTES:
                raise TooLarge(f"a request may have {MAX_BYTES:,} bytes")
            return message

        await app(scope, counted, send)

    return limit


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--gallery", type=Path, help="folder with a folder of images for each name")
    parser.add_argument("--threshold", type=float, help="lowest cosine of one class; by default the model's own")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    recogniser = Recogniser(options.model, options.gallery, options.threshold)
    uvicorn.run(application(recogniser), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
