"""What comes from others, altered in every way: a valid result or a PrewarmError, and no harm.

Each target draws its input, hands it to the code that reads it, and says what a valid result is.
PREWARM_FUZZ_INPUTS is the number of inputs of each target under `make soak`, PREWARM_FUZZ_SEED
which ones.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import resource
import shutil
import socket
import tarfile
import threading
from types import SimpleNamespace

import msgspec
import pytest
import yaml
import zstandard
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from prewarm.core.cache import CACHE_MANIFEST, COMPILED_NAME
from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import InputError, PrewarmError
from prewarm.core.files import relative_path
from prewarm.core.finding import UnsoundError
from prewarm.core.manifest import Manifest
from prewarm.core.manifest_yaml import parse_manifest, render_manifest
from prewarm.core.matrix_yaml import parse_matrix
from prewarm.core.select import select
from prewarm.core.tunings import Tunings
from prewarm.core.tunings_merge import merge
from prewarm.core.tunings_yaml import parse_tunings, render_tunings
from prewarm.ship.blobs import download, read_blob
from prewarm.ship.bundle import make_bundle, names_key, open_bundle
from prewarm.ship.catalogue import list_tags, show_reference
from prewarm.ship.check import read_index
from prewarm.ship.credentials import Credential
from prewarm.ship.entry import parse_group, render_group
from prewarm.ship.image import Descriptor, ImageManifest
from prewarm.ship.install import install
from prewarm.ship.keys import PrivateKey
from prewarm.ship.layer import GZIP, PLAIN, ZSTD, compress, decompress, tar_of
from prewarm.ship.layout import read_layout
from prewarm.ship.manifests import get_manifest, tags
from prewarm.ship.members import files_of
from prewarm.ship.pack import pack
from prewarm.ship.pull import pull
from prewarm.ship.receipt import Receipt, read_receipt, render_receipt
from prewarm.ship.reference import parse_reference
from prewarm.ship.referrers import referrers
from prewarm.ship.registry import open_repository
from prewarm.ship.signature import Signature, check, sign, store, stored_signatures
from prewarm.ship.signed import Trust, check_signed
from prewarm.ship.source import open_source
from prewarm.ship.statement import UntrustedError, read_statement
from prewarm.ship.transport import Connection
from prewarm.ship.tree import cache_tree
from prewarm.ship.verify import verify_directory

FEW = 300
MANY = int(os.environ.get("PREWARM_FUZZ_INPUTS", "20000"))
SEED = int(os.environ.get("PREWARM_FUZZ_SEED", "0"))
SLOW = {"layout": 4, "registry": 2}
"""Targets that get so many times fewer inputs."""
MEMORY = 1 << 20
"""KiB that this process may grow by, whatever it reads."""

# Inputs

TOKENS = (
    b"", b"[", b"{", b'"', b"'", b"\\ud800", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\0", b"-1",
    b"9" * 30, b"9" * 5000, b"1e999", b"null", b"true", b"NaN", b"&a ", b"*a", b"<<: *a",
    b"!!timestamp ", b"!!int ", b"!!binary ", b"!!set ", b"2026-99-99", b"? ", b"../",
    b"/etc/passwd", b"\xef\xbb\xbf",
    b"\n", b"\r\n", b": ", b"- ", b", ", b"[" * 5000, b'{"a":' * 2000, b"\t", b"#",
)  # fmt: skip
DIGEST = "sha256:" + "0" * 64
STRANGE = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(2**70), 1.5, 1e308, "", "x", "1",
    "..", "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb", "\u202eé", "x" * 5000, "9" * 5000, "²",
    DIGEST, "sha512:" + "0" * 128, [], {}, [[]], {"": ""}, [None], "prewarm/manifest.json",
)  # fmt: skip


def broken(raw, most=5):
    """Strategy: the bytes `raw` with some of them replaced, removed or repeated."""
    place = st.integers(0, max(len(raw), 1))
    edit = st.tuples(
        st.sampled_from(["put", "over", "cut", "repeat", "flip", "end"]),
        place,
        st.integers(1, 40),
        st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6)),
    )
    return st.lists(edit, max_size=most).map(lambda edits: _edited(raw, edits))


def _edited(raw, edits):
    for kind, at, length, token in edits:
        if kind == "put":
            raw = raw[:at] + token + raw[at:]
        elif kind == "over":
            raw = raw[:at] + token + raw[at + len(token) :]
        elif kind == "cut":
            raw = raw[:at] + raw[at + length :]
        elif kind == "repeat":
            raw = raw[: at + length] + raw[at:]
        elif kind == "flip":
            raw = raw[:at] + bytes(byte ^ length for byte in raw[at : at + 1]) + raw[at + 1 :]
        else:
            raw = raw[:at]
    return raw


@st.composite
def twisted(draw, plain, least=1):
    """Strategy: `plain` data with some of its values replaced, removed or moved."""
    plain = copy.deepcopy(plain)
    for _ in range(draw(st.integers(least, 3))):
        nodes = list(_nodes(plain))
        if not nodes:
            break
        holder, key = nodes[draw(st.integers(0, len(nodes) - 1))]
        action = draw(st.sampled_from(["strange", "strange", "other", "remove", "add", "twice"]))
        if action == "strange":
            holder[key] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        elif action == "other":
            other, its = nodes[draw(st.integers(0, len(nodes) - 1))]
            holder[key] = copy.deepcopy(other[its])
        elif action == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            name = draw(st.sampled_from(["x", "", "schema", "..", "a\0b"]))
            holder[name] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        else:
            holder.append(copy.deepcopy(holder[key]))
    return plain


def _nodes(plain):
    waiting = [plain]
    while waiting:
        holder = waiting.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def plain_of(data):
    return json.loads(msgspec.json.encode(data))


def json_of(draw, plain):
    """Return JSON made of `plain`, altered in what it says or in its bytes."""
    if draw(st.booleans()):
        return canonical_json(draw(twisted(plain)))
    return draw(broken(canonical_json(plain)))


# A tar


@st.composite
def tars(draw):
    raw = b"".join(draw(st.lists(members(), max_size=5)))
    raw += draw(st.sampled_from([b"", bytes(512), bytes(1024), bytes(1024), bytes(10240)]))
    return draw(broken(raw, most=2)) if draw(st.integers(0, 3)) == 0 else raw


NAMES = (
    b"a", b"b", b"A", b"a/b", b"a/", b"../x", b"/x", b"a/../x", b"./a", b"a//b", b"a\\b", b".wh.a",
    b"a/.wh..wh..opq", b"\xff", b"a\nb", b"a\0b", b"x" * 100, b"", b".", b"..",
    b"prewarm/manifest.json",     "é".encode(), "e\u0301".encode(), b"io.triton.cache/K/a.cubin",
)  # fmt: skip


@st.composite
def members(draw):
    name = draw(st.sampled_from(NAMES))
    kind = draw(st.sampled_from([b"0"] * 8 + [b"5"] * 3 + [b"x"] * 6 + [b"\0", *KINDS]))
    data = draw(st.binary(max_size=600)) if kind != b"x" else b"".join(draw(st.lists(records())))
    if kind == b"5":
        data = b""
    size = draw(
        st.sampled_from([b"%011o" % len(data)] * 9 + [b"77777777777", b"\x80" + bytes(11), b"-1"])
    )
    mode = draw(st.sampled_from([b"0000644"] * 9 + [b"0004755", b"0001777", b"", b"9"]))
    magic = draw(st.sampled_from([b"ustar\x0000"] * 9 + [b"ustar  \0", bytes(8)]))
    prefix = draw(st.sampled_from([b""] * 9 + [b"a", b"..", b"/", b"\xff"]))
    plain = b"".join([
        name[:100].ljust(100, b"\0"), mode.ljust(8, b"\0"), b"0000000\0" * 2, size.ljust(12, b"\0"),
        b"00000000000\0", b" " * 8, kind, b"/etc/passwd".ljust(100, b"\0"), magic, bytes(80),
        prefix.ljust(155, b"\0"), bytes(12),
    ])  # fmt: skip
    return plain[:148] + b"%06o\0 " % sum(plain) + plain[156:] + data + bytes(-len(data) % 512)


KINDS = [bytes([byte]) for byte in b"12346 7SgLKDMNVXA"]


@st.composite
def records(draw):
    key = draw(
        st.sampled_from(
            [b"path"] * 4 + [b"size", b"mtime", b"linkpath", b"GNU.sparse.map", b"hdrcharset", b""]
        )
    )
    value = draw(st.one_of(st.sampled_from(NAMES), st.binary(max_size=4), st.just(b"y" * 300)))
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    wrong = draw(st.sampled_from([0] * 9 + [1, -1, 10**6, 10**5000]))
    return str(length).encode() + body if wrong == 0 else b"%b" % (b"9" * (wrong % 5000)) + body


def others_read(tar):
    """Return the files in `tar` as Python's own reader finds them."""
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:", ignore_zeros=False) as archive:
        return {
            member.name: archive.extractfile(member).read()
            for member in archive.getmembers()
            if not member.isdir()
        }


def fuzz_tar(draw, _):
    tar = draw(tars())
    files = files_of(tar)
    for path in files:
        relative_path(path, "here")
        assert path.isprintable()
    if tar.strip(b"\0"):
        assert files == others_read(tar)


def fuzz_compressed(draw, _):
    packed = {GZIP: compress, ZSTD: zstandard.ZstdCompressor().compress, PLAIN: bytes}
    kind = draw(st.sampled_from(list(packed)))
    content = draw(st.sampled_from([b"", b"x" * 3000, bytes(100_000), bytes(range(256)) * 9]))
    pieces = draw(st.lists(st.sampled_from(sorted(packed)), min_size=1, max_size=2))
    blob = packed[kind](content) + b"".join(packed[each](content) for each in pieces[1:])
    blob = draw(broken(blob))
    size = draw(st.sampled_from([len(content)] * 4 + [0, 1, 2999, 1 << 30, 1 << 40]))
    tar = decompress(blob, kind, size)
    assert len(tar) == size
    if kind == GZIP:
        assert gzip.decompress(blob) == tar


# Documents


def fuzz_index(draw, world):
    data = json_of(draw, world.index)
    for file in read_index(data).files:
        relative_path(file.path, "here")


def fuzz_group(draw, world):
    data = draw(broken(world.group))
    found = parse_group(data, world.key)
    assert found is None or render_group(world.key, found) == data


def fuzz_receipt(draw, world):
    (world.place / "receipt.json").write_bytes(json_of(draw, world.receipt))
    assert isinstance(read_receipt(world.place), Receipt | None)


def fuzz_compiled(draw, world):
    (world.cache / COMPILED_NAME).write_bytes(json_of(draw, world.compiled))
    tree = cache_tree(world.manifest, world.cache)
    for path in tree.files:
        relative_path(path, "here")


def fuzz_entry(draw, world):
    """What Triton left of an entry, and what prewarm knows it by."""
    (world.cache / COMPILED_NAME).write_bytes(canonical_json(world.compiled))
    name = world.cache / world.key / f"{world.kernel}.json"
    name.write_bytes(json_of(draw, world.metadata))
    try:
        cache_tree(world.manifest, world.cache)
    finally:
        name.write_bytes(canonical_json(world.metadata))


def yaml_of(draw, plain, kind):
    """Return YAML made of `plain`, its digest made right where that can be."""
    if draw(st.integers(0, 2)) == 0:
        text = yaml.safe_dump(plain, sort_keys=False).encode()
        return draw(broken(text)).decode("utf-8", "replace")
    found = draw(twisted(plain))
    if isinstance(found, dict) and draw(st.integers(0, 9)):
        with contextlib.suppress(msgspec.ValidationError, UnicodeError):
            bare = {name: value for name, value in found.items() if name != "digest"}
            found["digest"] = msgspec.convert(bare, kind).digest
    return yaml.safe_dump(found, sort_keys=False)


def fuzz_manifest(draw, world):
    found = parse_manifest(yaml_of(draw, world.plain_manifest, Manifest), "here")
    assert len({launch.digest for launch in found.launches()}) == len(list(found.launches()))
    assert parse_manifest(render_manifest(found), "there") == found
    select(found, world.tunings)


def fuzz_tunings(draw, world):
    found = parse_tunings(yaml_of(draw, world.plain_tunings, Tunings), "here")
    assert parse_tunings(render_tunings(found), "there") == found
    with contextlib.suppress(InputError):
        select(world.tuned_manifest, found)
    merge([found, world.tunings])


def fuzz_matrix(draw, world):
    text = world.matrix
    plain = yaml.safe_load(text)
    altered = draw(st.one_of(broken(text.encode()), twisted(plain)))
    if isinstance(altered, bytes):
        parse_matrix(altered.decode("utf-8", "replace"), "here")
    else:
        parse_matrix(yaml.safe_dump(altered), "here")


# An image layout


def fuzz_layout(draw, world):
    """An image whose digests are right and whose documents, or files, are not."""
    out, into = world.place / "image", world.place / "root" / "into"
    shutil.rmtree(world.place / "root", ignore_errors=True)
    into.parent.mkdir()
    which = draw(st.sampled_from(["index", "manifest", "config", "files", "cache", "tar"]))
    write_image(draw, world, out, which)
    try:
        state = install(out, into, on_mismatch="warn").state
    except PrewarmError:
        state = "refused"
    if state == "installed":
        assert verify_directory(into) == ()
        assert {path.name for path in into.iterdir()} == {".prewarm.lock", "triton", "versions"}
    else:
        assert not os.path.lexists(into)
    assert {path.name for path in into.parent.iterdir()} <= {"into"}


def write_image(draw, world, out, which):
    def put(data):
        (out / "blobs" / "sha256" / digest_of(data)[7:]).write_bytes(data)
        return {"digest": digest_of(data), "size": len(data)}

    shutil.rmtree(out, ignore_errors=True)
    (out / "blobs" / "sha256").mkdir(parents=True)
    (out / "oci-layout").write_bytes(b"{}")
    files = dict(world.files)
    if which == "cache":
        files[CACHE_MANIFEST] = canonical_json(draw(twisted(world.index)))
    elif which == "files":
        name = draw(st.sampled_from(sorted(files)))
        files[draw(st.sampled_from([name, "etc/x", "prewarm/x", "io.triton.cache/x/y"]))] = b"x"
    tar = tar_of(files, 0)
    if which == "tar":
        tar = draw(members()) + draw(broken(tar, most=2))
    config = copy.deepcopy(world.config)
    config["rootfs"]["diff_ids"] = [digest_of(tar)]
    config["config"]["Labels"] |= {"dev.prewarm.layer-size": str(len(tar))}
    manifest = copy.deepcopy(world.image)
    manifest["layers"][0] |= put(tar) | {"mediaType": PLAIN}
    manifest["config"] |= put(altered(draw, config, which == "config"))
    index = copy.deepcopy(world.index_json)
    index["manifests"][0] |= put(altered(draw, manifest, which == "manifest"))
    (out / "index.json").write_bytes(altered(draw, index, which == "index"))


def altered(draw, plain, is_altered):
    return json_of(draw, plain) if is_altered else canonical_json(plain)


# Signatures


def fuzz_signature(draw, world):
    """A payload that the right key signed, and that says anything."""
    payload = json_of(draw, world.payload)
    made = Signature(payload=payload, signature=world.private.sign(payload))
    assert check([made], world.private.public, DIGEST, "host/name") == made
    assert DIGEST.encode() in payload


def fuzz_stored_signatures(draw, world):
    plain = draw(twisted(world.stored))
    try:
        manifest = msgspec.convert(plain, ImageManifest)
    except msgspec.ValidationError:
        return
    stored_signatures(manifest, [b"payload"] * len(manifest.layers))


def fuzz_bundle(draw, world):
    data = json_of(draw, world.bundle)
    names_key(data, world.private.public)
    with contextlib.suppress(UntrustedError):
        assert open_bundle(data, world.private.public) == world.statement


def fuzz_statement(draw, world):
    with contextlib.suppress(UntrustedError):
        read_statement(json_of(draw, json.loads(world.statement)))


# A registry


class Misbehaving:
    """A server on this machine that sends the bytes it was given, whatever it was asked."""

    def __init__(self):
        self.answers = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                head = b""
                while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
                    head += piece
                path = head.split(b" ")[1].decode("latin-1") if b" " in head else ""
                kinds = [kind for kind in self.answers if kind in path]
                connection.sendall(self.answers[kinds[0]] if kinds else b"")
                connection.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.close()


HEADER_VALUES = (
    "", "0", "-1", "1", "3", "9" * 30, "9" * 5000, "²", "x", "identity", "gzip", "chunked", "close",
    "http://[", "https://127.0.0.1:1/", "//", "/", "/v2/x", "file:///etc/passwd", "http://:@/",
    "\xff",     "http://127.0.0.1:99999/", "http://\x7f/", "/v2/%zz", "bytes 0-1/2",
    "bytes 9" + "9" * 40 + "-1/2", "<>; rel=next",
    '</v2/x?last=y>; rel="next"', "<http://[?last=a>; rel=next", DIGEST, "Bearer",
    "Bearer realm=", 'Bearer realm="http://["', 'Bearer realm="\\', 'Basic realm="x"', "Negotiate",
    'Bearer realm="/token",scope="' + "a" * 3000, "Fri, 99 Foo 2026 99:99:99 GMT", "a" * 70_000,
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
)  # fmt: skip
HEADERS = (
    "Content-Length", "Content-Type", "Content-Range", "Transfer-Encoding", "Content-Encoding",
    "Location", "Link", "Retry-After", "WWW-Authenticate", "Docker-Content-Digest", "Connection",
    "OCI-Subject", "Set-Cookie", "", "X y",
)  # fmt: skip
STATUS = ("200 OK",) * 8 + (
    "206 Partial", "204 None", "301 Moved", "307 Moved", "308 x", "401 No", "403 No", "404 No",
    "416 x", "429 Slow", "500 Oh", "503 Oh", "100 Continue", "999 ?", "-1", "", "200",
)  # fmt: skip


@st.composite
def answers(draw, kind, plain):
    """Strategy: an HTTP answer with the document `plain`, or with something like it."""
    body = json_of(draw, plain) if draw(st.booleans()) else canonical_json(plain)
    head = {"Content-Type": kind, "Content-Length": str(len(body))}
    for name in draw(st.lists(st.sampled_from(HEADERS), max_size=3)):
        head[name] = draw(st.sampled_from(HEADER_VALUES))
    if draw(st.integers(0, 9)) == 0:
        head |= {f"X-{number}": "x" for number in range(200)}
    if draw(st.integers(0, 4)) == 0:
        head.pop("Content-Length", None)
    status = draw(st.sampled_from(STATUS))
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in head.items())]
    raw = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
    return draw(broken(raw, most=2)) if draw(st.integers(0, 4)) == 0 else raw


def fuzz_registry(draw, world):
    server = world.server
    server.answers = {
        "/token": draw(answers("application/json", {"token": "t", "expires_in": 60})),
        "/tags/list": draw(answers("application/json", {"name": "x", "tags": ["v1", "v2"]})),
        "/referrers/": draw(answers(INDEX_TYPE, world.remote_index)),
        "/manifests/sha256-": draw(answers(MANIFEST_TYPE, world.stored)),
        "/manifests/": draw(
            st.one_of(answers(MANIFEST_TYPE, world.image), answers(INDEX_TYPE, world.remote_index))
        ),
        "/blobs/" + world.image["config"]["digest"]: draw(answers("x/y", world.config)),
        "/blobs/": draw(answers("x/y", world.payload)),
    }
    shutil.rmtree(world.place / "root", ignore_errors=True)
    out = world.place / "root" / "out"
    out.parent.mkdir()
    use = draw(st.sampled_from(USES))
    try:
        use(world, parse_reference(f"{server.host}/a/b:v1"), out)
    finally:
        assert {path.name for path in out.parent.iterdir()} <= {"out"}
        assert not out.exists() or all(path.is_relative_to(out) for path in out.rglob("*"))


INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
IMPATIENT = Connection(plain_http=True, attempts=2, backoff=0.0, patience=0.0, timeout=2)
LOGIN = Credential(username="u", password="p")


@contextlib.contextmanager
def repository_of(reference):
    with open_repository(reference, IMPATIENT, credential=lambda _: LOGIN) as repository:
        yield repository


def use_manifest(_, reference, out):
    with repository_of(reference) as repository:
        stored = get_manifest(repository)
        assert stored.index() if stored.is_index else stored.manifest()


def use_tags(_, reference, out):
    with repository_of(reference) as repository:
        assert all(isinstance(tag, str) for tag in tags(repository))


def use_referrers(_, reference, out):
    with repository_of(reference) as repository:
        referrers(repository, DIGEST)


def use_blob(world, reference, out):
    data = canonical_json(world.payload)
    wanted = Descriptor(media_type="x", digest=digest_of(data), size=len(data))
    with repository_of(reference) as repository:
        assert read_blob(repository, wanted, 10_000) == data


def use_download(world, reference, out):
    data = canonical_json(world.payload)
    wanted = Descriptor(media_type="x", digest=digest_of(data), size=len(data))
    out.mkdir()
    try:
        with repository_of(reference) as repository:
            download(repository, wanted, out / "blob")
    except PrewarmError:
        assert not (out / "blob").exists()
        raise
    assert (out / "blob").read_bytes() == data


def use_list(_, reference, out):
    list_tags(reference, IMPATIENT)


def use_show(_, reference, out):
    show_reference(reference, IMPATIENT)


def use_pull(_, reference, out):
    with contextlib.suppress(InputError, UnsoundError):
        pull(reference, out, IMPATIENT)


def use_signatures(world, reference, out):
    with repository_of(reference) as repository:
        check_signed(repository, DIGEST, Trust(key=world.private.public))


USES = [
    use_manifest, use_tags, use_referrers, use_blob, use_download, use_list, use_show, use_pull,
    use_signatures,
]  # fmt: skip

TARGETS = {
    name.removeprefix("fuzz_"): target for name, target in globals().items() if name[:5] == "fuzz_"
}


@pytest.fixture
def world(cache, manifest, tunings, tmp_path, monkeypatch, root):  # noqa: PLR0917
    """One sound thing of each kind, from which the altered ones are made."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "place").mkdir()
    pack(cache.manifest, cache.directory, tmp_path / "packed")
    image, source = read_layout(tmp_path / "packed"), open_source(tmp_path / "packed")
    group = next(path for path in source.files if "__grp__" in path)
    private = PrivateKey(ec.generate_private_key(ec.SECP256R1()))
    signature = sign(private, DIGEST, "host/name")
    statement = canonical_json(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": "0" * 64}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        }
    )
    server = Misbehaving()
    stored = store([signature])
    entry = {"mediaType": MANIFEST_TYPE, "digest": image.digest, "size": 9}
    yield SimpleNamespace(
        place=tmp_path / "place",
        cache=cache.directory,
        manifest=cache.manifest,
        compiled=plain_of(json.loads((cache.directory / COMPILED_NAME).read_bytes())),
        index=json.loads(source.files[CACHE_MANIFEST]),
        files=source.files,
        key=group.split("/")[1],
        kernel=group.partition("__grp__")[2].removesuffix(".json"),
        metadata=json.loads(source.files[group.replace("__grp__", "")]),
        group=source.files[group],
        receipt=json.loads(render_receipt(Receipt(identity=DIGEST, root="/x"))),
        tuned_manifest=manifest,
        tunings=tunings,
        plain_manifest=yaml.safe_load(render_manifest(manifest)),
        plain_tunings=yaml.safe_load(render_tunings(tunings)),
        matrix=(root / "manifests" / "matrix.yaml").read_text(),
        config=plain_of(image.config),
        image=plain_of(image.manifest),
        index_json=json.loads((tmp_path / "packed" / "index.json").read_bytes()),
        remote_index={
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [entry | {"annotations": image.manifest.annotations}, entry],
        },
        private=private,
        payload=json.loads(signature.payload),
        stored=json.loads(stored.manifest),
        statement=statement,
        bundle=json.loads(make_bundle(statement, private)),
        server=server,
    )
    server.close()


@pytest.mark.parametrize(
    "inputs", [pytest.param(FEW, id="few"), pytest.param(MANY, marks=pytest.mark.soak, id="many")]
)
@pytest.mark.parametrize("name", TARGETS)
def test_anything_is_read_or_refused(name, inputs, world):
    target, before = TARGETS[name], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @seed(SEED)
    @settings(
        max_examples=inputs // SLOW.get(name, 1),
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        with contextlib.suppress(PrewarmError):
            target(data.draw, world)

    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
