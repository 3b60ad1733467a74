# The command line of jax_arcface.
#
#   docker build --tag jax-arcface .
#   docker run --rm --volume "$PWD:/work" jax-arcface train --dataset photos/
#
#   docker build --tag jax-arcface:cuda --build-arg EXTRAS=cuda13,figures .
#   docker run --rm --gpus all --volume "$PWD:/work" jax-arcface:cuda train --dataset photos/
#
# JAX's wheels bring CUDA's libraries; the host needs NVIDIA's driver and container toolkit only.
FROM python:3.11-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ARG EXTRAS=cpu,figures
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH XDG_CACHE_HOME=/tmp/cache
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["python", "-m", "jax_arcface"]
CMD ["--help"]
