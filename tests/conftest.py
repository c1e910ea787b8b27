"""What every test gets."""

import os
import tempfile

# `datasets` keeps copies of what it reads: not in the user's home.
# The variable is read when it is imported, so no fixture can set it.
_folder = tempfile.TemporaryDirectory(prefix="mmgen-datasets-")
os.environ["HF_DATASETS_CACHE"] = _folder.name
