"""An SBOM of an image: its files, and the packages that made them. SPDX 2.3, as JSON.

Like the provenance it follows from the image's bytes, so that it can be made again.
"""

from __future__ import annotations

import hashlib
from typing import Any

from prewarm.ship.described import URI, Described, ptxas_package, python_package

_IMAGE = "SPDXRef-image"
_DOCUMENT = "SPDXRef-DOCUMENT"
_UNKNOWN = "NOASSERTION"
_NVIDIA = "LicenseRef-NVIDIA-CUDA"
_LICENSES = {
    "prewarm": "Apache-2.0",
    "vllm": "Apache-2.0",
    "torch": "BSD-3-Clause",
    "triton": "MIT",
    "ptxas": _NVIDIA,
}
_NVIDIA_TEXT = {
    "licenseId": _NVIDIA,
    "name": "NVIDIA Software License Agreement and CUDA Supplement to it",
    "extractedText": "The End User License Agreement of the NVIDIA CUDA Toolkit.",
    "seeAlsos": ["https://docs.nvidia.com/cuda/eula/"],
}
_BINARY = (".cubin", ".so")


def sbom(image: Described) -> dict[str, Any]:
    """Return the SPDX document of `image`."""
    files = [_file(path, data) for path, data in sorted(image.files.items())]
    packages = _packages(image)
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": _title(image),
        "documentNamespace": f"{URI}/spdx/{image.digest.partition(':')[2]}",
        "creationInfo": {"created": image.created, "creators": [_creator(image)]},
        "packages": [_image(image, files), *packages.values()],
        "files": files,
        "relationships": [
            _related(_DOCUMENT, "DESCRIBES", _IMAGE),
            *(_related(_IMAGE, "CONTAINS", each["SPDXID"]) for each in files),
            _related(_IMAGE, "GENERATED_FROM", packages["vllm"]["SPDXID"]),
            *(
                _related(packages[name]["SPDXID"], relation, _IMAGE)
                for name, relation in _RELATIONS.items()
                if name in packages
            ),
        ],
        "hasExtractedLicensingInfos": [_NVIDIA_TEXT],
    }


_RELATIONS = {
    "triton": "BUILD_TOOL_OF",
    "ptxas": "BUILD_TOOL_OF",
    "torch": "BUILD_DEPENDENCY_OF",
    "prewarm": "BUILD_TOOL_OF",
}


def _title(image: Described) -> str:
    deployment = image.manifest.deployment
    return f"Triton kernel cache of {deployment.model.name} on {deployment.target}"


def _creator(image: Described) -> str:
    return "Tool: prewarm" if image.made_by is None else f"Tool: prewarm-{image.made_by}"


def _image(image: Described, files: list[dict[str, Any]]) -> dict[str, Any]:
    sha1s = sorted(each["checksums"][0]["checksumValue"] for each in files)
    verification = _sha1("".join(sha1s).encode())
    return _package("image", _title(image), image.identity) | {
        "SPDXID": _IMAGE,
        "filesAnalyzed": True,
        "licenseInfoFromFiles": [_UNKNOWN],
        "packageVerificationCode": {"packageVerificationCodeValue": verification},
        "primaryPackagePurpose": "CONTAINER",
    }


def _packages(image: Described) -> dict[str, dict[str, Any]]:
    tools = image.manifest.toolchain
    versions = {"vllm": tools.vllm, "torch": tools.torch, "triton": tools.triton}
    if image.made_by is not None:
        versions["prewarm"] = image.made_by
    found = {
        name: _package(name, name, version) | _reference(python_package(name, version))
        for name, version in versions.items()
    }
    version = tools.ptxas.version
    found["ptxas"] = _package("ptxas", "ptxas", version) | _reference(ptxas_package(version))
    found["ptxas"]["supplier"] = "Organization: NVIDIA Corporation"
    return found


def _package(key: str, name: str, version: str) -> dict[str, Any]:
    return {
        "SPDXID": f"SPDXRef-package-{key}",
        "name": name,
        "versionInfo": version,
        "downloadLocation": _UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": _UNKNOWN,
        "licenseDeclared": _LICENSES.get(key, _UNKNOWN),
        "copyrightText": _UNKNOWN,
    }


def _reference(package_url: str) -> dict[str, Any]:
    reference = {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": package_url,
    }
    return {"externalRefs": [reference]}


def _file(path: str, data: bytes) -> dict[str, Any]:
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    return {
        "SPDXID": f"SPDXRef-file-{name}",
        "fileName": f"./{path}",
        "fileTypes": ["BINARY" if path.endswith(_BINARY) else "TEXT"],
        "checksums": [
            {"algorithm": "SHA1", "checksumValue": _sha1(data)},
            {"algorithm": "SHA256", "checksumValue": hashlib.sha256(data).hexdigest()},
        ],
        "licenseConcluded": _UNKNOWN,
        "licenseInfoInFiles": [_UNKNOWN],
        "copyrightText": _UNKNOWN,
    }


def _sha1(data: bytes) -> str:
    # SPDX 2.3 wants SHA-1 of every file; what is relied on are the SHA-256 beside it.
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _related(one: str, relation: str, other: str) -> dict[str, str]:
    return {
        "spdxElementId": one,
        "relationshipType": relation,
        "relatedSpdxElement": other,
    }
