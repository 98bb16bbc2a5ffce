#!/bin/sh
# Builds the image where neither Docker nor a registry of images can be had, and runs the whole pipeline in it once. Needs root
# and Debian's packages buildah and debootstrap; processes share this machine's network and users (`--isolation chroot`).
#
#   infra/build-without-docker.sh                  the image
#   RUN_PIPELINE=1 infra/build-without-docker.sh   and then the bundled sample to a champion inside it
#
# The base gets the pinned name but is Debian's own Python, so the result proves the recipe; it is not for production.
# Private index or certificate: PIP_CONF=pip.conf CA_BUNDLE=ca.pem, see Dockerfile. PyTorch: TORCH_INDEX. Folders that the index
# refers to: BUILD_VOLUMES='/a:/a:ro /b:/b:ro'.
set -eu
cd "$(dirname -- "$0")/.."

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
base=$(sed -n 's/^ARG BASE=//p' infra/Dockerfile)
image=localhost/reviewclf:$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)

make_base() {
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  debootstrap --variant=minbase --include=ca-certificates,netbase,tzdata,python3.11-venv,python3-distutils bookworm "$folder" "$mirror"
  for name in python3.11 python3 python; do ln -s /usr/bin/python3.11 "$folder/usr/local/bin/$name"; done
  # The official image lets pip install into it, and holds no packages' archives.
  rm -rf "$folder/usr/lib/python3.11/EXTERNALLY-MANAGED" "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/*
  container=$(buildah from --isolation chroot scratch)
  buildah add --quiet "$container" "$folder" /
  # shellcheck disable=SC2016  # the container's shell is to expand it
  buildah run --isolation chroot "$container" -- sh -c \
    'wheel=$(ls /usr/share/python-wheels/pip-*.whl); PYTHONPATH=$wheel python -m pip install --quiet --root-user-action=ignore --no-index "$wheel"'
  buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
  buildah commit --quiet --rm "$container" "$base"
  rm -rf "$folder"
  trap - EXIT
}

buildah inspect --type image "$base" >/dev/null 2>&1 || make_base

set -- --isolation chroot --pull-never --layers --file infra/Dockerfile --tag "$image"
[ -z "${PIP_CONF:-}" ] || set -- "$@" --secret "id=pip_conf,src=$PIP_CONF"
[ -z "${CA_BUNDLE:-}" ] || set -- "$@" --secret "id=ca_bundle,src=$CA_BUNDLE"
[ -z "${TORCH_INDEX:-}" ] || set -- "$@" --build-arg "TORCH_INDEX=$TORCH_INDEX"
for volume in ${BUILD_VOLUMES:-}; do set -- "$@" --volume "$volume"; done
buildah bud "$@" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" .
buildah images "$image"

if [ "${RUN_PIPELINE:-}" = 1 ]; then
  container=$(buildah from --pull-never "$image")
  trap 'buildah rm "$container" >/dev/null' EXIT
  buildah run --isolation chroot "$container" -- sh -ec 'id; reviewclf up --once'
fi
