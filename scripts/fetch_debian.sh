# Sourced by the setup scripts: fetches Debian packages and unpacks them, without installing anything and
# without root. apt checks what it downloads, in a state of its own, so that what is installed on this
# machine does not matter.

cache=${ESKER_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:?names no folder}/.cache}/esker-test}
name=$(basename "$0" .sh)

# open_folder KIND: sets `dir` to a folder that belongs to this version of the script. When it is complete,
# prints it and ends the script.
open_folder() {
    dir=$cache/$1-$(cat "$0" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-12)
    if [ ! -e "$dir/complete" ]; then
        if [ "$(dpkg --print-architecture 2>/dev/null)" != amd64 ]; then
            echo "$name: needs Debian on amd64" >&2
            exit 1
        fi
        mkdir -p "$cache"
        exec 9>"$cache/$1.lock"
        flock 9
    fi
    if [ -e "$dir/complete" ]; then # perhaps somebody else has made it meanwhile
        echo "$dir"
        exit 0
    fi
    find "$cache" -maxdepth 1 -name "$1-*" -mtime +7 -exec rm -rf {} +
    rm -rf "$dir"
    mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" "$dir/debian"
    options=(-o "Dir::State=$dir/apt" -o "Dir::State::lists=$dir/apt/lists" -o Dir::State::status=/dev/null
        -o "Dir::Cache=$dir/apt" -o "Dir::Cache::archives=$dir/apt/archives" -o Debug::NoLocking=true
        -o APT::Sandbox::User= -o APT::Install-Recommends=false -o Acquire::Retries=3
        -o Acquire::http::Timeout=30)
    # A source that cannot be reached matters only if something is missing afterwards.
    apt-get -qq "${options[@]}" update >&2 || true
}

# fetch PACKAGE...: with all they depend on, down to libc.
fetch() {
    apt-get -qq -y "${options[@]}" --download-only install "$@" >&2
}

# fetch_alone PACKAGE: without what it depends on.
fetch_alone() {
    (cd "$dir/apt/archives" && apt-get -qq "${options[@]}" download "$1" >&2)
}

# Unpacks what was fetched into $dir/debian.
unpack() {
    local package
    for package in "$dir"/apt/archives/*.deb; do
        dpkg -x "$package" "$dir/debian"
    done
    rm -rf "$dir/apt" "$dir"/debian/usr/share/{doc,locale,man}
}

# The folder may be used from now on.
close_folder() {
    touch "$dir/complete"
    echo "$dir"
}
