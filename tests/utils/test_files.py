"""Checksums of files."""

from emmental.utils.files import digest


def test_every_block_of_a_file_counts_in_its_digest(tmp_path):
    """Two blocks, of which the last is the same."""
    found = []
    for first in (b"a", b"b"):
        path = tmp_path / first.decode()
        path.write_bytes(first + bytes(1 << 24))
        found.append(digest(path))
    assert found[0][0] == found[1][0] == (1 << 24) + 1 and found[0][1] != found[1][1]
