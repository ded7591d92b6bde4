#!/usr/bin/env bash
# Apptainer on Debian 12: Debian has it in sid only, built against a newer C
# library. This puts the .deb and the C library it wants under one PREFIX, and
# changes neither the machine's apt sources nor its libraries.
#   apptainer_from_sid.sh PREFIX      then:  export PATH=PREFIX/usr/bin:$PATH
# Needs: apt, dpkg, patchelf, libsqlite3-0; at run time squashfs-tools (+ uidmap,
# squashfuse when not root).
set -euo pipefail
prefix=$(realpath -m "${1:?PREFIX}")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work"/{lists/partial,cache/archives/partial,deb} "$prefix"
: > "$work/status"
# the same mirror that this machine already uses for Debian's main archive
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' \
         | awk '$2 !~ /-(security|updates)$/ && $1 ~ /\/debian\/?$/ {print $1; exit}')
[[ -n $mirror ]] || { echo "apptainer_from_sid: no Debian mirror configured (run apt-get update)" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" > "$work/sources.list"
opts=(-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/nonexistent
      -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status"
      -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
apt-get "${opts[@]}" -qq update
(cd "$work/deb" && apt-get "${opts[@]}" -qq download apptainer libc6 libseccomp2)
dpkg -x "$work"/deb/apptainer_*.deb "$prefix"
for d in libc6 libseccomp2; do dpkg -x "$work"/deb/${d}_*.deb "$prefix/sid"; done
lib=$prefix/sid/usr/lib/x86_64-linux-gnu
starter=$prefix/usr/lib/x86_64-linux-gnu/apptainer/bin/starter
for elf in "$prefix/usr/bin/apptainer" "$starter"; do
    patchelf --set-interpreter "$lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$lib:/usr/lib/x86_64-linux-gnu" "$elf"
done
# apptainer finds these relative to its own place
cp -a "$prefix/etc" "$prefix/usr/etc"
ln -sfn ../etc "$prefix/usr/lib/etc"
mkdir -p "$prefix/usr/lib/var/lib/apptainer/mnt/session"
# root inside a container lacks some capabilities, and asking for the full set then fails
sed -i 's/^root default capabilities.*/root default capabilities = no/' "$prefix/usr/etc/apptainer/apptainer.conf"
"$prefix/usr/bin/apptainer" --version
