"""Whether a package index has PyTorch: ends with 0 when it answers in time. Its address is the variable PYTORCH_FROM."""

import base64
import os
import urllib.parse
import urllib.request

address = urllib.parse.urlsplit(os.environ["PYTORCH_FROM"].rstrip("/") + "/torch/")
request = urllib.request.Request(address._replace(netloc=address.netloc.rpartition("@")[2]).geturl())  # noqa: S310 - the user's
if address.username is not None:
    # urllib takes a name and a password for a part of the host. Where the index sends us elsewhere, they are not sent along.
    said = urllib.parse.unquote(f"{address.username}:{address.password or ''}").encode()
    request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(said).decode()}")
urllib.request.urlopen(request, timeout=4).close()  # noqa: S310
