# FastServe with TensorFlow for CPUs; Dockerfile.gpu has the one for CUDA. README: Images and manifests.
#
#     docker build -t fastserve .
#     docker run -p 8500:8500 -p 8501:8501 -v "$PWD/ranker:/models/ranker:ro" -e MODEL_NAME=ranker fastserve
#
# BASE         a Debian that has Python 3.11 or later
# TENSORFLOW   pip's requirement; default: the package that fits the architecture
# EXTRAS       of FastServe, with commas between them: remote (for s3://, gs://), tflite, image
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
WORKDIR /src
COPY tools/system_packages tools/tensorflow_package tools/
RUN tools/system_packages build \
    && python3 -m venv /build \
    && python3 -m venv --without-pip /opt/fastserve
ENV PATH=/build/bin:$PATH
ARG TENSORFLOW=
COPY deploy/image/tensorflow_libraries deploy/image/
RUN deploy/image/tensorflow_libraries /opt/fastserve "${TENSORFLOW:-$(tools/tensorflow_package)}"
ARG EXTRAS=
COPY . .
RUN pip wheel -q --no-deps --wheel-dir /wheels . \
    && pip --python /opt/fastserve/bin/python install -q --no-cache-dir \
        "$(ls /wheels/fastserve-*.whl)${EXTRAS:+[$EXTRAS]}" \
    && find /opt/fastserve/lib/*/site-packages/fastserve -name '*.so' -exec strip --strip-unneeded {} +

FROM ${BASE}
COPY deploy/image/runtime_packages /tmp/
RUN /tmp/runtime_packages && rm /tmp/runtime_packages
COPY --from=build /opt/fastserve /opt/fastserve
COPY deploy/image/fastserve-image /usr/local/bin/

ENV PATH=/opt/fastserve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_STATE_HOME=/var/lib \
    MODEL_BASE_PATH=/models \
    MODEL_NAME=model
USER 10001:10001
WORKDIR /var/lib/fastserve
EXPOSE 8500 8501
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["fastserve-image", "health"]
# tini: what is left of a dead gateway's workers has no other parent that would reap it.
ENTRYPOINT ["tini", "--", "fastserve-image"]
