#!/bin/sh
# Starts SeaweedFS. Only its S3 side listens beyond this container: master, volume and filer know no accounts.
# `mlflow` may use the bucket of artifacts and `platform` that of the store; only `admin` makes buckets.
set -eu
umask 077
conf=${S3_CONF:-/tmp/identities.json}
cat > "$conf" <<JSON
{"identities": [
  {"name": "admin",
   "credentials": [{"accessKey": "${S3_ADMIN_ACCESS_KEY}", "secretKey": "${S3_ADMIN_SECRET_KEY}"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "mlflow",
   "credentials": [{"accessKey": "${S3_MLFLOW_ACCESS_KEY}", "secretKey": "${S3_MLFLOW_SECRET_KEY}"}],
   "actions": ["Read:mlflow-artifacts", "Write:mlflow-artifacts", "List:mlflow-artifacts", "Tagging:mlflow-artifacts"]},
  {"name": "platform",
   "credentials": [{"accessKey": "${S3_PLATFORM_ACCESS_KEY}", "secretKey": "${S3_PLATFORM_SECRET_KEY}"}],
   "actions": ["Read:reviewclf-store", "Write:reviewclf-store", "List:reviewclf-store", "Tagging:reviewclf-store"]}
]}
JSON
exec weed server -dir="${S3_DATA:-/data}" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
  -volume.max=0 -master.volumeSizeLimitMB=1024 -master.volumePreallocate=false \
  -s3 -s3.ip.bind="${S3_BIND:-0.0.0.0}" -s3.config="$conf" -s3.port.iceberg=0 -s3.port.lance=0 \
  -metricsIp="${S3_BIND:-0.0.0.0}" -metricsPort=9327 "$@"
