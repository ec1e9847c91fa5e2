# Everything a change must pass; CI runs the same steps.
check: fmt clippy doc deny advisories pages serve old-processor wheel examples library test gpu mpi

ranks_without_hub := "--no-default-features --features cli,mpi --test no_hub --test mpi --test mpi_faults --test block_runs --locked"

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Licences and sources of dependencies
deny: tools
    PATH="$PWD/target/checks/bin:$PATH" cargo deny --locked check licenses bans sources

# Known vulnerabilities, by cargo-deny and cargo-audit; where their database can't be fetched it says so
advisories: tools
    scripts/advisories

# The HTML pages in a browser (Debian's chromium), the events in TensorBoard
pages: tools
    cargo build --locked
    target/checks/bin/python scripts/pages.py target/debug/weft target/pages

# The server: its playground in a browser, and OpenAI's own client
serve: tools
    cargo build --locked
    target/checks/bin/python scripts/playground.py target/debug/weft target/playground
    target/checks/bin/python scripts/openai_client.py target/debug/weft

# An x86-64 processor of the first kind, without AVX, computes PyTorch's numbers (Debian's qemu-user)
old-processor:
    cargo build --locked
    qemu-x86_64 -cpu qemu64 target/debug/weft parity --model tests/golden/llada --reference tests/golden/llada/objectives.safetensors

# The wheel of the program that is built, tried in an empty virtual environment; `scripts/wheel_check release` for users
wheel: tools
    cargo build --locked
    scripts/wheel_check

# The notebook on a short run, in a virtual environment of its own; no part of `check`, since Jupyter's packages take half a minute
notebook:
    cargo build --locked
    test -d target/notebook_env || (python3 -m venv target/notebook_env && target/notebook_env/bin/pip install -q -r scripts/notebook-requirements.txt)
    target/notebook_env/bin/python scripts/run_notebook.py target/debug/weft target/notebook

examples:
    for example in examples/*.rs; do cargo run --locked --example $(basename $example .rs) || exit 1; done

test: tools
    VIRTUAL_ENV="$PWD/target/checks" cargo test --workspace --locked

# The check of a GPU, rehearsed on the one that the CPU emulates (g++): the kernels' tests, PyTorch's goldens, training, ranks
gpu:
    scripts/gpu_check build --dev
    EMULATED_CUDA_DEVICES=2 scripts/emulated_gpu scripts/gpu_check run target/gpu_check_rehearsal --small
    scripts/emulated_gpu cargo test --test network --locked

# cargo-deny, cargo-audit, maturin, Playwright, TensorBoard, OpenAI's client and NVRTC, once
tools:
    test -x target/checks/bin/maturin || (python3 -m venv target/checks && target/checks/bin/pip install -q -r scripts/checks-requirements.txt)

# The library alone
library:
    cargo check --no-default-features --lib --locked
    if cargo tree -e normal --no-default-features --locked | grep -E 'clap|console|hyper|indicatif|rustyline|sigpipe|signal-hook|tokio'; then exit 1; fi

# Several ranks under mpirun (Debian's openmpi-bin, libopenmpi-dev, libclang-dev), in a build without the hub's client
mpi:
    cargo clippy {{ranks_without_hub}} --lib --bins -- -D warnings
    cargo test {{ranks_without_hub}}

# Hostile bytes for every reader, so many seconds each (a nightly compiler, cargo-fuzz)
fuzz seconds:
    fuzz/run.sh {{seconds}}

# The kernels' small portable operations under Miri (nightly Rust with miri and rust-src); about a minute
miri:
    MIRIFLAGS="-Zmiri-tree-borrows -Zmiri-ignore-leaks -Zmiri-disable-isolation -Zmiri-permissive-provenance" RAYON_NUM_THREADS=2 cargo +nightly miri test -p weft-kernels --test oracle --test degenerate -- entropy_of_a_degenerate a_frozen_head_that_is swiglu embedding rope

# The kernels' tests under AddressSanitizer, vector paths included (nightly Rust)
asan:
    RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p weft-kernels --lib --tests --target x86_64-unknown-linux-gnu
