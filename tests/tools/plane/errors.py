"""What can go wrong with a test cluster. Messages say what to do, and show the end of the guilty log."""


class PlaneError(Exception):
    """A cluster cannot be built, started, reached or changed."""


class KubectlError(PlaneError):
    """kubectl answered with an error.

    Args:
        arguments: what kubectl was called with.
        code: its exit status.
        stderr: what it wrote to stderr, which is the API server's sentence in most cases.
    """

    def __init__(self, arguments: tuple[str, ...], code: int, stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: exit status {code}\n{stderr.strip()}")
        self.arguments = arguments
        self.code = code
        self.stderr = stderr
