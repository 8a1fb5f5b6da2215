# The servers and tools that tests/run has got for itself.
export PATH := env("PATH") + ":" + env("FROSTLINE_CACHE", env("XDG_CACHE_HOME", home_directory() / ".cache") / "frostline") / "bin"

# Lists what there is.
default:
    @just --list

# Formatting, lints, all tests, licences and advisories: what a change must pass.
check:
    cargo deny --all-features check
    tests/run

# The crash tests over and over, for as many hours; `just check` does three rounds.
soak hours="8":
    tests/servers/get
    FROSTLINE_SOAK_HOURS={{ hours }} cargo nextest run --release --all-features --profile soak --no-capture -E 'binary(crash)'

# All benchmarks, or one: `just bench journal`.
bench name="*":
    cargo bench --all-features --bench '{{ name }}'
