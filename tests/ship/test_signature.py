"""Signatures in cosign's format, made here and checked by openssl, and the other way round."""

import base64
import json
import subprocess

import msgspec
import pytest

from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError, IntegrityError
from prewarm.ship.image import ImageManifest
from prewarm.ship.keys import read_private_key, read_public_key
from prewarm.ship.signature import (
    PAYLOAD_TYPE,
    SIGNATURE_ANNOTATION,
    Signature,
    check,
    sign,
    store,
    stored_signatures,
    tag_of_signatures,
)

IMAGE, ANOTHER = digest_of(b"image"), digest_of(b"another")
REPOSITORY = "registry.example/team/caches"


def openssl(*args, **options):
    return subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, **options)


def key_pair(directory, name, *curve):
    """Make a key pair as the error messages of prewarm say, and return both files."""
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    group = curve[0] if curve else "P-256"
    openssl(
        "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{group}", "-out", private
    )
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("keys"), "theirs")


@pytest.fixture
def signed(keys):
    return sign(read_private_key(keys[0]), IMAGE, REPOSITORY)


def test_openssl_verifies_what_we_sign(keys, signed, tmp_path):
    (tmp_path / "signature").write_bytes(signed.signature)
    (tmp_path / "payload").write_bytes(signed.payload)

    done = openssl(
        "dgst", "-sha256", "-verify", keys[1],
        "-signature", tmp_path / "signature", tmp_path / "payload",
    )  # fmt: skip

    assert done.stdout == b"Verified OK\n"


def test_we_verify_what_openssl_signs(keys, tmp_path):
    """The payload is cosign's own, its fields in another order and with an option."""
    payload = tmp_path / "payload"
    image = {"docker-manifest-digest": IMAGE}
    critical = {"type": "cosign container image signature", "image": image}
    critical["identity"] = {"docker-reference": REPOSITORY}
    payload.write_text(json.dumps({"optional": {"creator": "me"}, "critical": critical}))
    signature = openssl("dgst", "-sha256", "-sign", keys[0], payload).stdout
    made = Signature(payload=payload.read_bytes(), signature=signature)

    assert check([made], read_public_key(keys[1]), IMAGE, REPOSITORY) == made


def test_the_payload_is_what_cosign_signs(signed):
    assert json.loads(signed.payload) == {
        "critical": {
            "identity": {"docker-reference": REPOSITORY},
            "image": {"docker-manifest-digest": IMAGE},
            "type": "cosign container image signature",
        },
        "optional": None,
    }


def test_signatures_are_stored_where_cosign_seeks_them(signed):
    stored = store([signed])
    manifest = json.loads(stored.manifest)

    assert tag_of_signatures(IMAGE) == f"sha256-{IMAGE.removeprefix('sha256:')}.sig"
    assert manifest["config"]["digest"] == digest_of(stored.config)
    assert manifest["layers"] == [
        {
            "mediaType": PAYLOAD_TYPE,
            "digest": digest_of(signed.payload),
            "size": len(signed.payload),
            "annotations": {SIGNATURE_ANNOTATION: base64.b64encode(signed.signature).decode()},
        }
    ]


def test_what_was_stored_is_read_back_and_strange_layers_are_left_out(signed):
    stored = store([signed, signed])
    manifest = msgspec.json.decode(stored.manifest, type=ImageManifest)
    first, second = manifest.layers
    no_base64 = msgspec.structs.replace(second, annotations={SIGNATURE_ANNOTATION: "%"})
    strange = msgspec.structs.replace(manifest, layers=(first, no_base64))

    assert stored_signatures(manifest, stored.payloads) == (signed, signed)
    assert stored_signatures(strange, stored.payloads) == (signed,)


def refused(signatures, key, digest=IMAGE, repository=None):
    with pytest.raises(IntegrityError) as error:
        check(signatures, read_public_key(key), digest, repository)
    return error.value.message


def test_an_unsigned_image_is_refused(keys):
    assert refused([], keys[1]) == f"the image {IMAGE} is not signed"


def test_a_signature_of_another_key_is_refused(signed, others):
    assert "made with another key" in refused([signed], others[1])


@pytest.mark.parametrize("field", ["payload", "signature"])
def test_every_changed_bit_is_refused(signed, keys, field):
    whole = getattr(signed, field)
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        other = msgspec.structs.replace(signed, **{field: bytes(changed)})
        assert "what was signed has been changed" in refused([other], keys[1])


def test_the_signature_of_another_image_is_refused(keys):
    moved = sign(read_private_key(keys[0]), ANOTHER, REPOSITORY)
    assert f"it is the signature of another image, {ANOTHER}" in refused([moved], keys[1])


def test_a_signature_under_another_name_is_refused_where_a_name_is_asked_for(signed, keys):
    key = read_public_key(keys[1])
    assert check([signed], key, IMAGE) == signed
    assert (
        "it was signed as registry.example/team/caches, not as registry.example/other"
        in refused([signed], keys[1], repository="registry.example/other")
    )


def test_a_rightly_signed_payload_of_another_kind_is_refused(keys):
    key = read_private_key(keys[0])
    strange = json.dumps({"critical": {"type": "a blob"}}).encode()
    assert "its payload is not cosign's" in refused(
        [Signature(payload=strange, signature=key.sign(strange))], keys[1]
    )


def test_one_good_signature_among_others_is_enough(signed, keys, others):
    theirs = sign(read_private_key(others[0]), IMAGE, REPOSITORY)
    assert check([theirs, signed], read_public_key(keys[1]), IMAGE) == signed


def test_a_password_opens_a_key_that_has_one(keys, tmp_path):
    private = tmp_path / "with-password.key"
    openssl("pkey", "-in", keys[0], "-aes256", "-passout", "pass:open", "-out", private)

    made = sign(read_private_key(private, "open"), IMAGE, REPOSITORY)

    assert check([made], read_public_key(keys[1]), IMAGE) == made
    with pytest.raises(InputError, match="Password"):
        read_private_key(private)
    with pytest.raises(InputError, match="or the password is wrong"):
        read_private_key(private, "shut")
    with pytest.raises(InputError, match="not encrypted"):
        read_private_key(keys[0], "needless")


def test_other_files_than_keys_on_p256_are_refused_with_how_to_make_one(keys, tmp_path):
    private, public = key_pair(tmp_path, "long", "P-384")
    (tmp_path / "text").write_text("no key")
    cosigns = tmp_path / "cosign.key"
    cosigns.write_text("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAA==\n-----END…")
    for read, file, reason in (
        (read_private_key, private, "no ECDSA key on P-256"),
        (read_public_key, public, "no ECDSA key on P-256"),
        (read_private_key, tmp_path / "text", "is no private key"),
        (read_public_key, tmp_path / "text", "is no public key"),
        (read_public_key, keys[0], "is no public key"),
        (read_private_key, keys[1], "is no private key"),
        (read_public_key, tmp_path / "none", "there is no public key"),
        (read_private_key, cosigns, "encrypted in cosign's own way"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            read(file)
        assert "openssl genpkey" in str(error.value.hint)
