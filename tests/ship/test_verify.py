"""Every finding, provoked."""

import base64
import json
import os

import msgspec
import pytest

from prewarm.core.cache import CACHE_MANIFEST, ENTRIES, cache_document
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError
from prewarm.core.finding import UnsoundError
from prewarm.ship.check import read_index
from prewarm.ship.install import install
from prewarm.ship.layout import read_layout
from prewarm.ship.source import open_source
from prewarm.ship.verify import held, installed_manifest, verify_directory

FOREIGN_KEY = base64.b32encode(b"z" * 32).decode().rstrip("=")


@pytest.fixture
def into(packed, tmp_path):
    """An installed directory."""
    install(packed[0], tmp_path / "into")
    return tmp_path / "into"


def version(into):
    return (into / "triton").resolve().parent


def found(path, **keywords):
    return [(each.code, each.subject) for each in verify_directory(path, **keywords)]


def any_file(into, pattern):
    path = min((into / "triton").glob(pattern))
    return path, f"{ENTRIES}/{path.parent.name}/{path.name}"


def test_a_sound_cache_has_none(packed, into, tmp_path):
    assert verify_directory(packed[0]) == verify_directory(into) == ()
    assert verify_directory(into / "triton") == ()
    assert verify_directory(into, packed[1].identity) == ()
    assert verify_directory(packed[0], packed[1].identity) == ()


def test_p101_a_missing_file(into):
    path, subject = any_file(into, "*/*.cubin")
    path.unlink()
    assert found(into) == [("P101", subject)]


def test_p101_no_index(into):
    (version(into) / CACHE_MANIFEST).unlink()
    assert found(into) == [("P101", CACHE_MANIFEST)]


def test_p101_no_completed_install(into):
    (into / "triton").unlink()
    assert found(into) == [("P101", "triton")]


def test_p101_a_missing_blob(packed):
    out, made = packed
    (out / "blobs" / "sha256" / made.manifest_digest[7:]).unlink()
    assert found(out) == [("P101", made.manifest_digest[7:])]


def test_p102_what_triton_compiled_at_run_time_is_one_finding_an_entry(into):
    entry = into / "triton" / FOREIGN_KEY
    entry.mkdir()
    for name in ("__grp__late.json", "late.cubin", "late.json", "late.ttir"):
        (entry / name).write_bytes(b"x")
    (finding,) = verify_directory(into)
    assert (finding.code, finding.subject) == ("P102", f"{ENTRIES}/{FOREIGN_KEY}")
    assert finding.found == "the kernel late, most likely stored by Triton at run time: a miss"
    assert finding.fix.startswith("nothing to mend; to serve without that miss: prewarm plan")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("late.autotune.json", "an autotune record of late"),
        ("__triton_launcher.cpython-311-x86_64-linux-gnu.so", "the host module __triton_launcher"),
        ("lock", "an entry"),
    ],
)
def test_p102_names_what_triton_stored(into, name, found):
    (into / "triton" / FOREIGN_KEY).mkdir()
    (into / "triton" / FOREIGN_KEY / name).write_bytes(b"x")
    (finding,) = verify_directory(into)
    assert finding.found.startswith(f"{found}, most likely")


def test_p102_a_file_more_in_an_entry_that_was_shipped(into):
    path, subject = any_file(into, "*/*.cubin")
    path.with_name("more.json").write_bytes(b"x")
    (finding,) = verify_directory(into)
    assert (finding.code, finding.subject) == ("P102", f"{subject.rpartition('/')[0]}/more.json")
    assert finding.fix == "remove it, after looking at what it is"


@pytest.mark.parametrize("pattern", ["*/*.cubin", "*/add.json", "*/*.so", "*/__grp__*"])
def test_p103_an_altered_file(into, pattern):
    path, subject = any_file(into, pattern)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert found(into) == [("P103", subject)]


def test_p103_a_group_that_leads_one_file_elsewhere(into):
    path, subject = any_file(into, "*/__grp__*")
    group = json.loads(path.read_text())
    name = next(name for name in group["child_paths"] if name.endswith(".cubin"))
    group["child_paths"][name] = "/tmp/evil.cubin"
    path.write_text(json.dumps(group))
    assert found(into) == [("P103", subject)]


def test_p103_an_altered_layer(packed):
    out, _ = packed
    digest = read_layout(out).manifest.layers[0].digest
    path = out / "blobs" / "sha256" / digest[7:]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert found(out) == [("P103", digest)]


def test_p104_a_link_instead_of_a_file(into):
    path, subject = any_file(into, "*/*.cubin")
    path.rename(into / "elsewhere")
    path.symlink_to(into / "elsewhere")
    assert found(into) == [("P104", subject)]


def test_p104_a_link_instead_of_an_entry(into):
    path, subject = any_file(into, "*/*.cubin")
    path.parent.rename(into / "elsewhere")
    path.parent.symlink_to(into / "elsewhere")
    assert found(into) == [("P104", subject.rpartition("/")[0])]


def test_p104_a_special_file(into):
    os.mkfifo(into / "triton" / "pipe")
    assert found(into) == [("P104", f"{ENTRIES}/pipe")]


@pytest.mark.parametrize("target", ["/etc", "versions/../..", "versions/x/io.triton.cache"])
def test_p104_a_marker_that_leads_elsewhere(into, target):
    (into / "triton").unlink()
    (into / "triton").symlink_to(target)
    assert found(into) == [("P104", "triton")]


@pytest.mark.parametrize("change", [b"", b"{}", b"\xff", b"[]"])
def test_p105_an_index_that_cannot_be_read(into, change):
    (version(into) / CACHE_MANIFEST).write_bytes(change)
    assert found(into) == [("P105", CACHE_MANIFEST)]


def test_p105_an_index_in_another_spelling(into):
    path = version(into) / CACHE_MANIFEST
    path.write_bytes(json.dumps(json.loads(path.read_bytes())).encode())
    assert found(into) == [("P105", CACHE_MANIFEST)]


def test_p106_files_and_index_replaced_together(into):
    """Each file is what the index says, and the index is another."""
    path, subject = any_file(into, "*/*.cubin")
    path.write_bytes(b"evil")
    index = version(into) / CACHE_MANIFEST
    manifest = read_index(index.read_bytes())
    files = tuple(
        msgspec.structs.replace(file, digest=digest_of(b"evil"), size=4)
        if file.path == subject
        else file
        for file in manifest.files
    )
    index.write_bytes(cache_document(msgspec.structs.replace(manifest, files=files)))
    assert found(into) == [("P106", CACHE_MANIFEST)]


def test_p106_no_receipt(into):
    (version(into) / "receipt.json").write_text("{")
    assert found(into) == [("P106", "receipt.json")]


def test_p106_another_cache_than_was_asked_for(into, packed):
    other = "sha256:" + "0" * 64
    assert found(into, identity=other) == [("P106", CACHE_MANIFEST)]
    assert found(packed[0], identity=other) == [("P106", CACHE_MANIFEST)]


def test_p205_a_directory_that_was_moved(into, tmp_path):
    into.rename(tmp_path / "moved")
    (finding,) = verify_directory(tmp_path / "moved")
    assert finding.code == "P205"
    assert (finding.expected, finding.found) == (f"{tmp_path}/moved/triton", f"{into}/triton")


def test_another_name_of_the_same_directory_is_no_other_directory(into, tmp_path):
    (tmp_path / "alias").symlink_to(into)
    assert verify_directory(tmp_path / "alias") == ()


def test_p205_a_tree_that_was_made_for_no_place(packed, tmp_path):
    for path, data in open_source(packed[0]).files.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(data)
    (finding,) = verify_directory(tmp_path / "tree")
    assert (finding.code, finding.found) == ("P205", ".triton/cache")
    assert finding.fix.endswith(f"--mount-path {tmp_path}/tree")


def test_an_index_that_lists_a_path_outside_is_refused(packed):
    manifest = open_source(packed[0]).manifest
    for path in ("../evil", "/etc/passwd", "elsewhere/file"):
        evil = msgspec.structs.replace(manifest.files[0], path=path)
        changed = msgspec.structs.replace(manifest, files=(evil,))
        with pytest.raises(UnsoundError, match="P104"):
            read_index(cache_document(changed))


def test_they_come_in_one_order(into):
    for path in (into / "triton").glob("*/*.cubin"):
        path.write_bytes(b"")
    for path in (into / "triton").glob("*/add.json"):
        path.unlink()
    findings = found(into)
    assert len(findings) == 7
    assert findings == sorted(findings)


def test_a_directory_without_a_cache_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no cache"):
        verify_directory(tmp_path)


def test_what_a_cache_holds_is_read_from_whatever_holds_it(packed, into, cache):
    for path, entries in (
        (packed[0], None),
        (into, into / "triton"),
        (into / "triton", into / "triton"),
        (version(into), version(into) / ENTRIES),
    ):
        found = held(path)
        assert (found.plan, found.entries) == (cache.manifest, entries)
        assert found.manifest.manifest == cache.manifest.digest


def test_the_index_is_read_from_whatever_holds_it(packed, into):
    manifest = open_source(packed[0]).manifest
    assert installed_manifest(into) == manifest
    assert installed_manifest(into / "triton") == manifest
    assert installed_manifest(version(into)) == manifest
    assert installed_manifest(packed[0]) == manifest
    (into / "triton").unlink()
    with pytest.raises(UnsoundError, match="P101"):
        installed_manifest(into)
