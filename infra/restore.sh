#!/bin/sh
# Restore a folder that infra/backup.sh made, into databases and buckets that are empty.
#
#   infra/restore.sh BACKUP             PostgreSQL and S3 by the standard variables PG* and AWS_*
#   infra/restore.sh --compose BACKUP   those of docker-compose.yaml, from the folder that holds it
#
# Only PostgreSQL and S3 may run meanwhile. Roles and empty databases have to be there (infra/setup/roles.sql), and keys have to
# be those of then. What is named comes before what names it, so a restore that was cut short shows nothing that is missing.
set -eu

usage="usage: $0 [--compose] BACKUP"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

psql_() { psql "$@"; }
pg_restore_() { pg_restore "$@"; }
archive() { "${PYTHON:-python3}" "$here/setup/bucket_archive.py" "$@"; }
if [ "${1:-}" = --compose ]; then
  shift
  psql_() { docker compose exec -T postgres psql --username=postgres "$@"; }
  pg_restore_() { docker compose exec -T postgres pg_restore --username=postgres "$@"; }
  archive() { docker compose run --rm -T --no-deps s3-buckets python infra/setup/bucket_archive.py "$@"; }
fi
[ $# -eq 1 ] || { echo "$usage" >&2; exit 2; }

backup=$(CDPATH='' cd -- "$1" && pwd)
(cd "$backup" && sha256sum --check --quiet --strict SHA256SUMS) || {
  echo "$backup is damaged or unfinished: take another backup, nothing was changed" >&2
  exit 1
}
databases=$(cat "$backup/databases")
buckets=$(cat "$backup/buckets")

for database in $databases; do
  tables=$(psql_ --no-psqlrc --tuples-only --no-align --dbname="$database" < /dev/null \
    --command="SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')") || {
    echo "database $database cannot be reached: make roles and databases with infra/setup/roles.sql first" >&2
    exit 1
  }
  if [ "$tables" -ne 0 ]; then
    echo "database $database is not empty ($tables tables): drop it, make it anew, then restore" >&2
    exit 1
  fi
done
for bucket in $buckets; do
  archive load "$bucket" < "$backup/$bucket.tar"
done
# The other way round than they were taken.
reversed=''
for database in $databases; do reversed="$database $reversed"; done
for database in $reversed; do
  pg_restore_ --exit-on-error --single-transaction --dbname="$database" < "$backup/$database.dump"
  echo "database $database: restored" >&2
done
