"""What is held against this host."""

import platform

import msgspec

from prewarm.ship.host import check_host, decision


def test_a_cache_of_this_cpu_fits(cache):
    tools = cache.compiled.toolchain
    assert check_host(tools) == ()
    assert decision(tools, 100)[0].endswith(f"this host is {platform.machine()}: fits")


def test_a_cache_of_another_cpu_does_not(cache):
    tools = msgspec.structs.replace(cache.compiled.toolchain, machine="sparc")
    (finding,) = check_host(tools)
    assert (finding.code, finding.expected, finding.found) == ("P207", "sparc", platform.machine())
    assert decision(tools, 100)[0].endswith("does not fit")


def test_another_python_is_not_decisive_here(cache):
    tools = msgspec.structs.replace(cache.compiled.toolchain, python_abi="cpython-399")
    assert check_host(tools) == ()
    assert "not decisive" in decision(tools, 100)[1]
