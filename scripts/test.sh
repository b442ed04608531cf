#!/usr/bin/env bash
# All tests, in the demo's environment, a process per core and one for when others wait. Arguments are passed on: test.sh tests/test_model.py -k dropout
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pytest --numprocesses $(($(nproc) + 1)) --dist loadfile --no-loadscope-reorder "$@"
