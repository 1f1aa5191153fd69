#!/usr/bin/env bash
# tools/setup says the right thing for a machine with everything, one with nothing, and one that isn't Debian.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../tools" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/repository/tools" "$work/debian" "$work/other"
cp "$tools"/{setup,packages.txt,onednn.txt,python.txt} "$work/repository/tools"
for program in awk bash basename cat cmp comm dirname env id mktemp mkdir python3 rm sed sort touch tr uname wc; do
  ln -s "$(command -v "$program")" "$work/other/$program"
done
# A dpkg that knows the packages in $INSTALLED only, and an apt-get that must not be called.
cat > "$work/debian/dpkg-query" <<'FAKE'
#!/bin/bash
shift 3
for name in "$@"; do
  if [[ " $INSTALLED " == *" $name "* ]]; then echo "installed $name:amd64"; else echo "not-installed $name"; fi
done
FAKE
printf '#!/bin/bash\necho "apt-get was called: $*" >> "%s/calls"\n' "$work" > "$work/debian/apt-get"
chmod +x "$work"/debian/*

fail() { echo "setup_test: $*" >&2; exit 1; }
setup() { env PATH="$1:$work/other" INSTALLED="$2" "$work/other/bash" "$work/repository/tools/setup" "${@:3}" 2>&1; }
expect() { # text pattern
  [[ $1 == *"$2"* ]] || fail "expected '$2' in: $1"
}

every=$(awk '!/^#/ && NF { print $1 }' "$tools/packages.txt" | tr '\n' ' ')
[[ $(wc -w <<< "$every") -gt 15 ]] || fail "the list of packages is too short: $every"

output=$(setup "$work/debian" "$every" --dry-run --onednn pypi)
expect "$output" "packages: all there"
expect "$output" "would fetch oneDNN 3.2"
[[ $output != *Python* ]] || fail "the tests' Python packages without --tests in: $output"

expect "$(setup "$work/debian" "$every" --dry-run --tests)" "would fetch the Python packages"
mkdir -p "$work/repository/.deps/python"
cp "$tools/python.txt" "$work/repository/.deps/python/installed.txt"
expect "$(setup "$work/debian" "$every" --dry-run --tests)" "Python packages of the tests: there"
echo "another==1" >> "$work/repository/.deps/python/installed.txt"
expect "$(setup "$work/debian" "$every" --dry-run --tests)" "would fetch the Python packages"
rm -r "$work/repository/.deps"

output=$(setup "$work/debian" "${every/cmake /}" --dry-run)
expect "$output" "would install with apt-get: cmake"
[[ $output != *"g++"* ]] || fail "an installed package is in: $output"

output=$(setup "$work/debian" "" --dry-run)
for package in $every; do expect "$output" "$package"; done
[[ ! -e $work/calls && ! -e $work/repository/.deps ]] || fail "a dry run changed something"

output=$(setup "$work/debian" "$every" --onednn system)
expect "$output" "oneDNN: the system's"
expect "$(setup "$work/debian" "$every" --dry-run)" "oneDNN: the system's" # the choice is remembered

status=0
output=$(setup "$work/none" "" --dry-run) || status=$?
[[ $status == 2 ]] || fail "status $status on a system that isn't Debian"
expect "$output" "module load"
expect "$output" "spack install"
expect "$output" "libhdf5-dev"

status=0
output=$(setup "$work/debian" "$every" --everything) || status=$?
[[ $status == 1 ]] || fail "status $status for an unknown argument"
expect "$output" "unknown argument '--everything'"
