"""Checksums of files."""

from emmental.utils.files import digest


def test_every_block_of_a_file_counts_in_its_digest(tmp_path):
    """It is read in blocks of 16 MiB: here one and a byte more."""
    size, found = (1 << 24) + 1, []
    for changed in (None, 0, size - 1):
        path = tmp_path / str(changed)
        with path.open("wb") as file:
            file.truncate(size)
            if changed is not None:
                file.seek(changed)
                file.write(b"x")
        found.append(digest(path))
    assert {length for length, _ in found} == {size} and len({checksum for _, checksum in found}) == 3
