# shellcheck shell=bash
# Finding Pythons, and installing one, for setup_and_train.sh, which sources this file and sets the
# variables that it uses: venv, root, may_install, dry_run.
# shellcheck disable=SC2034,SC2154

readonly LOCK_TRIES=60 APT_S=1800

# Run a command without input; `said` keeps what it printed. tee itself writes both, so that all is
# printed before the next command's line: a process substitution would not be waited for.
run_and_note() {
    { said=$({ run "$@" </dev/null 2>&1 3>&- 4>&- | tee /dev/fd/4 >&3; } 4>&1); } 3>&1
}

# Run a command that only answers a question, unless it hangs.
answer() { timeout --kill-after=5 "${limit_s:-20}" "$@" </dev/null; }

# Print the version of a Python, such as 3.12.
version_of() { answer "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Whether a version is from 3.OLDEST to 3.NEWEST.
is_within() { [[ $1 =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= $2 && BASH_REMATCH[1] <= $3)); }

is_ubuntu() { grep -qs '^ID=ubuntu$' /etc/os-release; }

how_to_get_python() {
    if [[ -n ${lacks_venv:-} ]]; then
        echo "sudo apt-get install python$lacks_venv-venv"
    elif command -v dnf >/dev/null && ! command -v apt-get >/dev/null; then
        echo "sudo dnf install python3.11"
    elif [[ -n ${host_python:-} ]] && is_ubuntu; then # whose own is too old
        echo "sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt-get install python3.12-venv"
    else
        echo "sudo apt-get install python3 python3-venv"
    fi
}

# The environment may have to be renamed, so no Python is taken from it: if it is activated, PATH no
# longer counts it, and for one that PYTHON= names, the Python that it was made with is taken.
leave_environment() {
    local path base
    PATH=:$PATH:
    PATH=${PATH//":$venv/bin:"/:}
    PATH=${PATH#:}
    PATH=${PATH%:}
    path=$(command -v "${PYTHON:-}") || return 0
    if [[ ${path%/*} -ef $venv/bin ]]; then
        base=$(answer "$path" -c 'import sys; print(sys._base_executable)' 2>/dev/null) || return 0
        PYTHON=$base
    fi
}

# Set host_python, which runs host/: that needs Python 3.10 and no packages.
find_host_python() {
    local candidate version
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate") || version=""
        if is_within "$version" 10 99; then
            host_python=$(command -v "$candidate")
            return
        fi
    done
    if [[ -z ${PYTHON:-} ]]; then
        die "no Python 3.10 or newer found: $(how_to_get_python), or set PYTHON=/path/to/python3.12"
    elif [[ -z $version ]]; then
        die "PYTHON=$PYTHON does not start, or says nothing in 20 s: give a Python from 3.11 to 3.14"
    fi
    die "PYTHON=$PYTHON is Python $version: give one from 3.11 to 3.14"
}

# Set python, for the environment: from 3.11 to 3.14, for which all packages have wheels, and with
# the modules venv and ensurepip; else lacks_venv, the version of one that only lacks these.
find_python() {
    local candidate version candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    python="" lacks_venv=""
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate") || continue
        is_within "$version" 11 14 || continue
        if answer "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            python=$(command -v "$candidate")
            return
        fi
        lacks_venv=${lacks_venv:-$version}
    done
    return 1
}

# Run apt-get, once nobody else holds its locks. On a host's first boot apt-daily does, and apt-get's
# own DPkg::Lock::Timeout does not wait for the lock of the package lists.
apt_get() {
    local said tries=0 words=("${root[@]}" timeout --foreground "$APT_S" env LC_ALL=C DEBIAN_FRONTEND=noninteractive
        NEEDRESTART_MODE=a apt-get -y -q "$@")
    until run_and_note "${words[@]}"; do
        [[ $said == *"Could not get lock"* ]] && ((++tries <= LOCK_TRIES)) || return 1
        say "another program holds apt's lock: waiting, up to 10 minutes"
        sleep 10
    done
}

# Ubuntu 24.04 has Python 3.12 without venv, 22.04 has 3.10; deadsnakes has 3.12 for the latter.
install_python() {
    local failed="Python cannot be installed (see above; or apt took half an hour): is there a network?"
    failed+=" Or set PYTHON=/path/to/one"
    local version=${lacks_venv:-3.12}
    if [[ -n ${PYTHON:-} && -z $lacks_venv ]]; then
        die "PYTHON=$PYTHON is Python $(version_of "$PYTHON"), but the environment needs one from" \
            "3.11 to 3.14"
    fi
    if [[ $may_install == no ]] || ! command -v apt-get >/dev/null ||
        ! { [[ -n $lacks_venv ]] || is_ubuntu; }; then
        die "no Python from 3.11 to 3.14 with the modules venv and ensurepip found:" \
            "$(how_to_get_python), or set PYTHON=/path/to/python3.12"
    fi
    apt_get update || say "continuing with the package lists that are here"
    if [[ -z $lacks_venv ]]; then
        apt_get install software-properties-common || die "$failed"
        # -n: without an update, for whose lock it would not wait.
        run "${root[@]}" timeout --foreground "$APT_S" add-apt-repository -y -n ppa:deadsnakes/ppa </dev/null || die "$failed"
        apt_get update || die "$failed"
    fi
    apt_get install "python$version" "python$version-venv" || die "$failed"
    if [[ $dry_run == yes ]]; then
        python=python$version
    else
        find_python || die "python$version-venv is installed, but ${PYTHON:-no Python here} can make an" \
            "environment with it: set PYTHON=/usr/bin/python$version"
    fi
}
