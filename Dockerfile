# One image for every process of the platform: the command says which one runs (`python -m services.ingest`, …).
# Every dependency is a wheel whose hash is in requirements/base.txt. One of them (faust-streaming) is published for
# amd64 alone, so that is what the image is built for: docker build --platform linux/amd64 .
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /opt/meterpost
COPY requirements/base.txt requirements/base.txt
# No pip in the environment itself, and nothing is compiled: what is not published as a wheel ends the build.
RUN python -m venv --without-pip venv \
 && python -m pip --python venv/bin/python install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    --disable-pip-version-check -r requirements/base.txt
COPY services services
COPY schemas schemas
# The path file makes the code importable from every folder; compiled here, because the image is read-only where it runs.
RUN echo /opt/meterpost > "$(venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/meterpost.pth" \
 && printf '%s\n' '#!/opt/meterpost/venv/bin/python' 'import sys' 'from services.cli.__main__ import main' \
    'sys.exit(main())' > venv/bin/meterpost \
 && chmod 755 venv/bin/meterpost \
 && venv/bin/python -m compileall -q services schemas \
 && chmod -R a+rX /opt/meterpost \
 && mkdir -p /data/certificates /data/exports /data/fleet /data/received /data/dropbox /data/dropbox-keys /data/dropbox-host-keys

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Meterpost" \
      org.opencontainers.image.description="Posts the closed intervals of pulse meters to the customers' own servers." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 meterpost \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin meterpost
COPY --from=build /opt/meterpost /opt/meterpost
# Folders for volumes, which take over their owner. Of the services, the hosted folder alone keeps anything on disk.
COPY --from=build --chown=10001:10001 /data /var/lib/meterpost
COPY LICENSE /opt/meterpost/LICENSE
# The probes listen on every address of the container, for whoever scrapes /metrics; nothing is published on the host.
ENV PATH=/opt/meterpost/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    METERPOST_HEALTH_HOST=0.0.0.0 \
    METERPOST_HEALTH_PORT=8080
WORKDIR /opt/meterpost
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, sys, urllib.error, urllib.request as r\ntry: r.urlopen('http://127.0.0.1:' + os.environ['METERPOST_HEALTH_PORT'] + '/readyz', timeout=4)\nexcept urllib.error.HTTPError as e: sys.exit(e.read().decode())\nexcept OSError as e: sys.exit(str(e))"]
CMD ["meterpost", "--help"]
