#!/bin/sh
# Resolves every .in file from scratch and pins the result in the .txt file beside it, with the hashes of all files that
# the package index has of each version. `lock.sh --hashes` keeps the versions and writes the hashes again.
# A lock of a development or demo set holds only what it adds to the environment below it.
# torch is not in the locks: torch.txt says why.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/uv"
"$scratch/uv/bin/pip" install -qq uv==0.13.9

compile() {  # pins and options of uv; only what it prints counts
    "$scratch/uv/bin/uv" pip compile -q --no-config --no-annotate --no-header "$@"
}

freeze() {  # $1 environment, $2 pins to write, by their normal names
    # Left out: torch, and what its CUDA build brings.
    "$scratch/$1/bin/pip" freeze --exclude pip --exclude setuptools |
        grep -Ev '^(torch==|nvidia-|cuda-|triton)' >"$scratch/frozen.in"
    compile --no-deps "$scratch/frozen.in" >"$scratch/$2"
}

hashed() {  # $1 pins, $2 lock to write, $3 what it was made from
    { echo "# Made by requirements/lock.sh from $3: do not edit."; compile --universal --python-version 3.11 --no-deps --generate-hashes "$1"; } >"$2.new"
    mv "$2.new" "$2"
}

later() {  # $1 set, $2 pins: what Python 3.13 needs besides
    compile --python-version 3.13 -c "$2" "$1.in" | grep -Ev '^(torch==|nvidia-|cuda-|triton|setuptools)' |
        grep -vxFf "$2" | sed 's/$/ ; python_version >= "3.13"/' || true
}

lock() {  # $1 environment, then the sets, each on top of the former
    environment=$1
    "$python" -m venv "$scratch/$environment"
    below=/dev/null
    shift
    for set in "$@"; do
        constraint=""
        [ "$below" = /dev/null ] || constraint="-c $below"
        # shellcheck disable=SC2086
        "$scratch/$environment/bin/pip" install -qq $constraint -r "$set.in"
        freeze "$environment" "$set.all"
        { grep -vxFf "$below" "$scratch/$set.all" || true; later "$set" "$scratch/$set.all"; } >"$scratch/$set.in"
        hashed "$scratch/$set.in" "$set.txt" "$set.in"
        below="$scratch/$set.all"
    done
}

lock_unseen() {  # $1 set, $2 lock of constraints: resolved from metadata alone, as it is several GB and fits no machine without a GPU
    grep -oE '^[a-z0-9-]+==[^ ]+' "$2" | grep -vE '^(faiss|sympy|setuptools)' >"$scratch/$1.constraints"
    compile --python-platform x86_64-manylinux_2_28 -c "$scratch/$1.constraints" "$1.in" >"$scratch/$1.in"
    hashed "$scratch/$1.in" "$1.txt" "$1.in"
}

lock_readers() {  # their packages ask for versions that exclude each other, so some are installed without what they ask for
    "$python" -m venv "$scratch/readers"
    "$scratch/readers/bin/pip" install -qq -r readers.in
    "$scratch/readers/bin/pip" install -qq --no-deps -r readers-alone.in
    freeze readers readers.all
    hashed "$scratch/readers.all" readers.txt "readers.in and readers-alone.in"
}

if [ "${1:-}" = --hashes ]; then
    for lock in *.txt; do
        [ "$lock" = torch.txt ] && continue
        grep -E '^[A-Za-z0-9_.-]+==' "$lock" | sed 's/ *\\$//' >"$scratch/kept.in"
        hashed "$scratch/kept.in" "$lock" "$(sed -nE '1s/.* from (.*): do not edit.*/\1/p' "$lock")"
    done
    exit
fi
lock airflow airflow compose dev-airflow
lock stages stages demo dev-stages
lock_unseen stages-gpu stages.txt
lock_readers
compile --universal --python-version 3.11 audit.in >"$scratch/audit.in"
hashed "$scratch/audit.in" audit.txt audit.in
