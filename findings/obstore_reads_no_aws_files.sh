#!/usr/bin/env bash
# obstore 0.12.1: keys in ~/.aws/credentials are not used.
#
# Expected: the credentials that every other AWS program finds, since the environment's names, a web
# identity, a container's and a machine's role are looked for as these do.
# Behavior: the file is not read, whatever AWS_PROFILE says; the machine's metadata service is asked
# instead, also with AWS_EC2_METADATA_DISABLED=true, and the error names only that. The same client
# with the keys in its environment writes.
# Seen: boto3, keys in ~/.aws: written
#       obstore, keys in ~/.aws: no, it has asked the metadata service
#       obstore, keys in the environment: written
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet obstore==0.12.1 boto3==1.43.4 "moto[s3,server]==5.2.5"

port=$(python3 -c "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])")
"$folder/venv/bin/python" -m moto.server -H 127.0.0.1 -p "$port" >"$folder/server.log" 2>&1 &
server=$!
mkdir "$folder/.aws"
printf '[default]\naws_access_key_id = example\naws_secret_access_key = example\n' >"$folder/.aws/credentials"

cat >"$folder/write.py" <<'PY'
import os
import sys
import time
from datetime import timedelta

import boto3
import obstore
from obstore.store import S3Store

url = sys.argv[1]
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-east-1"}
for _ in range(100):
    try:
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        break
    except Exception:
        time.sleep(0.2)
client.put_object(Bucket="bucket", Key="boto3", Body=b"1")
print("boto3, keys in ~/.aws: written")


def write(where: str) -> None:
    store = S3Store(
        "bucket",
        endpoint=url,
        client_options={"allow_http": True, "timeout": timedelta(seconds=3)},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=3)},
    )
    try:
        obstore.put(store, "obstore", b"1")
        print(f"obstore, keys in {where}: written")
    except Exception as error:
        asked = "169.254.169.254" in str(error) or "metadata" in str(error)
        print(f"obstore, keys in {where}: no, it has {'' if asked else 'not '}asked the metadata service")


write("~/.aws")
os.environ |= {"AWS_ACCESS_KEY_ID": "example", "AWS_SECRET_ACCESS_KEY": "example"}
write("the environment")
PY
seen=$(env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY -u AWS_PROFILE HOME="$folder" \
    timeout 120 "$folder/venv/bin/python" "$folder/write.py" "http://127.0.0.1:$port")
echo "$seen"
expected="boto3, keys in ~/.aws: written
obstore, keys in ~/.aws: no, it has asked the metadata service
obstore, keys in the environment: written"
[[ $seen == "$expected" ]] || { echo "the behavior has changed" && exit 1; }
