#!/usr/bin/env bash
# The gate, step by step; stops at the first step that fails and names it.
# Usage: gate.sh all | lint | build | torture      (called by the Makefile, which makes .venv)
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=$PWD/.venv/bin
target=${CARGO_TARGET_DIR:-$PWD/target}
export VIRTUAL_ENV=$PWD/.venv PYO3_PYTHON=$bin/python
# Everything is built once here, and what an earlier compiler run remembers can only mislead it.
export CARGO_INCREMENTAL=0
# Dozens of tests are compiled and linked faster so, and where one panicked is told all the same.
export CARGO_PROFILE_DEV_DEBUG=line-tables-only
current=start
began=$SECONDS

step() {
    current=$1
    local from=$SECONDS
    printf '\n==> %s\n' "$current"
    shift
    "$@"
    printf '    ok, %d s\n' $((SECONDS - from))
}

building=
trap 'code=$?; kill $building 2>/dev/null || true; [ $code -eq 0 ] || printf "\nFAILED at: %s (exit code %d)\n" "$current" "$code" >&2' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

engine_is_pure() { ! grep -rn pyo3 src/engine; }

# In one call: cargo then builds one beside the other.
loom() {
    local file tests=()
    for file in tests/loom_*.rs; do tests+=(--test "$(basename "$file" .rs)"); done
    RUSTFLAGS="--cfg loom" cargo test --locked --profile test-wheel --target-dir "$target/loom" "${tests[@]}"
}

build() { "$bin/maturin" develop --quiet --locked --release --extras cli,test,lint,bench; }

# Beside the other steps: for most of its time it keeps one core busy, or waits for packages.
begin_build() {
    mkdir -p "$target"
    build > "$target/build.log" 2>&1 &
    building=$!
}

end_build() {
    local code=0
    wait "$building" || code=$?
    building=
    cat "$target/build.log"
    return $code
}

stubtest() {
    local allow=()
    [ ! -e tests/tools/stubtest-allowlist.txt ] || allow=(--allowlist tests/tools/stubtest-allowlist.txt)
    "$bin/python" -m mypy.stubtest --mypy-config-file pyproject.toml ${allow[@]+"${allow[@]}"} ironbus._core
}

lint_rust() {
    step "cargo fmt" cargo fmt --check
    step "clippy, the engine alone" cargo clippy --locked -- -D warnings
    step "clippy, with Python and all tests" cargo clippy --locked --all-targets --features python -- -D warnings
    step "the engine knows no pyo3" engine_is_pure
}

lint_python() {
    step "ruff" "$bin/ruff" check .
    step "ruff format" "$bin/ruff" format --check .
    step "mypy, strict" "$bin/mypy"
    step "pyright, the public API" "$bin/pyright" --pythonpath "$bin/python"
    step "stubtest" stubtest
}

# One CPython >= 3.11 for each minor version, as "3.x<TAB>executable"; that of .venv comes first.
# Launchers are asked for the executable they stand for: some of them stand for none.
pythons() {
    local candidate
    {
        echo "$bin/python"
        for candidate in 3.11 3.12 3.13 3.14 3.15; do type -ap "python$candidate" || true; done
        ls -d "$HOME"/.pyenv/versions/*/bin/python /usr/bin/python3.1[1-9] 2>/dev/null || true
    } | while read -r candidate; do
        "$candidate" -c '
import sys
if sys.implementation.name == "cpython" and sys.version_info >= (3, 11) and sys.version_info.releaselevel == "final":
    import ensurepip, venv
    print("%d.%d" % sys.version_info[:2], sys.executable, sep="\t")' </dev/null 2>/dev/null || true
    done | awk -F'\t' '!seen[$1]++'
}

# A venv for each, that has the wheel as users would install it, and nothing else but what the tests need.
install_wheel() {
    local version=$1 python=$2 venv=.venvs/$1 out=dist/$1 extras=cli,test profile=test-wheel
    # As users get it, and with the peers beside it, once; the others are built in less time.
    [ "$python" != "$bin/python" ] || extras=cli,test,bench profile=release
    PYO3_PYTHON="$python" "$bin/maturin" build --quiet --locked --profile "$profile" --interpreter "$python" --out "$out"
    [ -e "$venv/.ready" ] || "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --force-reinstall --no-deps "$out"/*.whl
    "$venv/bin/python" -m pip install --quiet "$(ls "$out"/*.whl)[$extras]"
    "$venv/bin/python" -I -c "
import pathlib, sys, ironbus
assert pathlib.Path(sys.prefix) in pathlib.Path(ironbus.__file__).parents, ironbus.__file__"
    touch "$venv/.ready" "$out/.installed"
}

# One after the other, beside the other steps: the next is there when a suite has ended.
begin_wheels() {
    local version python
    rm -rf dist
    while IFS=$'\t' read -r version python; do
        install_wheel "$version" "$python" < /dev/null
    done < <(pythons) > "$target/wheels.log" 2>&1 &
    building=$!
}

await_wheel() {
    while [ ! -e "dist/$1/.installed" ]; do
        if ! kill -0 "$building" 2>/dev/null && [ ! -e "dist/$1/.installed" ]; then
            cat "$target/wheels.log"
            return 1
        fi
        sleep 0.2
    done
}

# The same suite on each.
suite() {
    await_wheel "$1"
    # Half of a test's time is waiting for the disk or for processes: a second one runs meanwhile.
    ".venvs/$1/bin/python" -m pytest -q --numprocesses 2 --dist worksteal
}

case ${1:-all} in
    lint)
        lint_rust
        step "build the extension" build
        lint_python
        ;;
    build) step "build the extension" build ;;
    torture)
        step "build the extension" build
        step "torture" "$bin/python" tests/tools/torture.py
        ;;
    all)
        begin_build
        lint_rust
        step "cargo test, the engine" cargo test --locked
        step "loom" loom
        step "build the extension" end_build
        begin_wheels
        lint_python
        while IFS=$'\t' read -r -u 3 version _; do
            step "pytest on the wheel, CPython $version" suite "$version"
        done 3< <(pythons)
        ;;
    *) echo "usage: gate.sh all | lint | build | torture" >&2; exit 2 ;;
esac
printf '\nAll steps passed in %d s.\n' $((SECONDS - began))
