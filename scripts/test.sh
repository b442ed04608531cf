#!/usr/bin/env bash
# All tests, in the demo's environment. Arguments are passed on: test.sh tests/test_model.py -k dropout
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pytest "$@"
