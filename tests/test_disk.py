"""Files and folders are replaced whole, and locked: what a draft, a link, a pipe and a second process meet."""

import errno
import os
import stat
import sys

import pytest

from zoo import disk


def test_two_folders_exchange_their_names_in_one_call(tmp_path):
    for each in ("one", "other"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "file").write_text(each)
    swapped = disk.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one/file").read_text() == ("other" if swapped else "one")
    assert (tmp_path / "other/file").read_text() == ("one" if swapped else "other")
    if sys.platform == "linux":
        with pytest.raises(FileNotFoundError):
            disk.exchange(tmp_path / "one", tmp_path / "none")


def test_a_draft_that_another_process_is_writing_stays_and_that_of_a_killed_one_goes(tmp_path):
    with disk.replace_file(tmp_path / "a[1].txt") as draft:
        draft.write_text("first")
        disk.write_text(tmp_path / "a[1].txt", "second")
        assert draft.read_text() == "first"
    assert (tmp_path / "a[1].txt").read_text() == "first"
    draft.write_text("of a killed process")
    with disk.replace_folder(tmp_path / "folder") as inner, disk.replace_folder(tmp_path / "folder"):
        assert inner.is_dir()
    (tmp_path / ".folder.old").mkdir()  # the user's own
    disk.write_text(tmp_path / "a[1].txt", "third")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".folder.old", "a[1].txt", "folder"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_what_a_link_names_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/file").write_text("old")
    (tmp_path / "folder").symlink_to(tmp_path / "disk")
    (tmp_path / "file").symlink_to(tmp_path / "text")
    with disk.replace_folder(tmp_path / "folder") as draft:
        (draft / "file").write_text("new")
    disk.write_text(tmp_path / "file", "new")
    assert (tmp_path / "disk/file").read_text() == (tmp_path / "text").read_text() == "new"
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "file").is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "file", "folder", "text"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with a name")
def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    disk.write_text(tmp_path / "pipe", "text")
    assert os.read(reading, 100) == b"text"
    os.close(reading)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"] and not (tmp_path / "pipe").is_file()


@pytest.mark.skipif(os.name == "nt", reason="locks by another call")
def test_a_file_is_locked_as_nfs_demands_it_with_a_handle_that_may_write(tmp_path, monkeypatch):
    import fcntl

    real = fcntl.flock

    def lock(handle, how):
        """As `man 2 flock` has it of NFS, where a lock is one of bytes: none on a file that is open for reading."""
        writes = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if not writes and not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    with disk.replace_file(tmp_path / "file") as draft:
        disk.write_text(tmp_path / "file", "second")
        assert draft.exists()  # it was found locked, not free
        draft.write_text("first")
    assert (tmp_path / "file").read_text() == "first"
    with (tmp_path / "file").open() as file:
        assert disk.try_lock(file.fileno()) is None
