#!/usr/bin/env bash
# From a bare machine to a trained ResNet50.
#
#   ./setup_and_train.sh --demo    train a ResNet50 on Fashion-MNIST, minutes, no GPU needed
#   ./setup_and_train.sh --test    lint and the whole test suite
#
# Needs bash, Python >= 3.11 with venv, and a package index; no GPU and no root. Every step asks first
# whether it is done, so the same command again goes on where the last one was interrupted.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./setup_and_train.sh --demo | --test [--max_steps N] [--dry_run] [--help]

  --demo         build the environment, get Fashion-MNIST (31 MB), train a ResNet50 on it for some
                 minutes, print its top-1 and where the curves lie; again: resume, or say it is done
  --test         build the environment with the development tools, lint, run all tests
  --max_steps N  with --demo: end after N training steps
  --dry_run      print the commands of all steps and run none
  --help         this text

environment: PYTHON=python3.12  the interpreter to build the environment with
             VENV=DIR           where to build it [.venv beside this script]
TEXT
}

say() { printf '== %s\n' "$*"; }
die() {
    printf 'setup_and_train.sh: error: %s\n' "$*" >&2
    exit 2
}

# Print a command, and run it unless this is a dry run.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    if [[ $dry_run == no ]]; then "$@"; fi
}

# The first Python >= 3.11 that can make a virtual environment with pip in it.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python >= 3.11 with the modules venv and ensurepip found; on Debian and Ubuntu:" \
        "sudo apt-get install python3-venv, or name one: PYTHON=/path/to/python3.12"
}

# Build the environment for a requirements file. A stamp with the hash of what it was built from is
# written last, so that an interrupted or outdated installation is repeated.
build_environment() {
    local requirements=$1 python wanted stamp=$venv/.stamp.$1
    wanted=$(cat requirements.txt "$requirements" | sha256sum | cut -d ' ' -f 1)
    if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        say "environment $venv is up to date"
        return
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "building the environment in $venv with $python (PyTorch is 3 GB to download)"
        run "$python" -m venv --clear "$venv"
    fi
    run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    run "$venv/bin/python" -c 'import torch, torchvision; print("torch", torch.__version__)'
    if [[ $dry_run == no ]]; then printf '%s\n' "$wanted" >"$stamp"; fi
}

demo() {
    say "1/3 environment"
    build_environment requirements.txt
    say "2/3 data"
    run "$venv/bin/python" prepare_data.py fashion-mnist --out data/fashion-mnist
    say "3/3 training; Ctrl-C saves first, and the same command goes on"
    # exec: signals to this script are signals to train.py, and its exit code is ours.
    run exec "$venv/bin/python" train.py --recipe demo --data_dir data/fashion-mnist \
        --run_dir runs/demo --max_steps "${max_steps:-0}"
}

tests() {
    local shell_scripts=(setup_and_train.sh .ci/run)
    say "1/3 environment"
    build_environment requirements-dev.txt
    say "2/3 lint"
    run "$venv/bin/ruff" check .
    run "$venv/bin/ruff" format --check .
    run "$venv/bin/shellcheck" --severity=style "${shell_scripts[@]}"
    run "$venv/bin/shfmt" --indent 4 --case-indent --diff "${shell_scripts[@]}"
    say "3/3 tests"
    run exec "$venv/bin/python" -m pytest
}

main() {
    local mode=""
    dry_run=no
    max_steps=
    while (($#)); do
        case ${1//-/_} in
            __demo | __test)
                [[ -z $mode || $mode == "$1" ]] || die "--demo and --test exclude each other"
                mode=$1
                ;;
            __dry_run) dry_run=yes ;;
            __max_steps=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
            __max_steps)
                [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "--max_steps ${2:-}: give a number from 1 up"
                max_steps=$2
                shift
                ;;
            __help | _h)
                usage
                return
                ;;
            *) die "unknown option $1; see --help" ;;
        esac
        shift
    done
    cd "$(dirname "${BASH_SOURCE[0]}")"
    venv=${VENV:-.venv}
    case $mode in
        --demo) demo ;;
        --test)
            [[ -z $max_steps ]] || die "--max_steps goes with --demo"
            tests
            ;;
        *)
            usage >&2
            die "say what to do: --demo or --test"
            ;;
    esac
}

main "$@"
