# One image for server and clients: everything a container runs is a `prism` command.
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

# A volume that is mounted over one of these folders takes over its owner.
RUN useradd --create-home --uid 10001 prism \
  && mkdir /authority /places /runs /tls \
  && chown prism:prism /authority /places /runs /tls
WORKDIR /app
COPY containers/install.sh ./

# From what seldom changes to what often does. An empty TORCH_INDEX is pip's own index, whose torch
# has CUDA on Linux.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt ./
RUN sh install.sh -r constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}

COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    > requirements.txt \
  && sh install.sh -c constraints.txt -r requirements.txt

COPY README.md ./
COPY common common
COPY server server
COPY client client
COPY prism prism
COPY configs configs
RUN sh install.sh --no-deps . && rm -rf build *.egg-info

USER prism
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["prism"]
