# shellcheck shell=bash
# Building the environment, for setup_and_train.sh, which sources this file and pythons.sh, and sets
# the variables that it uses: venv, index, mount, cpu, dry_run, client.
# shellcheck disable=SC2034,SC2154

readonly ENVIRONMENT_GB=12 # PyTorch with CUDA takes 6, and pip unpacks beside it
readonly SMOKE_TEST_S=600 UV_S=3600
# Only this script makes a file of that name, before anything else in a new or empty folder.
readonly MARK=.made_by_setup_and_train

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
    local version="" code=0 limit_s=120 # a volume's first reads are slow
    version=$(answer "$venv/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' \
        2>/dev/null) || code=$?
    if [[ $code == 124 || $code == 137 ]]; then
        die "$venv/bin/python says nothing in $limit_s s: is its disk still there? Run the same command" \
            "again, or give another folder, VENV=DIR"
    elif [[ $code != 0 ]]; then
        version=""
    fi
    if [[ -z $version ]]; then
        echo "no Python with pip starts in it" # it is gone, or another version now
    elif [[ -e $venv/.index && $(<"$venv/.index") != "$index" ]]; then
        echo "this host needs another build of PyTorch" # of the same version: pip would keep the old one
    elif [[ -n ${PYTHON:-} && $version != "$(version_of "$PYTHON")" ]]; then
        echo "it has Python $version, and PYTHON=$PYTHON is another"
    fi
}

# Print the id of a process that runs from an environment: by the path of its program or its first
# argument, or by what it has loaded. Only root sees what other users' processes have loaded.
process_in() {
    local process word words
    for process in /proc/[0-9]*; do
        mapfile -d "" -t words 2>/dev/null <"$process/cmdline" || continue # it has ended
        for word in "${words[@]}"; do
            if [[ $word == /*/bin/* && ${word%/*} -ef $1/bin ]]; then
                echo "${process#/proc/}"
                return
            fi
        done
    done
    grep -lsF " $(realpath "$1")/" /proc/[0-9]*/maps | head -n 1 | cut -d / -f 3 || true
}

# Print the names of the packages in an environment that have a file, such as REQUESTED, which pip
# writes for those that someone named to it.
packages_with() {
    local file
    for file in "$1"/lib/python*/site-packages/*.dist-info/"$2"; do
        if [[ -e $file ]]; then
            file=${file%-*.dist-info/*}
            echo "${file##*/}"
        fi
    done | tr 'A-Z.-' 'a-z__'
}

# Print the names of the packages that were asked for in an environment, and are not in this one;
# without those that only come with some Pythons or builds of PyTorch.
users_packages() {
    packages_with "$1" REQUESTED | grep -vxE '(pip|setuptools|triton|(nvidia|cuda)_.*)' |
        grep -vxFf <(packages_with "$venv" METADATA) || true
}

# Nothing that was installed is removed before something else has taken its place.
set_aside() {
    local why=$1 number=1 others process installed
    others=$(foreign_files "$venv")
    [[ -z $others ]] ||
        die "$venv must be built anew ($why), but also holds ${others% }: move that away, or give" \
            "another folder, VENV=DIR"
    process=$(process_in "$venv")
    [[ -z $process ]] ||
        die "$venv must be built anew ($why), but process $process runs from it: stop that first, or" \
            "give another folder, VENV=DIR"
    installed=$(packages_with "$venv" METADATA | grep -vxE 'pip|setuptools' || true)
    if [[ ! -e $venv/.installed && -z $installed ]]; then
        say "$venv is removed: nothing was installed in it yet"
        run rm -rf --one-file-system "$venv" || die "$venv cannot be removed (see above): VENV=DIR"
        return
    fi
    while [[ -e $venv.old-$number ]]; do number=$((number + 1)); done
    say "$venv is renamed to $venv.old-$number: $why"
    run touch "$venv/.set_aside"
    run mv -T "$venv" "$venv.old-$number" || die "$venv cannot be renamed (see above): VENV=DIR"
}

# Once the new environment works: remove the one that was set aside last, unless it is still needed.
remove_old() {
    local old newest="" process packages
    for old in "$venv".old-*; do
        if [[ -e $old/.set_aside && (-z $newest || $old/.set_aside -nt $newest/.set_aside) ]]; then
            newest=$old
        fi
    done
    if [[ -z $newest ]] || ! has_mark "$newest" || [[ -n $(foreign_files "$newest") ]]; then return; fi
    process=$(process_in "$newest")
    packages=$(users_packages "$newest" | paste -sd ' ')
    if [[ -n $process ]]; then
        say "$newest, the environment before this one, stays: process $process runs from it"
    elif [[ -n $packages ]]; then
        say "$newest, the environment before this one, stays: it also has $packages. Install what you" \
            "need with $venv/bin/python -m pip install, then remove it"
    else
        say "the environment works; removing the one before it, $newest"
        run rm -rf --one-file-system "$newest"
    fi
}

# Before anything is changed and gigabytes are fetched: environments must be possible there.
check_place() {
    local place=$venv
    [[ $venv != *:* ]] ||
        die "$venv: Python makes no environment in a path with a colon: give another folder, VENV=DIR"
    while [[ ! -d $place ]]; do place=$(dirname "$place"); done
    if [[ ,$(answer findmnt -no OPTIONS -T "$place" 2>/dev/null), == *,noexec,* ]]; then
        die "$venv is on a file system that is mounted noexec, where no program runs: sudo mount -o" \
            "remount,exec $(answer findmnt -no TARGET -T "$place"), or give another folder, VENV=DIR"
    fi
}

check_room() {
    local place=$venv free_gb
    while [[ ! -d $place ]]; do place=$(dirname "$place"); done
    free_gb=$(answer df --output=avail --block-size=1G "$place" | tail -n 1) ||
        die "the disk of $venv does not say how much room it has (df): give another folder, VENV=DIR"
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
    elif [[ $said == *ResolutionImpossible* ]]; then
        die "the packages cannot be installed (see above): their versions contradict each other: undo the" \
            "changes in requirements*.txt and host/constraints.txt"
    elif [[ $said == *"No matching distribution"* ]]; then
        die "the packages cannot be installed (see above): pip's index cannot be reached, or lacks one. Is" \
            "there a network, and is the index the right one: $venv/bin/python -m pip config list"
    fi
    die "the packages cannot be installed (see above): is there a network? The same command continues"
}

# Whether to try uv, which takes a third of pip's time (72 s against 230 where both were measured,
# nothing cached) but does not know pip's settings, such as another index.
can_use_uv() {
    [[ -z $index ]] && command -v uv >/dev/null &&
        ! compgen -v PIP_ | grep -qE 'INDEX|FIND_LINKS|PROXY|CERT|HOST'
}

# Of the user's settings for pip, in files and variables, only those of the network and of the cache
# count: none that would install something else, or elsewhere.
keep_network_settings() {
    local settings section line value limit_s=120
    local names='(default-)?timeout|retries|(extra-)?index-url|no-index|find-links|proxy|(client-)?cert'
    names+='|trusted-host|keyring-provider|cache-dir'
    # Some of the settings would hide others from `pip config list`.
    settings=$(PIP_USER=0 PIP_GLOBAL=0 PIP_SITE=0 PIP_QUIET=0 answer "$venv/bin/python" -m pip config list) ||
        die "pip's settings cannot be read (see above): mend or remove its configuration file"
    unset "${!PIP_@}"
    for section in global install :env:; do # the later ones win, as they do in pip
        while IFS= read -r line; do
            if [[ $line =~ ^$section\.($names)=.(.*).$ ]]; then
                printf -v value %b "${BASH_REMATCH[-1]}" # written as Python would: lines end with \n
                line=${BASH_REMATCH[1]^^}
                export "PIP_${line//-/_}=$value"
            fi
        done <<<"$settings"
    done
    export PIP_CONFIG_FILE=/dev/null PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
}

# Whether the environment has the package that reads and writes buckets, or none is asked for.
has_client() {
    local version
    if [[ ${#client[@]} == 0 ]]; then return; fi
    version=$(sed -nE "s/^${client[0]}==([^ ]+).*/\1/p" host/constraints.txt)
    # pip writes INSTALLER last.
    compgen -G "$venv/lib/python*/site-packages/${client[0]}-$version.dist-info/INSTALLER" >/dev/null
}

# Install what a requirements file and host/constraints.txt name; interrupted, it continues. In a
# subshell, with which the settings for pip end.
install_packages() (
    local said info torch build=${index:+"+${index##*/}"}
    local pip=("$venv/bin/python" -m pip install --quiet)
    local uv=(timeout --foreground "$UV_S" uv pip install --quiet --python "$venv/bin/python")
    if [[ $dry_run == no ]]; then keep_network_settings; fi
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
        run_and_note "${uv[@]}" -c host/constraints.txt -r "$1" "${torch[@]}" "${client[@]}" ||
            say "uv cannot install the packages (see above): continuing with pip"
    fi
    run_and_note "${pip[@]}" -c host/constraints.txt -r "$1" "${torch[@]}" "${client[@]}" || no_packages
    run rm -rf "$venv/.tmp"
    if [[ $dry_run == no ]]; then
        printf '%s\n' "$wanted" >"$venv/.installed"
        rm "$venv/.installing"
    fi
)

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
    check_place
    wanted=$(cat requirements.txt "$1" host/constraints.txt <(printf %s "$index") |
        sha256sum | cut -d ' ' -f 1)
    if [[ -e $venv && (! -d $venv || -n $(ls -A "$venv")) ]]; then
        has_mark "$venv" ||
            die "$venv was not made by this script, and stays as it is: give another folder, VENV=DIR"
        why=$(fault_of_environment)
        if [[ -z $why ]]; then
            anew=no
            if [[ ! -e $venv/.installing && -f $stamp && $(<"$stamp") == "$wanted" ]] && has_client; then
                say "environment $venv is up to date"
                return
            fi
        fi
    fi
    if [[ $anew == yes ]]; then make_environment "$why"; fi
    if [[ $anew == yes || -e $venv/.installing || ! -f $venv/.installed ||
        $(<"$venv/.installed") != "$wanted" ]] || ! has_client; then
        install_packages "$1"
    fi
    try_environment
    if [[ $dry_run == no ]]; then
        printf '%s\n' "$wanted" >"$stamp"
        remove_old
    fi
}
