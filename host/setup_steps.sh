# shellcheck shell=bash
# The steps of setup_and_train.sh, which sources this file and sets the variables that they use:
# host_python, dry_run, log, venv, root, mount, volume, data_dir, data_from, packed, data, run_dir and
# the flags of each step.
# shellcheck disable=SC2154

# Print a command; unless this is a dry run, also log it and run it.
run() {
    printf '+%s\n' "$(printf ' %q' "$@")"
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

host_step() { ask "$host_python" -m host.check "${cpu[@]}"; }

volume_step() {
    if [[ -n $data_dir ]]; then
        say "--data_dir $data_dir: no volume is mounted"
    elif [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
        die "mounting a volume needs root or sudo; or train on a folder: --data_dir DIR"
    else
        [[ $dry_run == yes ]] || "${root[@]}" true ||
            die "mounting a volume needs root, and sudo does not grant it; --data_dir DIR needs none"
        # -B: root must leave no compiled files in another user's clone.
        ask "${root[@]}" "$host_python" -B -m host.volume --mount "$mount" ${volume:+--volume "$volume"} \
            "${volume_flags[@]}" "${dry[@]}"
    fi
}

env_step() {
    choose_build
    build_environment requirements.txt
    run "${train[@]}" --print_config | grep '^+' # mistakes in settings show up now, not hours later
}

# If the code has changed, start over with it: bash has read only part of the old script.
repo_step() {
    local before
    before=$(git rev-parse HEAD 2>/dev/null || true)
    ask "$host_python" -m host.repository --runs "$(dirname "$run_dir")" "$here/runs" "$mount/runs" \
        "${repo_flags[@]}" "${dry[@]}"
    if [[ $before != "$(git rev-parse HEAD 2>/dev/null || true)" ]]; then
        cd "$cwd" || exit
        exec bash "$here/setup_and_train.sh" "${words[@]}"
    fi
}

data_step() {
    if [[ -n $data_from ]]; then
        run "$venv/bin/python" -m resnet50.packing.fetch --data_from "$data_from" --data_dir "$packed"
    elif [[ -n $data_dir ]]; then
        say "the data is in $data_dir"
    else
        run "$venv/bin/python" prepare_data.py "$source" --search "$mount" --download --out "$packed"
    fi
    if [[ -n $cache ]]; then
        run "${root[@]}" "$host_python" -B -m host.instance_store --source "$packed" --link "$data"
    fi
}

# Once per host, recipe and data, of which each has another speed. Leaves its report for train_step.
bench_step() {
    report=$({
        "$host_python" -m host.check --quiet "${cpu[@]}" 2>/dev/null || true
        printf '%s\n' "${recipe[@]}" "$data"
    } | cksum)
    report=$(dirname "$run_dir")/bench_${report% *}.json
    if [[ -f $report ]]; then
        say "measured already: $report"
    else
        run mkdir -p "$(dirname "$run_dir")"
        if run ${cpu[0]:+env CUDA_VISIBLE_DEVICES=} "$venv/bin/python" bench.py --data_dir "$data" \
            "${recipe[@]}" "${price[@]}" --json "$report.partial"; then
            run mv "$report.partial" "$report"
        else
            say "this host could not be measured (see above); training continues without that"
        fi
    fi
}

train_step() {
    local watch
    ask "$host_python" -m host.outlook --run_dir "$run_dir" ${report:+--report "$report"} \
        "${budget[@]}" "${price[@]}" ${max_steps:+--max_steps "$max_steps"} ${train_words:+--has_more} ||
        say "training begins all the same"
    if [[ -n $cache ]]; then
        printf -v cache 'env --chdir=%q %q -B -m host.instance_store --source %q --link %q' \
            "$here" "$host_python" "$packed" "$data"
        service_flags+=(--before "$cache")
    fi
    # What this script starts must not inherit its lock.
    ask "$host_python" -m host.service start --run_dir "$run_dir" "${service_flags[@]}" "${dry[@]}" \
        -- "${train[@]}" 9>&-
    printf -v watch ' %q' bash "$here/setup_and_train.sh" --status --run_dir "$run_dir"
    say "watch:$watch (or --attach, --logs); stop: the same with --stop; resume: this command again"
}

# Whether there is nothing to do: training is running, or all steps are requested and it is done.
# Nothing is touched while a run trains; a finished one can be extended by train.py's own options.
is_settled() {
    local question=is_settled code=0
    [[ -n $data_dir ]] || timeout 60 mountpoint -q "$mount" ||
        die "nothing is mounted at $mount: --only volume mounts a volume, --data_dir DIR needs none"
    if [[ $only != "${STEPS// /,}" || -n $max_steps || ${#train_words[@]} != 0 ]]; then
        question=is_training
    fi
    "$host_python" -m host.service "$question" --run_dir "$run_dir" "${service_flags[@]}" \
        "${recipe[@]}" ${data_dir:+--data_dir "$data_dir"} ${mirror:+--mirror "$mirror"} || code=$?
    # 10 is no; anything else is no answer, as from a Python that does not work.
    case $code in
        0) return 0 ;;
        10) return 1 ;;
        *) exit "$code" ;;
    esac
}

# Before hours of work: we must be able to write to whatever is there already.
check_writable() {
    local folder
    for folder in "$@"; do
        [[ ! -e $folder || -w $folder || $folder == "$data_dir" ]] ||
            die "you cannot write to $folder: sudo chown -R $(id -un): $folder"
    done
}

# Two at once would build the same environment, and mount the same volume. Descriptor 9 has the lock.
take_lock() {
    local code=0
    if [[ $dry_run == yes ]]; then return; fi
    exec 9>>"$log" || die "$log cannot be written: does this clone belong to another user?"
    flock --nonblock --conflict-exit-code 75 9 2>/dev/null || code=$?
    if [[ $code == 75 ]]; then
        say "another setup is running; waiting for it"
        flock 9
    elif [[ $code == 127 ]]; then
        say "warning: flock is not installed: never run two setups at once"
    elif [[ $code != 0 ]]; then
        say "warning: $log is on a disk without locks: never run two setups at once"
    fi
}

# The environment step of --demo and --test; what they start next must not inherit the lock.
build_environment_alone() {
    take_lock
    choose_build --or_cpu
    build_environment "$1"
    exec 9>&-
}

# All steps, or those of --only.
setup() {
    local number=0 step
    take_lock
    if [[ ,$only, == *,train,* ]]; then
        ask "$host_python" -m host.service check --run_dir "$run_dir" "${service_flags[@]}"
        # Without --budget_*, too: the run that is there may have one.
        if [[ $then == stop-host ]]; then
            service_flags+=("${budget[@]}" "${price[@]}")
            ask "$host_python" -m host.service meter --run_dir "$run_dir" "${service_flags[@]}" "${dry[@]}"
        fi
    fi
    for step in $STEPS; do
        number=$((number + 1))
        [[ ,$only, == *,$step,* ]] || continue
        say "$number/7 $step"
        if [[ $dry_run == no && " host volume " != *" $step "* ]]; then
            if is_settled; then return; fi
            check_writable "$(dirname "$run_dir")" "$run_dir" "$packed" "$venv"
            [[ " data bench train " != *" $step "* || -x $venv/bin/python ]] ||
                die "there is no environment in $venv, which --only $step needs: --only env builds it"
        fi
        "${step}_step"
    done
}
