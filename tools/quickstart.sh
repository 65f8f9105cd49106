#!/usr/bin/env bash
# Sets the environment up, then trains and evaluates a small detector and draws its predictions on generated images.
#   bash tools/quickstart.sh [arguments of tools/quickstart.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/install.sh
venv=$(bash tools/venv.sh)
exec "$venv/bin/python" tools/quickstart.py "$@"
