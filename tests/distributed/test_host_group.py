"""What a process does alone may take longer than a collective of tensors."""

from support.forked_processes import read_found, run_ranks


def test_the_others_wait_for_work_of_the_main_process_longer_than_for_a_collective(tmp_path):
    run_ranks(2, "support.checkpoint_ranks", "wait", tmp_path)
    main, other = read_found(2, tmp_path)
    assert other["waited"] > 1.9 and other["said"] == main["said"] == "written"
    assert "imed out" in other["failed"]
