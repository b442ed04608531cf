# Sourced by demo.sh and test.sh: makes .venv in the checkout with pinned packages, once, and activates it.
# Made anew only when what it is made from changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=$(cat pyproject.toml scripts/constraints.txt | sha256sum | cut -c1-16)
if [ "$(cat .venv/made-from 2>/dev/null)" != "$wanted" ]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed; this is $("$python" --version 2>&1). Name another with PYTHON=/path/to/python" >&2
        exit 2
    fi
    echo "making .venv (once; about 2 minutes and 6 GB, most of it torch)"
    "$python" -m venv --clear .venv || { echo "python's venv module is needed: apt-get install python3-venv" >&2; exit 2; }
    .venv/bin/pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable '.[lite0,dev]'
    echo "$wanted" > .venv/made-from
fi
source .venv/bin/activate
