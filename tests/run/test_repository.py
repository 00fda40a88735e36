"""The commit of the folder that one works in is read without a program that its repository names."""

import os
import subprocess
from pathlib import Path

import pytest

from zoo.run.repository import read_commit


def git(folder: Path, *words: str) -> str:
    named = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", *named, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/a.txt").write_text("one\n")
    (tmp_path / "repo/.gitattributes").write_text("*.txt filter=evil diff=evil merge=evil\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(tmp_path / "repo", *words)
    return tmp_path / "repo"


def plant_canaries(repository: Path, canary: Path) -> None:
    """Name a program in every place of a repository's config where git runs one."""
    program = repository.parent / "program"
    program.write_text(f"#!/bin/sh\necho run by $0 >> {canary}\ncat\n")
    program.chmod(0o755)
    included = repository.parent / "included"
    included.write_text(f"[core]\n\tfsmonitor = {program}\n")
    config = repository / ".git/config"
    config.write_text(
        config.read_text()
        + f"[core]\n\tfsmonitor = {program}\n\thooksPath = {repository.parent}\n\tpager = {program}\n"
        + f"\tsshCommand = {program}\n\teditor = {program}\n\tautocrlf = input\n\tattributesFile = {program}\n"
        + f'[filter "evil"]\n\tclean = {program}\n\tsmudge = {program}\n\tprocess = {program}\n\trequired = true\n'
        + f'[diff]\n\texternal = {program}\n[diff "evil"]\n\tcommand = {program}\n\ttextconv = {program}\n'
        + f"[include]\n\tpath = {included}\n[alias]\n\tstatus = !{program}\n\trev-parse = !{program}\n"
        + f'[submodule "sub"]\n\tupdate = !{program}\n\tignore = none\n'
    )
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit", "reference-transaction"):
        (repository / ".git/hooks").mkdir(exist_ok=True)
        for place in (repository / ".git/hooks" / hook, repository.parent / hook):
            place.write_text(program.read_text())
            place.chmod(0o755)


def test_the_commit_and_its_changes_are_read_without_a_program_of_the_repositorys_config(repository, tmp_path):
    commit, canary = git(repository, "rev-parse", "HEAD"), tmp_path / "canary"
    plant_canaries(repository, canary)
    (repository / "runs/deep").mkdir(parents=True)
    assert read_commit(repository / "runs/deep") == commit
    os.utime(repository / "a.txt", (1, 1))  # git compares the contents, which a filter would see
    assert read_commit(repository) == commit
    (repository / "a.txt").write_text("two\n")
    assert read_commit(repository) == f"{commit}+changes"
    assert not canary.exists()
    subprocess.run(["git", "status"], cwd=repository, capture_output=True)
    assert canary.exists()  # git itself runs them


def test_linked_working_trees_packed_references_and_submodules_have_their_commit(repository, tmp_path):
    commit, canary = git(repository, "rev-parse", "HEAD"), tmp_path / "canary"
    git(repository, "worktree", "add", "-q", str(tmp_path / "linked"), "-b", "other")
    git(repository, "pack-refs", "--all")
    git(repository, "submodule", "add", "-q", f"file://{repository}", "sub")
    git(repository, "commit", "-qm", "with a submodule")
    second = git(repository, "rev-parse", "HEAD")
    plant_canaries(repository, canary)
    inner = repository / ".git/modules/sub/config"
    inner.write_text(inner.read_text() + f"[core]\n\tfsmonitor = {tmp_path / 'program'}\n")
    assert [read_commit(each) for each in (repository, tmp_path / "linked", repository / "sub")] == [
        second,
        commit,
        commit,
    ]
    (tmp_path / "linked/a.txt").write_text("two\n")
    (repository / "sub/a.txt").write_text("two\n")
    assert read_commit(tmp_path / "linked") == f"{commit}+changes"
    assert read_commit(repository / "sub") == f"{commit}+changes"
    assert read_commit(repository) == second  # a submodule's changes are its own
    assert not canary.exists()


@pytest.mark.parametrize("head", ["ref: ../../outside\n", "ref: refs/../../../outside\n", "nonsense", "\x00\xff", ""])
def test_a_head_that_names_no_reference_is_no_commit(repository, head):
    (repository.parent / "outside").write_text("a" * 40)
    (repository / ".git/HEAD").write_text(head)
    assert read_commit(repository) is None
