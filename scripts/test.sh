#!/usr/bin/env bash
# All tests, in the demo's environment, a process per core. Arguments are passed on: test.sh tests/test_model.py -k dropout
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pytest --numprocesses auto --dist loadfile "$@"
