#!/usr/bin/env bash
# The tests, in the demo's environment, a process per core and one for when others wait. Without names of tests: those of the
# whole product that take minutes; `test.sh all`: those about processes as well (signals, kills, SLURM, wheels, browsers, compilers,
# real images), a quarter of an hour. Arguments are passed on: test.sh tests/model/test_classifier.py -k dropout
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case ${1-} in
    all) shift ;;
    "" | -*) set -- -m "not slow" "$@" ;;
esac
python -m pytest --numprocesses $(($(nproc) + 1)) --dist worksteal "$@"
