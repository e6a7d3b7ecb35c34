# syntax=docker/dockerfile:1
# The worker and what it needs, and nothing else: no shell, no package manager. docker build -t feed-worker .
FROM rust:1.94.1-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates cmake libssl-dev pkg-config python3 zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
RUN cargo install --locked cargo-auditable@0.7.7 cargo-cyclonedx@0.5.9
WORKDIR /work
# The dependencies, in a layer that lasts until Cargo.lock changes: built for a program that does nothing yet.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src dev \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs dev/s3.rs >dev/failpoints.rs \
    && cargo auditable build --release --locked --bin feed-worker
COPY . .
# What was copied may be older than what was built above.
RUN touch src/lib.rs src/main.rs \
    && cargo auditable build --release --locked --bin feed-worker \
    && cargo cyclonedx --format json --override-filename sbom
RUN dev/image-root target/release/feed-worker /root-of-image \
    && install -D -m 0644 sbom.json /root-of-image/usr/share/sbom/feed-worker.cdx.json \
    && dev/sbom-check /root-of-image/usr/share/sbom/feed-worker.cdx.json /root-of-image/usr/local/bin/feed-worker

FROM scratch
COPY --from=build /root-of-image/ /
# OpenSSL and rustls both look here first.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PATH=/usr/local/bin
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/feed-worker"]
CMD ["run"]
