"""Native operators of s4d: one kernel core behind several doors.

The doors are modules, imported one by one so that none pulls in the runtime of another:

- ``s4d_ops.torch``      the op on the torch dispatcher (CPU, CUDA), with gradients
- ``s4d_ops.reference``  the same formula in plain PyTorch
- ``s4d_ops.numpy``      the op on numpy arrays
- ``s4d_ops.image``      resize and crop of camera images
- ``library_path``       the libraries for ONNX Runtime and TensorRT

Importing ``s4d_ops`` itself imports neither torch nor numpy.
"""

from ._libraries import library_path
from ._version import __version__
from .errors import InvalidInputError, MissingLibraryError, S4DError

__all__ = [
    "InvalidInputError",
    "MissingLibraryError",
    "S4DError",
    "__version__",
    "library_path",
]
