# shellcheck shell=bash
# Finding Pythons and building the environment, for setup_and_train.sh, which sources this file and
# sets the variables that it uses: venv, index, mount, cpu, root, may_install, dry_run.
# shellcheck disable=SC2034,SC2154

readonly ENVIRONMENT_GB=12 # PyTorch with CUDA takes 6, and pip unpacks beside it
readonly LOCK_TRIES=60 SMOKE_TEST_S=600
# Only this script makes a file of that name, before anything else in a new or empty folder.
readonly MARK=.made_by_setup_and_train

# Run a command without input; `said` keeps what it printed.
run_and_note() {
    { said=$(run "$@" </dev/null 2>&1 | tee >(cat >&3)); } 3>&1
}

# Print the version of a Python, such as 3.12.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' </dev/null 2>/dev/null; }

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
        die "PYTHON=$PYTHON does not start: give a Python from 3.11 to 3.14"
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
        if "$candidate" -c 'import venv, ensurepip' </dev/null >/dev/null 2>&1; then
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
    local said tries=0 words=("${root[@]}" env LC_ALL=C DEBIAN_FRONTEND=noninteractive
        NEEDRESTART_MODE=a apt-get -y -q "$@")
    until run_and_note "${words[@]}"; do
        [[ $said == *"Could not get lock"* ]] && ((++tries <= LOCK_TRIES)) || return 1
        say "another program holds apt's lock: waiting, up to 10 minutes"
        sleep 10
    done
}

# Ubuntu 24.04 has Python 3.12 without venv, 22.04 has 3.10; deadsnakes has 3.12 for the latter.
install_python() {
    local failed="Python cannot be installed (see above): is there a network? Or set PYTHON=/path/to/one"
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
        run "${root[@]}" add-apt-repository -y -n ppa:deadsnakes/ppa </dev/null || die "$failed"
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

# Set index to where pip finds the build of PyTorch for this host; and cpu, with --or_cpu, if there
# is a GPU that cannot be used. A CPU runs every build, so there the one that is installed stays.
choose_build() {
    index=$("$host_python" -m host.check --print_index "${cpu[@]}" "$@") || [[ $dry_run == yes ]] || exit 2
    if [[ $index == cpu ]]; then cpu=(--cpu); fi
    has_gpu=yes
    if [[ $index == cpu || $index == any ]]; then
        has_gpu=no index=""
        if [[ -e $venv/.index ]]; then index=$(<"$venv/.index"); fi
    fi
}

# Whether only this script can have made the environment; its first versions left these other files.
has_mark() {
    local stamps=("$1"/.stamp.*)
    [[ -e $1/$MARK || -e $1/.installing || -e $1/.index && -e ${stamps[0]} ]]
}

# Print the names of what neither packages nor this script put into an environment.
foreign_files() (
    shopt -s dotglob nullglob
    for path in "$1"/*; do
        case ${path##*/} in
            bin | etc | include | lib | lib64 | share | pyvenv.cfg | .gitignore | .lock) ;; # .lock: uv's
            "$MARK" | .index | .installed | .installing | .set_aside | .stamp.* | .tmp) ;;
            *) printf '%s ' "${path##*/}" ;;
        esac
    done
)

# Print why an environment of ours must be built anew, if so.
fault_of_environment() {
    local version=""
    version=$("$venv/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' \
        </dev/null 2>/dev/null) || version=""
    if [[ -z $version ]]; then
        echo "no Python with pip starts in it" # it is gone, or another version now
    elif [[ -e $venv/.index && $(<"$venv/.index") != "$index" ]]; then
        echo "this host needs another build of PyTorch" # of the same version: pip would keep the old one
    elif [[ -n ${PYTHON:-} && $version != "$(version_of "$PYTHON")" ]]; then
        echo "it has Python $version, and PYTHON=$PYTHON is another"
    fi
}

# Nothing that was installed is removed before something else has taken its place.
set_aside() {
    local why=$1 number=1 others
    others=$(foreign_files "$venv")
    [[ -z $others ]] ||
        die "$venv must be built anew ($why), but also holds ${others% }: move that away, or give" \
            "another folder, VENV=DIR"
    while [[ -e $venv.old-$number ]]; do number=$((number + 1)); done
    say "$venv is renamed to $venv.old-$number: $why"
    run touch "$venv/.set_aside"
    run mv -T "$venv" "$venv.old-$number" || die "$venv cannot be renamed (see above): VENV=DIR"
}

# Once the new environment works: remove the one that was set aside last.
remove_old() {
    local old newest=""
    for old in "$venv".old-*; do
        if [[ -e $old/.set_aside && (-z $newest || $old/.set_aside -nt $newest/.set_aside) ]]; then
            newest=$old
        fi
    done
    if [[ -n $newest ]] && has_mark "$newest" && [[ -z $(foreign_files "$newest") ]]; then
        say "the environment works; removing the one before it, $newest"
        run rm -rf --one-file-system "$newest"
    fi
}

# Before gigabytes are fetched: programs must be allowed to run there.
check_exec() {
    local place=$venv
    while [[ ! -d $place ]]; do place=$(dirname "$place"); done
    if [[ ,$(findmnt -no OPTIONS -T "$place" 2>/dev/null), == *,noexec,* ]]; then
        die "$venv is on a file system that is mounted noexec, where no program runs: sudo mount -o" \
            "remount,exec $(findmnt -no TARGET -T "$place"), or give another folder, VENV=DIR"
    fi
}

check_room() {
    local place=$venv free_gb
    while [[ ! -d $place ]]; do place=$(dirname "$place"); done
    free_gb=$(df --output=avail --block-size=1G "$place" | tail -n 1)
    ((free_gb >= ENVIRONMENT_GB)) ||
        die "$venv has ${free_gb// /} GB free, but the environment takes $ENVIRONMENT_GB: free some," \
            "enlarge the volume, or give another folder, VENV=DIR"
}

# Make an empty environment; what is in its place is set aside for the reason given.
make_environment() {
    if [[ $dry_run == no ]]; then check_room; fi
    find_python || install_python
    if [[ -n $1 ]]; then set_aside "$1"; fi
    say "building the environment in $venv with $python (PyTorch is a 3 GB download: minutes without output)"
    run mkdir -p "$venv" || die "$venv cannot be made (see above): give another folder, VENV=DIR"
    run touch "$venv/$MARK"
    run "$python" -m venv "$venv" </dev/null ||
        die "$python cannot make an environment (see above): PYTHON=/path/to/another one"
}

no_packages() {
    if [[ $said == *"No space left on device"* ]]; then
        die "the packages cannot be installed: the disk of $venv is full, where pip also unpacks them:" \
            "free some room, or give another folder, VENV=DIR. The same command continues"
    fi
    die "the packages cannot be installed (see above): is there a network? The same command continues"
}

# Whether to try uv, which takes a third of pip's time (72 s against 230 where both were measured,
# nothing cached) but does not know pip's settings, such as another index.
can_use_uv() {
    [[ -z $index ]] && command -v uv >/dev/null &&
        ! "$venv/bin/python" -m pip config list 2>/dev/null | grep -qE 'index|find-links|proxy|cert'
}

# Install what a requirements file and host/constraints.txt name; interrupted, it continues.
install_packages() {
    local said info torch build=${index:+"+${index##*/}"}
    local pip=("$venv/bin/python" -m pip install --quiet)
    local uv=(uv pip install --quiet --python "$venv/bin/python")
    # Of the user's settings, those of the network count; not what would install something else, or
    # elsewhere.
    unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIREMENT PIP_CONSTRAINT PIP_NO_DEPS PIP_PRE
    unset PIP_REQUIRE_HASHES PIP_IGNORE_INSTALLED PIP_DRY_RUN
    export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    # Packages are unpacked where there is room for them: /tmp may be small. On a volume, downloads
    # are kept, too: a host's own disk may have only 8 GB.
    pip=(env TMPDIR="$venv/.tmp" "${pip[@]}")
    if [[ $venv == "$mount"/* ]]; then
        pip=(env PIP_CACHE_DIR="$mount/.cache/pip" "${pip[@]}")
        uv=(env UV_CACHE_DIR="$mount/.cache/uv" "${uv[@]}")
    fi
    run mkdir -p "$venv/.tmp"
    if [[ $dry_run == no ]]; then
        touch "$venv/.installing"
        printf '%s\n' "$index" >"$venv/.index"
        # pip writes INSTALLER last: what was killed before that looks installed and is not.
        for info in "$venv"/lib/python*/site-packages/*.dist-info; do
            if [[ -d $info && ! -e $info/INSTALLER ]]; then run rm -rf "$info"; fi
        done
    fi
    # "==" would take 2.14.1+cpu, too, if the user has an index with that. PyTorch's own indexes have
    # few versions of other packages: the constraints are for the last call, which replaces those.
    mapfile -t torch < <(sed -nE "s/^(torch(vision)?)==([^ ]+).*/\1===\3$build/p" requirements.txt)
    if [[ -n $index ]]; then
        run_and_note "${pip[@]}" --index-url "$index" "${torch[@]}" || no_packages
    fi
    if can_use_uv; then
        run_and_note "${uv[@]}" -c host/constraints.txt -r "$1" "${torch[@]}" ||
            say "uv cannot install the packages (see above): continuing with pip"
    fi
    run_and_note "${pip[@]}" -c host/constraints.txt -r "$1" "${torch[@]}" || no_packages
    run rm -rf "$venv/.tmp"
    if [[ $dry_run == no ]]; then
        printf '%s\n' "$wanted" >"$venv/.installed"
        rm "$venv/.installing"
    fi
}

# The message is the smoke test's own, unless that could not say anything.
try_environment() {
    local code=0
    run timeout --foreground "$SMOKE_TEST_S" "$venv/bin/python" -m host.smoke_test "${cpu[@]}" \
        </dev/null || code=$?
    case $code in
        0) ;;
        2) exit 2 ;;
        124) die "PyTorch did not multiply within $SMOKE_TEST_S s: a GPU hangs; reboot this host" ;;
        *) die "PyTorch does not work here: its test in $venv ended with $code (see above)" ;;
    esac
}

# Build the environment for a requirements file, as far as that is not done. The hash of what it is
# built from is written to .installed once pip is done, and to the file's stamp once it works.
build_environment() {
    local wanted why="" anew=yes python lacks_venv stamp=$venv/.stamp.$1
    check_exec
    wanted=$(cat requirements.txt "$1" host/constraints.txt <(printf %s "$index") |
        sha256sum | cut -d ' ' -f 1)
    if [[ -e $venv && (! -d $venv || -n $(ls -A "$venv")) ]]; then
        has_mark "$venv" ||
            die "$venv was not made by this script, and stays as it is: give another folder, VENV=DIR"
        why=$(fault_of_environment)
        if [[ -z $why ]]; then
            anew=no
            if [[ ! -e $venv/.installing && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
                say "environment $venv is up to date"
                return
            fi
        fi
    fi
    if [[ $anew == yes ]]; then make_environment "$why"; fi
    if [[ $anew == yes || -e $venv/.installing || ! -f $venv/.installed ||
        $(<"$venv/.installed") != "$wanted" ]]; then
        install_packages "$1"
    fi
    try_environment
    if [[ $dry_run == no ]]; then
        printf '%s\n' "$wanted" >"$stamp"
        remove_old
    fi
}
