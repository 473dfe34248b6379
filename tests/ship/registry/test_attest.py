"""Provenance and SBOM: made from an image, attached to it in a real registry, shown, checked."""

import base64
import hashlib
import json
import subprocess

import pytest

import prewarm
from prewarm.cli import main
from prewarm.core.cache import CACHE_MANIFEST, ENTRIES
from prewarm.ship.attached import attach_bundle, documents, read_document
from prewarm.ship.bundle import open_bundle
from prewarm.ship.described import describe
from prewarm.ship.image import Descriptor
from prewarm.ship.keys import read_private_key, read_public_key
from prewarm.ship.layout import read_layout
from prewarm.ship.manifests import get_manifest
from prewarm.ship.members import files_of
from prewarm.ship.pack import pack
from prewarm.ship.provenance import provenance
from prewarm.ship.push import push
from prewarm.ship.reference import parse_reference
from prewarm.ship.sbom import sbom
from prewarm.ship.statement import PROVENANCE, SBOM, make_statement


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")
    private, public = directory / "key", directory / "key.pub"
    for args in (
        ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private),
        ("pkey", "-in", private, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)
    return private, public


@pytest.fixture
def image(tuned, tmp_path):
    """A tuned cache, packed for a place."""
    pack(tuned.manifest, tuned.directory, tmp_path / "image", "/opt/prewarm")
    return tmp_path / "image"


@pytest.fixture
def name(plain_registry, repository_name):
    return plain_registry.name(repository_name)


def run(capsys, *argv):
    """Return exit code, stdout and stderr of prewarm with `argv`."""
    capsys.readouterr()
    code = main([str(each) for each in argv])
    return code, *capsys.readouterr()


# What they say


def test_provenance_says_what_was_asked_for_and_what_it_was_made_with(image, tuned):
    found = provenance(describe(image))

    definition, details = found["buildDefinition"], found["runDetails"]
    assert definition["externalParameters"] == {
        "serveArgs": ("a/model", "-tp", "1"),
        "target": "b200",
        "tunings": tuned.compiled.selection.tunings,
        "tunedOn": "NVIDIA B200",
        "allCandidates": False,
        "mountPath": "/opt/prewarm",
    }
    assert [each["uri"] for each in definition["resolvedDependencies"]] == [
        f"pkg:huggingface/a/model@{'0' * 40}",
        "pkg:pypi/vllm@0.25.1%2Bcu129",
        "pkg:pypi/torch@2.11.0",
        "pkg:pypi/triton@3.6.0",
        "pkg:generic/nvidia/ptxas@12.9.86",
    ]
    model = tuned.manifest.deployment.model
    assert definition["resolvedDependencies"][0]["digest"] == {
        "sha256": model.config.partition(":")[2]
    }
    assert definition["internalParameters"]["kernels"] == {
        kernel.name: kernel.source for kernel in tuned.manifest.kernels
    }
    version = prewarm.__version__
    assert details["builder"] == {
        "id": f"https://prewarm.dev/prewarm@{version}",
        "version": {"prewarm": version},
    }
    identity = hashlib.sha256(files_of(read_layout(image).tar)[CACHE_MANIFEST]).hexdigest()
    assert details["byproducts"][0]["digest"] == {"sha256": identity}


def test_an_sbom_has_every_file_and_every_package_and_nothing_hangs_loose(image):
    found = sbom(describe(image))

    shipped = files_of(read_layout(image).tar)
    assert {
        each["fileName"]: [sum_["checksumValue"] for sum_ in each["checksums"]]
        for each in found["files"]
    } == {
        f"./{path}": [
            hashlib.sha1(data, usedforsecurity=False).hexdigest(),
            hashlib.sha256(data).hexdigest(),
        ]
        for path, data in shipped.items()
    }
    assert any(path.startswith(f"{ENTRIES}/") for path in shipped)
    assert {each["name"]: each["licenseDeclared"] for each in found["packages"][1:]} == {
        "vllm": "Apache-2.0",
        "torch": "BSD-3-Clause",
        "triton": "MIT",
        "prewarm": "Apache-2.0",
        "ptxas": "LicenseRef-NVIDIA-CUDA",
    }
    elements = [*found["packages"], *found["files"], found]
    ids = [each["SPDXID"] for each in elements]
    assert len(set(ids)) == len(ids)
    related = {
        each[end]
        for each in found["relationships"]
        for end in ("spdxElementId", "relatedSpdxElement")
    }
    assert related == set(ids)
    licenses = {each["licenseId"] for each in found["hasExtractedLicensingInfos"]}
    assert licenses == {"LicenseRef-NVIDIA-CUDA"}


def test_the_verification_code_is_spdx_s_own_sum(image):
    """Of SPDX 2.3, 7.9: SHA-1 of the sorted SHA-1s of all files, one after the other."""
    found = sbom(describe(image))
    sums = sorted(
        hashlib.sha1(data, usedforsecurity=False).hexdigest()
        for data in files_of(read_layout(image).tar).values()
    )
    whole = hashlib.sha1("".join(sums).encode(), usedforsecurity=False).hexdigest()
    assert found["packages"][0]["packageVerificationCode"] == {
        "packageVerificationCodeValue": whole
    }


def both(layout):
    described = describe(layout)
    return [
        make_statement(kind, said, described.digest)
        for kind, said in ((PROVENANCE, provenance(described)), (SBOM, sbom(described)))
    ]


def test_they_follow_from_the_image_and_name_no_machine_and_no_time(
    image, tuned, tmp_path, monkeypatch
):
    made = both(image)

    pack(tuned.manifest, tuned.directory, tmp_path / "elsewhere", "/opt/prewarm")
    assert both(tmp_path / "elsewhere") == made
    for statement in made:
        assert str(tmp_path).encode() not in statement
        assert b"finishedOn" not in statement

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pack(tuned.manifest, tuned.directory, tmp_path / "dated", "/opt/prewarm")
    dated = describe(tmp_path / "dated")
    assert provenance(dated)["runDetails"]["metadata"] == {"finishedOn": "2023-11-14T22:13:20Z"}
    assert sbom(dated)["creationInfo"]["created"] == "2023-11-14T22:13:20Z"


# In a registry


def test_an_image_is_attested_signed_and_shown(image, name, pair, opened, capsys):
    digest = push(image, parse_reference(f"{name}:v1")).digest

    code, product, story = run(capsys, "attest", f"{name}:v1", "--key", pair[0])

    assert code == 0
    assert f"{name}@{digest}: provenance attached\n" in story
    assert f"{name}@{digest}: SBOM attached\n" in story
    repository = opened(name)
    attached = [line.rpartition("@")[2] for line in product.splitlines()]
    there = {each.digest: each for each in documents(repository, digest)}
    for referrer, kind, said in zip(attached, (PROVENANCE, SBOM), (provenance, sbom), strict=True):
        assert there[referrer].predicate_type == kind
        bundle = read_document(repository, there[referrer])
        statement = open_bundle(bundle, read_public_key(pair[1]))
        assert statement == make_statement(kind, said(describe(image)), digest, name)

    code, again, story = run(capsys, "attest", f"{name}:v1", "--key", pair[0])
    assert (code, again) == (0, product)
    assert story.count("was attached already") == 2
    code, shown, _ = run(capsys, "show", f"{name}:v1", "--json")
    assert [(each["what"], each["signed_by"]) for each in json.loads(shown)["beside"]] == [
        ("SBOM", "somebody"),
        ("provenance", "somebody"),
    ]


def test_of_an_index_every_image_is_attested(image, name, capsys):
    digest = push(image, parse_reference(f"{name}:v1"), index="all").digest
    code, _, story = run(capsys, "attest", f"{name}:all")
    assert code == 0
    assert f"{name}@{digest}: SBOM, unsigned attached\n" in story


def test_without_a_key_the_statements_are_bare_as_buildkit_s(image, name, opened, capsys):
    digest = push(image, parse_reference(f"{name}:v1")).digest

    products = [run(capsys, "attest", f"{name}:v1")[1] for _ in range(2)]

    assert products[0] == products[1]
    repository = opened(name)
    for document in documents(repository, digest):
        manifest = json.loads(get_manifest(repository, document.digest).data)
        assert manifest["artifactType"] == "application/vnd.in-toto+json"
        assert manifest["annotations"] == {"in-toto.io/predicate-type": document.predicate_type}
        statement = json.loads(read_document(repository, document))
        assert statement["predicateType"] == document.predicate_type
        assert statement["subject"][0]["digest"] == {"sha256": digest.partition(":")[2]}
    _, shown, _ = run(capsys, "show", f"{name}:v1", "--json")
    assert {each["signed_by"] for each in json.loads(shown)["beside"]} == {"nobody"}


def test_show_with_a_key_says_whose_each_is(image, name, pair, tmp_path, capsys):
    push(image, parse_reference(f"{name}:v1"))
    other = tmp_path / "other"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-out", other],
        check=True, capture_output=True,
    )  # fmt: skip
    assert run(capsys, "show", f"{name}:v1", "--key", pair[1])[0] == 7
    for argv in (("sign", pair[0]), ("attest", pair[0]), ("attest", other)):
        assert run(capsys, argv[0], f"{name}:v1", "--key", argv[1])[0] == 0

    code, shown, _ = run(capsys, "show", f"{name}:v1", "--key", pair[1], "--json")

    assert code == 0
    assert sorted((each["what"], each["signed_by"]) for each in json.loads(shown)["beside"]) == [
        ("SBOM", "another key"),
        ("SBOM", "this key"),
        ("provenance", "another key"),
        ("provenance", "this key"),
        ("signature", "this key"),
        ("signature", "this key"),
    ]
    code, text, _ = run(capsys, "show", f"{name}:v1", "--key", pair[1])
    assert "another key" in text


def test_show_with_a_key_refuses_what_was_moved_from_another_image(
    image, name, pair, opened, capsys
):
    push(image, parse_reference(f"{name}:v1"))
    assert run(capsys, "sign", f"{name}:v1", "--key", pair[0])[0] == 0
    repository = opened(name)
    stored = get_manifest(repository, "v1").descriptor
    moved = make_statement(PROVENANCE, {}, "sha256:" + "0" * 64, name)
    subject = Descriptor(media_type=stored.media_type, digest=stored.digest, size=stored.size)
    attach_bundle(repository, subject, PROVENANCE, moved, read_private_key(pair[0]))

    code, _, error = run(capsys, "show", f"{name}:v1", "--key", pair[1])

    assert code == 7
    assert "it is the provenance of another image" in error


def test_only_caches_of_prewarm_s_are_attested(name, image, opened, capsys):
    pushed = push(image, parse_reference(f"{name}:v1"))
    assert run(capsys, "attest", f"{name}:v1")[0] == 0
    (referrer, *_) = documents(opened(name), pushed.digest)
    code, _, error = run(capsys, "attest", f"{name}@{referrer.digest}")
    assert code == 2
    assert "is not a cache image of prewarm's" in error


def test_a_key_is_for_what_is_in_a_registry(image, pair, capsys):
    code, _, error = run(capsys, "show", image, "--key", pair[1])
    assert code == 2
    assert "signatures are in a registry" in error


def test_openssl_verifies_what_the_registry_holds(image, name, pair, opened, tmp_path, capsys):
    digest = push(image, parse_reference(f"{name}:v1")).digest
    assert run(capsys, "attest", f"{name}:v1", "--key", pair[0])[0] == 0
    repository = opened(name)
    for document in documents(repository, digest):
        envelope = json.loads(read_document(repository, document))["dsseEnvelope"]
        payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
        head = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode()
        (tmp_path / "signed").write_bytes(head + payload)
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        (tmp_path / "signature").write_bytes(signature)
        subprocess.run(
            ["openssl", "dgst", "-sha256", "-verify", pair[1],
             "-signature", tmp_path / "signature", tmp_path / "signed"],
            check=True, capture_output=True,
        )  # fmt: skip
