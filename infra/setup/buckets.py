"""Makes the buckets of the S3 server; those that are there stay as they are. Run at every start of the platform."""

from __future__ import annotations

BUCKETS = ("mlflow-artifacts", "reviewclf-store")


def main() -> None:
    """Create what is missing; the address and the keys come from the standard AWS variables."""
    import boto3

    client = boto3.client("s3")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)
        print(f"bucket {name}: {'there already' if name in there else 'created'}", flush=True)


if __name__ == "__main__":
    main()
