"""The file of PREWARM_RECORD."""

import pytest

from prewarm.core.errors import HostError, InputError
from prewarm.serve.recording import Built, Ready, Recording, Tuned, read_recording

EVENTS = (
    Tuned(pid=1, rank=0, phase="start-up", kernel="m:k", key={"H": 4}, by_size=False),
    Ready(pid=1, rank=0),
    Built(pid=2, rank=1, phase="inference", module="cuda_utils", seconds=0.5),
)


def test_what_several_processes_wrote_is_read_in_order(tmp_path):
    path = tmp_path / "record"
    one, other = Recording(path, new=True), Recording(path, new=False)
    for event, recording in zip(EVENTS, (one, one, other), strict=True):
        recording.write(event)

    assert read_recording(path) == EVENTS


def test_the_first_process_of_a_start_begins_anew(tmp_path):
    path = tmp_path / "record"
    Recording(path, new=True).write(EVENTS[0])
    Recording(path, new=True).write(EVENTS[1])

    assert read_recording(path) == EVENTS[1:2]


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "record"
    Recording(path, new=True).write(EVENTS[0])
    with path.open("ab") as stream:
        stream.write(b'{"event":"rea')

    assert read_recording(path) == EVENTS[:1]


def test_anything_else_is_refused_with_its_line(tmp_path):
    path = tmp_path / "record"
    Recording(path, new=True).write(EVENTS[0])
    with path.open("ab") as stream:
        stream.write(b'{"event":"birthday"}\n')

    with pytest.raises(InputError, match="record, line 2: Invalid value 'birthday'"):
        read_recording(path)
    with pytest.raises(InputError, match="cannot read the recording"):
        read_recording(tmp_path)
    with pytest.raises(HostError, match="cannot write"):
        Recording(tmp_path, new=True)
