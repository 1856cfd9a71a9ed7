#!/bin/sh
# Creates an environment with another Airflow than the locks have, for `make test-airflow-versions`.
# The providers have the versions of the locks; all else is resolved, since each Airflow bounds other packages. So it has
# no hashes, and is for tests only.
set -eu
environment=$1 version=$2
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install -q "$(grep -om1 'uv==[0-9.]*' lock.sh)"
grep -hoE '^apache-airflow-providers-[^ ]+' airflow.txt dev-airflow.txt >"$scratch/providers.txt"
{ echo "apache-airflow==$version"; grep -hvE '^(#|apache-airflow==)' airflow.in dev-airflow.in; } >"$scratch/wanted.in"
"$environment/bin/uv" pip install -q --no-config --python "$environment/bin/python" -c "$scratch/providers.txt" -r "$scratch/wanted.in"
