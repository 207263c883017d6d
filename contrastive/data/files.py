"""Which image files a folder holds, and what their classes are."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class ImageTree:
    """The image files below a folder.

    Attributes:
        root: The folder.
        files: Paths relative to the folder, with forward slashes, sorted.
        labels: Each file's class, as its place in ``classes``; None where there are no classes.
        classes: Names of the classes, sorted; None where there are none.
        ignored: How many files have which other extension ("" for none).
    """

    root: Path
    files: list[str]
    labels: list[int] | None
    classes: list[str] | None
    ignored: Counter[str]


def list_images(root: str | os.PathLike[str], *, labelled: bool | None = None) -> ImageTree:
    """List the image files below a folder; the same list on every machine that holds the same files.

    A file is an image by its extension, whatever it is: also a pipe or a link to nowhere is listed, and later found to
    be bad. Files and folders whose name begins with a dot are ignored, symbolic links are followed, and no real folder
    is visited twice. If all images lie in at least two folders directly below the root, these are the classes;
    otherwise there are no classes.

    Args:
        root: The folder.
        labelled: True demands classes (one will do), False takes the images without classes, None decides as above.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: The path is a file.
        OSError: A folder below it cannot be listed, or a link that may be one leads nowhere.
        ValueError: No images, or ``labelled=True`` while images lie directly in the folder.
    """
    folder = existing_folder(root)
    files, ignored = [], Counter[str]()
    for file in _walk(folder):
        extension = os.path.splitext(file)[1].lower()
        if extension in EXTENSIONS:
            files.append(file)
        else:
            ignored[extension] += 1
    files.sort()
    if not files:
        others = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in ignored.most_common(5))
        raise ValueError(
            f"No images in {folder}: {'its files are ' + others if others else 'it holds no files at all'}. "
            f"Images are files that end in {', '.join(sorted(EXTENSIONS))}; hidden files and folders are not looked at."
        )
    unsorted = next((file for file in files if "/" not in file), None)
    if labelled and unsorted is not None:
        raise ValueError(
            f"labelled=True, but images lie directly in {folder}, outside of any class folder, for example {unsorted}. "
            "Move each into its class's folder, or set labelled=False."
        )
    folders = [] if unsorted is not None else sorted({file.split("/", 1)[0] for file in files})
    if labelled is False or len(folders) < (1 if labelled else 2):
        return ImageTree(folder, files, None, None, ignored)
    number = {name: label for label, name in enumerate(folders)}
    return ImageTree(folder, files, [number[file.split("/", 1)[0]] for file in files], folders, ignored)


def existing_folder(root: str | os.PathLike[str]) -> Path:
    """The folder, if it is one.

    Raises:
        FileNotFoundError: There is no such folder.
        NotADirectoryError: The path is a file.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(
            f"{folder} is a file, where a folder of images is wanted. Unpack it if it is an archive."
        )
    parent = next(above for above in folder.absolute().parents if above.is_dir())
    missing = folder.absolute().relative_to(parent).parts[0]
    siblings = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())
    likely = get_close_matches(missing, siblings, n=1)
    meant = f" Did you mean {parent / likely[0]}?" if likely else ""
    raise FileNotFoundError(f"There is no folder {folder}: {parent} has no {missing}.{meant}")


def check_same_classes(train: list[str] | None, val: list[str] | None) -> None:
    """Validation must speak of the training classes, or its labels mean something else.

    Raises:
        ValueError: The class names differ, or only one of the two has classes.
    """
    if train == val:
        return
    if train is None or val is None:
        with_classes, without = ("training", "validation") if val is None else ("validation", "training")
        raise ValueError(
            f"The {with_classes} images have {len(train or val or [])} classes and the {without} images have none. "
            f"Sort the {without} images into the same class folders, or set labelled=False to do without classes."
        )
    unknown, missing = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    if not unknown and not missing:
        raise ValueError(
            f"The validation classes {_some(val)} are in another order than the training's {_some(train)}."
        )
    message = "The validation classes are unlike the training classes."
    if unknown:
        message += f" Only in validation: {_some([_with_likely(name, train) for name in unknown])}."
    if missing:
        message += f" Only in training: {_some(missing)}."
    raise ValueError(f"{message} Rename, add or remove class folders until both agree.")


def shown(name: str) -> str:
    """A file's name in one line that every terminal and file can take: line breaks, bytes that are no UTF-8 escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _walk(root: Path) -> Iterator[str]:
    """Paths of the files below the root, relative to it; each real folder is visited once, links after real folders."""
    visited: set[tuple[int, int]] = set()
    folders: list[str] = [""]
    links: list[str] = []  # what a link shows of this very tree is already listed under its real name
    while folders or links:
        if not folders:
            links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as opened:
                entries = [entry for entry in opened if not entry.name.startswith(".")]
        except OSError as error:
            raise OSError(
                f"The folder {shown(str(root / folder))} cannot be listed: {error.strerror}. What it holds would be "
                "missing without a word: make it readable, or take it away."
            ) from error
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            else:
                yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one. A link to nowhere is none, if its extension says that it is a file."""
    try:
        is_folder = entry.is_dir()
        if not is_folder and entry.is_symlink():
            entry.stat()
    except OSError as error:  # nothing there, a ring of links, or a place where this user may not look
        if os.path.splitext(entry.name)[1]:
            return False
        raise OSError(
            f"The link {shown(entry.path)} leads nowhere: {error.strerror}. It may have been a folder of images: mount "
            "what it leads to, repair it, or take it away."
        ) from error
    return is_folder


def _with_likely(name: str, known: list[str]) -> str:
    likely = get_close_matches(name, known, n=1)
    return f"{name} (did you mean {likely[0]}?)" if likely else name


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
