"""torch's distributed checkpoint with its safetensors storage, completed: whole or not there, and no byte changed.

`HuggingFaceStorageWriter` writes a file of safetensors for each process, and `HuggingFaceStorageReader` reads boxes of
tensors out of such files. What they leave open is done here: files are written to a temporary folder and flushed to the
end (torch 2.13 flushes a file before the last bytes have left Python's buffer), a manifest goes last, then the folder
gets its name; and the reader takes from the manifest where each piece lies, instead of opening every file in every
process. Processes of one job tell each other what they plan through the process group; no file holds a pickle.

This module imports torch's distributed checkpoint, which takes a second: import it where it is used.
"""

import dataclasses
import io
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Size, Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from minilearn.sharded_manifest import Manifest, Piece, Pieced, flushed, name_folder, write_manifest

FILE_BYTES = 256 << 20
"""After so many bytes a process begins another file: safetensors put a file together in memory, twice as large as the
file, and no other thread runs Python meanwhile."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A file that is on the disk.

    Args:
        file: its name.
        about: its size in bytes and its SHA-256.
    """

    file: str
    about: tuple[int, str]


class CopiesPlanner(DefaultSavePlanner):
    """Plans the writing of tensors of which copies were taken, so that the tensors themselves may change meanwhile.

    Args:
        tensors: plain tensors and DTensors by name, the same names in all processes. Of what several have, the first
            one's is written.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)
        self._own_plan = create_default_local_save_plan(dict(tensors), False)
        self._copies = {name: local(tensor).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Does nothing: the tensors came when the planner was made."""
        self.state_dict, self.is_coordinator = {}, is_coordinator

    def create_local_plan(self) -> SavePlan:
        """All that this process has; the coordinator takes away what others write."""
        return self._own_plan

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """What this process writes; the copies of what others write are let go of."""
        names = {item.index.fqn for item in new_plan.items}
        self._copies = {name: copy for name, copy in self._copies.items() if name in names}
        return super().finish_plan(new_plan)

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The copy, which is asked for once."""
        return self._copies.pop(write_item.index.fqn)


class FolderWriter(HuggingFaceStorageWriter):
    """Writes each process's pieces to a temporary folder, which becomes `folder` when all are done.

    Args:
        folder: must not be there; its parent must, and all processes must see it.
        values: what JSON holds; those of the coordinator are written.
        kind: what the checkpoint is.
    """

    def __init__(self, folder: Path, values: Any, kind: str) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder, self.values, self.kind = folder, values, kind
        self.part: Path | None = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is: the folder is made later, by one process."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Makes the temporary folder and tells all processes its name; in the coordinator alone."""
        if any(item.type is WriteItemType.BYTE_IO for plan in plans for item in plan.items):
            raise AssertionError("what is no tensor belongs to the values: torch would pickle it")
        self.fqn_to_index_mapping = _file_numbers(plans)
        name = self.folder.name
        self.part = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{name}.", suffix=".part"))
        self.part.chmod(0o755)
        return [
            dataclasses.replace(plan, storage_data={**plan.storage_data, "part": self.part.name})
            for plan in super().prepare_global_plan(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this process's files, to the last byte on the disk, and tells their SHA-256."""
        self.path = self.folder.parent / plan.storage_data["part"]
        results = super().write_data(plan, planner).value()
        files: dict[str, Written] = {}
        told = []
        for result in results:
            name = result.storage_data.relative_path
            if name not in files:
                files[name] = Written(name, flushed(self.path / name))
            told.append(dataclasses.replace(result, storage_data=files[name]))
        future: Future[list[WriteResult]] = Future()
        future.set_result(told)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the manifest and gives the folder its name; in the coordinator alone, after all have written."""
        assert self.part is not None
        told = [result for of_process in results for result in of_process]
        files = {r.storage_data.file: r.storage_data.about for r in told}
        places = {(r.index.fqn, r.index.offset): r.storage_data.file for r in told}
        tensors = {
            name: Pieced(
                about.properties.dtype,
                tuple(about.size),
                # An empty piece is of a process that has nothing of a short tensor.
                tuple(
                    Piece(places[name, c.offsets], (*c.offsets,), (*c.sizes,)) for c in about.chunks if c.sizes.numel()
                ),
            )
            for name, about in metadata.state_dict_metadata.items()
            if isinstance(about, TensorStorageMetadata)
        }
        write_manifest(self.part, Manifest(self.kind, self.values, files, tensors))
        name_folder(self.part, self.folder)

    def clear_away(self) -> None:
        """Removes the temporary folder, where there is one still."""
        if self.part is not None:
            shutil.rmtree(self.part, ignore_errors=True)


class PiecesReader(HuggingFaceStorageReader):
    """Reads the boxes that a process needs out of the files that have them.

    Args:
        folder: the files' folder.
        tensors: of which pieces each tensor is made.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Pieced]) -> None:
        super().__init__(str(folder))
        self._tensors = tensors

    def read_metadata(self) -> Metadata:
        """What the manifest says, in torch's words."""
        metadata = Metadata({}, storage_data={}, storage_meta=StorageMeta(load_id=self.load_id))
        for name, tensor in self._tensors.items():
            chunks = [ChunkStorageMetadata(Size(piece.offsets), Size(piece.sizes)) for piece in tensor.pieces]
            about = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), Size(tensor.shape), chunks)
            metadata.state_dict_metadata[name] = about
            for piece in tensor.pieces:
                metadata.storage_data[MetadataIndex(name, piece.offsets)] = _Place(str(Path(self.path) / piece.file))
        return metadata


class TensorsPlanner(DefaultLoadPlanner):
    """Plans the reading into tensors by flat names, and of nothing else."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Refuses what torch would unpickle; nothing of ours says that there is such a thing."""
        raise AssertionError(f"{read_item.dest_index.fqn} is no tensor")


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process: a DTensor's shard, or all of it."""
    tensor = tensor.detach()
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.resolve_conj().resolve_neg()


def _file_numbers(plans: Sequence[SavePlan]) -> dict[str, int]:
    """In which of its files, counted from 1, each process writes its piece of a tensor."""
    largest: dict[str, int] = {}
    for plan in plans:
        for item in plan.items:
            about = item.tensor_data
            if about is not None and about.chunk is not None:
                n_bytes = about.chunk.sizes.numel() * about.properties.dtype.itemsize
                largest[item.index.fqn] = max(n_bytes, largest.get(item.index.fqn, 0))
    numbers, number, filled = {}, 1, 0
    for name, n_bytes in largest.items():
        if filled and filled + n_bytes > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + n_bytes
    return numbers


@dataclasses.dataclass(frozen=True)
class _Place:
    """What torch's reader asks of a piece: its file, in full."""

    relative_path: str
