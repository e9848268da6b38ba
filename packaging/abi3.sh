#!/usr/bin/env bash
# Builds the wheel for Python 3.12 and later on a Debian whose own Python is older: in a newer Debian, unpacked into a
# folder and thrown away. Imports it there.
#
#     packaging/abi3.sh SDIST FOLDER        needs root, mmdebstrap and 500 MB; the wheel goes to FOLDER
#
# Ends with 77 where the newer Debian cannot be had.
set -euo pipefail
sdist=$(realpath "$1") folder=$(realpath "$2")
other=$(mktemp -d)
trap 'rm -rf "$other"' EXIT
mmdebstrap --quiet --variant=extract --include=base-files,dash,coreutils,python3.13-venv,libpython3.13-dev,g++ \
  trixie "$other" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" || exit 77
cp /etc/resolv.conf /etc/hosts "$other/etc/"
mkdir -p "$other/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$other/etc/ssl/certs/"
cp "$sdist" "$other/tmp/"
there() { chroot "$other" /usr/bin/env -u PIP_FIND_LINKS -u PIP_CONSTRAINT TMPDIR=/tmp "$@"; }
there python3.13 -m venv /venv
there /venv/bin/pip wheel -q --no-deps -w /tmp/wheels "/tmp/$(basename "$sdist")"
there /venv/bin/python - << 'PYTHON'
# torch for this Python is gigabytes: the module alone
import glob, sys, zipfile
zipfile.ZipFile(*glob.glob("/tmp/wheels/*.whl")).extractall("/tmp/unpacked")
sys.path.insert(0, "/tmp/unpacked/dlc_reg")
import _core
print(f"Python {sys.version.split()[0]} imports {_core.__file__.split('/')[-1]}: {_core.simd_level()}")
PYTHON
cp "$other"/tmp/wheels/*.whl "$folder"
