# The commands a developer uses. `just` lists them.

_default:
    @just --list

# Build everything and run the agent with procmond under it; events appear live.
run *args:
    cargo build --release && target/release/daemoneye-agent run --follow {{ args }}

# Watch processes on this terminal; no broker, no log.
watch *args:
    cargo run --release -p procmond -- watch {{ args }}

# All tests, as CI runs them.
test:
    cargo test --workspace --locked

# The tests of one promise, for example `just promise main_job`.
promise name:
    cargo test -p daemoneye-tests --test e2e {{ name }}

# Format, lint and document, warnings denied.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Format everything.
fmt:
    cargo fmt --all

# Licences, sources and advisories of the dependencies.
deny:
    cargo deny --locked check

# The log against raw write + fdatasync, in rounds side by side.
bench-wal *args:
    cargo bench -p procmond --bench wal -- {{ args }}

# The broker against a bare socket relay, in rounds side by side.
bench-bus *args:
    cargo bench -p daemoneye-eventbus --bench bus -- {{ args }}

# Every fuzz target over its corpus, then on new inputs for so many seconds each.
fuzz seconds="60":
    fuzz/smoke {{ seconds }}

# Exactly what CI runs.
ci:
    .ci/run
