# One image for server and clients: everything a container runs is a `prism` command.
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

RUN useradd --create-home prism && mkdir /runs /state && chown prism:prism /runs /state
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY common common
COPY server server
COPY client client
COPY prism prism
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt torch==2.13.0 .

USER prism
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["prism"]
