"""`yopo verify`: is a converted model still what was written, and does it compute what its plan says?"""

from typing import Annotated

import typer

from converters.loading import Dtype

from ..ui.options import Device, DeviceMapOption, DtypeOption, Json
from ..ui.terminal import FAILED, show_json, show_table

COLUMNS = ("check", "result", "detail")


def verify(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A converted model.")],
    device: Device = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Json = False,
) -> None:
    """Check a converted model: file hashes, the plan against the tensors, the runtime against the masked reference."""
    from converters.api import verify

    found = verify(model, device=device, dtype=dtype, device_map=device_map)
    if as_json:
        show_json(found.to_json())
    else:
        show_table(COLUMNS, [(one.name, "ok" if one.passed else "FAILED", one.detail) for one in found.checks], numbers=False)
    if not found.passed:
        raise typer.Exit(FAILED)
