#!/usr/bin/env bash
# make image: images/invarlock-runtime.sif from Debian's archive and pip, without a registry and
# without privileges that a container lacks. Does nothing when neither code nor lists have changed.
#   build_image.sh          PYTHON: the interpreter of .venv; TORCH: pip's arguments for torch;
#                           INVARLOCK_CONTAINER_ENGINE: podman or docker get invarlock-runtime:local
#                           into their storage instead
#   build_image.sh engine   only see to Apptainer, or to the other engine; print the folder it lies in
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}" "${TORCH:=torch==2.13.0}" "${INVARLOCK_CONTAINER_ENGINE:=apptainer}"
[[ $INVARLOCK_CONTAINER_ENGINE == auto ]] && INVARLOCK_CONTAINER_ENGINE=apptainer
[[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON # it is called from other folders too
lists=(envs/debian-packages.txt envs/requirements.lock envs/requirements-embedded.lock)
image=images/invarlock-runtime.sif
own=$PWD/.tools/apptainer/usr/bin
oci=
case $INVARLOCK_CONTAINER_ENGINE in
  apptainer) ;;
  podman | docker) oci=$INVARLOCK_CONTAINER_ENGINE image=invarlock-runtime:local ;;
  *)
    echo "make image: INVARLOCK_CONTAINER_ENGINE is $INVARLOCK_CONTAINER_ENGINE; expected apptainer, podman or docker" >&2
    exit 2
    ;;
esac

need() { # need PROGRAM...: all of them, or one line that names Debian's packages
  local missing=() program
  for program in "$@"; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [[ ${#missing[@]} -eq 0 ]] && return
  echo "make image: not found: ${missing[*]}; install with: apt-get install mmdebstrap squashfs-tools patchelf" >&2
  exit 3
}

engine() { # the folder of apptainer: on the PATH, or fetched once; that of another engine
  if [[ $oci ]]; then
    need "$oci"
    dirname "$(command -v "$oci")"
    return
  fi
  if command -v apptainer >/dev/null; then
    dirname "$(command -v apptainer)"
    return
  fi
  if ! "$own/apptainer" --version >/dev/null 2>&1; then
    need apt-get dpkg patchelf
    rm -rf .tools/apptainer
    if ! bash tools/apptainer_from_sid.sh .tools/apptainer >/dev/null; then
      echo "make image: Apptainer is not on the PATH and could not be fetched; install it from https://apptainer.org" >&2
      exit 4 # told apart by .ci/run: Debian's unstable archive moves
    fi
  fi
  echo "$own"
}

compile() { # with the image's own Python; checked by nothing when it is used
  if [[ $oci ]]; then # as root of a name space of its own, where this is not root
    local as=()
    [[ $(id -u) -eq 0 ]] || as=(unshare --map-root-user)
    "${as[@]}" chroot "$root" python3 -m compileall -qq -j0 --invalidation-mode unchecked-hash "${1#"$root"}" 2>/dev/null ||
      true # byte code only saves time
    return
  fi
  apptainer --silent exec --contain --no-home --writable "$root" \
    python -m compileall -qq -j0 --invalidation-mode unchecked-hash "${1#"$root"}"
}

if [[ ${1:-} == engine ]]; then
  engine
  exit
fi

packages=$(cat "${lists[@]}" envs/trim_packages.sh <(echo "$TORCH") | sha256sum | cut -c1-16)
code=$("$PYTHON" -c 'from invarlock.code_digest import package_digest; print(package_digest())')
made() { # of which packages and code the image is that is there
  if [[ $oci ]]; then
    "$oci" image inspect --format '{{index .Config.Labels "invarlock.made"}}' "$image" 2>/dev/null || true
  elif [[ -f $image ]]; then
    cat "$image.made" 2>/dev/null || true
  fi
}
if [[ $(made) == "$packages $code" ]]; then
  echo "$image is up to date"
  exit
fi
if [[ $oci ]]; then need mmdebstrap tar; else need mmdebstrap mksquashfs tar; fi
folder=$(engine)
PATH=$folder:$PATH
pip=("$PYTHON" -m pip install -qq --disable-pip-version-check --no-compile --python-version 3.11 --only-binary=:all:)
root=.tools/image-$packages
site=$root/usr/local/lib/python3.11/dist-packages

# 1. Everything but our own package; kept, because it changes seldom.
if [[ ! -f $root.ready ]]; then
  rm -rf .tools/image-*
  mkdir -p .tools # Apptainer, which makes it otherwise, is not fetched for Podman and Docker
  echo "Making $image: Debian 12 and the Python packages (once; about two minutes)"
  mmdebstrap --quiet --variant=minbase --include="$(paste -sd, envs/debian-packages.txt)" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$root.tar"
  mkdir -p "$root"
  tar -xf "$root.tar" -C "$root" --exclude='./dev/*'
  rm "$root.tar"
  # shellcheck disable=SC2086 # TORCH holds arguments
  "${pip[@]}" --target "$site" -c envs/requirements.lock $TORCH '.[run]'
  "${pip[@]}" --target "$site" --no-deps -r envs/requirements-embedded.lock
  sh envs/trim_packages.sh "$site"
  mkdir -p "$root/.singularity.d/env" "$root/usr/local/share/invarlock"
  # the code of the image, whatever folder it is called in
  echo 'export PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1' >"$root/.singularity.d/env/92-invarlock.sh"
  compile "$site" || true # some of torch's files are written for a later Python
  touch "$root.ready"
fi

# 2. Our own package and the label.
rm -rf "$site"/invarlock "$site"/invarlock-*
"${pip[@]}" --target "$root.own" --no-deps .
mv "$root.own"/invarlock "$root.own"/invarlock-* "$site"
rm -rf "$root.own"
printf '%s\n' '#!/usr/bin/python3' 'from invarlock.cli import main' 'raise SystemExit(main())' >"$root/usr/local/bin/invarlock"
chmod 755 "$root/usr/local/bin/invarlock"
# in that folder, so that the label is of the very code that is packed
lists=("${lists[@]/#/$PWD/}")
(cd "$site" && "$PYTHON" -m invarlock advanced provenance label --packages "${lists[@]}" \
  --out "$OLDPWD/$root/usr/local/share/invarlock/image.json")
compile "$site/invarlock"

# 3. Into the storage of the engine. Apptainer's mark stays outside, where the engine makes its own.
if [[ $oci ]]; then
  tar -C "$root" --exclude=./.singularity.d --owner=0 --group=0 -c . |
    "$oci" import --change 'ENV PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1' \
      --change "LABEL invarlock.made=\"$packages $code\"" - "$image" >/dev/null
  echo "$image in the storage of $oci, $("$oci" image inspect --format '{{.Id}}' "$image")"
  exit
fi

# Or one file of it, in place by a rename.
mkdir -p images
fast=()
if apptainer build --help | grep -q mksquashfs-args; then
  fast=(--mksquashfs-args "-comp zstd -Xcompression-level 6")
fi
apptainer --silent build --force "${fast[@]}" "$image.tmp" "$root"
mv "$image.tmp" "$image"
echo "$packages $code" >"$image.made"
echo "$image: $(du -h "$image" | cut -f1), sha256:$(sha256sum "$image" | cut -c1-64)"
