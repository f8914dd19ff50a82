"""Every exception muladd raises on purpose, as one tree.

    MuladdError
    ├── ShapeError      (ValueError)    sizes or axes do not fit
    ├── DTypeError      (TypeError)     an element type does not fit
    ├── ArgumentError   (ValueError)    an argument is not of the kind, or in the range, expected
    ├── IndexingError   (IndexError)    an index is outside its axis
    ├── GradientError   (RuntimeError)  a derivative does not exist or would be wrong
    ├── TraceError      (RuntimeError)  a function cannot run on stand-ins: it asks for a value, say
    ├── GraphError      (ValueError)    a graph breaks a rule of the language
    ├── ScheduleError   (ValueError)    a directive cannot be applied to this kernel
    ├── BoundsError     (AssertionError) an access could not be proven in bounds
    ├── DeviceError     (RuntimeError)  a device is missing, failed, or lacks a capability
    │   └── OutOfMemory (MemoryError)   a device has no room for an allocation
    └── FormatError     (ValueError)    a file or byte string is damaged or not what it claims

Each message names who raised it, what was given, what was expected and what to do.
"""


class MuladdError(Exception):
    """The root of the tree: `except MuladdError` catches all that muladd raises on purpose."""


class ShapeError(MuladdError, ValueError):
    """Sizes or axes do not fit together."""


class DTypeError(MuladdError, TypeError):
    """An element type does not fit the operation or the device."""


class ArgumentError(MuladdError, ValueError):
    """An argument is not of the kind that is expected, or not in its range."""


class IndexingError(MuladdError, IndexError):
    """An index lies outside its axis, or has a form that is not supported."""


class GradientError(MuladdError, RuntimeError):
    """A derivative does not exist, or would be wrong."""


class TraceError(MuladdError, RuntimeError):
    """A function cannot run on stand-ins: it asks for a value, or does what no replay would."""


class GraphError(MuladdError, ValueError):
    """A graph breaks a rule of the language."""


class ScheduleError(MuladdError, ValueError):
    """A directive cannot be parsed, or cannot be applied to this kernel."""


class BoundsError(MuladdError, AssertionError):
    """A load or store could not be proven to stay inside its buffer."""


class DeviceError(MuladdError, RuntimeError):
    """A device is missing, failed, or lacks a capability."""


class OutOfMemory(DeviceError, MemoryError):
    """A device has no room for an allocation; what was alive before is still alive."""


class FormatError(MuladdError, ValueError):
    """A file or a byte string is damaged, or is not what it claims to be."""
