FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
# Only for TLS: the authorities that brokers and databases are checked against where no file of their own is named.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system frostline && install -d -o frostline /var/lib/frostline
COPY --from=build /source/target/release/frostline /usr/local/bin/frostline
USER frostline
VOLUME /var/lib/frostline
EXPOSE 8080
ENTRYPOINT ["frostline", "--config", "/etc/frostline"]
CMD ["run"]
