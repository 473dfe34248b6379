"""Signatures written to a real registry, and images refused without them."""

import base64
import json
import subprocess

import pytest

from prewarm.cli import main
from prewarm.core.errors import IntegrityError, RegistryError
from prewarm.ship.image import MANIFEST_TYPE
from prewarm.ship.keys import read_private_key, read_public_key
from prewarm.ship.manifests import get_manifest, put_manifest, tags
from prewarm.ship.push import push
from prewarm.ship.reference import parse_reference
from prewarm.ship.signature import SIGNATURE_ANNOTATION, tag_of_signatures
from prewarm.ship.signed import Trust, check_signed, sign_reference


def key_pair(directory, name):
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    for args in (
        ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private),
        ("pkey", "-in", private, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("ours"), "key")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("theirs"), "key")


@pytest.fixture
def name(plain_registry, repository_name):
    return plain_registry.name(repository_name)


@pytest.fixture
def pushed(packed, name):
    """The packed image in the registry as v1: its digest."""
    return push(packed[0], parse_reference(f"{name}:v1")).digest


def signed_by(pair, name, tag="v1"):
    return sign_reference(parse_reference(f"{name}:{tag}"), read_private_key(pair[0]))


def check(opened, name, digest, pair, identity=None):
    check_signed(opened(name), digest, Trust(key=read_public_key(pair[1]), identity=identity))


def test_what_was_signed_is_trusted_and_openssl_agrees(pushed, name, opened, ours, tmp_path):
    (made,) = signed_by(ours, name)

    check(opened, name, pushed, ours, name)
    assert made.reference == f"{name}@{pushed}"
    stored = json.loads(get_manifest(opened(name), tag_of_signatures(pushed)).data)
    (layer,) = stored["layers"]
    (tmp_path / "signature").write_bytes(
        base64.b64decode(layer["annotations"][SIGNATURE_ANNOTATION])
    )
    payload = subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", f"docker://{name}:{made.signatures}",
         f"dir:{tmp_path / 'copied'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert payload.returncode == 0, payload.stderr
    subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", ours[1], "-signature", tmp_path / "signature",
         tmp_path / "copied" / layer["digest"].removeprefix("sha256:")],
        check=True, capture_output=True,
    )  # fmt: skip


def test_signing_again_adds_nothing_and_another_key_adds_its_own(
    pushed, name, opened, ours, theirs
):
    assert [each.new for each in (*signed_by(ours, name), *signed_by(ours, name))] == [True, False]
    assert signed_by(theirs, name)[0].new

    stored = json.loads(get_manifest(opened(name), tag_of_signatures(pushed)).data)
    assert len(stored["layers"]) == 2
    check(opened, name, pushed, ours)
    check(opened, name, pushed, theirs)


def test_an_index_is_signed_with_every_image_in_it(packed, name, opened, ours):
    digest = push(packed[0], parse_reference(f"{name}:v1"), index="all").digest

    index, image = signed_by(ours, name, "all")

    assert image.reference == f"{name}@{digest}"
    assert index.reference != image.reference
    check(opened, name, digest, ours)


def test_an_unsigned_image_and_one_of_another_key_are_refused(pushed, name, opened, ours, theirs):
    with pytest.raises(IntegrityError, match="is not signed"):
        check(opened, name, pushed, ours)
    signed_by(theirs, name)
    with pytest.raises(IntegrityError, match="made with another key"):
        check(opened, name, pushed, ours)


def test_signatures_moved_over_to_another_image_are_refused(pushed, name, opened, ours):
    signed_by(ours, name)
    repository = opened(name)
    moved = get_manifest(repository, tag_of_signatures(pushed)).data
    another = get_manifest(repository, pushed).data.replace(
        b'"schemaVersion":2', b'"schemaVersion": 2'
    )
    put_manifest(repository, another, MANIFEST_TYPE, "another")
    digest = get_manifest(repository, "another").digest
    put_manifest(repository, moved, MANIFEST_TYPE, tag_of_signatures(digest))

    with pytest.raises(IntegrityError, match=f"it is the signature of another image, {pushed}"):
        check(opened, name, digest, ours)


def test_a_mirror_is_trusted_unless_the_name_must_be_the_same(pushed, packed, name, opened, ours):
    """As a mirror copies: image and signatures, under another name."""
    signed_by(ours, name)
    mirror = f"{name}-mirror"
    push(packed[0], parse_reference(f"{mirror}:v1"))
    signatures = tag_of_signatures(pushed)
    subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
         f"docker://{name}:{signatures}", f"docker://{mirror}:{signatures}"],
        check=True, capture_output=True,
    )  # fmt: skip

    check(opened, mirror, pushed, ours)
    with pytest.raises(IntegrityError, match=f"it was signed as {name}, not as {mirror}"):
        check(opened, mirror, pushed, ours, mirror)


def test_a_tag_of_signatures_that_holds_something_else_is_no_signature(pushed, name, opened, ours):
    repository = opened(name)
    image = get_manifest(repository, pushed)
    put_manifest(repository, image.data, MANIFEST_TYPE, tag_of_signatures(pushed))

    with pytest.raises((IntegrityError, RegistryError)):
        check(opened, name, pushed, ours)
    assert tag_of_signatures(pushed) in tags(repository)


def run(capsys, *argv):
    """Return exit code, stdout and stderr of prewarm with `argv`."""
    capsys.readouterr()
    code = main([str(each) for each in argv])
    return code, *capsys.readouterr()


def test_with_a_key_only_what_it_signed_is_pulled_and_installed(
    pushed, name, ours, theirs, tmp_path, capsys
):
    into, out = tmp_path / "installed", tmp_path / "pulled"
    install = ("install", f"{name}:v1", "--into", into, "--key", ours[1])

    code, _, err = run(capsys, *install)
    assert (code, into.exists()) == (7, False)
    assert f"the image {pushed} is not signed" in err
    assert run(capsys, "sign", f"{name}:v1", "--key", theirs[0])[0] == 0
    assert run(capsys, *install)[0] == 7
    assert run(capsys, "pull", f"{name}:v1", out, "--key", ours[1])[0] == 7
    assert not into.exists()
    assert not out.exists()

    code, signed, err = run(capsys, "sign", f"{name}:v1", "--key", ours[0])
    assert (code, signed) == (0, f"{name}@{pushed}\n")
    assert f"{name}@{pushed} signed" in err
    assert run(capsys, *install, "--identity", "elsewhere/caches")[0] == 7
    assert run(capsys, *install, "--identity", name)[0] == 0
    assert run(capsys, "pull", f"{name}:v1", out, "--key", ours[1])[0] == 0
    assert (into / "triton").is_dir()


def test_a_key_needs_a_registry_and_an_identity_a_key(packed, pushed, name, ours, tmp_path, capsys):
    into = tmp_path / "installed"
    code, _, err = run(capsys, "install", packed[0], "--into", into, "--key", ours[1])
    assert code == 2
    assert "signatures are in a registry" in err
    code, _, err = run(capsys, "install", f"{name}:v1", "--into", into, "--identity", "a/b")
    assert code == 2
    assert "name the --key" in err
    assert not into.exists()
