# For `source`: how the set-up gets what only Debian has.

# Debian's packages that are needed, by root or by sudo where it asks for no password.
debian_install() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        echo "emosteer needs: $*. Install that (on Debian: sudo apt-get install $*), then run this again." >&2
        exit 1
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
