# Sourced by scripts/quickstart and scripts/test: makes a virtual environment once.

# environment FOLDER PIP-ARGUMENTS...
# Sets VENV. Does nothing if FOLDER was made here by the same arguments, pyproject.toml and pins.
environment() {
  VENV="$PWD/$1"
  shift
  local key
  key="$PWD $* $(cat pyproject.toml scripts/pinned.txt)" # an environment can't be moved
  if [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.made-of" 2>/dev/null)" = "$key" ]; then
    return
  fi
  local python
  python="$(find_python)"
  echo "== making $VENV with $("$python" --version) (downloads about 6 GB once: PyTorch and CUDA)"
  "$python" -m venv --clear "$VENV"
  "$VENV/bin/python" -m pip install --quiet --upgrade pip
  echo "== installing $* (some minutes)"
  local bar=off
  [ -t 1 ] && bar=on # in a terminal; a log would fill with it
  "$VENV/bin/python" -m pip install --progress-bar "$bar" --editable "$@"
  printf '%s' "$key" > "$VENV/.made-of"
}

find_python() {
  local name
  for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$name" ] && command -v "$name" >/dev/null &&
      "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "No Python 3.11 or newer with venv found. Install one, or name it: PYTHON=/path/to/python $0" >&2
  exit 1
}
