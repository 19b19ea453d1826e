"""``fs3 records``: files of records for training, made, checked and looked at."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fs3.errors import Code, Fs3Error

from .appearance import human_bytes
from .location import AddressOption, ClusterIdOption, DirOption, locate
from .quantities import size

if TYPE_CHECKING:
    from fs3.client.records.reader import RecordFile
    from fs3.client.records.storage import Storage

_VERIFY_BYTES = 32 << 20  # in one batch
_CAT_RECORDS = 64  # in one batch
_HELP = """Files of records, many samples in one: make, check, read.

\b
Example:  fs3 records pack images/ fs3:/data/images.rec
"""
commands = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)

PLACE_HELP = "A record file: a local path, or fs3:/PATH."
PlaceArgument = Annotated[str, typer.Argument(metavar="PLACE", help=PLACE_HELP, show_default=False)]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(commands, name="records")


@commands.command()
def pack(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... TARGET", help="Local paths, or fs3:/PATH.", show_default=False
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="What becomes a record: samples (files of one name, in a directory or a tar),"
            " lines, files, or pieces.  [default: what the first source's name suggests]",
            show_default=False,
        ),
    ] = "",
    record_bytes: Annotated[
        str,
        typer.Option(
            "--record", "-r", help="The length of pieces, such as 4KiB.", show_default=False
        ),
    ] = "0",
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Pack directories, tars, lines or pieces into one record file.

    \b
    Example:  fs3 records pack images/ fs3:/data/images.rec
              fs3 records pack shard-*.tar fs3:/data/train.rec
              fs3 records pack --record 4KiB fs3:/tokens.bin fs3:/data/tokens.rec
    """
    from fs3.client.records.packing import Form, form_of, header_of
    from fs3.client.records.packing import pack as pack_source
    from fs3.client.records.writer import RecordWriter

    if len(places) < 2:
        raise Fs3Error(Code.INVALID, "give at least one source, and the target")
    if form and form not in set(Form):
        raise Fs3Error(Code.INVALID, f"--as {form}: one of {', '.join(Form)} is allowed")
    length = size(record_bytes, "--record")
    *sources, target = (_at(place, directory, address, cluster_id) for place in places)
    chosen = Form(form) if form else form_of(*sources[0], length)
    header = header_of(chosen, length)
    for storage, path in sources:  # a missing one is noticed before anything is written
        if not storage.isdir(path):
            storage.size(path)
    storage, path = target
    with RecordWriter(storage.create(path), header) as writer:
        for source in sources:
            pack_source(writer, chosen, *source)
    typer.echo(f"{places[-1]}: {len(writer)} records, {human_bytes(storage.size(path))}")


@commands.command()
def verify(
    places: Annotated[
        list[str], typer.Argument(metavar="PLACE...", help=PLACE_HELP, show_default=False)
    ],
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Read all records and compare them with their checksums.

    Exit code 1 if any is damaged.

    \b
    Example:  fs3 records verify fs3:/data/images.rec
    """
    from fs3.client.records.reader import RecordFile

    bad = 0
    for place in places:
        storage, path = _at(place, directory, address, cluster_id)
        file = RecordFile(storage, path)
        damaged = _damaged(storage, file)
        bad += len(damaged)
        what = (
            f"{file.header.record_bytes} bytes each"
            if file.header.record_bytes
            else "of any length"
        )
        typer.echo(
            f"{place}: {len(file)} records ({file.header.kind.name.lower()}, {what}),"
            f" {human_bytes(file.size)}, {len(damaged)} damaged"
        )
        for number in damaged[:20]:
            typer.echo(f"  record {number} is damaged")
    raise typer.Exit(1 if bad else 0)


@commands.command()
def cat(
    place: PlaceArgument,
    numbers: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="[NUMBER...]", help="Which records; from the end if negative.  [default: all]"
        ),
    ] = None,
    part: Annotated[
        str, typer.Option("--part", "-p", help="Of samples: only this part.", show_default=False)
    ] = "",
    directory: DirOption = None,
    address: AddressOption = None,
    cluster_id: ClusterIdOption = "default",
) -> None:
    """Write records to standard output, each followed by a newline.

    Of samples, a list of parts.

    \b
    Example:  fs3 records cat fs3:/data/lines.rec 0 1 2
              fs3 records cat fs3:/data/images.rec 17 --part jpg > 17.jpg
    """
    from fs3.client.records.format import Kind
    from fs3.client.records.reader import Records

    where, name = None, None
    if place.startswith("fs3:"):
        location = locate(directory, address, cluster_id)
        where, name = ",".join(location.addresses), location.cluster_id
    records = Records(place, address=where, cluster_id=name, verify=True)
    if part and records.kind is not Kind.SAMPLE:
        raise Fs3Error(Code.INVALID, f"{place}: its records are no samples; they have no parts")
    wanted = numbers or range(len(records))
    for first in range(0, len(wanted), _CAT_RECORDS):
        some = wanted[first : first + _CAT_RECORDS]
        try:
            read = records.read(some)
        except IndexError as error:
            raise Fs3Error(Code.INVALID, f"{place}: {error}") from error
        for number, record in zip(some, read, strict=True):
            shown = _shown(records.kind is Kind.SAMPLE, record, part, place, number)
            sys.stdout.buffer.write(shown)
    sys.stdout.buffer.flush()


def _shown(
    sample: bool, record: memoryview, part: str, place: str, number: int
) -> bytes | memoryview:
    from fs3.client.records.format import decode_sample
    from fs3.client.records.packing import KEY, key_of

    if not sample:
        return bytes(record) + b"\n"
    parts = decode_sample(record)
    if part:
        if part not in parts:
            named = ", ".join(parts)
            raise Fs3Error(Code.INVALID, f"{place}: record {number} has {named}, not {part!r}")
        return parts[part]
    listed = [f"{name}: {len(content)} bytes" for name, content in parts.items() if name != KEY]
    return f"{number} {key_of(parts)}  {', '.join(listed)}\n".encode()


def _at(
    place: str, directory: DirOption, address: AddressOption, cluster_id: str
) -> tuple[Storage, str]:
    from fs3.client.records.storage import locate as locate_storage

    if not place.startswith("fs3:"):
        return locate_storage(place)
    location = locate(directory, address, cluster_id)
    return locate_storage(place, ",".join(location.addresses), location.cluster_id)


def _damaged(storage: Storage, file: RecordFile) -> list[int]:
    """Numbers of the records whose bytes and checksum disagree, or that cannot be read."""
    from fs3.client.records.reader import fresh

    starts = file.index()[0].tolist()
    damaged, first = [], 0
    while first < len(file):
        last = first + 1
        while last < len(file) and starts[last + 1] - starts[first] <= _VERIFY_BYTES:
            last += 1
        memory = fresh(starts[last] - starts[first])
        storage.read([(file.path, starts[first], memory)])
        for number in range(first, last):
            begin = starts[number] - starts[first]
            try:
                file.check(number, memory[begin : begin + starts[number + 1] - starts[number]])
            except Fs3Error:
                damaged.append(number)
        first = last
    return damaged
