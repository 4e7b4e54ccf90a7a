"""Gets an archive, and prints what is in it.

python gets_data.py URL SHA256 FOLDER
"""

import sys
from pathlib import Path

from minilearn.data import untar_data

if __name__ == "__main__":
    folder = untar_data(sys.argv[1], path=Path(sys.argv[3]), sha256=sys.argv[2])
    print(Path(folder, "row.txt").read_text())
