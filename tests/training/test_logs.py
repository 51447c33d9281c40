"""What TensorBoard shows: every value at its step, where a run goes on, and the picture of what remains."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog

from emmental.pruning.counting import Count, heat_map
from emmental.training.logs import Log


def events(folder: Path) -> list[Event]:
    """As TensorBoard reads them: a length and its checksum, an event and its checksum, and so on."""
    (file,) = (folder / "tensorboard").iterdir()
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_every_value_is_at_its_step(tmp_path):
    log = Log(tmp_path)
    for step in (5, 10):
        log.scalars(step, {"loss/task": 0.5 * step, "threshold": 1.0})
    log.close()
    found = [(event.step, value.tag, value.simple_value) for event in events(tmp_path) for value in event.summary.value]
    assert found == [(5, "loss/task", 2.5), (5, "threshold", 1.0), (10, "loss/task", 5.0), (10, "threshold", 1.0)]


def test_a_run_that_goes_on_hides_what_was_beyond(tmp_path):
    Log(tmp_path, step=7).close()
    assert [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START] == [8]


def test_tensorboard_holds_the_picture(tmp_path):
    log = Log(tmp_path)
    matrices = {f"bert.encoder.layer.{layer}.output.dense": (100 * layer, 1000) for layer in range(2)}
    log.figure(7, "remaining", lambda: heat_map(Count(matrices, unmasked=10)))
    log.close()
    (picture,) = [(event.step, value) for event in events(tmp_path) for value in event.summary.value]
    assert picture[0] == 7 and picture[1].tag == "remaining" and picture[1].image.width > 300
    assert picture[1].image.encoded_image_string.startswith(b"\x89PNG")
