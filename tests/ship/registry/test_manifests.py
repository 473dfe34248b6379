"""Manifests, indexes, tags and referrers: read with limits, in every form that is about."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from prewarm.core.digest import canonical_json, digest_of
from prewarm.core.errors import InputError, IntegrityError, RegistryError, TryAgainError
from prewarm.ship.blobs import upload
from prewarm.ship.change_index import change_index
from prewarm.ship.image import INDEX_TYPE, MANIFEST_TYPE
from prewarm.ship.manifests import (
    DOCKER_LIST_TYPE,
    DOCKER_MANIFEST_TYPE,
    Entry,
    Index,
    Platform,
    PreconditionError,
    get_manifest,
    manifest_digest,
    put_manifest,
    select_platform,
    tags,
)
from prewarm.ship.referrers import attach, referrers, referrers_tag
from prewarm.ship.transport import NotThereError

EMPTY = b"{}"


@pytest.fixture
def repository(plain_registry, repository_name, opened, describe):
    """A repository that holds one empty config."""
    import io

    found = opened(plain_registry.name(repository_name))
    upload(found, describe(EMPTY), lambda: io.BytesIO(EMPTY))
    return found


@pytest.fixture
def behind(repository, proxy, opened):
    """The same as it is seen through the proxy."""
    return opened(f"{proxy.host}/{repository.reference.repository}")


def image(number=0, media_type=MANIFEST_TYPE, **more):
    """The bytes of a manifest with the empty config and no layers."""
    config = {"mediaType": "application/x", "digest": digest_of(EMPTY), "size": len(EMPTY)}
    plain = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": []}
    plain["annotations"] = {"number": str(number)}
    return canonical_json({**plain, **more})


def entry_of(data, **more):
    return Entry(media_type=MANIFEST_TYPE, digest=digest_of(data), size=len(data), **more)


def test_a_manifest_comes_back_by_tag_and_by_digest(repository):
    data = image()
    put_manifest(repository, data, MANIFEST_TYPE, "v1")

    by_tag = get_manifest(repository, "v1")
    assert (by_tag.data, by_tag.media_type, by_tag.is_index) == (data, MANIFEST_TYPE, False)
    assert get_manifest(repository, digest_of(data)) == by_tag
    assert manifest_digest(repository, "v1") == digest_of(data)
    assert manifest_digest(repository, "v2") is None
    assert by_tag.manifest().annotations == {"number": "0"}


def test_what_is_not_there_is_an_error_of_its_own(repository):
    with pytest.raises(NotThereError, match="404: MANIFEST_UNKNOWN") as caught:
        get_manifest(repository, "none")
    assert caught.value.exit_code == 9


@pytest.mark.parametrize("media_type", [MANIFEST_TYPE, DOCKER_MANIFEST_TYPE])
def test_images_of_docker_and_of_oci_are_read(repository, media_type):
    data = image(media_type=media_type)
    put_manifest(repository, data, media_type, "v1")

    assert get_manifest(repository, "v1").media_type == media_type


def test_a_manifest_without_a_media_type_has_that_of_the_header(repository):
    plain = json.loads(image())
    del plain["mediaType"]
    put_manifest(repository, canonical_json(plain), MANIFEST_TYPE, "v1")

    assert get_manifest(repository, "v1").media_type == MANIFEST_TYPE


def test_a_manifest_that_names_a_missing_blob_is_refused(repository):
    missing = {"mediaType": "a/b", "digest": digest_of(b"missing"), "size": 7}

    with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN"):
        put_manifest(repository, image(layers=[missing]), MANIFEST_TYPE, "v1")
    assert manifest_digest(repository, "v1") is None


def test_more_than_registries_take_is_not_sent(repository):
    with pytest.raises(InputError, match="registries take"):
        put_manifest(repository, b" " * (5 << 20), MANIFEST_TYPE, "v1")


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("body", "headers", "error", "said"),
    [
        pytest.param(image(9), {}, IntegrityError, "expected sha256", id="another manifest"),
        pytest.param(
            image(9),
            {"Docker_Content_Digest": digest_of(image(8))},
            IntegrityError,
            "expected sha256",
            id="another digest",
        ),
        pytest.param(b" " * (5 << 20), {}, RegistryError, "more than 4194304", id="huge"),
        pytest.param(b"", {"Docker_Content_Digest": ""}, RegistryError, "not what", id="nothing"),
        pytest.param(DEEP, {"Docker_Content_Digest": ""}, RegistryError, "not what", id="deep"),
        pytest.param(b"[]", {"Docker_Content_Digest": ""}, RegistryError, "not what", id="a list"),
        pytest.param(
            b"\xff\xfe", {"Docker_Content_Digest": ""}, RegistryError, "not what", id="no text"
        ),
        pytest.param(
            b"<html>hello</html>",
            {"Docker_Content_Digest": "", "Content_Type": "text/html"},
            RegistryError,
            "not what",
            id="a web page",
        ),
        pytest.param(
            image(),
            {"Content_Type": INDEX_TYPE},
            RegistryError,
            "says that it is",
            id="a manifest sent as an index",
        ),
        pytest.param(
            canonical_json({"schemaVersion": 2, "manifests": []}),
            {"Docker_Content_Digest": ""},
            RegistryError,
            "holds something else",
            id="an index sent as a manifest",
        ),
        pytest.param(
            canonical_json({"schemaVersion": 1}),
            {
                "Docker_Content_Digest": "",
                "Content_Type": "application/vnd.docker.distribution.manifest.v1+json",
            },
            RegistryError,
            "no image and no index",
            id="schema 1",
        ),
    ],
)
def test_a_hostile_manifest_is_refused(
    repository, behind, proxy, faults, body, headers, error, said
):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")
    proxy.fault("GET .*/manifests/", faults.changed(lambda _: body, **headers), times=9)

    with pytest.raises(error, match=said):
        get_manifest(behind, "v1")


def test_a_manifest_by_digest_must_have_it(repository, behind, proxy, faults):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")
    answer = faults.changed(lambda _: image(9), Docker_Content_Digest="")
    proxy.fault("GET .*/manifests/", answer)

    with pytest.raises(IntegrityError, match="expected sha256"):
        get_manifest(behind, digest_of(image()))


def test_a_proxy_that_spoils_the_content_type_is_survived(repository, behind, proxy, faults):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")
    proxy.fault("GET .*/manifests/", faults.changed(bytes, Content_Type="text/plain"))

    assert get_manifest(behind, "v1").media_type == MANIFEST_TYPE


def test_a_manifest_that_is_cut_is_read_again(repository, behind, proxy, faults):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")
    proxy.fault("GET .*/manifests/", faults.cut_after(10), times=2)

    assert get_manifest(behind, "v1").data == image()
    proxy.fault("GET .*/manifests/", faults.cut_after(10), times=9)
    with pytest.raises(TryAgainError, match="was cut"):
        get_manifest(behind, "v1")


@pytest.mark.parametrize(
    "spoilt",
    [
        {"config": None},
        {"config": {"mediaType": "a/b", "digest": "sha256:0", "size": "many"}},
        {"layers": {}},
        {"layers": [1]},
        {"annotations": {"a": 1}},
    ],
)
def test_a_manifest_of_another_shape_is_refused(repository, behind, proxy, faults, spoilt):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")
    body = canonical_json({**json.loads(image()), **spoilt})
    proxy.fault("GET", faults.changed(lambda _: body, Docker_Content_Digest=""), times=9)

    with pytest.raises(RegistryError, match="not what it should be"):
        get_manifest(behind, "v1").manifest()


# Tags


def test_every_tag_is_listed(repository):
    for name in ("b", "a", "c"):
        put_manifest(repository, image(), MANIFEST_TYPE, name)

    assert tags(repository) == ("a", "b", "c")


def test_the_pages_of_a_list_are_read(behind, proxy, faults):
    def page(names, last):
        link = f'</v2/x/tags/list?last={last}&n=2>; rel="next"' if last else ""
        body = json.dumps({"name": "x", "tags": names}).encode()
        return lambda handler, _: faults.answer(handler, 200, body, Link=link)

    proxy.fault("GET .*tags/list", page(["a", "b"], "b"))
    proxy.fault("GET .*tags/list", page(["c", "not a tag", "../x"], "c"))
    proxy.fault("GET .*tags/list", page(None, None))

    assert tags(behind) == ("a", "b", "c")
    assert [seen.path.partition("?")[2] for seen in proxy.seen[-3:]] == [
        "n=1000",
        "n=1000&last=b",
        "n=1000&last=c",
    ]


def test_a_list_without_end_has_one(behind, proxy, faults):
    body = json.dumps({"tags": ["a"]}).encode()
    link = '<http://elsewhere.example/v2/x/tags/list?last=a>; rel="next"'
    answer = lambda handler, _: faults.answer(handler, 200, body, Link=link)  # noqa: E731
    proxy.fault("GET .*tags/list", answer, times=9)

    assert tags(behind) == ("a",)
    assert proxy.count("GET .*tags/list") == 2


# Platforms


def platformed(*names):
    return Index(
        schema_version=2,
        manifests=tuple(
            entry_of(
                image(name),
                platform=Platform(os="linux", architecture=name[0], variant=name[1]),
            )
            for name in names
        ),
    )


def test_the_image_of_a_platform_is_chosen():
    index = platformed(("amd64", ""), ("arm64", "v8"), ("unknown", ""))

    assert select_platform(index, "linux", "amd64") == index.manifests[0]
    assert select_platform(index, "linux", "arm64") == index.manifests[1]
    assert select_platform(index, "linux", "arm64", "v8") == index.manifests[1]
    with pytest.raises(InputError, match="no image for linux/s390x; it has linux/amd64, "):
        select_platform(index, "linux", "s390x")


@pytest.mark.parametrize("media_type", [INDEX_TYPE, DOCKER_LIST_TYPE])
def test_indexes_of_docker_and_of_oci_are_read(repository, media_type):
    put_manifest(repository, image(), MANIFEST_TYPE)
    platform = {"os": "linux", "architecture": "amd64", "os.version": "1"}
    described = {"mediaType": MANIFEST_TYPE, "digest": digest_of(image()), "size": len(image())}
    plain = {"schemaVersion": 2, "mediaType": media_type}
    data = canonical_json({**plain, "manifests": [{**described, "platform": platform}]})
    put_manifest(repository, data, media_type, "all")

    stored = get_manifest(repository, "all")
    assert stored.is_index
    chosen = select_platform(stored.index(), "linux", "amd64")
    assert get_manifest(repository, chosen.digest).data == image()


# Indexes that several write


def put(repository, number):
    data = image(number)
    put_manifest(repository, data, MANIFEST_TYPE)
    return entry_of(data, annotations={"number": str(number)})


def held(repository, tag="all"):
    return {each.digest for each in get_manifest(repository, tag).index().manifests}


def test_an_index_grows_and_replaces_what_it_is_told_to(repository):
    one, two, three = (put(repository, number) for number in range(3))
    change_index(repository, "all", one, settle=0)
    change_index(repository, "all", two, settle=0)
    again = change_index(repository, "all", two, settle=0)
    assert held(repository) == {one.digest, two.digest}
    assert again == get_manifest(repository, "all").digest

    change_index(repository, "all", three, lambda there: there.digest == one.digest, settle=0)
    assert held(repository) == {two.digest, three.digest}


def test_what_others_put_into_an_index_stays(repository):
    entry = put(repository, 0)
    foreign = {"mediaType": MANIFEST_TYPE, "digest": entry.digest, "size": entry.size}
    plain = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "annotations": {"mine": "yes"}}
    data = canonical_json({**plain, "manifests": [{**foreign, "data": "e30="}]})
    put_manifest(repository, data, INDEX_TYPE, "all")

    change_index(repository, "all", put(repository, 1), settle=0)

    now = json.loads(get_manifest(repository, "all").data)
    assert now["annotations"] == {"mine": "yes"}
    assert {**foreign, "data": "e30="} in now["manifests"]


def test_a_tag_of_an_image_is_not_made_an_index(repository):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")

    with pytest.raises(InputError, match="is an image and no index"):
        change_index(repository, "v1", put(repository, 1), settle=0)
    assert get_manifest(repository, "v1").data == image()


def test_of_many_who_write_an_index_at_once_none_is_lost(repository, opened):
    entries = [put(repository, number) for number in range(6)]
    start = threading.Barrier(len(entries))

    def write(entry):
        own = opened(repository.reference)
        start.wait()
        change_index(own, "all", entry)

    with ThreadPoolExecutor(len(entries)) as pool:
        list(pool.map(write, entries))

    assert held(repository) == {entry.digest for entry in entries}


def test_an_entry_that_another_writer_overwrote_is_added_again(repository, behind, proxy):
    mine, theirs = put(repository, 0), put(repository, 1)
    late = canonical_json(Index(schema_version=2, media_type=INDEX_TYPE, manifests=(theirs,)))

    def overwritten(handler, passing):
        answer = passing.passed_on(handler)
        put_manifest(repository, late, INDEX_TYPE, "all")
        passing.send(handler, *answer)

    proxy.fault("PUT .*/manifests/all", overwritten, times=2)
    change_index(behind, "all", mine, settle=0.01)

    assert held(repository) == {mine.digest, theirs.digest}


def test_a_registry_that_knows_conditions_is_told_them(repository, behind, proxy, faults):
    change_index(behind, "all", put(repository, 0), settle=0)
    old = get_manifest(repository, "all").digest
    proxy.fault("PUT .*/manifests/all", faults.status(412), times=2)

    change_index(behind, "all", put(repository, 1), settle=0)

    puts = [seen for seen in proxy.seen if seen.path.endswith("/manifests/all")]
    asked = [seen.headers.get("If-Match") for seen in puts if seen.method == "PUT"]
    assert asked == [None, *[f'"{old}"'] * 3]
    assert len(held(repository)) == 2


def test_writers_who_never_stop_are_75(repository, behind, proxy, faults):
    proxy.fault("PUT .*/manifests/all", faults.status(201), times=99)

    with pytest.raises(TryAgainError, match="all the time"):
        change_index(behind, "all", put(repository, 0), settle=0)


def test_a_condition_that_fails_is_an_error_of_its_own(behind, proxy, faults):
    proxy.fault("PUT", faults.status(412))

    with pytest.raises(PreconditionError):
        put_manifest(behind, image(), MANIFEST_TYPE, "v1", replaces=digest_of(b""))


# Referrers


@pytest.fixture
def subject(repository):
    put_manifest(repository, image(), MANIFEST_TYPE, "v1")
    return {"mediaType": MANIFEST_TYPE, "digest": digest_of(image()), "size": len(image())}


def signature(subject, number, kind="a/signature"):
    return image(number, subject=subject, artifactType=kind)


def test_referrers_are_found_by_the_tag_where_there_is_no_api(repository, subject):
    assert referrers(repository, subject["digest"]) == ()
    for number in (1, 2):
        attach(repository, signature(subject, number), MANIFEST_TYPE)
    attach(repository, signature(subject, 3, "an/sbom"), MANIFEST_TYPE)

    found = referrers(repository, subject["digest"])
    assert len(found) == 3
    (sbom,) = referrers(repository, subject["digest"], "an/sbom")
    assert sbom.digest == digest_of(signature(subject, 3, "an/sbom"))
    assert sbom.annotations == {"number": "3"}
    tag = referrers_tag(subject["digest"])
    assert tag in tags(repository)
    assert get_manifest(repository, tag).is_index


def test_referrers_are_found_by_the_api_where_there_is_one(
    repository, behind, proxy, faults, subject
):
    def acknowledged(handler, passing):
        code, headers, body = passing.passed_on(handler)
        named = [*headers, ("OCI-Subject", subject["digest"])]
        passing.send(handler, code, named, body)

    def page(entries, link=""):
        plain = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        body = canonical_json(plain)
        return lambda handler, _: faults.answer(
            handler, 200, body, Content_Type=INDEX_TYPE, Link=link
        )

    proxy.fault("PUT .*/manifests/", acknowledged, times=9)
    entries = [attach(behind, signature(subject, number), MANIFEST_TYPE) for number in (1, 2)]
    assert tags(repository) == ("v1",)
    next_page = f'<http://elsewhere.example/v2/x/referrers/{subject["digest"]}?n=2>; rel="next"'
    proxy.fault("GET .*/referrers/", page(entries[:1], next_page))
    proxy.fault("GET .*/referrers/", page(entries[1:], next_page), times=2)

    assert referrers(behind, subject["digest"]) == tuple(entries)
    assert proxy.seen[-1].path.endswith("?n=2")


def test_what_names_no_subject_refers_to_nothing(repository):
    with pytest.raises(ValueError, match="without a subject"):
        attach(repository, image(), MANIFEST_TYPE)
