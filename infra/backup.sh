#!/bin/sh
# Back up the databases and buckets into a new folder below FOLDER; the platform may go on running.
#
#   infra/backup.sh FOLDER             PostgreSQL and S3 by the standard variables PG* and AWS_*
#   infra/backup.sh --compose FOLDER   those of docker-compose.yaml, from the folder that holds it
#
# Which ones: REVIEWCLF_DATABASES and REVIEWCLF_BUCKETS. What names something comes before what it names: Airflow's runs name
# those of MLflow, and MLflow's name artifacts. The names of objects that came in between are missing, never the objects.
# Promotions that came in between are in the store's history alone: reviewclf moves the aliases after a restore.
# The keys in .env are not in the backup: without the Fernet key the connections in it cannot be read. Keep them elsewhere.
set -eu
umask 077

usage="usage: $0 [--compose] FOLDER"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
databases=${REVIEWCLF_DATABASES:-airflow mlflow mlflow_accounts}
buckets=${REVIEWCLF_BUCKETS:-reviewclf-store mlflow-artifacts}

pg_dump_() { pg_dump "$@"; }
archive() { "${PYTHON:-python3}" "$here/setup/bucket_archive.py" "$@"; }
if [ "${1:-}" = --compose ]; then
  shift
  pg_dump_() { docker compose exec -T postgres pg_dump --username=postgres "$@"; }
  archive() { docker compose run --rm -T --no-deps s3-buckets python infra/setup/bucket_archive.py "$@"; }
fi
[ $# -eq 1 ] || { echo "$usage" >&2; exit 2; }

mkdir -p "$1"
target=$1/reviewclf-$(date -u +%Y%m%dT%H%M%SZ)
draft=$target.unfinished
mkdir "$draft"
trap 'rm -rf "$draft"' EXIT
trap 'exit 130' INT TERM HUP

for database in $databases; do
  pg_dump_ --format=custom --compress=6 --dbname="$database" > "$draft/$database.dump"
  echo "database $database: $(wc -c < "$draft/$database.dump") bytes" >&2
done
for bucket in $buckets; do
  archive dump "$bucket" > "$draft/$bucket.tar"
done
(
  cd "$draft"
  echo "$databases" > databases
  echo "$buckets" > buckets
  sha256sum databases buckets ./*.dump ./*.tar > SHA256SUMS
)
sync
mv "$draft" "$target"
trap - EXIT
echo "$target"
