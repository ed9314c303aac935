#!/usr/bin/env bash
# Check what pip cannot install: Python with venv and headers, a C++ compiler, and the libraries that opencv-python loads.
# Prints the one line that installs what is missing, and fails.   .ci/requirements.sh [PYTHON]
set -uo pipefail

python=${1:-python3}
deb=() rpm=() missing=()

lacks() { # lacks WHAT DEB_PACKAGE RPM_PACKAGE
    missing+=("$1")
    deb+=("$2")
    rpm+=("$3")
}

has_library() {
    { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -qF "$1" && return
    "$python" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null
}

if ! command -v "$python" >/dev/null; then
    lacks "$python" "python3 python3-venv python3-dev" "python3 python3-devel"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" --version 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 …" >&2
    exit 2
else
    # The package of a Python that is not the system's own has its version in its name (python3.12-venv).
    name=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    system=$(readlink -f /usr/bin/python3 2>/dev/null)
    [ "$(readlink -f "$(command -v "$python")")" = "$system" ] && name=python3
    "$python" -c 'import venv, ensurepip' 2>/dev/null || lacks "Python's venv module" "$name-venv" "$name"
    header=$("$python" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
    [ -e "$header" ] || lacks "Python's headers ($header)" "$name-dev" "$name-devel"
fi
command -v make >/dev/null || lacks "make" make make
command -v "${CXX:-g++}" >/dev/null || lacks "a C++ compiler (${CXX:-g++})" g++ gcc-c++
if [ "$(uname -s)" = Linux ]; then
    has_library libGL.so.1 || lacks "libGL.so.1 (opencv)" libgl1 mesa-libGL
    has_library libgthread-2.0.so.0 || lacks "libgthread-2.0.so.0 (opencv)" libglib2.0-0 glib2
fi

[ ${#missing[@]} -eq 0 ] && exit 0
printf 'missing: %s\n' "${missing[@]}" >&2
sudo=
[ "$(id -u)" -eq 0 ] || sudo="sudo "
if command -v apt-get >/dev/null; then
    echo "install with:  ${sudo}apt-get update && ${sudo}apt-get install -y ${deb[*]}" >&2
elif command -v dnf >/dev/null; then
    echo "install with:  ${sudo}dnf install -y ${rpm[*]}" >&2
else
    echo "install these with your system's package manager (Debian's names: ${deb[*]}; Fedora's: ${rpm[*]})" >&2
fi
exit 2
