#!/bin/sh
# apt-install PACKAGE...: installs Debian packages, from APT_MIRROR and APT_SECURITY_MIRROR if they are set. It removes caches
# and logs, so that the same packages always give the same files.
set -eu

options="-o APT::Sandbox::User=root"
if [ -n "${APT_MIRROR:-}" ]; then
    echo "deb [check-valid-until=no] $APT_MIRROR bookworm main" > /tmp/mirrors.list
    if [ -n "${APT_SECURITY_MIRROR:-}" ]; then
        echo "deb [check-valid-until=no] $APT_SECURITY_MIRROR bookworm-security main" >> /tmp/mirrors.list
    fi
    options="$options -o Dir::Etc::SourceList=/tmp/mirrors.list -o Dir::Etc::SourceParts=-"
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # several words
apt-get $options update
# shellcheck disable=SC2086
apt-get $options install --yes --no-install-recommends "$@"
rm -rf /tmp/mirrors.list /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
    /var/lib/dpkg/*-old /var/log/apt /var/log/*.log
