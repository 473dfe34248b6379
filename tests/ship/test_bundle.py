"""Sigstore bundles, made here and checked by openssl, and the other way round."""

import base64
import json
import subprocess

import pytest

from prewarm.core.digest import digest_of
from prewarm.ship.bundle import (
    BUNDLE_TYPE,
    make_bundle,
    names_key,
    open_bundle,
    pre_authentication,
)
from prewarm.ship.keys import read_private_key, read_public_key
from prewarm.ship.statement import (
    PROVENANCE,
    SIGNATURE,
    UntrustedError,
    make_statement,
    read_statement,
    require,
)

IMAGE, ANOTHER = digest_of(b"image"), digest_of(b"another")
NAME = "registry.example/team/caches"
STATEMENT = make_statement(SIGNATURE, {}, IMAGE, NAME)


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)
    return done.stdout


def key_pair(directory):
    private, public = directory / "key", directory / "key.pub"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def bundle(ours):
    return make_bundle(STATEMENT, read_private_key(ours[0]))


def test_openssl_verifies_the_envelope(ours, bundle, tmp_path):
    """Over the bytes that DSSE says, put together here by its own words."""
    envelope = json.loads(bundle)["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (tmp_path / "signed").write_bytes(
        b"DSSEv1 " + f"{len(kind)} {kind} {len(payload)} ".encode() + payload
    )
    (signature,) = envelope["signatures"]
    (tmp_path / "signature").write_bytes(base64.b64decode(signature["sig"]))

    verify = ("dgst", "-sha256", "-verify", ours[1], "-signature", tmp_path / "signature")

    assert openssl(*verify, tmp_path / "signed") == b"Verified OK\n"
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": NAME, "digest": {"sha256": IMAGE.partition(":")[2]}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }


def signed_by_openssl(private, statement, directory, kind="application/vnd.in-toto+json"):
    """Return a bundle as cosign writes it: protojson leaves out what is empty."""
    (directory / "signed").write_bytes(pre_authentication(kind, statement))
    signature = openssl("dgst", "-sha256", "-sign", private, directory / "signed")
    envelope = {"payload": base64.b64encode(statement).decode(), "payloadType": kind}
    envelope["signatures"] = [{"sig": base64.b64encode(signature).decode()}]
    material = {"publicKey": {"hint": "anything"}}
    whole = {"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    return json.dumps(whole).encode()


def test_we_verify_what_openssl_signs(ours, tmp_path):
    statement = json.dumps({"subject": [], "_type": "https://in-toto.io/Statement/v1"}).encode()
    made = signed_by_openssl(ours[0], statement, tmp_path)
    assert open_bundle(made, read_public_key(ours[1])) == statement


def test_the_bytes_are_those_of_the_protocol_s_own_example():
    """From the DSSE protocol, "Test vectors"."""
    made = pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert made == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_the_key_is_named_as_cosign_names_it(ours, theirs, bundle):
    """By the SHA-256 of its DER; the envelope names none, or sigstore-go would not look at it."""
    der = openssl("pkey", "-pubin", "-in", ours[1], "-outform", "DER")
    hint = base64.b64encode(bytes.fromhex(digest_of(der).partition(":")[2])).decode()
    whole = json.loads(bundle)
    assert whole["verificationMaterial"]["publicKey"] == {"hint": hint}
    assert list(whole["dsseEnvelope"]["signatures"][0]) == ["sig"]
    assert names_key(bundle, read_public_key(ours[1]))
    assert not names_key(bundle, read_public_key(theirs[1]))


def test_equal_statements_make_equal_bundles_where_openssl_can(ours, bundle):
    from cryptography.hazmat.backends.openssl import backend

    if not backend.ecdsa_deterministic_supported():
        pytest.skip("this OpenSSL signs with chance")
    assert make_bundle(STATEMENT, read_private_key(ours[0])) == bundle


def refused(bundle, key):
    with pytest.raises(UntrustedError) as error:
        open_bundle(bundle, read_public_key(key[1]))
    return str(error.value)


def test_the_bundle_of_another_key_is_refused(bundle, theirs):
    assert "made with another key" in refused(bundle, theirs)


@pytest.mark.parametrize("field", ["payload", "payloadType", "sig"])
def test_every_changed_byte_is_refused(bundle, ours, field):
    whole = json.loads(bundle)
    holder = whole["dsseEnvelope"]
    holder = holder["signatures"][0] if field == "sig" else holder
    text = holder[field]
    for place in range(0, len(text) - 4, 5):
        other = "A" if text[place] != "A" else "B"
        holder[field] = text[:place] + other + text[place + 1 :]
        refused(json.dumps(whole).encode(), ours)
    holder[field] = text
    assert open_bundle(json.dumps(whole).encode(), read_public_key(ours[1])) == STATEMENT


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.1", "bundle of type"),
        ("dsseEnvelope", None, "no Sigstore bundle"),
        ("dsseEnvelope.signatures", [], "0 signatures"),
        ("dsseEnvelope.signatures", [{"sig": "AA=="}] * 2, "2 signatures"),
        ("dsseEnvelope.payload", "%", "no base64"),
    ],
)
def test_what_is_no_bundle_is_refused(bundle, ours, place, value, reason):
    whole = json.loads(bundle)
    holder, *names = whole, *place.split(".")
    for name in names[:-1]:
        holder = holder[name]
    holder[names[-1]] = value
    assert reason in refused(json.dumps(whole).encode(), ours)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"a":' * 20_000])
def test_what_is_no_json_is_refused(ours, data):
    assert "no Sigstore bundle" in refused(data, ours)


def test_a_signed_payload_of_another_type_is_refused(ours, tmp_path):
    made = signed_by_openssl(ours[0], STATEMENT, tmp_path, kind="text/plain")
    assert "its payload is of type 'text/plain'" in refused(made, ours)


# Statements


def untrusted(statement, predicate_type=SIGNATURE, digest=IMAGE, name=None):
    with pytest.raises(UntrustedError) as error:
        require(read_statement(statement), predicate_type, digest, name)
    return str(error.value)


def test_a_statement_counts_for_its_image_and_its_name_alone():
    require(read_statement(STATEMENT), SIGNATURE, IMAGE)
    require(read_statement(STATEMENT), SIGNATURE, IMAGE, NAME)
    assert "it is the signature of another image" in untrusted(STATEMENT, digest=ANOTHER)
    assert f"it was signed as {NAME}, not as x/y" in untrusted(STATEMENT, name="x/y")
    assert "it says" in untrusted(STATEMENT, PROVENANCE)


def test_a_statement_without_a_name_as_cosign_makes_it_counts_where_no_name_is_asked_for():
    cosigns = make_statement(SIGNATURE, {}, IMAGE)
    require(read_statement(cosigns), SIGNATURE, IMAGE)
    assert "it was signed as an image without a name" in untrusted(cosigns, name=NAME)


def test_a_name_counts_for_the_digest_beside_it_alone():
    both = json.loads(STATEMENT)
    both["subject"].append({"name": "x/y", "digest": {"sha256": ANOTHER.partition(":")[2]}})
    assert "not as x/y" in untrusted(json.dumps(both).encode(), name="x/y")


@pytest.mark.parametrize("data", [b"{}", b"null", b'{"_type":"a","subject":[],"predicateType":""}'])
def test_what_is_no_statement_is_refused(data):
    with pytest.raises(UntrustedError, match="its payload is"):
        read_statement(data)
