#!/usr/bin/env bash
# From a bare machine to a trained ResNet50.
#
#   ./setup_and_train.sh           on an EC2 GPU host: mount the volume, build the environment, pack
#                                  the data, train in the background; run again: resume
#   ./setup_and_train.sh --demo    train a ResNet50 on Fashion-MNIST in minutes; no GPU needed
#   ./setup_and_train.sh --test    lint and the whole test suite
#
# Every step first checks whether it is done, so the same command, run again, continues where the last
# one was interrupted. Without a terminal, it never waits for an answer. Exit codes: 0 done or
# training, 1 something failed, 2 change something, 75 interrupted, or a bucket did not answer.
if [ -z "${BASH_VERSION:-}" ]; then
    echo "setup_and_train.sh: error: this is a bash script: bash setup_and_train.sh" >&2
    exit 2
fi
set +o posix # which bash is if it was called as sh
set -Eeuo pipefail

readonly DATASETS="imagenet tiny-imagenet mini-imagenet imagenette demo"
readonly STEPS="host volume env repo data bench train"
readonly CLONE_NAME=ResNet50_ImageNet1K_Training

usage() {
    cat <<'TEXT'
usage: ./setup_and_train.sh [options] [-- train.py's options]
       ./setup_and_train.sh --status | --attach | --logs | --stop
       ./setup_and_train.sh --demo [--max_steps N] | --test [--dry_run]

Without --demo or --test, on the host that will train, each step once, in this order:
  host    driver, GPUs, memory, disk: can it train, and with which build of PyTorch
  volume  find the EBS data volume, mount it, now and at every boot; needs root or sudo
  env     Python 3.11 to 3.14 and the packages, on the volume
  repo    update this clone, unless a run needs the code as it is
  data    pack the archives found on the volume, or say what to download
  bench   what limits this host, and what the run will take
  train   in the background, restarted after crashes and, with systemd, after reboots

  --dataset NAME       imagenet, tiny-imagenet, mini-imagenet, imagenette, demo [imagenet]
  --recipe NAME        of train.py --list_recipes [the data set's own]
  --volume ID          vol-... or /dev/... [the only EBS volume that nothing uses]
  --mount DIR          where to mount it [/mnt/imagenet]
  --format_if_blank    put ext4 on a volume with nothing on it
  --wait_s S           for a volume that is being attached [0]
  --data_dir DIR       train on this folder, packed or not, without a volume; run: runs/FOLDER
  --data_from URL      bring train.pack and val.pack to there from s3://BUCKET/PREFIX, from
                       https://HOST/FOLDER or another folder; an interrupted copy goes on
  --mirror URL         copy the run to s3://BUCKET/PREFIX, or a folder on another disk, as it trains;
                       where the run folder is empty, the training begins by restoring it from there
  --cache              read the packed data from a copy on instance store
  --cpu                train on the CPU, whatever GPUs there are
  --price_per_hour X   dollars, for the cost of the run; auto: what this EC2 instance costs on demand
  --budget_usd X       train for as much as this pays for, at --price_per_hour; --budget_hours H: for
                       so long. With --then stop-host the host is shut down when it is spent, even if
                       training never began or hangs
  --on_end COMMAND     run this once when training is done, has diverged, or has failed: see train.py
  --then stop-host     shut this host down when training has ended, even by a crash or an error;
                       stop-host-when-done: only when it is done, or has diverged
  --way WAY            systemd, tmux or setsid [the first that this host has]
  --run_dir DIR        the run folder [runs/DATASET, in a clone on the volume, else on the volume]
  --repo URL           what to clone onto the volume if only this script was copied
  --on_local_changes W fail, keep, backup, merge, reset [asks on a terminal, else keep]
  --yes                with reset: remove local changes, after saving them
  --allow_code_change  update the code even under a run that has checkpoints
  --only STEPS         some of the steps, as in --only volume,env
  --status             step, epoch, top-1, images/s, time left, dollars of the run that trains, or the newest;
                       for it too:
  --attach, --logs     the training's screen, or the end of its log
  --stop               save, and end training; the same command resumes it

  --demo               get Fashion-MNIST (31 MB), train on it for a few minutes, print top-1
  --test               build the environment with the development tools, lint, run all tests
  --max_steps N        end after N training steps
  --dry_run            print the commands of all steps and run none
  --help               this text

environment: PYTHON=python3.12  the interpreter, also for its own steps [the first that will do]
             VENV=DIR           where to build it [resnet50 on the volume, else .venv here]
TEXT
}

say() { printf '== %s\n' "$*"; }
die() {
    printf 'setup_and_train.sh: error: %s\n' "$*" >&2
    exit 2
}

demo() {
    say "1/3 environment"
    build_environment_alone requirements.txt
    say "2/3 data"
    run "$venv/bin/python" prepare_data.py fashion-mnist --out data/fashion-mnist
    say "3/3 training; Ctrl-C saves first, and the same command resumes"
    # exec, so that signals to this script reach train.py, and its exit code is ours.
    run exec "$venv/bin/python" train.py --recipe demo --data_dir data/fashion-mnist \
        --run_dir runs/demo --max_steps "${max_steps:-0}" ${cpu[0]:+--device cpu}
}

tests() {
    local shell_scripts=(setup_and_train.sh host/*.sh .ci/run launch/slurm.sbatch)
    say "1/3 environment"
    build_environment_alone requirements-dev.txt
    say "2/3 lint"
    run "$venv/bin/ruff" check .
    run "$venv/bin/ruff" format --check .
    run "$venv/bin/shellcheck" --severity=style "${shell_scripts[@]}"
    run "$venv/bin/shfmt" --indent 4 --case-indent --diff "${shell_scripts[@]}"
    say "3/3 tests"
    run "$venv/bin/python" -m pytest
    if [[ $has_gpu == yes ]]; then run "$venv/bin/python" -m pytest -m gpu --numprocesses 1; fi
}

# Whether a folder has the rest of this script. A clone has; so has an unpacked archive of it.
is_code() { [[ -f $1/setup_and_train.sh && -f $1/host/setup_steps.sh ]]; }

# Refuse to put a clone where the user has something else.
check_is_free() {
    [[ ! -e $1 && ! -L $1 ]] ||
        die "$1 is in the way of a clone, and holds none: mv $1 $1.old, and come back"
}

# For a script copied to the host without its repository: clone that, mount the volume with the
# clone's code, and continue in a clone on the volume.
alone() {
    local target=${data_dir:+$here}
    target=${target:-$mount}/$CLONE_NAME
    [[ $mode != __demo && $mode != __test ]] || die "this script is not in a clone: ${mode//_/-} needs one"
    command -v git >/dev/null || die "git is not installed: sudo apt-get install git"
    # As host/clone.py: the user's ssh command is kept; without a terminal nothing may ask.
    local git=(timeout --foreground 600 git)
    if [[ ! -t 0 ]]; then
        git=(env GIT_TERMINAL_PROMPT=0 GIT_ASKPASS= SSH_ASKPASS= SSH_ASKPASS_REQUIRE=never
            GCM_INTERACTIVE=never GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=30 "${git[@]}")
        if [[ -z ${GIT_SSH_COMMAND-}${GIT_SSH-}$(git config core.sshCommand || true) ]]; then
            git=(env GIT_SSH_COMMAND="ssh -o BatchMode=yes -o ConnectTimeout=30" "${git[@]}")
        fi
    fi
    if ! is_code "$target"; then
        check_is_free "$target"
        [[ -n $repo ]] || die "this script is not in a clone: give --repo URL, or run it from one"
        # Not local: the trap runs after this function has ended. rm may fail on files left by root.
        clone=$(mktemp -d) beside=""
        trap 'rm -rf "$clone" ${beside:+"$beside"} || true' EXIT
        say "cloning $repo"
        "${git[@]}" clone --quiet "$repo" "$clone/$CLONE_NAME" </dev/null ||
            die "--repo $repo cannot be cloned (see above; or there was no answer in 10 minutes)"
        is_code "$clone/$CLONE_NAME" || die "--repo $repo is another project: give the URL of this one"
        if [[ $dry_run == yes ]]; then
            bash "$clone/$CLONE_NAME/setup_and_train.sh" "${words[@]}" # /tmp may be mounted noexec
            exit
        fi
        bash "$clone/$CLONE_NAME/setup_and_train.sh" --only_until_volume "${words[@]}"
        if ! is_code "$target"; then
            check_is_free "$target"
            beside=$(mktemp -d "$target.partial.XXXXXX") || die "you cannot write there (see above)"
            "${git[@]}" clone --quiet "$repo" "$beside/$CLONE_NAME" </dev/null ||
                die "--repo $repo cannot be cloned onto the volume (see above)"
            mv -T "$beside/$CLONE_NAME" "$target"
        fi
        rm -rf "$clone" ${beside:+"$beside"} || true # exec skips the trap
    fi
    exec bash "$target/setup_and_train.sh" "${words[@]}"
}

check_choice() {
    local option=$1 value=$2
    shift 2
    [[ " $* " == *" $value "* ]] || die "$option $value: one of $*"
}

# Derive the remaining variables from --dataset and the other options.
resolve_options() {
    [[ -z $dataset || " $DATASETS " == *" $dataset "* ]] || die "--dataset $dataset: one of $DATASETS"
    if [[ -n $until_volume ]]; then only=host,volume; fi
    check_choice --way "${way:-tmux}" systemd tmux setsid
    check_choice --then "${then:-nothing}" nothing stop-host stop-host-when-done
    check_choice --on_local_changes "${on_local_changes:-keep}" fail keep backup merge reset
    service_flags=(${way:+--way "$way"} ${then:+--then "$then"})
    repo_flags+=(${on_local_changes:+--on_local_changes "$on_local_changes"})
    only=${only//[[:space:]]/,}
    [[ $only == *[!,]* ]] || die "--only $only names no step: steps are $STEPS"
    for step in ${only//,/ }; do
        [[ " $STEPS " == *" $step "* ]] || die "--only $step: steps are $STEPS"
    done
    if [[ $(id -u) == 0 ]]; then root=(); elif [[ -t 0 ]]; then root=(sudo); else root=(sudo -n); fi
    # The user's own images are named after their folder, and use the recipe given.
    if [[ ${#recipe[@]} == 0 && -n $dataset && $dataset != imagenet ]]; then
        recipe=(--recipe "$dataset")
    fi
    dataset=${dataset:-$(basename "${data_dir:-imagenet}")}
    source=$dataset
    if [[ $dataset == demo ]]; then source=fashion-mnist; fi
    state=$mount
    if [[ -n $data_dir ]]; then
        state=$PWD
        [[ -d $data_dir || -n $data_from || $dry_run == yes ]] ||
            die "--data_dir $data_dir: no such folder (--data_from URL brings packs to it)"
    fi
    packed=${data_dir:-$mount/$source}
    data=$packed
    if [[ -n $cache ]]; then
        [[ -z $data_dir ]] || die "--cache copies from a volume, but --data_dir uses none"
        data=$mount/cached/$source
    fi
    # Runs belong on the volume: in the clone if it is there, else beside the data.
    if [[ $PWD/ == "$state"/* ]]; then runs=$PWD/runs; else runs=$state/runs; fi
    # --status and the like, without --run_dir, choose among the runs.
    among=(--runs "$PWD/runs" --runs "$mount/runs")
    if [[ -n $run_dir ]]; then among=(--run_dir "$run_dir"); fi
    run_dir=${run_dir:-$runs/$dataset}
    train=("$venv/bin/python" train.py --data_dir "$data" --run_dir "$run_dir" "${recipe[@]}"
        "${price[@]}" "${budget[@]}" "${on_end[@]}" ${max_steps:+--max_steps "$max_steps"} ${cpu[0]:+--device cpu}
        ${mirror:+--mirror "$mirror"} "${train_words[@]}")
    if [[ ${data_from,,} == s3://* || ${mirror,,} == s3://* ]]; then client=(obstore); fi
    may_install=yes
}

# Read the command line into the variables of main.
parse() {
    local name others=()
    while (($#)); do
        case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
        name=${1//-/_}
        case $name in
            __demo | __test | __max_steps | __dry_run | __cpu) ;;
            *) others+=("$1") ;;
        esac
        case $name in
            __demo | __test | __status | __attach | __logs | __stop)
                [[ -z $mode || $mode == "$name" ]] || die "${mode//_/-} and $1 exclude each other"
                mode=$name
                ;;
            __dry_run) dry_run=yes dry=(--dry_run) ;;
            __cpu) cpu=(--cpu) ;;
            __cache) cache=yes ;;
            __only_until_volume) until_volume=yes ;; # how `alone` calls a clone
            __format_if_blank) volume_flags+=(--format_if_blank) ;;
            __yes | __allow_code_change) repo_flags+=("--${name#__}") ;;
            __help | _h)
                usage
                exit 0
                ;;
            __)
                train_words=("${@:2}")
                break
                ;;
            __max_steps | __dataset | __recipe | __volume | __mount | __wait_s | __data_dir | \
                __data_from | __mirror | __price_per_hour | __budget_usd | __budget_hours | __on_end | \
                __then | __way | __repo | \
                __on_local_changes | __only | __run_dir)
                (($# > 1)) || die "--${name#__} needs a value; see --help"
                [[ -n $2 ]] || die "--${name#__} is empty: is it an unset variable?"
                case $name in
                    __max_steps)
                        [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--max_steps $2: give a number from 1 up"
                        max_steps=$2
                        ;;
                    __recipe) recipe=(--recipe "$2") ;;
                    __price_per_hour)
                        [[ $2 == auto || $2 =~ ^[0-9]*\.?[0-9]+$ ]] ||
                            die "--price_per_hour $2: give dollars, as in 1.2, or auto"
                        price=(--price_per_hour "$2")
                        ;;
                    __budget_usd | __budget_hours)
                        [[ $2 =~ ^[0-9]*\.?[0-9]+$ && $2 =~ [1-9] ]] ||
                            die "$1 $2: give a number above 0, as in 5 or 2.5"
                        budget+=("--${name#__}" "$2")
                        ;;
                    __on_end) on_end=(--on_end "$2") ;;
                    __wait_s) volume_flags+=(--wait_s "$2") ;;
                    *) printf -v "${name#__}" %s "$2" ;;
                esac
                shift
                ;;
            *) die "unknown option $1; see --help" ;;
        esac
        shift
    done
    [[ ${#budget[@]} -le 2 ]] || die "${budget[0]} and ${budget[2]} exclude each other: give one"
    [[ ${#budget[@]} == 0 || -z $max_steps ]] || die "${budget[0]} and --max_steps exclude each other"
    [[ ${budget[0]:-} != --budget_usd || ${#price[@]} != 0 ]] ||
        die "--budget_usd ${budget[1]} needs the price of this host: --price_per_hour X, or auto on EC2"
    [[ -z $max_steps || $mode == __demo || -z $mode ]] || die "--max_steps is only for training"
    if [[ $mode == __demo || $mode == __test ]] && [[ ${#others[@]} != 0 ]]; then
        die "${mode//_/-} does not take ${others[0]}: leave it out; see --help"
    fi
}

# URLs are printed, logged, and stand in the unit of systemd: none may hold a secret.
refuse_secrets() {
    local option=$1 url=$2
    [[ $url != *://*@* ]] ||
        die "$option: no user, password or key in a URL: they would be shown and logged"
    [[ $url != *://*\?* ]] || die "$option: no ? in a URL: what follows it would be shown and logged"
}

# Folders are relative to the user's current one; everything else, to this clone.
resolve_folders() {
    local word before=""
    refuse_secrets --mirror "$mirror"
    refuse_secrets --data_from "$data_from"
    for word in "${train_words[@]}"; do
        if [[ $before == --mirror || $word == --mirror=* ]]; then refuse_secrets --mirror "$word"; fi
        before=$word
    done
    data_dir=${data_dir:+$(realpath -m -- "$data_dir")} run_dir=${run_dir:+$(realpath -m -- "$run_dir")}
    if [[ -n $data_from && $data_from != *://* ]]; then data_from=$(realpath -m -- "$data_from"); fi
    if [[ -n $mirror && $mirror != *://* ]]; then mirror=$(realpath -m -- "$mirror"); fi
    mount=$(realpath -ms -- "$mount") venv=$here/.venv
    if [[ $mode != __demo && $mode != __test && -z $data_dir ]]; then venv=$mount/resnet50; fi
    venv=$(realpath -m -- "${VENV:-$venv}")
    if [[ ${PYTHON:-} == */* ]]; then PYTHON=$(realpath -ms -- "$PYTHON"); fi
}

main() {
    # The command line, and what it asks for; empty unless given.
    local words=("$@") cwd=$PWD
    local mode="" dry_run=no only=${STEPS// /,} until_volume=""
    local dataset="" data_dir="" data_from="" run_dir="" mirror="" max_steps="" train_words=()
    local mount=/mnt/imagenet volume="" cache=""
    local repo="" on_local_changes=""
    local way="" then=""
    # The package that reads and writes buckets, if one is asked for.
    local client=()
    # Flags to pass on, each with its value, to train.py and to the commands in host/.
    local recipe=() price=() budget=() on_end=() cpu=() dry=()
    local volume_flags=() repo_flags=() service_flags=()
    # Set by resolve_options: the data's name and folders, the runs' folders, the command.
    local source packed data report=""
    local state runs among train
    # How the steps do their work.
    local here venv index has_gpu host_python root=() may_install=no log step
    here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
    log=$here/.setup.log
    parse "$@"
    resolve_folders
    if [[ $(id -u) == 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
        die "run this as $SUDO_USER, without sudo: it calls sudo where it needs root"
    fi
    # They point git to another repository than the folder's; as in resnet50/system/git.py.
    unset GIT_DIR GIT_WORK_TREE GIT_COMMON_DIR GIT_INDEX_FILE GIT_PREFIX GIT_OBJECT_DIRECTORY \
        GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_NAMESPACE GIT_SHALLOW_FILE GIT_GRAFT_FILE \
        GIT_REPLACE_REF_BASE GIT_IMPLICIT_WORK_TREE
    [[ -f $here/host/setup_steps.sh ]] || alone "$@"
    cd "$here"
    # shellcheck source=host/pythons.sh
    source host/pythons.sh
    # shellcheck source=host/environment.sh
    source host/environment.sh
    # shellcheck source=host/setup_steps.sh
    source host/setup_steps.sh
    unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH # of other projects; they would hide packages, or ours
    leave_environment
    find_host_python
    case $mode in
        __demo) demo ;;
        __test) tests ;;
        "")
            resolve_options
            setup
            ;;
        *)
            resolve_options
            if [[ -e $log ]]; then
                flock --nonblock --conflict-exit-code 75 "$log" true 2>/dev/null ||
                    { [[ $? != 75 ]] || say "a setup is running: $log"; }
            fi
            exec "$host_python" -B -m host.service "${mode#__}" "${among[@]}"
            ;;
    esac
}

main "$@"
