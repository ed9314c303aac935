#!/usr/bin/env bash
# Compile the extension with AddressSanitizer and UndefinedBehaviorSanitizer, beside the ordinary build, and run the
# tests of the operations and masks on it: .ci/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(realpath -s "$1")
built=$PWD/build/sanitized

mkdir -p "$built"
TOOLBOX_SANITIZE=1 TOOLBOX_CUDA=0 "$python" setup.py --quiet build_ext --build-lib "$built" --build-temp "$built/temp"
find toolbox -name '*.py' -print0 | while IFS= read -r -d '' file; do
    install -D -m 644 "$file" "$built/$file"
done

# Python itself is not instrumented, so the runtime is loaded first, and what Python keeps until its end is no leak.
asan=$("${CXX:-g++}" -print-file-name=libasan.so)
stdcxx=$("${CXX:-g++}" -print-file-name=libstdc++.so)
PYTHONPATH="$built" LD_PRELOAD="$asan:$stdcxx" ASAN_OPTIONS=detect_leaks=0 "$python" - <<PYTHON
import os, sys
os.chdir("$built")
sys.path.insert(0, "$built")
from toolbox.ops import _native
assert _native.__file__.startswith("$built"), f"another build is found: {_native.__file__}"
PYTHON
cd "$built" # or the sources' own folder would be found before
LD_PRELOAD="$asan:$stdcxx" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    PYTHONPATH="$built" "$python" -m pytest -q -p no:cacheprovider -m "not slow" \
    --rootdir "$OLDPWD" -c "$OLDPWD/pyproject.toml" "$OLDPWD/tests/ops" "$OLDPWD/tests/masks"
