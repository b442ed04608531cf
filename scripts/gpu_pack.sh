#!/usr/bin/env bash
# Fills data/gpu_check, which git ignores, with what gpu_check.sh needs on a machine without a network: wheels of what it may lack
# there (no torch; of Python GPU_PYTHON, 3.12), and a quarter of PACS (35 MB): bash scripts/gpu_pack.sh /path/to/PACS
set -euo pipefail
images=$(realpath "${1:?say where the folder PACS is}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pack=data/gpu_check
rm -rf "$pack"
mkdir -p "$pack/wheels" "$pack/data/PACS"
pip=(${PYTHON:-python3} -m pip --quiet --disable-pip-version-check)
wanted=(--no-deps --constraint scripts/constraints.txt)
"${pip[@]}" wheel "${wanted[@]}" --wheel-dir "$pack/wheels" antlr4-python3-runtime  # which has none
"${pip[@]}" download "${wanted[@]}" --dest "$pack/wheels" --only-binary=:all: --python-version "${GPU_PYTHON:-3.12}" \
    hydra-core omegaconf filelock requests idna urllib3 certifi \
    pytest iniconfig pluggy packaging Pygments sortedcontainers hypothesis
(cd "$images" && find . -type f | sort | awk 'NR % 4 == 1' | tar -cf - --files-from -) | tar -xf - -C "$pack/data/PACS"
echo "$(find "$pack/data" -type f | wc -l) images, $(find "$pack/wheels" -name '*.whl' | wc -l) wheels, $(du -sm "$pack" | cut -f1) MB in $pack"
