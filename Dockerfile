# docker build -t gate_lightning --build-arg UID=$(id -u) .                             CPU
# docker build -t gate_lightning:cuda --build-arg UID=$(id -u) \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .                  CUDA: the index of your driver's version
# docker run --rm -v "$PWD/outputs:/app/outputs" -v "$PWD/data:/app/data" gate_lightning python train.py techniques=none
# docker run --rm --gpus all --shm-size 8g … gate_lightning:cuda python train.py trainer=gpu
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG UID=1000

# what OpenCV loads
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid "$UID" gate && install --directory --owner gate /app /app/outputs /app/data
USER gate
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# the large packages change with constraints.txt alone, not with the sources
COPY --chown=gate constraints.txt ./
RUN python -m venv .venv \
    && pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt torch lightning diffusers transformers peft

COPY --chown=gate . .
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt --editable '.[default]'

CMD ["python", "train.py"]
