# Two images from one file: `docker build --target api .` (no torch) and `docker build --target worker .`
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/unforgotten
RUN useradd --create-home --uid 10001 unforgotten \
    && mkdir -p /var/lib/unforgotten \
    && chown unforgotten /var/lib/unforgotten
ENV UNFORGOTTEN_DATA_DIR=/var/lib/unforgotten UNFORGOTTEN_HOST=0.0.0.0
COPY pyproject.toml constraints.txt README.md ./
COPY app app
COPY migrations migrations
VOLUME /var/lib/unforgotten

FROM base AS api
# The API imports nothing of the workers; what counts tokens for it runs beside it, without torch.
COPY workers workers
RUN python -m pip install -c constraints.txt -e '.[estimates]'
USER unforgotten
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live')"
CMD ["unforgotten", "api"]

FROM base AS worker
COPY workers workers
# For GPUs the torch of the constraints file brings its CUDA libraries along; the driver is the host's.
RUN python -m pip install -c constraints.txt torch \
    && python -m pip install -c constraints.txt -e '.[worker]'
USER unforgotten
CMD ["unforgotten", "worker"]
