# What the scripts beside this file share.
# shellcheck shell=bash

DOCKER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-edgenewton}
export IMAGE=${IMAGE:-edgenewton:latest}
export FLEET=$DOCKER/.fleet/$COMPOSE_PROJECT_NAME # what was made for this fleet
export CA=${CA:-$DOCKER/ca}                       # the authority of the variant tls

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Compose v2 if it is there, else docker-compose 1.29.
compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose "$@"
    else
        docker-compose "$@"
    fi
}

# Uses the files of the fleet that was brought up last.
use_fleet() {
    [ -f "$FLEET/files" ] || fail "there is no fleet $COMPOSE_PROJECT_NAME; begin with docker/up"
    COMPOSE_FILE=$(cat "$FLEET/files")
    export COMPOSE_FILE
}
