# shellcheck shell=bash
# The steps of setup_and_train.sh, which sources this file and sets the variables that they use:
# dry_run, log, venv, root, mount, volume, data_dir, packed, data, run_dir and the flags of each step.
# shellcheck disable=SC2154

readonly ENVIRONMENT_GB=12 # PyTorch with CUDA takes 6, and pip unpacks beside it

# Print a command; unless this is a dry run, also log it and run it.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    if [[ $dry_run == no ]]; then
        printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" >>"$log"
        "$@"
    fi
}

# Run a command of ours that only reads, or handles --dry_run itself, and so may always run.
ask() {
    printf '+ %s\n' "$*"
    if [[ $dry_run == no ]]; then "$@"; else "$@" || say "without --dry_run, setup would stop here"; fi
}

# Find the first Python >= 3.11 that can make a virtual environment with pip in it.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Ubuntu 24.04 has Python 3.12 without venv, 22.04 has 3.10; deadsnakes has 3.12 for the latter.
install_python() {
    local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get
        -o DPkg::Lock::Timeout=600 -y -q)
    if [[ $may_install == no ]] || ! command -v apt-get >/dev/null; then
        die "no Python >= 3.11 with the modules venv and ensurepip found; on Debian and Ubuntu:" \
            "sudo apt-get install python3-venv, or set PYTHON=/path/to/python3.12"
    fi
    local failed="Python cannot be installed (see above): is there a network? Or set PYTHON=/path/to/one"
    run "${apt[@]}" update || say "continuing with the package lists that are here"
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        run "${apt[@]}" install python3-venv || die "$failed"
    else
        run "${apt[@]}" install software-properties-common || die "$failed"
        run "${root[@]}" add-apt-repository -y ppa:deadsnakes/ppa || die "$failed"
        run "${apt[@]}" install python3.12 python3.12-venv || die "$failed"
    fi
}

check_room() {
    local free_gb
    free_gb=$(df --output=avail --block-size=1G "$venv" | tail -n 1)
    ((free_gb >= ENVIRONMENT_GB)) ||
        die "$venv has ${free_gb// /} GB free, but the environment takes $ENVIRONMENT_GB: free some," \
            "or enlarge the volume"
}

# Build the environment for a requirements file. A stamp with the hash of what it was built from is
# written last, once it works; an installation that was interrupted starts over.
build_environment() {
    local requirements=$1 index=${2:-} python wanted torch stamp=$venv/.stamp.$1
    local no_packages="the packages cannot be installed (see above): is there a network, and room in"
    no_packages+=" $venv? The same command continues"
    wanted=$(cat requirements.txt "$requirements" <(printf %s "$index") | sha256sum | cut -d ' ' -f 1)
    if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        say "environment $venv is up to date"
        return
    fi
    # Another build of PyTorch has the same version: pip would keep the old one.
    if [[ -e $venv/.installing || -e $venv/.index && $(<"$venv/.index") != "$index" ]] ||
        ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || {
            install_python
            python=$(find_python) || python=python3.12
        }
        if [[ -n $(ls -A "$venv" 2>/dev/null) && ! -e $venv/pyvenv.cfg && ! -e $venv/.installing ]]; then
            die "$venv is not empty and not an environment: give another folder, VENV=DIR"
        fi
        say "building the environment in $venv with $python (PyTorch is a 3 GB download: minutes without output)"
        # The mark comes first, so that what a kill leaves is recognized as ours.
        run rm -rf "$venv"
        run mkdir -p "$venv"
        run touch "$venv/.installing"
        if [[ $dry_run == no ]]; then check_room; fi
        run "$python" -m venv "$venv"
    fi
    if [[ $dry_run == no ]]; then
        touch "$venv/.installing"
        printf '%s\n' "$index" >"$venv/.index"
    fi
    # On a volume, pip unpacks and keeps its downloads there: a host's own disk may have only 8 GB.
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [[ $venv == "$mount"/* ]]; then
        run mkdir -p "$mount/.cache"
        pip=(env TMPDIR="$mount/.cache" PIP_CACHE_DIR="$mount/.cache/pip" "${pip[@]}")
    fi
    if [[ -n $index ]]; then
        mapfile -t torch < <(grep -E '^torch(vision)?==' requirements.txt)
        run "${pip[@]}" --index-url "$index" "${torch[@]}" || die "$no_packages"
    fi
    run "${pip[@]}" -r "$requirements" || die "$no_packages"
    run "$venv/bin/python" -m host.smoke_test
    if [[ $dry_run == no ]]; then
        printf '%s\n' "$wanted" >"$stamp"
        rm "$venv/.installing"
    fi
}

host_step() { ask python3 -m host.check "${cpu[@]}"; }

volume_step() {
    if [[ -n $data_dir ]]; then
        say "--data_dir $data_dir: no volume is mounted"
    elif [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
        die "mounting a volume needs root or sudo; or train on a folder: --data_dir DIR"
    else
        [[ $dry_run == yes ]] || "${root[@]}" true ||
            die "mounting a volume needs root, and sudo does not grant it; --data_dir DIR needs none"
        # -B: root must leave no compiled files in another user's clone.
        ask "${root[@]}" python3 -B -m host.volume --mount "$mount" ${volume:+--volume "$volume"} \
            "${volume_flags[@]}" "${dry[@]}"
    fi
}

env_step() {
    local index
    index=$(python3 -m host.check "${cpu[@]}" --print_index) || [[ $dry_run == yes ]] || exit 2
    build_environment requirements.txt "$index"
    run "${train[@]}" --print_config | grep '^+' # mistakes in settings show up now, not hours later
}

# If the code has changed, start over with it: bash has read only part of the old script.
repo_step() {
    local before
    before=$(git rev-parse HEAD 2>/dev/null || true)
    ask python3 -m host.repository --runs "$(dirname "$run_dir")" "${repo_flags[@]}" "${dry[@]}"
    if [[ $before != "$(git rev-parse HEAD 2>/dev/null || true)" ]]; then
        cd "$cwd" || exit
        exec "$here/setup_and_train.sh" "${words[@]}"
    fi
}

data_step() {
    if [[ -n $data_dir ]]; then
        say "the data is in $data_dir"
    else
        run "$venv/bin/python" prepare_data.py "$source" --search "$mount" --download --out "$packed"
    fi
    if [[ -n $cache ]]; then
        run "${root[@]}" python3 -B -m host.instance_store --source "$packed" --link "$data"
    fi
}

# Once per host: another instance type has another limit.
bench_step() {
    local report
    report=$({ python3 -m host.check --quiet "${cpu[@]}" 2>/dev/null || true; } | cksum)
    report=$(dirname "$run_dir")/bench_${report% *}.json
    if [[ -f $report ]]; then
        say "measured already: $report"
    else
        run mkdir -p "$(dirname "$run_dir")"
        if run "$venv/bin/python" bench.py --data_dir "$data" "${recipe[@]}" "${price[@]}" \
            --json "$report.partial"; then
            run mv "$report.partial" "$report"
        else
            say "this host could not be measured (see above); training continues without that"
        fi
    fi
}

train_step() {
    if [[ -n $cache ]]; then
        printf -v cache 'env --chdir=%q python3 -B -m host.instance_store --source %q --link %q' \
            "$here" "$packed" "$data"
        service_flags+=(--before "$cache")
    fi
    # What this script starts must not inherit its lock.
    ask python3 -m host.service start --run_dir "$run_dir" "${service_flags[@]}" "${dry[@]}" \
        -- "${train[@]}" 9>&-
    say "watch: $here/setup_and_train.sh --status --run_dir $run_dir (or --attach, --logs);" \
        "stop: the same with --stop; resume: this command again"
}

# Whether there is nothing to do: training is running, or all steps are requested and it is done.
# Nothing is touched while a run trains; a finished one can be extended by train.py's own options.
is_settled() {
    local question=is_settled code=0
    [[ -n $data_dir ]] || mountpoint -q "$mount" ||
        die "nothing is mounted at $mount: --only volume mounts a volume, --data_dir DIR needs none"
    if [[ $only != "${STEPS// /,}" || -n $max_steps || ${#train_words[@]} != 0 ]]; then
        question=is_training
    fi
    python3 -m host.service "$question" --run_dir "$run_dir" || code=$?
    ((code < 2)) || exit "$code"
    return "$code"
}

# Before hours of work: we must be able to write to whatever is there already.
check_writable() {
    local folder
    for folder in "$@"; do
        [[ ! -e $folder || -w $folder || $folder == "$data_dir" ]] ||
            die "you cannot write to $folder: sudo chown -R $(id -un): $folder"
    done
}

# All steps, or those of --only.
setup() {
    local number=0 step
    if [[ $dry_run == no ]]; then
        exec 9>>"$log" || die "$log cannot be written: does this clone belong to another user?"
        flock -n 9 || { say "another setup is running; waiting for it" && flock 9; }
    fi
    for step in $STEPS; do
        number=$((number + 1))
        [[ ,$only, == *,$step,* ]] || continue
        say "$number/7 $step"
        if [[ $dry_run == no && " host volume " != *" $step "* ]]; then
            if is_settled; then return; fi
            check_writable "$(dirname "$run_dir")" "$run_dir" "$packed" "$venv"
        fi
        "${step}_step"
    done
}
