# Shared by the scripts beside this folder: messages, and installing what is missing. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
# Where Debian has nats-server and PostgreSQL; not in the path of ordinary users.
PATH=$PATH:/usr/sbin
for folder in /usr/lib/postgresql/*/bin; do
    [ ! -d "$folder" ] || PATH=$PATH:$folder
done

# The oldest Rust that builds Harbor: `rust-version` of Cargo.toml.
rust_version=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)

say() {
    printf '\n== %s\n' "$*"
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Exit code 2: the machine lacks something that the script cannot or may not install.
lacking() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

# PostgreSQL keeps its programs out of the way of commands.
have() {
    command -v "$1" >/dev/null 2>&1 || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

# need COMMAND PACKAGE …: installs the packages whose commands are missing, in one go.
need() {
    local packages=()
    while [ $# -gt 0 ]; do
        have "$1" || packages+=("$2")
        shift 2
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        lacking "missing packages. Install them as root: apt-get install ${packages[*]}"
    fi
    have apt-get || lacking "missing packages, and no apt-get to install them: ${packages[*]}"
    say "installing ${packages[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${packages[@]}" >/dev/null
}

need_rust() {
    have cargo || lacking "there is no cargo: install Rust $rust_version or later, https://rustup.rs"
    local version
    version=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$rust_version" "${version%%-*}" | sort -V | head -n 1)" != "$rust_version" ]; then
        lacking "Rust $version is too old: install $rust_version or later, https://rustup.rs"
    fi
}

# need_rust_part COMMAND COMPONENT: rustfmt and clippy, which a minimal toolchain lacks.
need_rust_part() {
    cargo "$1" --version >/dev/null 2>&1 && return 0
    have rustup || lacking "cargo $1 is missing: install the component $2 of your Rust"
    rustup component add "$2"
}
