"""`yopo verify`: is a converted model still what was written, and does it compute what its plan says?"""

from typing import Annotated

import typer

from converters.loading import Dtype, locate

from ..ui.options import Device, DtypeOption, Json
from ..ui.terminal import FAILED, show_json, show_table


def verify(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A converted model.")],
    device: Device = None,
    dtype: DtypeOption = Dtype.AUTO,
    as_json: Json = False,
) -> None:
    """Check a converted model: file hashes, the plan against the tensors, the runtime against the masked reference."""
    source = locate(model)
    from converters.evaluation.verification import checks

    done = list(checks(source.path, device, dtype))
    passed = all(check.passed for check in done)
    if as_json:
        results = [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in done]
        show_json({"model": model, "passed": passed, "checks": results})
    else:
        show_table(
            ("check", "result", "detail"), [(check.name, "ok" if check.passed else "FAILED", check.detail) for check in done], numbers=False
        )
    if not passed:
        raise typer.Exit(FAILED)
