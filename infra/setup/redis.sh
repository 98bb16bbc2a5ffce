#!/bin/sh
# Starts Redis for Celery: one user, who may do everything with messages and nothing with the server. `default`, the user
# without a password, is off.
set -eu
umask 077
conf=${REDIS_CONF:-/tmp/redis.conf}
cat > "$conf" <<CONF
user default off
user airflow on >${REDIS_PASSWORD} ~* &* +@all -@admin -flushall -flushdb
dir ${REDIS_DATA:-/data}
port ${REDIS_PORT:-6379}
appendonly yes
maxmemory-policy noeviction
CONF
exec redis-server "$conf"
