"""The steps of `gather`: shards become images and their index, at once or by the last shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from prewarm.core.errors import InputError, IntegrityError
from prewarm.core.fleet import Part
from prewarm.core.record import Record
from prewarm.output import Output
from prewarm.render import size
from prewarm.ship.gather import Gathered
from prewarm.ship.gather import gather as gather_
from prewarm.ship.layout import read_index
from prewarm.ship.reference import check_tag, parse_reference
from prewarm.ship.run import Gathering, Run

if TYPE_CHECKING:
    from prewarm.ship.fleet_index import PushedIndex

IMAGES = "images"
"""Where in the output directory the images are."""
INDEX = "index"
"""Where in it the index of all of them is."""


class IndexWanted(Record, kw_only=True):
    """Which index `gather` makes of its images, and where it goes."""

    tag: str
    repository: str | None = None
    reach: dict[str, Any] = {}
    """How the registry is reached."""

    def push(self) -> Callable[[Sequence[Gathered]], PushedIndex] | None:
        """Return what pushes images and index, None where that is not wanted."""
        if self.repository is None:
            check_tag(self.tag)
            return None
        from prewarm.ship.fleet_index import push_index
        from prewarm.ship.transport import Connection

        reference = parse_reference(f"{self.repository}:{self.tag}")
        connection = msgspec.convert(self.reach, Connection)
        return lambda images: push_index(images, reference, connection)


def gather(
    out: Output,
    shards: Sequence[Path],
    output: Path,
    mount_path: str | None,
    wanted: IndexWanted | None = None,
) -> int:
    """Write the image of each deployment, then the index that is `wanted`; return 0.

    Told are a line of name and digest for each image and, last, for the index.
    """
    # A repository that is misspelt is told before anything is packed.
    push = None if wanted is None else wanted.push()
    done = []
    for image in gather_(shards, output / IMAGES, mount_path):
        done.append(image)
        packed = image.packed
        out.say(
            f"packed {packed.launches} launches into {image.path}:"
            f" {size(packed.sizes.layer)} as a layer; its first start {packed.first_start}"
        )
    lines = [f"{each.name} {each.packed.manifest_digest}" for each in done]
    told: dict[str, object] = {"images": done}
    if wanted is not None:
        from prewarm.ship.fleet_index import write_index

        written = write_index(output / INDEX, wanted.tag, done)
        out.say(f"indexed {written.images} images in {written.path}")
        last = f"{written.tag} {written.digest}"
        told["index"] = written
        if push is not None:
            pushed = push(done)
            out.say(f"pushed {len(done)} images, {pushed.uploaded} of them new, and their index")
            last = f"{pushed.tag} {pushed.reference}"
            told["pushed"] = pushed
        lines.append(last)
    out.product("\n".join(lines), told)
    return 0


def gather_run(
    out: Output,
    run: str,
    part: Part,
    output: Path,
    *,
    mount_path: str | None,
    wanted: IndexWanted,
) -> int:
    """Mark the shard `part` as finished, and gather where it is the last of `run`; return 0.

    Two that are last at the same time gather one after the other, and the second finds it done.
    """
    this = Run(output, run, part.of)
    this.finish(part)
    if waiting := this.waits_for():
        return _not_last(out, part, waiting)
    with this.alone():
        made_of = this.made_of()
        done = this.gathered()
        if done and (done.shards, done.repository) == (made_of, wanted.repository):
            out.say(f"the run {run} is gathered already: {wanted.tag} is {done.index}")
            return _nothing_made(out, ())
        try:
            gather(out, this.shards, output, mount_path, wanted)
        except (InputError, IntegrityError):
            # Another pod of a shard may have begun it again; then that one is the last.
            if waiting := this.waits_for(patience=0):
                return _not_last(out, part, waiting)
            raise
        index = read_index(output / INDEX).manifests[0].digest
        this.done(Gathering(shards=made_of, index=index, repository=wanted.repository))
    return 0


def _not_last(out: Output, part: Part, waiting: Sequence[str]) -> int:
    out.say(f"shard {part} is finished; not yet: {', '.join(waiting)}")
    return _nothing_made(out, waiting)


def _nothing_made(out: Output, waiting: Sequence[str]) -> int:
    if out.as_json:
        out.product("", {"images": [], "waiting": waiting})
    return 0
