"""Signatures written to a real registry, and images refused without them."""

import base64
import io
import json
import subprocess

import pytest

from prewarm.cli import main
from prewarm.core.digest import digest_of
from prewarm.core.errors import IntegrityError, RegistryError
from prewarm.ship.attached import attach_bundle, documents, read_document
from prewarm.ship.blobs import upload
from prewarm.ship.image import MANIFEST_TYPE, Descriptor
from prewarm.ship.keys import read_private_key, read_public_key
from prewarm.ship.manifests import get_manifest, put_manifest, tags
from prewarm.ship.push import push
from prewarm.ship.reference import parse_reference
from prewarm.ship.referrers import attach, referrers_tag
from prewarm.ship.signature import SIGNATURE_ANNOTATION, tag_of_signatures
from prewarm.ship.signed import Trust, check_signed, sign_reference
from prewarm.ship.statement import PROVENANCE, SIGNATURE, make_statement


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


# Bundles that refer to the image


@pytest.fixture(params=["tag", "API"])
def repository(request, packed, opened, repository_name):
    """The repository with the packed image as v1, in a registry without the API and with it."""
    where = "plain_registry" if request.param == "tag" else "referrers_proxy"
    name = f"{request.getfixturevalue(where).host}/{repository_name}-{request.param.lower()}"
    push(packed[0], parse_reference(f"{name}:v1"))
    return opened(f"{name}:v1")


def bundled(repository, pair, predicate_type=SIGNATURE, *, of=None, name=None):
    """Attach what the key of `pair` says of the image `of`, by default of v1, to v1."""
    image = get_manifest(repository, "v1").descriptor
    name = name or repository.reference.name
    statement = make_statement(predicate_type, {}, of or image.digest, name)
    key = read_private_key(pair[0])
    return image.digest, attach_bundle(repository, image, predicate_type, statement, key)


def trusted(repository, digest, pair, identity=None):
    check_signed(repository, digest, Trust(key=read_public_key(pair[1]), identity=identity))


def test_a_bundle_alone_is_a_signature(repository, ours):
    digest, _ = bundled(repository, ours)

    trusted(repository, digest, ours)
    trusted(repository, digest, ours, repository.reference.name)
    assert tag_of_signatures(digest) not in tags(repository)
    by_tag = repository.reference.name.endswith("-tag")
    assert (referrers_tag(digest) in tags(repository)) == by_tag


def test_signing_writes_the_bundle_that_cosign_writes(repository, ours):
    """The fields of cosign's BUNDLE_SPEC, without the time."""
    (made,) = sign_reference(repository.reference, read_private_key(ours[0]))

    image = get_manifest(repository, "v1").descriptor
    manifest = json.loads(get_manifest(repository, made.bundle).data)
    bundle = "application/vnd.dev.sigstore.bundle.v0.3+json"
    (layer,) = manifest.pop("layers")
    assert layer["mediaType"] == bundle
    assert manifest == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": bundle,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        },
        "subject": {"mediaType": image.media_type, "digest": image.digest, "size": image.size},
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
        },
    }
    (again,) = sign_reference(repository.reference, read_private_key(ours[0]))
    assert (again.new, again.bundle) == (False, made.bundle)
    assert len(documents(repository, image.digest)) == 1


def test_an_image_that_lost_one_form_gets_it_back(repository, ours):
    """As after a signature of prewarm 0.1, or by cosign 2."""
    digest, bundle = bundled(repository, ours)

    (made,) = sign_reference(repository.reference, read_private_key(ours[0]))

    assert (made.new, made.bundle) == (True, bundle)
    assert tag_of_signatures(digest) in tags(repository)


def refused(repository, digest, pair, identity=None):
    with pytest.raises(IntegrityError) as error:
        trusted(repository, digest, pair, identity)
    return error.value.message


def test_a_bundle_of_another_key_is_refused(repository, ours, theirs):
    digest, _ = bundled(repository, theirs)
    assert "made with another key" in refused(repository, digest, ours)
    bundled(repository, ours)
    trusted(repository, digest, ours)


def test_the_bundle_of_another_image_is_refused(repository, ours):
    digest, _ = bundled(repository, ours, of=digest_of(b"another"))
    assert f"it is the signature of another image, {digest_of(b'another')}" in refused(
        repository, digest, ours
    )


def test_a_bundle_under_another_name_is_refused_where_a_name_is_asked_for(repository, ours):
    digest, _ = bundled(repository, ours, name="registry.example/mirrored")
    trusted(repository, digest, ours)
    assert "it was signed as registry.example/mirrored, not as" in refused(
        repository, digest, ours, repository.reference.name
    )


def test_provenance_is_no_signature(repository, ours):
    digest, _ = bundled(repository, ours, PROVENANCE)
    assert refused(repository, digest, ours) == f"the image {digest} is not signed"


def attach_changed(repository, document, content, annotations=None):
    """Attach to v1 what `document` is, with another content and, if given, annotations."""
    manifest = json.loads(get_manifest(repository, document).data)
    (layer,) = manifest["layers"]
    layer |= {"digest": digest_of(content), "size": len(content)}
    manifest["annotations"] = annotations or manifest["annotations"]
    blob = Descriptor(media_type="x/y", digest=digest_of(content), size=len(content))
    upload(repository, blob, lambda: io.BytesIO(content))
    return attach(repository, json.dumps(manifest).encode(), MANIFEST_TYPE)


def test_a_changed_bundle_and_a_relabelled_one_are_refused(repository, ours):
    digest, document = bundled(repository, ours, PROVENANCE)
    (there,) = documents(repository, digest)
    content = read_document(repository, there)
    signature = {"dev.sigstore.bundle.predicateType": SIGNATURE}
    attach_changed(repository, document, content, signature)
    assert f"it says '{PROVENANCE}' of the image" in refused(repository, digest, ours)

    whole = json.loads(content)
    payload = base64.b64decode(whole["dsseEnvelope"]["payload"])
    forged = payload.replace(PROVENANCE.encode(), SIGNATURE.encode())
    whole["dsseEnvelope"]["payload"] = base64.b64encode(forged).decode()
    attach_changed(repository, document, json.dumps(whole).encode(), signature)
    assert "what was signed has been changed" in refused(repository, digest, ours)


def test_what_others_attach_keeps_no_signature_from_counting(repository, ours):
    digest, document = bundled(repository, ours, of=digest_of(b"another"))
    for content in (b"no JSON", b"[" * 100_000, b"{}"):
        attach_changed(repository, document, content)
    attach_changed(repository, document, b" " * (300 << 10))
    reasons = refused(repository, digest, ours)
    assert reasons.count("it is no Sigstore bundle") == 3
    assert "307200 bytes, more than the 262144 that it may" in reasons

    bundled(repository, ours)
    trusted(repository, digest, ours)


def test_more_bundles_than_are_read_are_refused(repository, ours, monkeypatch):
    digest, _ = bundled(repository, ours, of=digest_of(b"another"))
    bundled(repository, ours)
    monkeypatch.setattr("prewarm.ship.attached.MOST_DOCUMENTS", 1)
    with pytest.raises(RegistryError, match=r"has 2 bundles of .*; 1 are read"):
        trusted(repository, digest, ours)


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
