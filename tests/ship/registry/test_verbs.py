"""push, pull, list, show and install of a REF as a user runs them, against a real registry."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from prewarm.cli import main
from prewarm.core.digest import digest_of
from prewarm.core.errors import InputError, IntegrityError, TryAgainError
from prewarm.ship.catalogue import list_tags
from prewarm.ship.image import MANIFEST_TYPE
from prewarm.ship.layout import read_layout
from prewarm.ship.manifests import get_manifest, put_manifest, tags
from prewarm.ship.pack import pack
from prewarm.ship.pull import pull
from prewarm.ship.push import push
from prewarm.ship.reference import parse_reference
from prewarm.ship.transport import Connection, NotThereError


@pytest.fixture
def name(plain_registry, repository_name):
    return plain_registry.name(repository_name)


@pytest.fixture
def pushed(packed, name):
    """The packed image in the registry as v1: its digest."""
    return push(packed[0], parse_reference(f"{name}:v1")).digest


@pytest.fixture
def behind(proxy, repository_name):
    return f"{proxy.host}/{repository_name}"


@pytest.fixture
def variant(compiled_once, tmp_path):
    """The function that packs the cache for another toolchain."""
    made = []

    def make(arch=100, target="b200", **tools):
        number = len(made)
        directory = tmp_path / f"cache-{number}"
        shutil.copytree(compiled_once.directory, directory)
        for entry in directory.glob("*/*.json"):
            entry.write_text(entry.read_text().replace('"arch": 100', f'"arch": {arch}'))
        toolchain = msgspec.structs.replace(compiled_once.manifest.toolchain, **tools)
        deployment = msgspec.structs.replace(compiled_once.manifest.deployment, target=target)
        manifest = msgspec.structs.replace(
            compiled_once.manifest, toolchain=toolchain, deployment=deployment
        )
        cache = compiled_once._replace(manifest=manifest, directory=directory)
        cache.with_index(manifest=manifest.digest, toolchain=toolchain, arch=arch)
        made.append(pack(manifest, directory, tmp_path / f"image-{number}"))
        return tmp_path / f"image-{number}", made[-1]

    return make


def run(capsys, *argv):
    """Return exit code, stdout and stderr of prewarm with `argv`."""
    capsys.readouterr()
    code = main([str(each) for each in argv])
    return code, *capsys.readouterr()


def test_from_an_image_to_a_registry_and_an_installed_directory(packed, name, tmp_path, capsys):
    image, made = packed
    reference = f"{name}@{made.manifest_digest}"

    code, out, err = run(capsys, "push", image, f"{name}:v1")
    assert (code, out) == (0, f"{reference}\n")
    assert err.startswith(f"pushed {made.identity} as v1: ")
    assert "layer uploaded" in err
    assert "layer there" in run(capsys, "push", image, f"{name}:v1")[2]

    code, out, _ = run(capsys, "pull", f"{name}:v1", tmp_path / "pulled")
    assert (code, out) == (0, f"{reference}\n")
    assert read_layout(tmp_path / "pulled") == read_layout(image)
    assert run(capsys, "pull", f"{name}:v1", tmp_path / "pulled")[0] == 0

    into = tmp_path / "into"
    assert run(capsys, "install", reference, "--into", into)[:2] == (0, f"{into}/triton\n")
    assert run(capsys, "verify", into, "--integrity-only")[0] == 0


def test_json_of_each_verb(packed, name, tmp_path, capsys):
    image, made = packed
    reference = f"{name}@{made.manifest_digest}"

    def told(*argv):
        code, out, err = run(capsys, *argv, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    found = told("push", image, name, "--index", "all")
    assert (found["reference"], found["tag"], found["layer"]) == (reference, made.tag, "uploaded")
    assert found["index"].startswith("sha256:")
    assert told("pull", reference, tmp_path / "pulled")["identity"] == made.identity
    listed = told("list", name)
    assert listed["repository"] == name
    assert [(each["tag"], each["kind"]) for each in listed["tags"]] == [
        ("all", "index"),
        (made.tag, "cache"),
    ]
    shown = told("show", reference)
    assert (shown["digest"], shown["facts"]["target"]) == (made.manifest_digest, "b200")
    (fitting,) = told("show", f"{name}:all")["images"]
    assert (fitting["digest"], fitting["fits"]) == (made.manifest_digest, True)
    installed = told("install", reference, "--into", tmp_path / "into")
    assert installed["installed"]["state"] == "installed"


def test_without_a_tag_the_image_has_the_one_that_says_what_it_is_for(packed, name, opened):
    done = push(packed[0], parse_reference(name))

    assert done.tag == packed[1].tag
    assert tags(opened(name)) == (packed[1].tag,)


def test_list_says_what_each_is_for(packed, pushed, name, opened, capsys):
    other = b'{"schemaVersion":2,"manifests":[]}'
    put_manifest(opened(name), other, "application/vnd.oci.image.index.v1+json", "foreign")
    put_manifest(
        opened(name), other, "application/vnd.oci.image.index.v1+json", "sha256-" + "0" * 64
    )

    code, out, _ = run(capsys, "list", name)

    assert code == 0
    head, foreign, cache = out.splitlines()
    assert head.split()[:5] == ["tag", "kind", "target", "arch", "vLLM"]
    assert foreign.split()[:2] == ["foreign", "other"]
    assert cache.split()[:6] == ["v1", "cache", "b200", "sm_100", "0.25.1+cu129", "3.6.0"]
    assert cache.endswith(pushed)


def test_a_tag_that_goes_while_they_are_listed_is_left_out(packed, pushed, proxy, behind, faults):
    proxy.fault("GET .*/manifests/v1", faults.status(404))

    assert list_tags(parse_reference(behind)) == ()


def test_a_tag_that_cannot_be_read_does_not_hide_the_others(
    packed, pushed, name, proxy, behind, faults
):
    push(packed[0], parse_reference(f"{name}:v2"))
    proxy.fault("GET .*/manifests/v1", faults.changed(lambda _: b"?", Docker_Content_Digest=""))

    found = list_tags(parse_reference(behind))
    assert [(each.tag, each.kind, each.digest) for each in found] == [
        ("v1", "other", pushed),
        ("v2", "cache", pushed),
    ]


@pytest.mark.parametrize("option", ["--index", "--mount-from"])
def test_what_cannot_be_a_tag_or_a_repository_is_bad_input(packed, name, capsys, option):
    code, _, err = run(capsys, "push", packed[0], name, option, "a b&c")

    assert (code, "is not an image reference" in err) == (2, True)


def test_layers_are_taken_from_another_repository(packed, pushed, name, capsys):
    other = name.partition("/")[2]
    argv = ("push", packed[0], f"{name}-other:v1", "--mount-from", other)

    assert "layer mounted" in run(capsys, *argv)[2]


def test_show_of_an_image_names_its_labels(pushed, name, capsys):
    code, out, _ = run(capsys, "show", f"{name}:v1")

    assert code == 0
    assert f"{name}@{pushed}" in out
    assert "cpython-311" in out


def test_what_is_not_there_is_9(name, tmp_path, capsys):
    for argv in (["pull", f"{name}:v9", tmp_path / "x"], ["show", f"{name}:v9"], ["list", name]):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (9, "")
        assert "answers 404" in err
    assert not (tmp_path / "x").exists()


# Indexes


def test_an_index_gives_each_host_the_image_that_fits(variant, name, tmp_path, capsys):
    hopper, blackwell = variant(arch=90, target="h100"), variant()
    older = variant(vllm="0.24.0")
    for image, _ in (hopper, blackwell, older):
        assert run(capsys, "push", image, name, "--index", "all")[0] == 0

    want = ("--want", "arch=sm_100", "--want", "vllm=0.25.1")
    code, out, err = run(capsys, "pull", f"{name}:all", tmp_path / "out", *want)
    assert (code, out) == (0, f"{name}@{blackwell[1].manifest_digest}\n")
    assert f"{hopper[1].manifest_digest}: arch: built for sm_90, here sm_100\n" in err
    assert f"{older[1].manifest_digest}: vllm: built for 0.24.0, here 0.25.1\n" in err
    assert f"{blackwell[1].manifest_digest}: fits\n" in err

    code, out, _ = run(capsys, "show", f"{name}:all", *want)
    assert [line.split()[0] for line in out.splitlines()[-3:]].count("yes") == 1
    target = ("--want", "target=h100")
    code, _, _ = run(capsys, "install", f"{name}:all", "--into", tmp_path / "into", *target)
    assert code == 0
    (receipt,) = (tmp_path / "into").glob("versions/*/receipt.json")
    assert hopper[1].manifest_digest in receipt.read_text()


def test_where_none_fits_it_is_8_with_every_reason(variant, name, tmp_path, capsys):
    image, made = variant(arch=90, target="h100")
    run(capsys, "push", image, name, "--index", "all")
    argv = ["install", f"{name}:all", "--into", tmp_path / "into", "--want", "arch=sm_100"]

    code, out, err = run(capsys, *argv)
    assert (code, out) == (8, "")
    assert f"{made.manifest_digest}: arch: built for sm_90, here sm_100" in err
    code, out, err = run(capsys, *argv, "--on-mismatch", "warn")
    assert (code, out) == (0, f"{tmp_path}/into/triton\n")
    assert "none of 1 images fits" in err
    assert not (tmp_path / "into").exists()


def test_where_several_fit_it_asks_for_what_tells_them_apart(variant, name, tmp_path, capsys):
    for arch, target in ((90, "h100"), (100, "b200")):
        run(capsys, "push", variant(arch, target)[0], name, "--index", "all")
    vllm = ("--want", "vllm=0.25.1")
    code, _, err = run(capsys, "pull", f"{name}:all", tmp_path / "x", *vllm)

    if code == 0:
        pytest.skip("this host has a GPU, which tells them apart")
    assert code == 2
    assert "2 images fit" in err
    assert "--want arch=sm_" in err


def test_another_image_for_the_same_replaces_the_first(variant, name, tmp_path, capsys):
    image, first = variant()
    run(capsys, "push", image, name, "--index", "all")
    again, second = variant(libc="glibc 2.36", cuda="13.0")
    assert first.manifest_digest != second.manifest_digest
    run(capsys, "push", again, name, "--index", "all")

    _, out, _ = run(capsys, "show", f"{name}:all", "--json")
    assert [each["digest"] for each in json.loads(out)["images"]] == [second.manifest_digest]


@pytest.mark.parametrize("word", ["arch", "arch=", "=sm_90", "colour=red"])
def test_a_fact_that_nobody_knows_is_bad_input(name, tmp_path, capsys, word):
    code, _, err = run(capsys, "pull", name, tmp_path / "x", "--want", word)

    assert code == 2
    assert "FACT=VALUE" in err


def test_many_pushes_at_once_are_all_in_the_index(variant, name, opened):
    images = [variant(vllm=f"0.25.{number}")[0] for number in range(4)]
    start = threading.Barrier(len(images))

    def push_one(image):
        start.wait()
        return push(image, parse_reference(name), index="all")

    with ThreadPoolExecutor(len(images)) as pool:
        done = list(pool.map(push_one, images))

    index = get_manifest(opened(name), "all").index()
    assert {each.digest for each in index.manifests} == {each.digest for each in done}
    assert len(tags(opened(name))) == 5


# Nothing half-written


def test_a_pull_that_fails_leaves_no_image_and_goes_on_later(
    packed, pushed, proxy, behind, faults, tmp_path
):
    layer = read_layout(packed[0]).manifest.layers[0]
    proxy.fault(f"GET .*/blobs/{layer.digest}", faults.cut_after(500))
    proxy.fault(f"GET .*/blobs/{layer.digest}", faults.status(503), times=2)
    out, impatient = tmp_path / "out", Connection(attempts=2, backoff=0.01)

    with pytest.raises(TryAgainError):
        pull(parse_reference(f"{behind}:v1"), out, impatient)
    assert not (out / "index.json").exists()

    pull(parse_reference(f"{behind}:v1"), out, impatient)
    assert read_layout(out) == read_layout(packed[0])
    assert proxy.seen[-1].headers.get("Range") == "bytes=500-"
    assert sorted(path.name for path in out.iterdir()) == ["blobs", "index.json", "oci-layout"]
    assert len(list((out / "blobs" / "sha256").iterdir())) == 3


def test_a_pull_that_fails_leaves_the_image_that_was_there(
    packed, pushed, variant, name, proxy, behind, faults, tmp_path, snapshot
):
    other, _ = variant(vllm="0.24.0")
    push(other, parse_reference(f"{name}:other"))
    out = tmp_path / "out"
    pull(parse_reference(f"{name}:v1"), out)
    proxy.fault("GET .*/blobs/", faults.changed(lambda body: body[:-1] + b"?"), times=99)

    with pytest.raises(IntegrityError):
        pull(parse_reference(f"{behind}:other"), out)
    assert read_layout(out) == read_layout(packed[0])

    pull(parse_reference(f"{name}:other"), out)
    assert read_layout(out) == read_layout(other)


def test_an_install_of_altered_bytes_is_7_and_installs_nothing(
    pushed, proxy, behind, faults, tmp_path, capsys
):
    proxy.fault("GET .*/blobs/", faults.changed(lambda body: body[:-1] + b"?"), times=99)

    code, out, _ = run(capsys, "install", f"{behind}:v1", "--into", tmp_path / "into")
    assert (code, out) == (7, "")
    assert not (tmp_path / "into").exists()


def test_a_killed_pull_is_gone_on_with(packed, pushed, proxy, behind, tmp_path):
    layer = read_layout(packed[0]).manifest.layers[0]
    reached, killed = threading.Event(), threading.Event()

    def stalls(handler, passing):
        code, _, body = passing.passed_on(handler)
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:1000])
        handler.wfile.flush()
        reached.set()
        killed.wait(20)

    proxy.fault(f"GET .*/blobs/{layer.digest}", stalls)
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "prewarm", "pull", f"{behind}:v1", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert reached.wait(20)
    process.kill()
    process.wait()
    killed.set()
    assert not (out / "index.json").exists()

    pull(parse_reference(f"{behind}:v1"), out)
    assert read_layout(out) == read_layout(packed[0])


def test_a_push_to_a_server_that_is_killed_leaves_no_tag_and_can_be_done_again(
    packed, start_registry, start_proxy, tmp_path
):
    first = start_registry()
    proxy = start_proxy(first.host)
    quick = Connection(attempts=2, backoff=0.01, timeout=5)

    def dies(handler, passing):
        first.process.kill()
        first.process.wait()
        handler.rfile.read(int(handler.headers["Content-Length"]))
        passing.send(handler, 502, [], b"")

    proxy.fault("PUT .*/uploads/", dies)
    with pytest.raises(TryAgainError):
        push(packed[0], parse_reference(f"{proxy.host}/a/b:v1"), quick)

    second = start_registry()
    with pytest.raises(NotThereError):
        list_tags(parse_reference(f"{second.host}/a/b"), quick)
    push(packed[0], parse_reference(f"{second.host}/a/b:v1"), quick)
    pull(parse_reference(f"{second.host}/a/b:v1"), tmp_path / "out", quick)
    assert read_layout(tmp_path / "out") == read_layout(packed[0])


def test_an_unsound_image_is_not_pushed(packed, name, capsys):
    image, _ = packed
    blob = max((image / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")

    assert run(capsys, "push", image, f"{name}:v1")[0] == 7
    assert run(capsys, "list", name)[0] == 9


def test_a_reference_by_digest_must_be_that_of_the_image(packed, name):
    with pytest.raises(InputError, match="holds the image"):
        push(packed[0], parse_reference(f"{name}@{digest_of(b'x')}"))
    done = push(packed[0], parse_reference(f"{name}@{packed[1].manifest_digest}"))
    assert done.tag is None


def test_what_is_no_cache_is_not_pulled(name, opened, describe, tmp_path, capsys):
    import io

    from prewarm.ship.blobs import upload

    upload(opened(name), describe(b"{}"), lambda: io.BytesIO(b"{}"))
    config = {"mediaType": "application/x", "digest": digest_of(b"{}"), "size": 2}
    plain = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": []}
    put_manifest(opened(name), json.dumps(plain).encode(), MANIFEST_TYPE, "v1")

    code, _, err = run(capsys, "pull", f"{name}:v1", tmp_path / "x")
    assert code == 2
    assert "is not a cache image of prewarm's" in err
    assert not (tmp_path / "x").exists()


def test_a_directory_with_something_else_is_not_pulled_into(pushed, name, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")

    assert run(capsys, "pull", f"{name}:v1", tmp_path / "out")[0] == 2
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_a_file_is_not_pulled_into(pushed, name, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")

    code, _, err = run(capsys, "pull", f"{name}:v1", tmp_path / "out")
    assert (code, "is not a directory" in err) == (2, True)
    assert (tmp_path / "out").read_text() == "mine"


def test_two_pulls_into_one_directory_do_not_disturb_each_other(packed, pushed, name, tmp_path):
    out = tmp_path / "out"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: pull(parse_reference(f"{name}:v1"), out), range(16)))

    assert read_layout(out) == read_layout(packed[0])


def test_where_nothing_can_be_pulled_to_the_error_says_what_helps(
    pushed, name, tmp_path, capsys, monkeypatch
):
    def none(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("prewarm.shipping.tempfile.TemporaryDirectory", none)

    code, _, err = run(capsys, "install", f"{name}:v1", "--into", tmp_path / "into")
    assert code == 4
    assert "TMPDIR" in err


def test_an_interrupt_is_130_and_leaves_no_image(pushed, proxy, behind, tmp_path):
    reached = threading.Event()

    def silent(handler, _):
        reached.set()
        time.sleep(3)

    proxy.fault("GET .*/blobs/", silent)
    argv = [sys.executable, "-m", "prewarm", "pull", f"{behind}:v1", str(tmp_path / "out")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reached.wait(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()

    assert (process.returncode, out, err) == (130, "", "prewarm: error: interrupted\n")
    assert not (tmp_path / "out" / "index.json").exists()


# Others


def skopeo(*argv):
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    done = subprocess.run(["skopeo", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_reads_what_is_pushed(packed, pushed, name, tmp_path):
    found = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}:v1"))
    assert found["Digest"] == pushed
    assert found["Labels"]["dev.prewarm.identity"] == packed[1].identity
    copy = ("copy", "--insecure-policy", "--src-tls-verify=false")
    skopeo(*copy, f"docker://{name}:v1", f"oci:{tmp_path}/copy:v1")
    assert read_layout(tmp_path / "copy") == read_layout(packed[0])


def test_what_skopeo_pushes_is_pulled(packed, name, tmp_path):
    image, made = packed
    copy = ("copy", "--insecure-policy", "--dest-tls-verify=false")
    skopeo(*copy, f"oci:{image}:{made.tag}", f"docker://{name}:theirs")

    done = pull(parse_reference(f"{name}:theirs"), tmp_path / "out")

    assert done.digest == made.manifest_digest
    assert read_layout(tmp_path / "out") == read_layout(image)
    assert [each.kind for each in list_tags(parse_reference(name))] == ["cache"]


def test_skopeo_reads_the_index_and_what_is_in_it(packed, name, tmp_path):
    push(packed[0], parse_reference(name), index="all")

    raw = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}:all"))
    assert raw["manifests"][0]["annotations"]["dev.prewarm.arch"] == "sm_100"
    copy = ("copy", "--insecure-policy", "--src-tls-verify=false")
    skopeo(*copy, f"docker://{name}:all", f"oci:{tmp_path}/copy:v1")
    assert read_layout(tmp_path / "copy").digest == packed[1].manifest_digest
