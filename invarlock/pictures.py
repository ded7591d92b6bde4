"""Pictures of records: kept beside their windows, read within limits, turned into model inputs.

``windows.json`` names a picture by the SHA-256 of its bytes, and the files of the baseline's
processor by theirs. All of them lie in one folder beside it, ``NAME.pictures`` for ``NAME.json``,
each under its digest. So baseline and subjects see the same pixels and the same tokens, whatever
processor a subject brings, as they see the tokens of the baseline's tokenizer.
"""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError
from invarlock.files import digest_json, read_bytes, sha256_bytes, write_bytes
from invarlock.library_log import quiet
from invarlock.loading_faults import library
from invarlock.shipped_files import SHIPPED, kind_of, shipped_files

if TYPE_CHECKING:
    import torch

    from invarlock.documents.fields import File
    from invarlock.documents.windows import PicturedRecord

MAX_PICTURE_BYTES = 32 << 20  # of a file
MAX_PIXELS = 64 << 20  # of a picture as it is decoded, which takes three bytes each
MAX_PROCESSOR_BYTES = 256 << 20  # of one file of a processor; a tokenizer may have 30 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # decoders that a file may ask for
# What the library reads of a folder to make a processor.
NAMES = ("config.json", "tokenizer.json")
KINDS = ("chat_template", "tokenizer_config", "special_tokens", "tokenizer_files",
         "processor_config")  # fmt: skip
KEPT = 8  # pictures whose inputs are held: the choices of one record follow each other


def folder_of(windows: Path) -> Path:
    """The folder of the pictures of a ``windows.json``."""
    return windows.with_suffix(".pictures")


def require_reader() -> None:
    """Refuse to go on without the library that reads pictures.

    Raises:
        InputError: it is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError(
            "pictures cannot be read: the package pillow is not installed",
            hint="pip install 'invarlock[vision]', or pip install pillow",
        ) from error


def decoded(data: bytes, where: str) -> Any:
    """The picture in ``data``, upright and in RGB.

    Raises:
        InputError: no picture of :data:`FORMATS`, a damaged one, or one of too many pixels.
    """
    require_reader()
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise InputError(
                    "a picture of too many pixels", where=where,
                    expected=f"at most {MAX_PIXELS}", found=f"{width} x {height}",
                )  # fmt: skip
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(
            "not a picture", where=where, expected=", ".join(FORMATS), found=f"{len(data)} bytes"
        ) from error
    # what decoders raise on bytes that are not what they say
    except (OSError, ValueError, SyntaxError, EOFError, struct.error,
            Image.DecompressionBombError) as error:  # fmt: skip
        raise InputError(f"the picture cannot be read: {error}", where=where) from error


def read_picture(path: Path, where: str) -> bytes:
    """The bytes of a picture's file.

    Raises:
        InputError: it is missing, or too large.
    """
    try:
        return read_bytes(path, MAX_PICTURE_BYTES)
    except InputError as error:
        raise InputError(
            f"the picture: {error.what}", where=f"{where}: {error.where}",
            expected=error.expected, found=error.found, hint=error.hint,
        ) from error  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the processor makes of a picture and the prompt around it."""

    tokens: tuple[int, ...]
    by_token: Mapping[str, tuple[int, ...]]  # other inputs that have a number for each token
    arrays: Mapping[str, torch.Tensor]  # the picture's own, in a batch of one

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the arrays; pictures of the same shapes can share a batch."""
        return tuple((name, tuple(array.shape)) for name, array in sorted(self.arrays.items()))


class Processor:
    """The processor of a model folder: the image processor and the tokenizer it works with."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            InputError: the folder has none, the library does not load it, or pillow is missing.
        """
        self.folder = folder
        shipped = shipped_files(folder)
        if not any(kind_of(name) == "processor_config" for name in shipped):
            raise InputError(
                "the model has no processor, so that no picture can be put into a prompt",
                where=str(folder), expected=" or ".join(SHIPPED["processor_config"][:2]),
                hint="copy these files from the model's repository into the folder",
            )  # fmt: skip
        require_reader()
        from transformers import AutoProcessor

        quiet()
        with library(folder):
            load: Any = AutoProcessor
            self._processor: Any = load.from_pretrained(folder, local_files_only=True)
        for part in ("image_processor", "tokenizer"):
            if getattr(self._processor, part, None) is None:
                raise InputError(
                    f"the model's processor has no {part.replace('_', ' ')}", where=str(folder)
                )

    def files(self) -> dict[str, bytes]:
        """The files that it was made of, by name."""
        paths = {n: p for n, p in shipped_files(self.folder).items() if kind_of(n) in KINDS}
        paths |= {n: self.folder / n for n in NAMES if (self.folder / n).is_file()}
        return {name: read_bytes(path, MAX_PROCESSOR_BYTES) for name, path in paths.items()}

    def text(self, prompt: str, where: str) -> str:
        """The prompt as the model is asked it, with the mark where the picture goes.

        By the model's chat template where it has one, since only that says what stands around a
        picture; else the mark before the prompt.

        Raises:
            InputError: the prompt spells that mark, or the template fails.
        """
        mark = getattr(self._processor, "image_token", None) or ""
        if mark and mark in prompt:
            raise InputError(
                "the prompt spells the mark of a picture", where=where, found=str(mark),
                hint="leave it out: the picture of the record stands before the prompt",
            )  # fmt: skip
        if not getattr(self._processor, "chat_template", None):
            return f"{mark}{prompt}"
        asked = [{"type": "image"}, {"type": "text", "text": prompt}]
        with library(self.folder):
            found: str = self._processor.apply_chat_template(
                [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
            )
        return found

    def __call__(self, text: str, data: bytes, where: str) -> Seen:
        """The inputs of the model for one picture and the text around its mark.

        Raises:
            InputError: the picture cannot be read, or the library cannot put both together.
        """
        import torch

        picture = decoded(data, where)
        with library(self.folder):
            found = self._processor(
                text=text, images=[picture], return_tensors="pt", add_special_tokens=False
            )
        tokens = found.pop("input_ids")
        found.pop("attention_mask", None)  # of one text, all ones
        arrays = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        per_token = {
            name: tuple(map(int, arrays.pop(name)[0].tolist()))
            for name, value in tuple(arrays.items())
            if value.shape == tokens.shape and not value.is_floating_point()
        }
        return Seen(tuple(tokens[0].tolist()), per_token, arrays)


def keep(windows: Path, pictures: Iterable[bytes], files: Mapping[str, bytes]) -> None:
    """Write pictures and the processor's files beside ``windows``, each under its digest."""
    for data in (*pictures, *files.values()):
        write_bytes(folder_of(windows) / sha256_bytes(data), data)


def processor_digest(files: Mapping[str, File]) -> str:
    """One digest of the files of a processor, for reports."""
    return digest_json({name: file.sha256 for name, file in files.items()})


@dataclass(frozen=True)
class Pictures:
    """The pictures and the processor that are kept beside a ``windows.json``."""

    folder: Path
    files: Mapping[str, File]  # of the processor
    _held: dict[tuple[str, str], Seen] = field(default_factory=dict)

    def seen(self, record: PicturedRecord) -> Seen:
        """What the model is shown of a record.

        Raises:
            InputError: the picture or the processor is not there as it was kept, or the processor
                makes other tokens of it.
        """
        key = (record.image, record.text)
        if key not in self._held:
            where = str(self.folder / record.image)
            found = self._processor(record.text, self._data(record.image), where)
            if found.tokens != record.prompt[len(record.prompt) - len(found.tokens) :]:
                raise InputError(
                    "the processor makes other tokens of the record than windows.json has",
                    where=where, found=f"{len(found.tokens)} tokens of record {record.record}",
                    hint="cut the windows again with this version of the library",
                )  # fmt: skip
            while len(self._held) >= KEPT:
                del self._held[next(iter(self._held))]
            self._held[key] = found
        return self._held[key]

    @functools.cached_property
    def _processor(self) -> Processor:
        with tempfile.TemporaryDirectory() as place:
            for name, file in self.files.items():
                path = Path(place, name)
                if not path.resolve().is_relative_to(Path(place).resolve()):
                    raise InputError(
                        "a file of the processor lies outside of its folder",
                        where=str(self.folder), found=name[:120],
                    )  # fmt: skip
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._data(file.sha256, MAX_PROCESSOR_BYTES))
            return Processor(Path(place))

    def _data(self, sha256: str, most: int = MAX_PICTURE_BYTES) -> bytes:
        path = self.folder / sha256
        if not path.is_file():
            raise InputError(
                "a file of the windows' pictures is missing", where=str(path),
                hint="keep that folder beside windows.json, or cut the windows again",
            )  # fmt: skip
        data = read_bytes(path, most)
        if sha256_bytes(data) != sha256:
            raise InputError(
                "a file of the windows' pictures is not what its name says", where=str(path),
                hint="cut the windows again",
            )  # fmt: skip
        return data
