"""Decrypts Web Push requests with http_ece, and verifies their VAPID tokens.

Reads one JSON object a line: body, private, auth, t and k in base64url. Writes
one for each: the plain text in base64url, and the token's claims.
"""
import base64
import hashlib
import json
import sys

import http_ece
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


for line in sys.stdin:
    q = json.loads(line)
    private = ec.derive_private_key(int.from_bytes(decode(q["private"]), "big"), ec.SECP256R1())
    plain = http_ece.decrypt(decode(q["body"]), private_key=private, auth_secret=decode(q["auth"]), version="aes128gcm")

    head, claims, signature = q["t"].split(".")
    raw = decode(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decode(q["k"]))
    public.verify(der, f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA256()))

    print(json.dumps({"plain": encode(plain), "head": json.loads(decode(head)), "claims": json.loads(decode(claims))}))
