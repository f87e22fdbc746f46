# deltavlm in a container: the light image by default, with CUDA by --target cuda.
#
#   docker build -t deltavlm .                            and   docker build -t deltavlm:cuda --target cuda .
#   docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" deltavlm analyze 2015.tif 2024.tif -o changes.gpkg
#   docker run --rm --gpus all -v "$PWD:/data" -u "$(id -u):$(id -g)" deltavlm:cuda analyze ... --device cuda

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.12-slim AS base
# no home folder is needed; the work folder is the one that is mounted
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 HOME=/tmp
WORKDIR /data
ENTRYPOINT ["deltavlm"]
CMD ["--help"]

# PyTorch's wheels bring the libraries of CUDA; the driver is that of the host
FROM base AS cuda
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install "$(echo /wheel/deltavlm-*.whl)[torch,quantize]"
USER 1000:1000

FROM base AS light
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install /wheel/deltavlm-*.whl
USER 1000:1000
