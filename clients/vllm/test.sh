#!/usr/bin/env bash
# vLLM's scheduler over mlxrt servers: makes the virtual environment of these tests and runs them.
# usage: clients/vllm/test.sh PYTHON [pytest arguments], PYTHON that of an environment with mlxrt
set -euo pipefail
export TEST_SERVER_PYTHON=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
cd "$(dirname "$0")"
environment=../../.venv-vllm
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet --no-deps -r requirements.txt ../python .
exec "$environment/bin/python" -m pytest "$@"
