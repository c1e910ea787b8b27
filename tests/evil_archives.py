"Archives of metadata that try to write where they should not, for tests of whatever unpacks or reads them."

import io
import tarfile

KINDS = (
    "absolute",
    "parent",
    "deep parent",
    "symbolic link",
    "hard link",
    "link to a folder",
    "device",
    "fifo",
    "windows parent",
)


def evil_archive(
    path,  # where to write it; .tar.xz, .tar.gz or .tar by its ending
    kind,  # one of KINDS
    outside,  # a path that must not be touched
    good=b"",  # content of metadata/2017000000000000, an honest member that comes last
):
    "An archive with one evil member, named or linked to `outside`, and one honest."
    mode = {".xz": "w:xz", ".gz": "w:gz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:

        def add(name, data=b"evil\n", **fields):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))

        if kind == "absolute":
            add(str(outside))
        elif kind == "parent":
            add(f"../{outside.name}")
        elif kind == "deep parent":
            add(f"metadata/../../../{outside.name}")
        elif kind == "windows parent":
            add(f"..\\{outside.name}")
        elif kind == "symbolic link":
            add("metadata/2017000000000001", b"", type=tarfile.SYMTYPE, linkname=str(outside))
        elif kind == "hard link":
            add("metadata/2017000000000001", b"", type=tarfile.LNKTYPE, linkname=str(outside))
        elif kind == "link to a folder":
            add("metadata/sub", b"", type=tarfile.SYMTYPE, linkname=str(outside.parent))
            add(f"metadata/sub/{outside.name}")
        elif kind == "device":
            add("metadata/2017000000000001", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        elif kind == "fifo":
            add("metadata/2017000000000001", b"", type=tarfile.FIFOTYPE)
        else:
            raise ValueError(f"There is no kind {kind!r}; choose from {', '.join(KINDS)}.")
        add("metadata/2017000000000000", good)
    return path
