"""Where the threads of a process are, written down by one of them."""

import threading
import time

from distgrad.testing.stacks import HEADER, Stacks, report


def sit_here(started, over):
    started.set()
    over.wait()


def test_every_other_thread_is_shown_with_its_calls():
    started, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=sit_here, args=(started, over), name="sitting")
    thread.start()
    started.wait()
    text = report()
    over.set()
    thread.join()
    assert text.startswith(HEADER)
    assert "Thread sitting (most recent call first):" in text
    assert "in sit_here" in text
    assert "in report" not in text


def test_stacks_are_written_from_the_start_to_the_stop(tmp_path):
    path = tmp_path / "stacks"
    with path.open("w") as file:
        stacks = Stacks(file, 0.02, 60.0)
        stacks.start()
        deadline = time.monotonic() + 20
        while path.read_text().count(HEADER) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        stacks.stop()
        time.sleep(0.1)
        written = path.read_text()
        time.sleep(0.1)
        assert path.read_text() == written
    assert written.count(HEADER) >= 2
    assert "test_stacks_are_written_from_the_start_to_the_stop" in written
