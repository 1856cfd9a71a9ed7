#!/bin/sh
# Resolves every .in file afresh and pins the result in the .txt file beside it.
# A lock of a development or demo set holds only what it adds to the environment below it.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

freeze() {  # $1 environment, $2 lock to write
    # Left out: torch's local version (which build is the installer's choice) and what the CUDA build brings.
    "$scratch/$1/bin/pip" freeze --exclude pip --exclude setuptools |
        sed -E 's/^(torch==[^+]+)\+.*/\1/' | grep -Ev '^(nvidia-|cuda-|triton)' >"$scratch/$2"
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
        {
            echo "# Made by requirements/lock.sh from $set.in: do not edit."
            grep -vxFf "$below" "$scratch/$set.all" || true
        } >"$set.txt"
        below="$scratch/$set.all"
    done
}

lock_unseen() {  # $1 set, $2 constraints: resolved from metadata alone, as it is several GB and fits no machine without a GPU
    grep -vE '^(torch|faiss|sympy|setuptools)' "$2" >"$scratch/$1.constraints"
    PIP_FIND_LINKS='' "$python" -m pip install --dry-run --ignore-installed -qq --report "$scratch/$1.json" \
        -c "$scratch/$1.constraints" -r "$1.in"
    {
        echo "# Made by requirements/lock.sh from $1.in: do not edit."
        "$python" -c 'import json, sys
for package in sorted((entry["metadata"] for entry in json.load(open(sys.argv[1]))["install"]), key=lambda m: m["name"].lower()):
    print("{name}=={version}".format(**package))' "$scratch/$1.json"
    } >"$1.txt"
}

lock_readers() {  # their packages ask for versions that exclude each other, so some are installed without what they ask for
    "$python" -m venv "$scratch/readers"
    "$scratch/readers/bin/pip" install -qq -r readers.in
    "$scratch/readers/bin/pip" install -qq --no-deps -r readers-alone.in
    freeze readers readers.all
    { echo "# Made by requirements/lock.sh from readers.in and readers-alone.in: do not edit."; cat "$scratch/readers.all"; } >readers.txt
}

lock airflow airflow compose dev-airflow
lock stages stages demo dev-stages
lock_unseen stages-gpu stages.txt
lock_readers
