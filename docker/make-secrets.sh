#!/bin/sh
# Random secrets for compose.yaml, as files in docker/secrets (or the folder named): what is there is kept.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"  # the folder keeps others out; the files are read by several accounts in containers
cd "$folder"

keep() {  # keep FILE: standard input becomes the file, unless it exists
    if [ ! -e "$1" ]; then
        cat >"$1.new"
        chmod 444 "$1.new"
        mv "$1.new" "$1"
    fi
}

for name in postgres_password ray_token dashboard_password grafana_password; do
    openssl rand -hex 32 | tr -d '\n' | keep "$name"
done
printf 'postgresql://mergesearch:%s@postgres:5432/mergesearch' "$(cat postgres_password)" | keep storage_url
printf 'mergesearch:%s\n' "$(openssl passwd -6 -stdin <dashboard_password)" | keep dashboard_htpasswd
echo "secrets are in $(pwd); the user of the dashboard is mergesearch, Grafana's is admin"
