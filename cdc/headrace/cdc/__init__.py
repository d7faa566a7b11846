"""The connector: from bytes on a wire to a durable, ordered log.

Follow one record by opening, in this order: ``sources/`` (how it was read), ``decode/`` (how its bytes became values),
``process/normalise.py`` (how a row became a customer event), ``capture.py`` (who drives it), ``log/`` (where it became
durable). ``app.py`` is the one composition root.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
